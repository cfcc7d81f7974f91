"""Streams of snapshots as `engine.archive.stream` reads them."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from forge import ALL, Files, small

from engine.archive.stream import Reader
from engine.errors import Damaged


@dataclasses.dataclass
class Taken:
    """What was read, with the files of each image."""

    reader: Reader
    files: dict[str, Files]


def read(source: bytes | BinaryIO, scratch: Path, *, have: Callable[[Any], bool] = lambda part: False) -> Taken:
    reader = Reader(io.BytesIO(source) if isinstance(source, bytes) else source)
    found = {digest: Files.read(place) for digest, place in reader.images(scratch, have=have)}
    return Taken(reader, found)


def refused(source: bytes, scratch: Path, match: str | None = None) -> None:
    """And nothing is written but below the scratch directory, in directories that the manifest has named."""
    scratch.mkdir()
    named = {image.digest for image in (*ALL, *small().images)}
    with pytest.raises(Damaged, match=match) as error:
        read(source, scratch)
    assert "\n" not in str(error.value)
    assert {path.name for path in scratch.iterdir()} <= named
    assert [path.name for path in scratch.parent.iterdir()] == [scratch.name]
    shutil.rmtree(scratch)
