"""Images with a few bytes changed: what `sound` lets pass, the kernel shows as it is read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import census
import hostile
import nodes
import stacks

from engine.errors import Damaged
from engine.tree import erofs, open_image, sound

HEAD = erofs.SUPER_OFFSET + erofs.HEAD


def told(top: Path, seeds: Iterable[int]) -> tuple[int, list[str]]:
    """How many images were let pass, and where one was shown otherwise. ``top`` is a directory in a mount namespace of
    this process's own."""
    image = hostile.Image(hostile.plant(top / "tree"), top / "image")
    good = bytes(image.meta)
    (top / "mounted").mkdir()
    passed, lines = 0, list[str]()
    for seed in seeds:
        image.meta[:] = changed(good, random.Random(seed))
        wanted = read(image)
        if wanted is not None:
            passed += 1
            lines += [f"{seed}: {line}" for line in compared(wanted, top)]
    return passed, lines


def changed(good: bytes, chance: random.Random) -> bytearray:
    data = bytearray(good)
    used = [at for at in range(HEAD, len(good) - 8) if any(good[at - 16 : at + 16])]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.choice(used)
        if chance.random() < 0.4:
            data[at] ^= 1 << chance.randrange(8)
        else:
            other = chance.choice(used)
            piece = chance.choice(
                (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\xff" * 4, bytes(8), good[other : other + 8])
            )
            data[at : at + len(piece)] = piece
    return data


def read(image: hostile.Image) -> census.Census | None:
    meta, blob = image.files
    meta.write_bytes(image.meta)
    try:
        with open_image(meta, blob) as root:
            sound(root, devices=lambda _: True)
            return nodes.take(root, xattrs=lambda node: node.xattrs())
    except Damaged:
        return None


def compared(wanted: census.Census, top: Path) -> Iterator[str]:
    stacks.mount_image(top / "image", top / "mounted")
    try:
        yield from census.differences(wanted, census.take(top / "mounted", overlaid=True), ignore={"allocated"})
    except OSError as error:
        yield f"{error}"
    finally:
        stacks.unmount(top / "mounted")
