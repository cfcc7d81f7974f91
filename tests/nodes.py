"""The census of a tree that is read, not mounted: what `census.take` says of the same tree where it is."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Hashable, Iterator

import census

from engine.tree import OVERLAY, Node

NESTED = OVERLAY + b"overlay."

Xattrs = Callable[[Node], dict[bytes, bytes]]


def take(root: Node, *, xattrs: Xattrs) -> census.Census:
    found: census.Census = {}
    firsts: dict[Hashable, bytes] = {}
    for path, node in walk(root):
        lone = node.is_directory or node.is_whiteout
        first = path if lone else firsts.setdefault(node.key, path)
        found[path] = found[first] if first != path else record(path, node, xattrs)
    return found


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """A directory before what it holds, and what it holds in the order of names."""
    waiting = [(b"", root)]
    while waiting:
        path, node = waiting.pop()
        yield path or census.ROOT, node
        if node.is_directory:
            prefix = path + b"/" if path else b""
            waiting.extend((prefix + name, child) for name, child in reversed(node.children()))


def record(path: bytes, node: Node, xattrs: Xattrs) -> census.Record:
    content, allocated = contents(node) if node.is_file else ("", 0)
    return census.Record(
        kind=census.KINDS[stat.S_IFMT(node.mode)],
        mode=stat.S_IMODE(node.mode),
        uid=node.uid,
        gid=node.gid,
        device=node.rdev if node.is_device else 0,
        size=0 if node.is_directory else len(node.target()) if node.is_link else node.size,
        links=0 if node.is_directory or node.is_whiteout else node.nlink,
        mtime=node.mtime_ns,
        xattrs={os.fsdecode(name): value for name, value in xattrs(node).items()},
        content=content,
        target=node.target() if node.is_link else b"",
        first=path,
        allocated=allocated,
    )


def contents(node: Node) -> tuple[str, int]:
    digest, allocated = hashlib.sha256(), 0
    for offset, length in node.extents():
        allocated += length
        place = offset
        for piece in node.read(offset, length):
            for at in range(0, len(piece), census.BLOCK):
                block = piece[at : at + census.BLOCK]
                if block.count(0) != len(block):
                    digest.update((place + at).to_bytes(8, "big") + block.ljust(census.BLOCK, b"\0"))
            place += len(piece)
    return digest.hexdigest(), allocated


def jobs_own(node: Node) -> dict[bytes, bytes]:
    """Extended attributes as a job sees them on an overlay, which keeps those of overlays that it mounts escaped."""
    found = node.xattrs()
    own = {name: value for name, value in found.items() if not name.startswith(OVERLAY)}
    nested = {name: value for name, value in found.items() if name.startswith(NESTED)}
    return own | {OVERLAY + name.removeprefix(NESTED): value for name, value in nested.items()}
