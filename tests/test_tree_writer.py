"""What is rare in trees, as the kernel shows it in their images and as they are read."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import census
import made
import nodes
import overlays
import pytest
import stacks

from engine.errors import Damaged, InvalidInput
from engine.tree import Node, blob, open_directory, write_image
from engine.tree.node import portable

BLOCK = 4096
POOL = random.Random(1).randbytes(4 << 20)

kept = partial(nodes.take, xattrs=lambda node: portable(node, node.xattrs()))
root_only = pytest.mark.root


def build(tree: Node, top: Path, name: str = "image") -> Path:
    return stacks.build(tree, top / name)


def holds(tree: Node, top: Path) -> Path:
    """The image of a tree, after looking at it through the kernel and through the reader."""
    image = build(tree, top)
    wanted = kept(tree)
    with stacks.opened_layer(image) as read:
        assert not census.differences(wanted, kept(read), ignore={"allocated"})
    assert not census.differences(wanted, stacks.seen(image), ignore={"allocated"})
    return image


def blob_size(image: Path) -> int:
    return (image / "data.blob").stat().st_size


def names_of(sizes: Sequence[int]) -> list[bytes]:
    """Ascending."""
    return [b"%03d" % number + b"x" * (size - 3) for number, size in enumerate(sizes)]


FULL_FIRST = [255] * 15 + [52]
"""Names that, with '.' and '..', fill a block to its last byte"""
FULL = [255] * 15 + [79]


@root_only
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("sizes", [FULL_FIRST, FULL_FIRST + FULL, FULL_FIRST + 5 * FULL])
def test_directories_whose_blocks_are_full(tmp_path: Path, sizes: list[int], more: int) -> None:
    names = names_of([*sizes[:-1], sizes[-1] + more])
    assert (27 + sum(12 + len(name) for name in names)) % BLOCK == more % BLOCK
    holds(made.folder({name: made.file() for name in names}), tmp_path)


@root_only
def test_names_before_the_dots(tmp_path: Path) -> None:
    names = [b"\x01", b"!", b"+", b"-", b"-.", b".\x01", b".!", b"..\x01", b"...", b"/"[:0] + b".z", b"\x7f", b"\xff"]
    holds(made.folder({name: made.directory(a=made.file(name)) for name in names}), tmp_path)


@root_only
def test_a_crowd_before_the_dots(tmp_path: Path) -> None:
    """These are in the last block."""
    names = [b"!%05d" % number for number in range(1000)]
    holds(made.folder({name: made.file() for name in names}), tmp_path)


@root_only
def test_links_of_all_sizes(tmp_path: Path) -> None:
    """Each lies behind its inode, unless it doesn't fit the block or is too long."""
    sizes = [1, 2, 63, 64, 65, 3999, 4000, 4031, 4032, 4033, 4064, 4094, 4095, *range(1, 4095, 37)]
    holds(made.folder({b"%04d" % at: made.link(b"t" * size) for at, size in enumerate(sizes)}), tmp_path)


@root_only
@pytest.mark.parametrize("size", [4096 - 64 - 12, 4096, 20_000, 65_535])
def test_attributes_of_many_bytes(tmp_path: Path, size: int) -> None:
    attributes = {b"user." + b"n" * 250: POOL[:size], b"user.b": b"", b"trusted.c": POOL[: size // 2]}
    big = made.directory(attributes, link=made.link(b"t" * 3000), file=made.file(b"data", xattrs=attributes))
    holds(made.directory(big=big, after=made.file(b"x")), tmp_path)


@pytest.mark.parametrize(
    "attributes",
    [{b"user.a": bytes(65_536)}, {b"user.%d" % number: bytes(65_000) for number in range(5)}],
    ids=["one", "all"],
)
def test_attributes_of_too_many_bytes(tmp_path: Path, attributes: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidInput, match="extended attribute"):
        build(made.directory(file=made.file(xattrs=attributes)), tmp_path)


@root_only
def test_a_first_name_that_is_deep(tmp_path: Path) -> None:
    twice, fifo = made.file(b"twice", links=3), made.Made(0o010600, links=2)
    deep = made.directory(c=made.directory(d=made.directory(name=twice, fifo=fifo)))
    image = holds(made.directory(a=deep, b=twice, c=made.directory(other=fifo, third=twice)), tmp_path)
    found = stacks.seen(image)
    assert found[b"c/third"].first == found[b"b"].first == b"a/c/d/name"


@root_only
def test_names_outside_of_the_tree_do_not_count(tmp_path: Path) -> None:
    image = build(made.directory(a=made.file(b"a", links=7)), tmp_path)
    assert stacks.seen(image)[b"a"].links == 1


SPARSE = {
    "nothing": (1 << 30, {}),
    "the last block": ((1 << 30) + 17, {1 << 30: b"end"}),
    "the first block": (1 << 30, {0: POOL[:BLOCK]}),
    "every other block": (256 * BLOCK, {at * BLOCK: POOL[at : at + BLOCK] for at in range(0, 256, 2)}),
    "here and there": (
        1 << 34,
        {at << 26: POOL[at : at + BLOCK * (at % 5 + 1)] for at in range(0, 250, 3)},
    ),
    "much": (3 << 30, {1 << 20: POOL, (1 << 31) + BLOCK: POOL[5:]}),
    "zeros": (1 << 24, {1 << 20: bytes(1 << 20)}),
    "all there can be": ((1 << 63) - 1, {}),
}


@root_only
@pytest.mark.parametrize("case", SPARSE)
def test_files_with_holes(tmp_path: Path, case: str) -> None:
    size, data = SPARSE[case]
    tree = made.directory(sparse=made.Sparse(size, data))
    image = holds(tree, tmp_path)
    there = sum(map(len, data.values()))
    assert blob_size(image) <= there + max(there, blob.COARSE_MIN) + BLOCK
    with stacks.opened_layer(image) as read:
        (mine,) = (record for record in kept(read).values() if record.kind == "file")
    assert there <= mine.allocated <= there + max(there, blob.COARSE_MIN) + BLOCK
    assert stacks.seen(image)[b"sparse"].allocated == pytest.approx(mine.allocated, abs=BLOCK)


@root_only
def test_extents_are_found_again(tmp_path: Path) -> None:
    """Chunks of more than a block: here eight."""
    tree = made.directory(sparse=made.Sparse(1 << 32, {1 << 30: POOL[: 16 * BLOCK], 3 << 30: POOL[: 8 * BLOCK]}))
    image = holds(tree, tmp_path)
    with stacks.opened_layer(image) as read:
        (_, file), *_ = read.children()
        extents = list(file.extents())
    assert [start for start, _ in extents] == [1 << 30, 3 << 30]
    assert len((image / "meta.erofs").read_bytes()) < 1 << 20


def test_a_file_whose_holes_would_fill_the_disk(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="too many places"):
        build(made.directory(sparse=made.Sparse(1 << 62, {1 << 50: b"data"})), tmp_path)


@root_only
def test_files_of_whole_blocks_and_nearly_so(tmp_path: Path) -> None:
    sizes = [blocks * BLOCK + more for blocks in (1, 2, 3, 255, 256, 257, 513) for more in (-1, 0, 1)]
    holds(made.folder({b"%d" % size: made.file(POOL[size : 2 * size]) for size in sizes}), tmp_path)


@root_only
def test_equal_blocks_are_stored_once(tmp_path: Path) -> None:
    one, other = POOL[:BLOCK], POOL[BLOCK : 2 * BLOCK]
    files = {b"a": one * 3 + other, b"b": other + one, b"c": one[:100], b"d": one[:100], b"e": other * 300}
    image = holds(made.folder({name: made.file(data) for name, data in files.items()}), tmp_path)
    assert blob_size(image) == 3 * BLOCK


@root_only
def test_more_blocks_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob, "KNOWN_MAX", 4)
    data = POOL[: 8 * BLOCK]
    image = holds(made.directory(a=made.file(data), b=made.file(data)), tmp_path)
    assert blob_size(image) == 12 * BLOCK


@root_only
def test_a_crowd(tmp_path: Path) -> None:
    empty = made.file()
    tree = made.directory(crowd=made.folder({b"entry %d" % number: empty for number in range(100_000)}))
    image = build(tree, tmp_path)
    with stacks.opened_layer(image) as read:
        ((_, crowd),) = read.children()
        assert [name for name, _ in crowd.children()] == sorted(b"entry %d" % number for number in range(100_000))
    (found,) = overlays.inside(stacks.Alone(image), stacks.count)
    assert found == 1 + 1 + 100_000


@root_only
def test_a_file_of_many_names(tmp_path: Path) -> None:
    once = made.file(b"once", links=65_000)
    image = build(made.folder({b"%d" % number: once for number in range(65_000)}), tmp_path)
    found = stacks.seen(image)
    assert {record.links for record in found.values() if record.kind == "file"} == {65_000}
    assert blob_size(image) == BLOCK


@pytest.fixture
def well(tmp_path: Path) -> Iterator[Path]:
    """A directory so deep that pytest itself couldn't remove it."""
    top = tmp_path / "well"
    top.mkdir()
    yield top
    subprocess.run(["rm", "-r", top], check=True)


def test_a_tree_is_deeper_than_directories_are_open(well: Path, tmp_path: Path) -> None:
    """On the way down and on the way up each has a file to be read."""
    fd = os.open(well, os.O_DIRECTORY)
    for number in range(3000):
        for name in ("a", "z"):
            with open(name, "xb", opener=partial(os.open, dir_fd=fd)) as file:
                file.write(b"%d" % number)
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with open_directory(well) as root:
        image = build(root, tmp_path)
        with stacks.opened_layer(image) as read:
            found = kept(read)
            assert not census.differences(kept(root), found)
    assert len(found) == 1 + 9000


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    changes_at_a_tick(tmp_path, lambda file: os.truncate(file, 9 << 20), "became shorter")


def test_a_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"old")
    with open_directory(tmp_path / "tree") as root:
        ((_, file),) = root.children()
        (tmp_path / "new").write_bytes(b"new")
        os.rename(tmp_path / "new", tmp_path / "tree/file")
        with pytest.raises(Damaged, match="was replaced"):
            list(file.read(0, 3))


def changes_at_a_tick(top: Path, change: Callable[[Path], None], message: str) -> None:
    file = top / "tree/file"
    file.parent.mkdir()
    file.write_bytes(POOL * 5)
    with open_directory(file.parent) as root, pytest.raises(Damaged, match=message):
        write_image(root, top / "meta", top / "blob", tick=lambda _: change(file))


def test_a_file_that_grows_is_what_it_was(tmp_path: Path) -> None:
    """Also where only holes were."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    os.truncate(tree / "file", 10 * BLOCK)
    with open_directory(tree) as root:
        ((_, file),) = root.children()
        with open(tree / "file", "r+b") as more:
            more.seek(100 * BLOCK)
            more.write(b"more")
        assert list(file.extents()) == []


def test_what_cannot_be_read_is_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    os.truncate(tree / "file", 10 * BLOCK)
    monkeypatch.setattr(os, "lseek", fails)
    with open_directory(tree) as root:
        ((_, file),) = root.children()
        with pytest.raises(OSError, match="Input/output error"):
            list(file.extents())


def fails(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@root_only
def test_what_is_mounted_is_not_taken(tmp_path: Path) -> None:
    """Nor is what it hides."""
    (tmp_path / "tree/below").mkdir(parents=True)
    told = overlays.inside(stacks.Bound(tmp_path / "tree"), stacks.refusals)
    assert told == [["something is mounted on 'below'"] * 2]


def test_a_tick_that_raises_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()

    def tick(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_image(made.directory(a=made.file(POOL * 6)), tmp_path / "meta", tmp_path / "blob", tick=tick)
    assert threading.active_count() == before


def test_a_file_that_is_too_large_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    tree = made.directory(a=made.file(random.Random(2).randbytes(8 << 20)))
    with room_for(5 << 20), pytest.raises(OSError, match="File too large"):
        write_image(tree, tmp_path / "meta", tmp_path / "blob")
    assert threading.active_count() == before


def test_metadata_is_written_whole_or_an_error(tmp_path: Path) -> None:
    tree = made.directory(**{name.decode(): made.file(b"") for name in names_of([255] * 100)})
    write_image(tree, tmp_path / "meta", tmp_path / "blob")
    with room_for((tmp_path / "meta").stat().st_size - 1), pytest.raises(OSError, match="File too large"):
        write_image(tree, tmp_path / "cut", tmp_path / "beside")


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Bytes of a file, of which a write takes what there is room for, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
