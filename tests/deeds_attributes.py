"""Deeds that change what an entry is marked with: modes, owners, times, extended attributes, flags.

There may be no space for an attribute: ext4 has a block for all those of an entry. And overlayfs asks the file system
of a lower layer whether it can change access lists, before it copies the entry up: EROFS can't.
"""

from __future__ import annotations

import os
import struct
from errno import ENOSPC, EOPNOTSUPP

import ground as g
from deeds import deed
from ground import Ground, Nothing, Place


@deed()
def change_mode(ground: Ground) -> None:
    fd, name = ground.entry(*g.MODED)
    os.chmod(name, ground.number(0o10000), dir_fd=fd)


@deed()
def change_owner(ground: Ground) -> None:
    fd, name = ground.entry(*g.ANY)
    os.chown(name, ground.id(), ground.id(), dir_fd=fd, follow_symlinks=False)


@deed()
def change_time(ground: Ground) -> None:
    fd, name = ground.entry(*g.ANY)
    os.utime(name, ns=(0, moment(ground)), dir_fd=fd, follow_symlinks=False)


def moment(ground: Ground) -> int:
    """Nanoseconds between the ends of ext4's time: 1901 to 2446."""
    second = ground.pick(-(1 << 31), -1, 0, 1, (1 << 31) - 1, 1 << 32, ground.number(15_000_000_000))
    return second * 1_000_000_000 + ground.pick(0, 1, 999_999_999, ground.number(1_000_000_000))


@deed(ENOSPC)
def set_user_xattr(ground: Ground) -> None:
    name = ground.pick("user.a", "user.b", "user.caf\u00e9", "user.overlay.opaque", "user.overlay.redirect")
    g.set_xattr(ground.entry(g.FILE, g.FOLDER), name, ground.pick(b"", b"y", b"\0\xff\n", ground.bytes(40)))


@deed(ENOSPC)
def set_many_user_xattrs(ground: Ground) -> None:
    place = ground.entry(g.FILE, g.FOLDER)
    for number in range(20):
        g.set_xattr(place, f"user.many.{number}", ground.bytes(ground.number(20)))


@deed(ENOSPC)
def set_big_user_xattr(ground: Ground) -> None:
    g.set_xattr(ground.entry(g.FILE, g.FOLDER), "user.big", ground.bytes(ground.pick(1000, 3000)))


@deed(EOPNOTSUPP)
def remove_xattr(ground: Ground) -> None:
    places = (ground.entry(*g.ANY) for _ in range(g.TRIES))
    place, there = next(((place, there) for place in places if (there := g.list_xattrs(place))), (None, []))
    if place is None:
        raise Nothing
    os.removexattr(g.by_path(place), ground.pick(*there), follow_symlinks=False)


@deed(ENOSPC, needs="trusted")
def set_trusted_xattr(ground: Ground) -> None:
    g.set_xattr(ground.entry(*g.ANY), ground.pick("trusted.a", "trusted.b"), ground.bytes(ground.number(100)))


@deed(ENOSPC, needs="overlaid")
def set_xattr_of_overlays(ground: Ground) -> None:
    """A job's own, for an overlay within the overlay."""
    name = ground.pick("opaque", "redirect", "origin", "metacopy", "overlay.opaque")
    g.set_xattr(ground.entry(*g.ANY), f"trusted.overlay.{name}", ground.pick(b"y", b"/n1", b""))


@deed(ENOSPC)
def set_capability(ground: Ground) -> None:
    g.set_xattr(ground.file(), "security.capability", struct.pack("<5I", 0x0200_0001, 1 << ground.number(30), 0, 0, 0))


@deed(ENOSPC, EOPNOTSUPP)
def set_acl(ground: Ground) -> None:
    g.set_xattr(ground.entry(g.FILE, g.FOLDER), "system.posix_acl_access", acl(ground))


@deed(ENOSPC, EOPNOTSUPP)
def set_default_acl(ground: Ground) -> None:
    g.set_xattr(ground.folder(), "system.posix_acl_default", acl(ground))


def acl(ground: Ground) -> bytes:
    """Version 2; then tag, permissions and id of each entry: owner, a user, group, a group, mask, others."""
    nobody = (1 << 32) - 1
    ids = ((1, nobody), (2, ground.id()), (4, nobody), (8, ground.id()), (16, nobody), (32, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, ground.number(8), who) for tag, who in ids)


@deed(needs="flags", weight=1)
def make_immutable(ground: Ground) -> None:
    with g.opened(ground.entry(g.FILE, g.FOLDER), os.O_RDONLY) as fd:
        g.set_flags(fd, g.get_flags(fd) | ground.pick(g.FS_IMMUTABLE_FL, g.FS_APPEND_FL))


@deed(ENOSPC)
def change_the_top(ground: Ground) -> None:
    top = Place(ground.top, ".")
    os.chown(top.name, ground.id(), ground.id(), dir_fd=top.fd)
    os.chmod(top.name, ground.number(0o10000), dir_fd=top.fd)
    g.set_xattr(top, ground.pick("user.a", "user.top"), ground.bytes(20))
    os.utime(top.name, ns=(0, moment(ground)), dir_fd=top.fd)
