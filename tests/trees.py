"""Trees with everything in them that may give trouble, and the program that copies them."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

Node = tuple[object, ...]


def run(program: Path, *arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *arguments], input=data, capture_output=True, check=False)


def packed(program: Path, path: str | Path) -> bytes:
    done = run(program, "pack", path)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def unpacked(program: Path, data: bytes, *arguments: str | Path) -> None:
    done = run(program, "unpack", *arguments, data=data)
    assert (done.returncode, done.stderr) == (0, b"")


def refused(program: Path, data: bytes, target: Path) -> str:
    """The one line that the program says about a stream that it doesn't take."""
    done = run(program, "unpack", target, data=data)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    return done.stderr.decode(errors="replace")


def grow(top: Path) -> None:
    """A tree with one of everything that may give trouble."""
    top.mkdir()
    (top / "empty").touch()
    (top / "directory").mkdir(mode=0o711)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "just a block").write_bytes(b"x" * 512)
    (top / "large").write_bytes(random.Random(1).randbytes(700_001))
    (top / "readonly").write_bytes(b"y")
    (top / "readonly").chmod(0o400)
    (top / "first").write_bytes(b"linked")
    os.link(top / "first", top / "directory" / "second")
    os.link(top / "first", top / ("third" * 51))
    os.symlink("directory/second", top / "symlink")
    os.symlink("nowhere", top / ("l" * 255))
    os.mkfifo(top / "fifo")
    Path(os.fsdecode(os.fsencode(top) + b"/caf\xe9\n\x01")).write_bytes(b"not UTF-8")
    (top / "caf\u00e9").write_bytes(b"UTF-8")
    with open(top / "sparse", "wb") as sparse:
        sparse.truncate(3_000_000)
        sparse.seek(2_000_000)
        sparse.write(b"middle")
    grow_deep(top, "d" * 250, levels=20)
    for name, nanoseconds in (("empty", -1_500_000_000), ("large", 9_000_000_000_123_456_789), ("directory", 5)):
        os.utime(top / name, ns=(0, nanoseconds))
    os.utime(top / "symlink", ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)


def grow_deep(top: Path, name: str, *, levels: int) -> None:
    """Directories below each other, by descriptors: their path is longer than the kernel takes one."""
    fd = os.open(top, DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
    os.close(fd)


def look(top: Path, *, owners: bool = False) -> dict[str, Node]:
    """Everything about a tree that a copy keeps."""
    seen: dict[str, Node] = {}
    inodes: dict[int, str] = {}

    def look_at(parent: int, last: str, name: str) -> None:
        status = os.stat(last, dir_fd=parent, follow_symlinks=False)
        kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
        facts: Node = (kind, status.st_mtime_ns, *((status.st_uid, status.st_gid) if owners else ()))
        if kind == stat.S_IFLNK:
            seen[name] = (*facts, os.readlink(last, dir_fd=parent))
        elif kind == stat.S_IFREG:
            with open(os.open(last, os.O_RDONLY, dir_fd=parent), "rb") as file:
                seen[name] = (*facts, mode, file.read(), inodes.setdefault(status.st_ino, name))
        else:
            seen[name] = (*facts, mode)
        if kind == stat.S_IFDIR:
            fd = os.open(last, DIRECTORY, dir_fd=parent)
            for child in sorted(os.listdir(fd)):
                look_at(fd, child, f"{name}/{child}")
            os.close(fd)

    parent = os.open(top.parent, DIRECTORY)
    look_at(parent, top.name, "")
    os.close(parent)
    return seen
