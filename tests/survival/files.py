"""Open files: what they are, where they stand, what their names became."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from survival import Probe, holds, libc, same

LINES = b"".join(b"line %06d\n" % number for number in range(5000))
BIG = 100 << 20
PIECE = os.urandom(1 << 20)


def directory(name: str) -> Path:
    path = Path("/srv/files") / name
    path.mkdir(parents=True)
    return path


def offsets() -> Probe:
    """Read to the middle; written to the middle; far beyond the end; at an end that moves."""
    here = directory("offsets")
    (here / "read").write_bytes(LINES)
    read = os.open(here / "read", os.O_RDONLY)
    os.read(read, 12345)
    write = os.open(here / "write", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(write, LINES)
    os.lseek(write, 100, os.SEEK_SET)
    far = os.open(here / "far", os.O_RDWR | os.O_CREAT)
    os.lseek(far, 1 << 40, os.SEEK_SET)
    yield
    same(os.read(read, 1 << 20), LINES[12345:], "what is left to read")
    os.write(write, b"HERE")
    same((here / "write").read_bytes(), LINES[:100] + b"HERE" + LINES[104:], "what was written")
    same(os.lseek(far, 0, os.SEEK_CUR), 1 << 40, "offset beyond the end")


def append() -> Probe:
    """O_APPEND, with somebody else who appends too."""
    here = directory("append")
    one = os.open(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    two = os.open(here / "log", os.O_WRONLY | os.O_APPEND | os.O_SYNC)
    os.write(one, b"1")
    os.write(two, b"2")
    yield
    for fd in (one, two, one):
        os.write(fd, b"3" if fd == one else b"4")
    same((here / "log").read_bytes(), b"12343")


def of_the_base() -> Probe:
    """Files that no job wrote: one read, one written in place, one removed while it is open."""
    read, write, gone = (f"/usr/share/common-licenses/{name}" for name in ("GPL-2", "BSD", "Artistic"))
    text = {path: Path(path).read_bytes() for path in (read, write, gone)}
    opened = os.open(read, os.O_RDONLY)
    os.read(opened, 1000)
    writing = os.open(write, os.O_RDWR)
    os.write(writing, b"CHANGED")
    removed = os.open(gone, os.O_RDONLY)
    os.unlink(gone)
    yield
    same(os.read(opened, 1 << 20), text[read][1000:], "what is left to read")
    os.write(writing, b"TWICE")
    same(Path(write).read_bytes(), b"CHANGEDTWICE" + text[write][12:], "what was written")
    same(os.read(removed, 1 << 20), text[gone], "what was removed")
    holds(not os.path.exists(gone), "its name is gone")


def removed_100_mb() -> Probe:
    """Deleted and still open, in the middle, at two descriptors."""
    path = directory("removed") / "big"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(BIG >> 20):
        os.write(fd, number.to_bytes(8, "little") + PIECE[8:])
    again = os.open(path, os.O_RDONLY)
    os.unlink(path)
    os.lseek(fd, 50 << 20, os.SEEK_SET)
    yield
    same(os.fstat(fd).st_nlink, 0, "links")
    same(os.lseek(fd, 0, os.SEEK_CUR), 50 << 20, "offset")
    os.pwrite(fd, b"new", 3 << 20)
    digest, expected = hashlib.sha256(), hashlib.sha256()
    for number in range(BIG >> 20):
        digest.update(os.read(again, 1 << 20))
        piece = number.to_bytes(8, "little") + PIECE[8:]
        expected.update(b"new" + piece[3:] if number == 3 else piece)
    same(digest.digest(), expected.digest(), "contents")
    same(os.read(again, 1), b"", "its end")
    same(os.listdir(path.parent), [], "names in its directory")


def replaced() -> Probe:
    """Deleted and still open, and another has its name; the directory is gone of a third."""
    here = directory("replaced")
    old = os.open(here / "name", os.O_RDWR | os.O_CREAT)
    os.write(old, b"old")
    os.unlink(here / "name")
    (here / "name").write_bytes(b"new")
    (here / "sub").mkdir()
    lost = os.open(here / "sub/lost", os.O_RDWR | os.O_CREAT)
    os.write(lost, b"lost")
    os.unlink(here / "sub/lost")
    os.rmdir(here / "sub")
    yield
    os.write(old, b"er")
    same((os.pread(old, 9, 0), (here / "name").read_bytes()), (b"older", b"new"))
    same(os.pread(lost, 9, 0), b"lost", "of the directory that is gone")
    same(os.listdir(here), ["name"], "names")


def renamed() -> Probe:
    """The file, and the directory above it, have other names than when they were opened."""
    here = directory("renamed")
    (here / "before").mkdir()
    one = os.open(here / "before/one", os.O_RDWR | os.O_CREAT)
    os.write(one, b"one")
    os.rename(here / "before/one", here / "before/two")
    os.rename(here / "before", here / "after")
    yield
    os.write(one, b"!")
    same((here / "after/two").read_bytes(), b"one!")
    same(os.readlink(f"/proc/self/fd/{one}"), os.fspath(here / "after/two"))


def hard_links() -> Probe:
    """Opened by a name that is gone, while another one stays; both ends of one inode."""
    here = directory("links")
    gone = os.open(here / "gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, b"of both")
    os.link(here / "gone", here / "stays")
    os.unlink(here / "gone")
    stays = os.open(here / "stays", os.O_RDONLY)
    yield
    os.pwrite(gone, b"BY", 0)
    same((os.read(stays, 20), (here / "stays").read_bytes()), (b"BY both", b"BY both"))
    same(os.fstat(gone).st_ino, os.fstat(stays).st_ino, "inode")
    same((os.fstat(gone).st_nlink, os.listdir(here)), (1, ["stays"]), "links and names")


def hard_links_that_stay() -> Probe:
    here = directory("two")
    fd = os.open(here / "a", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"of both")
    os.link(here / "a", here / "b")
    yield
    os.pwrite(fd, b"BY", 0)
    same(((here / "a").read_bytes(), (here / "b").read_bytes()), (b"BY both", b"BY both"))
    same((here / "a").stat().st_nlink, 2, "links")


def nameless() -> Probe:
    """O_TMPFILE, to get its name later."""
    here = directory("nameless")
    fd = os.open(here, os.O_RDWR | os.O_TMPFILE)
    os.write(fd, LINES)
    yield
    same(os.pread(fd, len(LINES), 0), LINES, "contents")
    os.write(fd, b"end")
    same(os.fstat(fd).st_size, len(LINES) + 3, "size")


def directories() -> Probe:
    """Held open, removed, and one half listed; a file is opened relative to one."""
    here = directory("directories")
    for number in range(300):
        (here / f"{number:03}").touch()
    held = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    buffer = libc.ctypes.create_string_buffer(1024)
    listing = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    size = libc.call("getdents64", listing, buffer, 1024)
    seen = names(buffer.raw[:size])
    gone = directory("gone")
    lost = os.open(gone, os.O_RDONLY | os.O_DIRECTORY)
    gone.rmdir()
    yield
    same(os.stat("123", dir_fd=held).st_size, 0, "a file beside the held one")
    while size := libc.call("getdents64", listing, buffer, 1024):
        seen += names(buffer.raw[:size])
    same(sorted(seen), sorted([".", "..", *os.listdir(here)]), "the listing's parts together")
    same(os.listdir(lost), [], "what a removed one lists")


def names(entries: bytes) -> list[str]:
    """Of struct linux_dirent64."""
    found = []
    while entries:
        size = int.from_bytes(entries[16:18], "little")
        found.append(entries[19:size].split(b"\0")[0].decode())
        entries = entries[size:]
    return found


def path_only() -> Probe:
    """O_PATH, of a file, a directory and a symbolic link itself."""
    here = directory("path")
    (here / "file").write_bytes(b"text")
    (here / "link").symlink_to("file")
    file, above = os.open(here / "file", os.O_PATH), os.open(here, os.O_PATH | os.O_DIRECTORY)
    link = os.open(here / "link", os.O_PATH | os.O_NOFOLLOW)
    yield
    with open(f"/proc/self/fd/{file}", "rb") as reopened:
        same(reopened.read(), b"text", "what the file holds")
    same(os.stat("file", dir_fd=above).st_ino, os.fstat(file).st_ino, "inode")
    same(os.readlink("", dir_fd=link), "file", "where the link leads")


def sparse() -> Probe:
    """A deleted file of a gigabyte with two pages in it takes two pages."""
    path = directory("sparse") / "holes"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 1 << 28)
    os.pwrite(fd, b"A" * 4096, 1 << 27)
    os.unlink(path)
    yield
    same((os.fstat(fd).st_size, os.pread(fd, 4097, 1 << 27)), (1 << 28, b"A" * 4096 + b"\0"))
    holds(os.fstat(fd).st_blocks * 512 < 1 << 20, "the holes are holes")


def five_hundred() -> Probe:
    here = directory("many")
    opened = {}
    for number in range(500):
        fd = os.open(here / f"{number}", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"%d" % number)
        opened[fd] = number
    yield
    for fd, number in opened.items():
        same((os.pread(fd, 9, 0), os.lseek(fd, 0, 1)), (b"%d" % number, len(str(number))), f"number {number}")


def ownership() -> Probe:
    """Of a file that is deleted and open: ids, mode, times."""
    path = directory("attributes") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.fchown(fd, 1000, 1001)
    os.fchmod(fd, 0o6751)
    os.utime(fd, ns=(10**18 + 1, 10**18 + 7000))
    os.unlink(path)
    yield
    found = os.fstat(fd)
    same((found.st_mode & 0o7777, found.st_uid, found.st_gid), (0o6751, 1000, 1001), "mode and owner")
    same(found.st_mtime_ns, 10**18 + 7000, "time, to the microsecond")
