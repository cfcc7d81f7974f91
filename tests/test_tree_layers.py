"""Layers as one tree: what redirects may lead to, and what a chain says of itself."""

from __future__ import annotations

from pathlib import Path

import made
import pytest

from engine.errors import Damaged
from engine.tree import flattened, merged, open_directory
from engine.tree.node import NESTED, OPAQUE, ORIGIN, REDIRECT, Node


def names(directory: Node | None) -> list[bytes]:
    assert directory is not None
    return [name for name, _ in directory.children()]


def child(directory: Node, *path: bytes) -> Node:
    for name in path:
        found = directory.child(name)
        assert found is not None, name
        directory = found
    return directory


def redirected(to: bytes, **entries: Node) -> made.Made:
    return made.directory({REDIRECT: to}, **entries)


@pytest.mark.parametrize(
    "redirect", [b"", b"/", b"//a", b"/a/", b"/a//b", b"a/b", b"..", b".", b"/..", b"/a/../b", b"/."]
)
def test_redirects_that_lead_nowhere(tmp_path: Path, redirect: bytes) -> None:
    """Above all not out of the tree."""
    (tmp_path / "tree/a/b").mkdir(parents=True)
    with open_directory(tmp_path / "tree") as below:
        tree = merged([made.directory(moved=redirected(redirect)), below])
        with pytest.raises(Damaged, match="redirect"):
            tree.children()


def test_a_redirect_longer_than_names_are(tmp_path: Path) -> None:
    with open_directory(tmp_path) as below:
        tree = merged([made.directory(moved=redirected(b"/" + b"x" * 256, own=made.file())), below])
        assert names(tree.child(b"moved")) == [b"own"]


def test_a_redirect_leads_where_it_says() -> None:
    below = made.directory(a=made.directory(b=made.directory(lower=made.file())))
    tree = merged([made.directory(moved=redirected(b"/a/b", upper=made.file())), below])
    assert names(tree.child(b"moved")) == [b"lower", b"upper"]


def test_a_redirect_through_one_that_is_redirected_itself() -> None:
    middle = made.directory(a=redirected(b"/was", b=made.directory(middle=made.file())))
    below = made.directory(was=made.directory(b=made.directory(lower=made.file())))
    top = made.directory(moved=redirected(b"/a/b"))
    assert names(child(merged([top, middle, below]), b"moved")) == [b"lower", b"middle"]
    flat = flattened([top, middle])
    assert child(flat, b"moved").xattrs() == {REDIRECT: b"/was/b"}
    assert names(child(merged([flat, below]), b"moved")) == [b"lower", b"middle"]


def test_what_ends_a_redirect_makes_it_opaque() -> None:
    for end in (made.directory({OPAQUE: b"y"}), made.whiteout(), made.file()):
        flat = flattened([made.directory(moved=redirected(b"/a")), made.directory(a=end)])
        assert child(flat, b"moved").xattrs() == {OPAQUE: b"y"}


def test_whiteouts_stay_that_may_hide_something() -> None:
    flat = flattened(
        [made.directory(a=made.whiteout()), made.directory(a=made.file(), b=made.directory(c=made.whiteout()))]
    )
    assert names(flat) == [b"a", b"b"]
    assert child(flat, b"a").is_whiteout
    assert child(flat, b"b").xattrs() == {ORIGIN: b""}


def test_whiteouts_go_where_nothing_is_seen() -> None:
    top = made.directory(a=made.directory({OPAQUE: b"y"}, x=made.whiteout()))
    assert names(flattened([top, made.directory(a=made.directory(x=made.file()))]).child(b"a")) == []


def test_attributes_of_overlays_within_are_kept() -> None:
    own = {NESTED + b"opaque": b"y", b"user.a": b"1", OPAQUE: b"y"}
    for tree in (merged([made.directory(a=made.directory(own))]), flattened([made.directory(a=made.directory(own))])):
        assert child(tree, b"a").xattrs().items() >= {NESTED + b"opaque": b"y", b"user.a": b"1"}.items()
