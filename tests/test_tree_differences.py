"""Differences between chains are those that two censuses have; what both share is passed over, and hides nothing."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import census
import forest
import made
import nodes
import pytest
import stacks

from engine.tree import Change, Kind, Merged, Node, differences, merged, open_directory
from engine.tree.node import OPAQUE, REDIRECT

SEEDS = int(os.environ.get("SERAC_TEST_SEEDS", "4"))
"""more are for a longer search"""
ROUNDS = 3
WHEN = 1_234_567_890_123_456_789
BLOCK = 4096

look = partial(nodes.take, xattrs=nodes.jobs_own)

Found = dict[bytes, tuple[Kind, set[str]]]


def found(before: Merged, after: Merged) -> Found:
    changes = list(differences(before, after))
    paths = [change.path for change in changes]
    assert paths == sorted(paths, key=lambda path: path.split(b"/")), "not by path"
    assert len(set(paths)) == len(paths)
    return {change.path: (change.kind, set(change.attributes)) for change in changes}


def wanted(before: census.Census, after: census.Census) -> Found:
    """What censuses say."""
    every = {path: expected(before.get(path), after.get(path)) for path in before.keys() | after.keys()}
    return {b"/" + (path if path != b"." else b""): change for path, change in every.items() if change}


def expected(old: census.Record | None, new: census.Record | None) -> tuple[Kind, set[str]] | None:
    if old is None or new is None:
        return (Kind.ADDED if old is None else Kind.DELETED), set()
    if old.kind != new.kind:
        return Kind.TYPE, set()
    facts = {
        "mode": old.mode != new.mode,
        "owner": (old.uid, old.gid) != (new.uid, new.gid),
        "xattrs": old.xattrs != new.xattrs,
        "mtime": old.mtime != new.mtime and old.kind != "directory",
    }
    attributes = {name for name, differs in facts.items() if differs}
    contents = ((one.size, one.content, one.target, one.device) for one in (old, new))
    if len(set(contents)) == 2:
        return Kind.MODIFIED, attributes
    return (Kind.ATTRIBUTES, attributes) if attributes else None


@pytest.fixture
def ground() -> Iterator[Path]:
    """An empty directory on the file system of /var/tmp, for trees that pytest itself couldn't remove."""
    top = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    yield top
    forest.fell(top)


@pytest.mark.root
@pytest.mark.parametrize("seed", range(SEEDS))
def test_chains_differ_as_censuses_do(ground: Path, seed: int) -> None:
    """Some layers are images and some directories; each chain is compared with each."""
    base = ground / "base"
    base.mkdir()
    forest.grow(base, seed + 1000, devices=True, trusted=True)
    layers = [base]
    for number in range(ROUNDS):
        top = ground / f"{number}"
        grow = partial(
            forest.grow, seed=ROUNDS * seed + number, operations=60, devices=True, trusted=True, overlaid=True
        )
        stacks.Stack(tuple(reversed(layers)), top).inside(grow)
        layers.append(image_of(top / "upper") if (seed + number) % 2 else top / "upper")
    with stacks.opened(layers) as roots:
        chains = [merged(roots[number::-1]) for number in range(len(roots))]
        taken = [look(chain) for chain in chains]
        for one, before in enumerate(chains):
            for other, after in enumerate(chains):
                assert found(before, after) == wanted(taken[one], taken[other])


def image_of(directory: Path) -> Path:
    with open_directory(directory) as root:
        return stacks.build(root, directory.parent / "image")


def compared(before: list[Node], after: list[Node]) -> Found:
    """Twice: what is told, and that censuses tell the same."""
    one, other = merged(before), merged(after)
    told = found(one, other)
    assert told == wanted(look(one), look(other))
    return told


def below() -> made.Made:
    inner = made.directory(file=made.file(b"lower"), more=made.directory(leaf=made.file(b"leaf")))
    return made.directory(a=inner, b=made.directory(file=made.file(b"b")), c=made.file(b"c"))


def test_equal_trees_have_none() -> None:
    base, top = below(), made.directory(a=made.directory(new=made.file()))
    assert compared([top, base], [top, base]) == {}
    assert compared([top, base], [top, below()]) == {}


def test_a_directory_that_moved() -> None:
    base = below()
    top = made.directory(a=made.whiteout(), moved=made.directory({REDIRECT: b"/a"}))
    assert compared([base], [top, base]) == {
        b"/a": (Kind.DELETED, set()),
        b"/a/file": (Kind.DELETED, set()),
        b"/a/more": (Kind.DELETED, set()),
        b"/a/more/leaf": (Kind.DELETED, set()),
        b"/moved": (Kind.ADDED, set()),
        b"/moved/file": (Kind.ADDED, set()),
        b"/moved/more": (Kind.ADDED, set()),
        b"/moved/more/leaf": (Kind.ADDED, set()),
    }


def test_directories_that_changed_places() -> None:
    base = below()
    top = made.directory(a=made.directory({REDIRECT: b"b"}), b=made.directory({REDIRECT: b"a"}))
    assert compared([base], [top, base]) == {
        b"/a/file": (Kind.MODIFIED, set()),
        b"/a/more": (Kind.DELETED, set()),
        b"/a/more/leaf": (Kind.DELETED, set()),
        b"/b/file": (Kind.MODIFIED, set()),
        b"/b/more": (Kind.ADDED, set()),
        b"/b/more/leaf": (Kind.ADDED, set()),
    }


def test_an_opaque_directory() -> None:
    base = below()
    top = made.directory(a=made.directory({OPAQUE: b"y"}, file=made.file(b"lower")))
    assert compared([base], [top, base]) == {b"/a/more": (Kind.DELETED, set()), b"/a/more/leaf": (Kind.DELETED, set())}


def test_a_whiteout() -> None:
    base = below()
    assert compared([base], [made.directory(c=made.whiteout()), base]) == {b"/c": (Kind.DELETED, set())}


def test_a_whiteout_that_goes() -> None:
    base = below()
    one = made.directory(c=made.whiteout())
    assert compared([one, base], [made.directory(c=made.file(b"c")), one, base]) == {b"/c": (Kind.ADDED, set())}


def test_a_file_in_the_stead_of_a_directory_and_back() -> None:
    base = below()
    top = made.directory(b=made.file(b"now a file"), c=made.directory({OPAQUE: b"y"}, new=made.file()))
    changes = {b"/b": (Kind.TYPE, set()), b"/c": (Kind.TYPE, set())}
    assert compared([base], [top, base]) == changes | {
        b"/b/file": (Kind.DELETED, set()),
        b"/c/new": (Kind.ADDED, set()),
    }
    assert compared([top, base], [base]) == changes | {
        b"/b/file": (Kind.ADDED, set()),
        b"/c/new": (Kind.DELETED, set()),
    }


def test_what_was_copied_up_for_an_attribute() -> None:
    base = below()
    copy = made.file(b"c", xattrs={b"user.a": b"1"})
    copy.mode, copy.uid = 0o100600, 5
    top = made.directory(c=copy, a=made.directory({b"user.b": b""}))
    assert compared([base], [top, base]) == {
        b"/a": (Kind.ATTRIBUTES, {"xattrs"}),
        b"/c": (Kind.ATTRIBUTES, {"mode", "owner", "xattrs"}),
    }


def test_what_was_copied_up_for_nothing() -> None:
    base = below()
    assert compared([base], [made.directory(c=made.file(b"c"), a=made.directory()), base]) == {}


def test_contents_of_the_same_size_and_time() -> None:
    size = 3 * (1 << 20) + 5
    base = made.directory(c=made.file(bytes(size)))
    other = bytes(size - 1) + b"x"
    assert compared([base], [made.directory(c=made.file(other)), base]) == {b"/c": (Kind.MODIFIED, set())}


def test_holes_are_zeros() -> None:
    data = {2 * BLOCK: b"x" * BLOCK}
    base = made.directory(c=made.Sparse(10 * BLOCK, data))
    top = made.directory(c=made.file(bytes(2 * BLOCK) + b"x" * BLOCK + bytes(7 * BLOCK)))
    assert compared([base], [top, base]) == {}


class Holey(made.Sparse):
    """Whose holes nobody reads."""

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        assert (offset, length) in [(at, len(data)) for at, data in self.pieces.items()]
        return super().read(offset, length)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({5 << 40: bytes(BLOCK)}, []),
        ({5 << 40: bytes(BLOCK - 1) + b"x"}, [Kind.MODIFIED]),
        ({3 << 40: b"x" * BLOCK + bytes(3 * BLOCK)}, [Kind.MODIFIED]),
        ({3 << 40: b"x" * 2 * BLOCK, (3 << 40) + 2 * BLOCK: b"x" * 2 * BLOCK}, []),
    ],
    ids=["same", "zeros", "more", "less", "cut"],
)
def test_large_holes(changes: dict[int, bytes], kinds: list[Kind]) -> None:
    data = {0: b"x" * BLOCK, 3 << 40: b"x" * 4 * BLOCK}
    base = made.directory(c=Holey(1 << 44, data))
    top = made.directory(c=Holey(1 << 44, {**data, **changes}))
    for chains in (([base], [top, base]), ([top], [base, top])):
        told = found(*(merged(chain) for chain in chains))
        assert [kind for kind, _ in told.values()] == kinds


@pytest.mark.parametrize("seed", range(20))
def test_holes_anywhere(seed: int) -> None:
    draw = random.Random(seed)

    def some() -> made.Sparse:
        blocks = draw.sample(range(6), draw.randrange(4))
        return made.Sparse(6 * BLOCK, {block * BLOCK: draw.choice([b"\0", b"x"]) * BLOCK for block in blocks})

    for _ in range(20):
        compared([made.directory(c=some())], [made.directory(c=some())])


def test_the_root_itself() -> None:
    base, top = below(), made.directory()
    top.mode = 0o040700
    assert compared([base], [top, base]) == {b"/": (Kind.ATTRIBUTES, {"mode"})}


def test_a_shared_layer_over_others() -> None:
    """A redirect leads from what both chains have to what they have not."""
    top = made.directory(own=made.directory({OPAQUE: b"y"}, moved=made.directory({REDIRECT: b"/a"})))
    one = made.directory(a=made.directory(file=made.file(b"one")))
    other = made.directory(a=made.directory(file=made.file(b"two"), more=made.file()))
    changes = {b"/own/moved/file": (Kind.MODIFIED, set()), b"/own/moved/more": (Kind.ADDED, set())}
    told = compared([top, one], [top, other])
    assert told == changes | {b"/a/file": (Kind.MODIFIED, set()), b"/a/more": (Kind.ADDED, set())}


def test_shared_parts_over_others() -> None:
    """The same, where the directory that holds the redirect differs too."""
    shared = made.directory(own=made.directory({OPAQUE: b"y"}, moved=made.directory({REDIRECT: b"/a"})))
    one = made.directory(a=made.directory(file=made.file(b"one")))
    other = made.directory(a=made.directory(file=made.file(b"two")))
    top = made.directory(own=made.directory(new=made.file()))
    assert compared([shared, one], [top, shared, other]) == {
        b"/a/file": (Kind.MODIFIED, set()),
        b"/own/moved/file": (Kind.MODIFIED, set()),
        b"/own/new": (Kind.ADDED, set()),
    }


def test_a_shared_layer_over_more() -> None:
    """One chain has a layer between those that both have."""
    base = below()
    top = made.directory(own=made.directory({OPAQUE: b"y"}, moved=made.directory({REDIRECT: b"/a"})))
    between = made.directory(a=made.directory(file=made.whiteout()))
    assert compared([top, base], [top, between, base]) == {
        b"/a/file": (Kind.DELETED, set()),
        b"/own/moved/file": (Kind.DELETED, set()),
    }


def test_what_is_shared_is_not_read() -> None:
    """A tree of which a layer above touches one file is looked at along that file's path."""
    base = made.directory(a=made.directory(b=made.directory(file=made.file(b"1"))), big=Unread(0o040755))
    top = made.directory(a=made.directory(b=made.directory(file=made.file(b"2"))))
    changes = list(differences(merged([base]), merged([top, base])))
    assert [(change.path, change.kind) for change in changes] == [(b"/a/b/file", Kind.MODIFIED)]


class Unread(made.Made):
    def children(self) -> list[tuple[bytes, Node]]:
        raise AssertionError("it is read")


def test_both_sides_of_a_change_can_be_read() -> None:
    base, top = below(), made.directory(c=made.file(b"new c"))
    (change,) = differences(merged([base]), merged([top, base]))
    assert isinstance(change, Change)
    assert change.before is not None
    assert change.after is not None
    assert [b"".join(side.read(0, side.size)) for side in (change.before, change.after)] == [b"c", b"new c"]
