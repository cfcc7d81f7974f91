"""What has to be written over one tree so that it is another one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from engine.tree import Merged, Node, below, layers_in_common


class Entry(NamedTuple):
    path: bytes
    """from the root, with no leading slash; empty = the root"""
    node: Node | None
    """None: what was there is gone"""


def changes(before: Merged | None, after: Merged, *, but: Collection[bytes] = ()) -> Iterator[Entry]:
    """A directory comes before what is in it, what is gone of it before what is new. ``before`` None: all of ``after``.
    ``but`` these paths, and what is below them.

    All is there that another layer has a part in, be it equal: files that are one inode are one again only if all of
    their names are written, and directories keep their times."""
    common = layers_in_common(before, after) if before is not None else 0
    waiting: list[tuple[bytes, Node | None, Node]] = [(b"", before, after)]
    while waiting:
        path, old, new = waiting.pop()
        if old is None or old.key != new.key:
            yield Entry(path, new)
        if not new.is_directory:
            continue
        inside = []
        for name, (was, now) in sorted(below(old, new, common).items()):
            place = path + b"/" + name if path else name
            if place in but:
                continue
            if now is not None:
                inside.append((place, was, now))
            elif was is not None:
                yield Entry(place, None)
        waiting.extend(reversed(inside))
