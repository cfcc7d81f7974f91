"""Random trees, grown as jobs grow them: on what is there already, by any of the deeds of a table.

    done = forest.grow(top, seed=7)
    ...
    forest.fell(top)

The same seed does the same to the same tree, but for the times that the kernel gives. All is done by descriptors, for
paths get longer than PATH_MAX. It needs root, of a user namespace at least, and /proc.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from errno import EPERM
from pathlib import Path

import census
import deeds_attributes
import deeds_moves
import ground as g
from deeds import DEEDS, Deed
from ground import Ground, Nothing, Place

__all__ = ["DEEDS", "deeds_attributes", "deeds_moves", "fell", "grow"]

ID_MAX = 4_000_000_000


def grow(
    top: int | Path,
    seed: int,
    *,
    operations: int = 120,
    id_max: int = ID_MAX,
    devices: bool = False,
    trusted: bool = False,
    overlaid: bool = False,
    flags: bool = False,
    deep: bool = True,
) -> Counter[str]:
    """Do random deeds below ``top``, a directory or a descriptor of one; how often each deed was done.

    ``id_max`` is the largest id of users and groups: 65535 in a user namespace of 65536 ids. The rest allows what not
    every job can do: device nodes, `trusted.*` attributes, those of overlays (``overlaid``: only where ``top`` is an
    overlay, for elsewhere they would mean something), and the flags immutable and append-only, after which deeds may
    fail. Without ``deep`` no paths are made that are longer than PATH_MAX, which no image can hold. A deed that fails
    as it may has perhaps been done in part."""
    allowed = {"": True, "devices": devices, "trusted": trusted, "overlaid": overlaid, "flags": flags, "deep": deep}
    table = [name for name, deed in DEEDS.items() if allowed[deed.needs]]
    weights = [DEEDS[name].weight for name in table]
    excused = {EPERM} if flags else set()
    done: Counter[str] = Counter()
    fd = os.open(".", g.DIRECTORY, dir_fd=top) if isinstance(top, int) else os.open(top, g.DIRECTORY)
    try:
        for number in range(operations):
            # Each has chances of its own, so that one more in a deed doesn't change all that follow.
            chance = random.Random(f"{seed} {number}")
            name = chance.choices(table, weights)[0]
            done[name] += succeeds(
                DEEDS[name], Ground(fd, chance, id_max=id_max), excused, f"{name}: {seed=} {number=}"
            )
    finally:
        os.close(fd)
    return done


def succeeds(deed: Deed, ground: Ground, excused: set[int], note: str) -> bool:
    try:
        with ground.leave:
            deed.act(ground)
    except Nothing:
        return False
    except OSError as error:
        if error.errno in deed.expected | excused:
            return False
        error.add_note(note)
        raise
    return True


def fell(top: Path) -> None:
    """Remove a tree, however deep, and what is immutable in it."""
    for _, fd, name in census.walk(top):
        place = Place(fd, os.fsdecode(name))
        if g.has_flags(place):
            with g.opened(place, os.O_RDONLY) as entry:
                g.set_flags(entry, g.get_flags(entry) & ~(g.FS_IMMUTABLE_FL | g.FS_APPEND_FL))
    parent = os.open(top.parent, g.DIRECTORY)
    try:
        g.remove(Place(parent, top.name))
    finally:
        os.close(parent)
