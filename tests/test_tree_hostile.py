"""Images whose maker meant no good: all that is wrong is told as `Damaged`, at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fuzz
import nodes
import overlays
import pytest
import stacks
import wrongs
import wrongs_inodes
from hostile import BLOCK, Image, plant
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged
from engine.tree import Node

SECONDS_MAX = 50
"""for a test, however busy the machine is"""
MUTATIONS = int(os.environ.get("SERAC_TEST_MUTATIONS", "300"))
"""more are for a longer search"""

__all__ = ["wrongs_inodes"]  # its changes are in the table, too


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(plant(tmp_path / "tree"), tmp_path / "image")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Image:
    top = tmp_path_factory.mktemp("shared")
    return Image(plant(top / "tree"), top / "image")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """What takes long is an error as any other."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS_MAX)
    yield
    signal.alarm(0)


def _too_long(*_: object) -> None:
    raise AssertionError("it takes too long")


def look(root: Node) -> None:
    nodes.take(root, xattrs=lambda node: node.xattrs())


def test_the_image_itself_is_sound(image: Image) -> None:
    image.check(visit=look)


@pytest.mark.parametrize("change", wrongs.CHANGES.values(), ids=wrongs.CHANGES)
def test_what_is_wrong_is_found(image: Image, change: wrongs.Change) -> None:
    change(image)
    with pytest.raises(Damaged):
        image.check()


def test_an_inode_of_many_names_is_looked_at_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "file", "wb") as file:
        file.truncate(4 << 30)
        file.seek(1 << 30)
        file.write(b"data")
    for number in range(2000):
        os.link(tree / "file", tree / f"{number}")
    image = Image(tree, tmp_path / "image")
    assert len(image.meta) > 400_000
    image.check()


cuts = st.integers(0, 60_000)
bytes_put = st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=8) | st.just(bytes(64)))


@settings(max_examples=400)
@given(changes=st.lists(bytes_put, min_size=1, max_size=4), cut=st.none() | cuts)
def test_no_bytes_do_anything_else(shared: Image, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    good = bytes(shared.meta)
    try:
        for at, data in changes:
            start = at % len(good)
            shared.meta[start : start + len(data)] = data[: len(good) - start]
        if cut is not None:
            del shared.meta[cut % len(good) :]
        shared.check(visit=look)
    except Damaged:
        pass
    finally:
        shared.meta[:] = good


@pytest.mark.root
def test_what_passes_is_shown_by_the_kernel_as_it_is_read(tmp_path: Path) -> None:
    ((passed, lines),) = overlays.inside(stacks.Bound(tmp_path), partial(fuzz.told, seeds=range(MUTATIONS)))
    assert not lines
    assert MUTATIONS // 10 < passed < MUTATIONS


def test_a_blob_that_is_cut(image: Image) -> None:
    _, blob = image.files
    os.truncate(blob, BLOCK)
    with pytest.raises(Damaged):
        image.check()
