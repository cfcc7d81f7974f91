"""A resume from an archive takes no notice of how much is in it: what is mounted is read when the job asks for it.

Seen as in test_flat: by bytes and calls, and by the pages that the kernel holds of the images. Here the data is real,
no two blocks of it the same, for an image has equal ones once."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jobroots
import pytest
from costs import SLACK, Work, forget, pages, processes, since, work
from roots import shell

from engine import Engine, archive

pytestmark = pytest.mark.root

WINDOWS_MAX = 2
"""how often the kernel may have read ahead in a file: a mount, a new upper and the start of init touch it"""
BLOCK = 4096


class Cost(NamedTuple):
    work: Work
    windows: float
    """of read-ahead, that are in the page cache of an image's file at most"""


def fill(root: int, *, size: int, files: int) -> None:
    """A file of so many bytes, and so many small ones in directories of a hundred."""
    noise = random.Random(1).randbytes(BLOCK - 8)
    fd = os.open("big", os.O_WRONLY | os.O_CREAT, dir_fd=root)
    with os.fdopen(fd, "wb", buffering=1 << 20) as big:
        for number in range(size // BLOCK):
            big.write(number.to_bytes(8, "big") + noise)
    for number in range(files):
        if number % 100 == 0:
            os.mkdir(f"dir{number // 100}", dir_fd=root)
        fd = os.open(f"dir{number // 100}/{number}", os.O_WRONLY | os.O_CREAT, dir_fd=root)
        os.write(fd, b"%d" % number)
        os.close(fd)


@pytest.mark.parametrize("size", [256 << 20, pytest.param(2 << 30, marks=pytest.mark.slow)])
def test_a_resume_from_images_is_flat(engine: Engine, size: int) -> None:
    small, large = costs(engine, "s", size=10 << 20, files=10), costs(engine, "l", size=size, files=20_000)
    for way in small:
        assert large[way].work.read <= small[way].work.read + SLACK, way
        assert large[way].work.written <= small[way].work.written + SLACK, way
        assert large[way].work.calls <= 1.25 * small[way].work.calls, way
        assert large[way].windows <= WINDOWS_MAX, way


def costs(engine: Engine, name: str, *, size: int, files: int) -> dict[str, Cost]:
    """Of forks from images alone, without processes and with them."""
    engine.run(shell("sleep 1000", name=name))
    jobroots.inside(engine, name, partial(fill, size=size, files=files))
    snapshots = {}
    for mode in ("filesystem", "process"):
        snapshots[mode] = engine.pause(name, mode=mode, archive="wait").snapshot  # type: ignore[arg-type]
        engine.snapshot_pin(snapshots[mode])
        engine.resume(name, mode="filesystem")
    engine.remove(name, force=True)
    engine.collect()
    assert not any(layer.directory for layer in engine._root.catalog.layers())
    found = {mode: cost(engine, snapshot) for mode, snapshot in snapshots.items()}
    for snapshot in snapshots.values():
        engine.snapshot_remove(snapshot)
    return found


def cost(engine: Engine, snapshot: str) -> Cost:
    files = images(engine, snapshot)
    forget(files)
    assert sum(map(pages, files)) == 0
    before = work(*processes(engine))
    result = engine.fork(snapshot)
    done = work(*processes(engine))
    # The processes' own pages are no part of it: init has more of them when it has had more to do.
    image = engine.snapshot(snapshot).image
    memory = image.memory if image is not None else 0
    windows = max(pages(path) * BLOCK / window(path) for path in files)
    total = since(before, done)
    found = Cost(total._replace(read=total.read - memory), windows)
    print(f"\n{result.mode}: {found}, {', '.join(f'{step} {ms:.1f} ms' for step, ms in result.timings.items())}")
    engine.remove(result.job, force=True)
    return found


def window(path: Path) -> int:
    """Bytes that the kernel reads ahead in a file."""
    device = path.stat().st_dev
    shown = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
    return int(shown) << 10


def images(engine: Engine, snapshot: str) -> list[Path]:
    chain = engine._root.catalog.chain(engine.snapshot(snapshot).layers)
    places = [engine.config.root / "images" / str(layer.image) for layer in chain]
    return [place / name for place in places for name in (archive.META, archive.BLOB)]
