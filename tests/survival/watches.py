"""inotify: watches of directories and files go on."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from survival import Probe, libc, same
from survival.files import directory

CREATE, MODIFY, DELETE = 0x100, 0x2, 0x200


def events(fd: int) -> list[tuple[int, int, str]]:
    """(watch, mask, name) of all that can be read at once."""
    found = []
    data = os.read(fd, 65536)
    while data:
        watch, mask, _, size = struct.unpack_from("iIII", data)
        found.append((watch, mask & 0xFFF, data[16 : 16 + size].rstrip(b"\0").decode()))
        data = data[16 + size :]
    return found


def watch(fd: int, path: Path) -> int:
    return libc.call("inotify_add_watch", fd, os.fsencode(path), CREATE | MODIFY | DELETE)


def of_the_upper() -> Probe:
    """A directory and a file that the job made."""
    here = directory("watched")
    (here / "file").touch()
    fd = libc.call("inotify_init1", 0)
    above, itself = watch(fd, here), watch(fd, here / "file")
    yield
    with open(here / "file", "a") as file:
        file.write("x")
    (here / "new").touch()
    same(events(fd), [(above, MODIFY, "file"), (itself, MODIFY, ""), (above, CREATE, "new")])


def of_the_base() -> Probe:
    """A directory that no job made, nor anything in it."""
    fd = libc.call("inotify_init1", 0)
    etc = watch(fd, Path("/etc/skel"))
    yield
    Path("/etc/skel/new").touch()
    same(events(fd), [(etc, CREATE, "new")])


def of_the_root() -> Probe:
    fd = libc.call("inotify_init1", os.O_NONBLOCK)
    root = watch(fd, Path("/"))
    yield
    os.mkdir("/watched-root")
    same(events(fd), [(root, CREATE, "watched-root")])
