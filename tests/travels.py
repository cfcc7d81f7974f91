"""Snapshots that travel from root to root, for tests."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from forge import Bundle
from roots import inside, on_disk

from engine import Engine, JobSpec
from engine.model import Snapshot


def exported(engine: Engine, snapshot: str, *, with_base: bool = False) -> bytes:
    stream = io.BytesIO()
    engine.snapshot_export(snapshot, stream, with_base=with_base)
    return stream.getvalue()


def imported(engine: Engine, stream: bytes | Bundle, *, trust: bool = False) -> Snapshot:
    data = stream if isinstance(stream, bytes) else stream.stream()
    return engine.snapshot_import(io.BytesIO(data), trust=trust)


def paused(engine: Engine, script: str = "true", *, spec: JobSpec | None = None) -> str:
    """A snapshot of a job's files."""
    job = engine.run(spec or JobSpec(base="small"))
    inside(engine, job.id, script)
    return engine.pause(job.id, mode="filesystem").snapshot


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def state(engine: Engine) -> object:
    """All that a root and the host have of it, but for the bytes of the catalog."""
    rows = engine.jobs(ended=True), engine.snapshots(), engine.bases(), engine._root.catalog.layers()
    return on_disk(engine.config.root), rows, sorted(leftovers.mounts())


@contextlib.contextmanager
def refused(
    engine: Engine, error: type[Exception], match: str = "", case: str = ""
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block fails so, and the root is as it was before, with nothing mounted. ``case``: for whoever reads it."""
    before = state(engine)
    with pytest.raises(error) as found:
        yield found
    said = str(found.value)
    assert re.search(match, said), (case, said)
    assert "\n" not in said, (case, said)
    assert state(engine) == before, (case, said)
