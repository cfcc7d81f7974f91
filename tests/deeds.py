"""What a job may do to a tree: the table of deeds, each of which does one small thing somewhere, and those that make
something or change what is in a file. The rest is in `deeds_attributes` and `deeds_moves`.

A deed names the errors that are no wonder in what it does: a name that is taken, a directory that isn't empty.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRINUSE, EISDIR, EMLINK

import ground as g
from ground import Ground, Place


@dataclass(frozen=True)
class Deed:
    act: Callable[[Ground], object]
    expected: frozenset[int]
    """errnos"""
    needs: str
    """what must be allowed for it"""
    weight: int


DEEDS: dict[str, Deed] = {}
"""name -> deed"""


def deed(
    *expected: int, needs: str = "", weight: int = 2
) -> Callable[[Callable[[Ground], object]], Callable[[Ground], object]]:
    def register(act: Callable[[Ground], object]) -> Callable[[Ground], object]:
        DEEDS[act.__name__.replace("_", " ")] = Deed(act, frozenset(expected), needs, weight)
        return act

    return register


# Files


@deed()
def make_empty_file(ground: Ground) -> None:
    g.write_new(ground.vacancy())


@deed()
def make_small_file(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, ground.bytes(1 + ground.number(200))))


@deed()
def make_file_of_a_block_or_so(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, ground.bytes(ground.pick(1, 2, 16) * g.BLOCK + ground.pick(-1, 0, 1))))


@deed()
def make_large_file(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, ground.bytes(100_000 + ground.number(400_000))))


@deed()
def make_twins(ground: Ground) -> None:
    data = ground.bytes(ground.pick(10, 5000, 70_000))
    g.write_new(ground.vacancy(), (0, data))
    g.write_new(ground.vacancy(), (0, data))


@deed()
def make_file_of_common_chunks(ground: Ground) -> None:
    chunks = ground.chance.choices(g.CHUNKS, k=1 + ground.number(12))
    g.write_new(ground.vacancy(), (0, b"".join(chunks) + ground.bytes(ground.number(g.BLOCK))))


@deed()
def make_file_of_zeros(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, bytes(ground.pick(1, g.BLOCK, 10_000, 200_000))))


@deed()
def make_hole_in_front(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (hole(ground), ground.bytes(5000)))


@deed()
def make_hole_behind(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, ground.bytes(5000)), size=5000 + hole(ground))


@deed()
def make_hole_within(ground: Ground) -> None:
    g.write_new(ground.vacancy(), (0, ground.bytes(5000)), (5000 + hole(ground), ground.bytes(300)))


@deed()
def make_hole_only(ground: Ground) -> None:
    g.write_new(ground.vacancy(), size=hole(ground))


@deed()
def make_huge_file(ground: Ground) -> None:
    size = (2 << 30) + ground.pick(-1, 0, 1, 12_345)
    g.write_new(ground.vacancy(), (ground.pick(0, 1 << 30), ground.bytes(100)), (size - 50, ground.bytes(50)))


def hole(ground: Ground) -> int:
    return ground.pick(1, g.BLOCK, 100_000, 1 << 20, 10_000_001)


@deed()
def append(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, ground.bytes(1 + ground.number(9000)))


@deed()
def overwrite(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_RDWR) as fd:
        g.write_at(fd, ground.number(os.fstat(fd).st_size + 1), ground.bytes(1 + ground.number(9000)))


@deed()
def overwrite_with_zeros(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_RDWR) as fd:
        g.write_at(fd, ground.number(os.fstat(fd).st_size + 1), bytes(1 + ground.number(20_000)))


@deed()
def shorten(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_WRONLY) as fd:
        os.ftruncate(fd, ground.pick(0, ground.number(os.fstat(fd).st_size + 1)))


@deed()
def lengthen(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_WRONLY) as fd:
        os.ftruncate(fd, os.fstat(fd).st_size + hole(ground))


@deed()
def punch_a_hole(ground: Ground) -> None:
    with g.opened(ground.file(), os.O_RDWR) as fd:
        start, mode = ground.number(os.fstat(fd).st_size + 1), g.FALLOC_FL_PUNCH_HOLE | g.FALLOC_FL_KEEP_SIZE
        g.fallocate(fd, mode, ground.pick(0, start), ground.pick(1, 5000, 2 * g.BLOCK, 300_000))


@deed(EISDIR)
def save_aside_and_rename(ground: Ground) -> None:
    """As editors do."""
    fd, name = ground.file()
    aside = ground.new_name(fd)
    g.write_new(Place(fd, aside), (0, ground.bytes(1 + ground.number(9000))))
    os.rename(aside, name, src_dir_fd=fd, dst_dir_fd=fd)


# Links and what is no file


@deed(EMLINK)
def link_beside(ground: Ground) -> None:
    fd, name = ground.file()
    link(Place(fd, name), Place(fd, ground.new_name(fd)))


@deed(EMLINK)
def link_elsewhere(ground: Ground) -> None:
    link(ground.file(), ground.vacancy())


@deed(EMLINK)
def link_what_is_no_file(ground: Ground) -> None:
    link(ground.entry(*(kind for kind in g.LEAVES if kind != g.FILE)), ground.vacancy())


def link(source: Place, target: Place) -> None:
    os.link(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)


@deed()
def make_symlink(ground: Ground) -> None:
    found, (fd, name) = ground.entry(*g.ANY), ground.vacancy()
    os.symlink(ground.pick("", "/", "../") + found.name, name, dir_fd=fd)


@deed()
def make_dangling_symlink(ground: Ground) -> None:
    fd, name = ground.vacancy()
    os.symlink(
        os.fsdecode(ground.pick(b"nowhere", b"\xff\n", b"../" * 30, b"/n1/n1/n1", b"x" * 59, b"x" * 60)),
        name,
        dir_fd=fd,
    )


@deed()
def make_long_symlink(ground: Ground) -> None:
    fd, name = ground.vacancy()
    os.symlink("s/" * ground.pick(50, 1000, 2047) + "t", name, dir_fd=fd)


@deed()
def make_fifo(ground: Ground) -> None:
    fd, name = ground.vacancy()
    os.mkfifo(name, ground.pick(0o600, 0o666), dir_fd=fd)


@deed(EADDRINUSE)
def bind_socket(ground: Ground) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(g.by_path(Place(ground.directory(), ground.pick(*g.PLAIN_NAMES))))


@deed(needs="devices")
def make_device(ground: Ground) -> None:
    fd, name = ground.vacancy()
    kind, device = ground.pick((stat.S_IFCHR, (1, 3)), (stat.S_IFBLK, (7, 300)), (stat.S_IFCHR, (4095, 1_048_575)))
    os.mknod(name, kind | ground.pick(0o600, 0o666), os.makedev(*device), dir_fd=fd)


# Directories


@deed(weight=12)
def make_directory(ground: Ground) -> None:
    fd, name = ground.vacancy()
    os.mkdir(name, ground.pick(0o755, 0o700, 0o2775), dir_fd=fd)


@deed(weight=12)
def make_directory_with_something_in_it(ground: Ground) -> None:
    plant(ground, ground.vacancy())


def plant(ground: Ground, place: Place) -> int:
    """A directory with a file or a few."""
    os.mkdir(place.name, dir_fd=place.fd)
    fd = ground.hold(os.open(place.name, g.DIRECTORY, dir_fd=place.fd))
    for _ in range(1 + ground.number(3)):
        g.write_new(Place(fd, ground.new_name(fd)), (0, ground.bytes(ground.number(3000))))
    return fd


@deed(needs="deep")
def make_deep_chain(ground: Ground) -> None:
    """Its path is longer than the kernel takes one."""
    fd, name = ground.vacancy()
    for _ in range(18):
        fd, name = plant(ground, Place(fd, name)), "d" * (230 + ground.number(25))


@deed(weight=1)
def make_crowd(ground: Ground) -> None:
    """So many that the directory has more than a block."""
    fd = plant(ground, ground.vacancy())
    for number in range(200 + ground.number(300)):
        g.write_new(Place(fd, f"{number:0{ground.pick(3, 30)}}+"), (0, b"%d" % number))
