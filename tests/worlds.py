"""A root with one of everything, and what a check says of a root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from roots import shell

from engine import Engine
from engine.model import Check


@pytest.fixture
def world(engine: Engine) -> Engine:
    """A root with one of everything: jobs that run, are frozen, paused in both modes and ended; chains, forks, images,
    pins, names."""
    counting = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done"
    for name in ("runs", "frozen", "files", "lives", "stacked", "imaged"):
        engine.run(shell(counting, name=name, env={"NAME": name}))
    engine.run(shell("exit 3", name="ended"))
    engine.wait("ended")
    engine.freeze("frozen")
    engine.pause("files", mode="filesystem", state={"ticket": 1}, labels={"k": "v"}, ttl=1e6)
    engine.pause("lives", mode="process")
    pinned = engine.snapshot_pin(engine.pause("stacked", mode="process").snapshot).id
    engine.resume("stacked")
    engine.fork(pinned, name="fork")
    engine.pause("fork", mode="filesystem")
    imaged = engine.snapshot_pin(engine.pause("imaged", mode="filesystem").snapshot).id
    engine.snapshot_archive(imaged)
    engine.remove("imaged")
    engine.collect()  # now it is an image alone
    return engine


def checked(engine: Engine, *, repair: bool = False) -> Check:
    return Engine.check(engine.config.root, repair=repair, timeout=30)


def whole(engine: Engine) -> None:
    found = checked(engine)
    assert (found.violations, found.unseen) == ((), ())


def rows(engine: Engine) -> dict[str, Any]:
    """What must be the same in a catalog that was made anew."""
    catalog = engine._root.catalog
    jobs = [
        (job.id, job.name, job.state, job.layers, job.upper, job.snapshot, job.spec, job.base, job.forked_from)
        for job in engine.jobs(ended=True)
    ]
    return {
        "jobs": sorted(jobs, key=lambda row: row[0]),
        "snapshots": sorted(catalog.snapshots(), key=lambda row: row.id),
        "layers": sorted((row.id, row.image, row.directory, row.parent, row.owner) for row in catalog.layers()),
        "bases": catalog.bases(),
    }


REBUILDING = ("rebuild.write", "rebuild.aside", "rebuild.commit", "rebuild.lost")
"""steps that no engine can be opened after, but a repair"""


def lose_catalog(root: Path) -> None:
    for file in root.glob("catalog.sqlite*"):
        file.unlink()


def killed_repair(engine: Engine, place: str) -> None:
    command = [sys.executable, "-m", "engine.cli", "--root", os.fspath(engine.config.root), "check", "--repair"]
    done = subprocess.run(command, env={**os.environ, "SERAC_FAULT": place}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
