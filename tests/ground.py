"""What a deed works on: random choices, and what there is already, found by descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIBC = ctypes.CDLL(None, use_errno=True)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RENAME_EXCHANGE = 2
FS_IMMUTABLE_FL, FS_APPEND_FL = 0x10, 0x20
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
BLOCK = 4096
TRIES = 30
"""directories that are looked into for an entry of some kind"""

ANY = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
FILE, FOLDER, SYMLINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
LEAVES = tuple(kind for kind in ANY if kind != FOLDER)
MODED = tuple(kind for kind in ANY if kind != SYMLINK)

PLAIN_NAMES = tuple(f"n{number}" for number in range(10))
"""Few, so that a name that is gone comes back."""

ODD_NAMES = tuple(
    os.fsdecode(name)
    for name in (
        b"caf\xe9",
        b"\xff\xfe\x01\x7f",
        "caf\u00e9".encode(),
        b"new\nline",
        b" ",
        b"...",
        b".hidden",
        b"-rf",
        b"back\\slash",
        b"*?[a]$(b)",
        b".wh.n1",
        b".wh..wh..opq",
        b".wh..wh.plnk",
        b"long" * 63 + b"end",
        b"\x80" * 255,
    )
)
POOL = random.Random(1).randbytes(1 << 20)
"""what files are made of"""

CHUNKS = tuple(POOL[start : start + BLOCK] for start in range(0, 4 * BLOCK, BLOCK))

T = TypeVar("T")


class Nothing(Exception):
    """There is no entry of the kind, as far as was looked."""


class Place(NamedTuple):
    """An entry: the descriptor of its directory and its name in it."""

    fd: int
    name: str


class Ground:
    """A tree and the choices of one deed; descriptors that it gives are open until :meth:`leave`."""

    def __init__(self, top: int, chance: random.Random, *, id_max: int) -> None:
        self.top = top
        self.chance = chance
        self.id_max = id_max
        self.device = os.fstat(top).st_dev
        self.leave = contextlib.ExitStack()

    def pick(self, *choices: T) -> T:
        return self.chance.choice(choices)

    def number(self, below: int) -> int:
        return self.chance.randrange(below)

    def bytes(self, size: int) -> bytes:
        start = self.number(len(POOL) - size)
        return POOL[start : start + size]

    def id(self) -> int:
        """Of a user or group: small ones, those at the edges, any."""
        edges = [each for each in (0, 1000, 65_533, 65_534, 65_535, 65_536, 1 << 31) if each <= self.id_max]
        return self.pick(*edges, self.number(self.id_max + 1))

    def name(self) -> str:
        return self.pick(*PLAIN_NAMES, f"f{self.number(10_000)}", f"f{self.number(10_000)}", self.pick(*ODD_NAMES))

    def new_name(self, fd: int) -> str:
        """One that the directory hasn't got."""
        taken = set(os.listdir(fd))
        return next(name for name in iter(self.name, None) if name not in taken)

    def hold(self, fd: int) -> int:
        self.leave.callback(os.close, fd)
        return fd

    def directory(self) -> int:
        """A directory to work in: often near the top, at times as deep as it goes."""
        fd = os.open(".", DIRECTORY, dir_fd=self.top)
        onward = self.pick(0.3, 0.6, 0.6, 0.8, 0.8, 1.0)
        while self.chance.random() < onward and (below := listed(fd, (FOLDER,))):
            deeper = os.open(self.pick(*below), DIRECTORY, dir_fd=fd)
            # What is mounted here is no part of the tree.
            onward = onward if os.fstat(deeper).st_dev == self.device else 0
            fd, other = (deeper, fd) if onward else (fd, deeper)
            os.close(other)
        return self.hold(fd)

    def entry(self, *kinds: int) -> Place:
        """Raises Nothing."""
        for _ in range(TRIES):
            fd = self.directory()
            if found := listed(fd, kinds):
                return Place(fd, self.pick(*found))
        raise Nothing

    def file(self) -> Place:
        return self.entry(FILE)

    def folder(self) -> Place:
        return self.entry(FOLDER)

    def lesser_folder(self) -> Place:
        """The emptiest of a few, to be removed: else little would ever grow."""
        return min((self.folder() for _ in range(4)), key=size_of)

    def vacancy(self) -> Place:
        """Where nothing is yet."""
        fd = self.directory()
        return Place(fd, self.new_name(fd))


def listed(fd: int, kinds: Sequence[int]) -> list[str]:
    """Names of entries of some kinds, in order."""
    with os.scandir(fd) as entries:
        return sorted(entry.name for entry in entries if kind_of(entry) in kinds)


def size_of(place: Place) -> int:
    """How many entries a directory has; one that holds directories counts for more than others."""
    with opened(place, DIRECTORY) as fd:
        return len(os.listdir(fd)) + 20 * len(listed(fd, (FOLDER,)))


def kind_of(entry: os.DirEntry[str]) -> int:
    """The commonest without another system call."""
    if entry.is_file(follow_symlinks=False):
        return FILE
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return SYMLINK if entry.is_symlink() else stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


@contextlib.contextmanager
def opened(place: Place, flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(place.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=place.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def write_new(place: Place, *pieces: tuple[int, bytes], size: int = 0) -> None:
    """A new file of data at offsets, at least of a size."""
    with opened(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        os.ftruncate(fd, size)
        for offset, data in pieces:
            write_at(fd, offset, data)


def write_at(fd: int, offset: int, data: bytes) -> None:
    written = os.pwrite(fd, data, offset)
    assert written == len(data)


def by_path(place: Place) -> str:
    """For the system calls that take no descriptor of a directory."""
    return f"/proc/self/fd/{place.fd}/{place.name}"


def set_xattr(place: Place, name: str, value: bytes) -> None:
    os.setxattr(by_path(place), name, value, follow_symlinks=False)


def list_xattrs(place: Place) -> list[str]:
    return sorted(os.listxattr(by_path(place), follow_symlinks=False))


def remove(place: Place) -> None:
    """Whatever it is, with all that is below, however deep."""
    if not is_folder(place):
        os.unlink(place.name, dir_fd=place.fd)
        return
    way, fd = [place.name], os.open(place.name, DIRECTORY, dir_fd=place.fd)
    try:
        while way:
            below = emptied(fd)
            step, old = below or "..", fd
            fd = os.open(step, DIRECTORY, dir_fd=old)
            os.close(old)
            if below:
                way.append(below)
            else:
                os.rmdir(way.pop(), dir_fd=fd)
    finally:
        os.close(fd)


def is_folder(place: Place) -> bool:
    return stat.S_ISDIR(os.stat(place.name, dir_fd=place.fd, follow_symlinks=False).st_mode)


def has_flags(place: Place) -> bool:
    """Only files and directories."""
    mode = os.stat(place.name, dir_fd=place.fd, follow_symlinks=False).st_mode
    return stat.S_IFMT(mode) in (FILE, FOLDER)


def emptied(fd: int) -> str | None:
    """Remove all that is no directory; the first directory that isn't empty, if there is one."""
    for name in listed(fd, LEAVES):
        os.unlink(name, dir_fd=fd)
    for name in listed(fd, (FOLDER,)):
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError:
            return name
    return None


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if LIBC.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) < 0:
        raise_errno("fallocate")


def renameat2(source: Place, target: Place, flags: int) -> None:
    if LIBC.renameat2(source.fd, os.fsencode(source.name), target.fd, os.fsencode(target.name), flags) < 0:
        raise_errno("renameat2")


def raise_errno(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), call)


def set_flags(fd: int, flags: int) -> None:
    """Inode flags, as of chattr(1)."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))


def get_flags(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little")
