"""Layers one above the other as one tree, as overlayfs shows them, and a chain of layers as one layer.

The rules are those of the kernel's fs/overlayfs/namei.c (ovl_lookup and what it calls) with redirect_dir=on and
metacopy=off: a whiteout, a file or an opaque directory ends the search for what else a directory consists of, and a
redirect changes the name, or the path from the root, under which it goes on in the layers below.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from engine.errors import Damaged
from engine.tree.node import NESTED, OPAQUE, ORIGIN, OVERLAY, REDIRECT, Node

Part = tuple[int, Node]
"""a layer's place, 0 = the topmost, and a node of it"""

_NO_NAMES = frozenset((b"", b".", b".."))


def merged(roots: Sequence[Node]) -> Merged:
    """The tree that a job sees on these layers, the topmost first."""
    return Merged(_parts(roots), _parts(roots))


def flattened(roots: Sequence[Node]) -> Node:
    """One layer that shows over any layers below what these layers show over them, the topmost first.

    Whiteouts stay that hide something of below; a redirect leads where the last of them led. What has several names in
    one layer still has, as far as they can be seen."""
    return _Flattened(_parts(roots), _parts(roots))


def _parts(roots: Sequence[Node]) -> tuple[Part, ...]:
    return tuple(enumerate(roots))


class _Search:
    """How a name, or a path from the root, is found in one layer after the other."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.ended = False
        """whether the layers below have no say"""
        self.whiteout: Node | None = None
        """what ended it before anything was found"""
        self.parts: list[Part] = []
        self._directory = False

    @property
    def from_root(self) -> bool:
        return self.name.startswith(b"/")

    def within(self, place: int, directory: Node, entry: Node | None) -> None:
        """Look into the next layer; ``entry`` is what ``directory`` has by that name, where the search isn't from the
        root."""
        found = self._walk(directory) if self.from_root else self._step(entry, b"", b"")
        if found is not None:
            self.parts.append((place, found))

    def _walk(self, root: Node) -> Node | None:
        rest, at = self.name, root
        while rest:
            name, slash, after = rest[1:].partition(b"/")
            rest = slash + after
            # What comes before can be replaced by the step, what comes after can't.
            before = self.name[: len(self.name) - len(rest) - len(name)]
            found = self._step(at.child(name), before, rest)
            if found is None:
                return None
            at = found
        return at

    def _step(self, entry: Node | None, before: bytes, rest: bytes) -> Node | None:
        if entry is None:
            return None
        if entry.is_whiteout:
            self.ended = True
            if not self.parts:
                self.whiteout = entry
            return None
        if not entry.is_directory:
            self.ended = True
            return None if self._directory or rest else entry
        if not rest:
            self._directory = True
        xattrs = entry.xattrs()
        if xattrs.get(OPAQUE) == b"y":
            self.ended = True
        elif (redirect := xattrs.get(REDIRECT)) is not None:
            self._redirect(redirect, before, rest)
        return entry

    def _redirect(self, redirect: bytes, before: bytes, rest: bytes) -> None:
        absolute = redirect.startswith(b"/")
        names = redirect.split(b"/")[absolute:]
        if not _NO_NAMES.isdisjoint(names) or (len(names) > 1 and not absolute):
            raise Damaged(f"a directory's redirect is neither a path from the root nor a name: {redirect[:80]!r}")
        if absolute:
            self.ended = False
        self.name = (redirect if absolute else before + redirect) + rest


class Merged(Node):
    """A directory that several layers have a part in, or what one of them has."""

    __slots__ = ("_listed", "_parts", "_roots", "_top")

    def __init__(self, roots: Sequence[Part], parts: Sequence[Part]) -> None:
        self._roots, self._parts = roots, tuple(parts)
        self._top = top = parts[0][1]
        self._listed: list[dict[bytes, Node]] | None = None
        self.mode, self.uid, self.gid, self.rdev = top.mode, top.uid, top.gid, top.rdev
        self.size, self.mtime_ns, self.nlink = top.size, top.mtime_ns, top.nlink

    @property
    def parts(self) -> tuple[tuple[int, Node], ...]:
        """What it consists of, the topmost first, each with the number of layers that lie below it."""
        return tuple((len(self._roots) - 1 - place, node) for place, node in self._parts)

    @property
    def key(self) -> Hashable:
        if not self.is_directory:
            return self._top.key
        return tuple(node.key for _, node in self._parts)

    def xattrs(self) -> dict[bytes, bytes]:
        return {
            name: value
            for name, value in self._top.xattrs().items()
            if not name.startswith(OVERLAY) or name.startswith(NESTED)
        }

    def target(self) -> bytes:
        return self._top.target()

    def extents(self) -> Iterator[tuple[int, int]]:
        return self._top.extents()

    @property
    def grain(self) -> int:
        return self._top.grain

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        return self._top.read(offset, length)

    def children(self) -> list[tuple[bytes, Node]]:
        found = ((name, self.child(name)) for name in sorted(self.names()))
        return [(name, node) for name, node in found if node is not None]

    def names(self, *, above: int = 0) -> set[bytes]:
        """What its parts but for the lowest ``above`` ones have, whiteouts too."""
        lists = self._lists()
        return set().union(*lists[: len(lists) - above])

    def child(self, name: bytes) -> Node | None:
        search = self._search(name)
        return type(self)(self._roots, search.parts) if search.parts else None

    def _search(self, name: bytes) -> _Search:
        search = _Search(name)
        for (place, directory), listed in zip(self._parts, self._lists(), strict=True):
            search.within(place, directory, listed.get(search.name))
            if search.ended:
                return search
            if search.from_root:
                self._search_on(search, place)
                return search
        return search

    def _search_on(self, search: _Search, after: int) -> None:
        """A path from the root is looked for in all layers below, whatever the directory consists of."""
        for place, root in self._roots[after + 1 :]:
            search.within(place, root, None)
            if search.ended:
                return

    def _lists(self) -> list[dict[bytes, Node]]:
        if self._listed is None:
            self._listed = [dict(node.children()) for _, node in self._parts]
        return self._listed


class _Flattened(Merged):
    """The same as an entry of one layer."""

    __slots__ = ("_ended", "_redirect")

    def __init__(
        self, roots: Sequence[Part], parts: Sequence[Part], *, ended: bool = False, redirect: bytes | None = None
    ) -> None:
        super().__init__(roots, parts)
        self._ended, self._redirect = ended, redirect

    def xattrs(self) -> dict[bytes, bytes]:
        kept = {name: value for name, value in self._top.xattrs().items() if name not in (OPAQUE, REDIRECT, ORIGIN)}
        if not self.is_directory:
            return kept
        if self._ended:
            return {**kept, OPAQUE: b"y"}
        if self._redirect is not None:
            kept[REDIRECT] = self._redirect
        if any(node.is_whiteout for listed in self._lists() for node in listed.values()):
            kept[ORIGIN] = b""
        return kept

    def child(self, name: bytes) -> Node | None:
        search = self._search(name)
        if not search.parts:
            return None if self._ended else search.whiteout
        redirect = search.name if search.name != name else None
        return _Flattened(self._roots, search.parts, ended=search.ended, redirect=redirect)
