"""A census of a tree: everything about it that must come back, and what differs between two.

    before = census.take(top)
    ...
    assert not census.differences(before, census.take(top))

Taken by descriptors, at most two at a time, so that no depth and no length of a path matters; the tree must be at rest.
What is mounted below is left out, and so are the sizes, links and allocation of directories, which are the file
system's own business, and all times but mtime.

Which extended attributes show depends on where one looks. On a layer itself `trusted.overlay.*` is overlayfs's and left
out, while `trusted.overlay.overlay.*` is how it keeps a job's own. Seen through a mounted overlay, ``overlaid``, its
own don't show, and `trusted.overlay.*` is the job's like any other. Whiteouts, which show only on a layer, are links of
each other and of one in the work directory, as it happens: that is no fact of theirs.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
BLOCK = 4096
PIECE = 256 * BLOCK
ALLOCATION_SLACK = 64 << 10
ROOT = b"."
"""the path of the top itself; all others are relative to it"""

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The facts of an entry; what its kind hasn't got is 0 or empty."""

    kind: str
    mode: int
    uid: int
    gid: int
    device: int
    """of a device node: which one"""
    size: int
    """of files and symlinks, in bytes"""
    links: int
    """of all but directories"""
    mtime: int
    """in nanoseconds"""
    xattrs: Mapping[str, bytes]
    content: str = ""
    """SHA-256 of the blocks that are not all zero, each with its offset: a hole is as good as written zeros"""
    target: bytes = b""
    """of a symlink"""
    first: bytes
    """the first path, in order, of those that are hard links of each other"""
    allocated: int = 0
    """bytes that are no hole (SEEK_DATA); st_blocks isn't asked, for EROFS counts holes in it"""


Census = dict[bytes, Record]
"""path -> facts"""

FACTS = tuple(field.name for field in dataclasses.fields(Record))


def take(top: int | Path, *, overlaid: bool = False) -> Census:
    """Every entry below ``top``, a directory or a descriptor of one, and the top itself."""
    found: Census = {}
    firsts: dict[tuple[int, int], bytes] = {}
    for path, parent, name in walk(top):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        lone = stat.S_ISDIR(status.st_mode) or is_whiteout(status)
        first = path if lone else firsts.setdefault((status.st_dev, status.st_ino), path)
        found[path] = found[first] if first != path else record(parent, name, status, path, overlaid=overlaid)
    return found


def walk(top: int | Path) -> Iterator[tuple[bytes, int, bytes]]:
    """Path, descriptor of the directory and name in it of each entry; a directory before what it holds, and what it
    holds in the order of names. Not into what is mounted below."""
    fd = os.open(".", DIRECTORY, dir_fd=top) if isinstance(top, int) else os.open(top, DIRECTORY)
    device, path = os.fstat(fd).st_dev, list[bytes]()
    try:
        yield ROOT, fd, ROOT
        pending = [names(fd)]
        while pending:
            if pending[-1]:
                name = pending[-1].pop()
                yield b"/".join([*path, name]), fd, name
                if is_directory(fd, name, device):
                    path.append(name)
                    fd = moved(fd, name)
                    pending.append(names(fd))
            else:
                pending.pop()
                fd = moved(fd, b"..") if path else fd
                del path[-1:]
    finally:
        os.close(fd)


def names(fd: int) -> list[bytes]:
    """The last one first."""
    return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)


def is_directory(parent: int, name: bytes, device: int) -> bool:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISDIR(status.st_mode) and status.st_dev == device


def moved(fd: int, name: bytes) -> int:
    """A descriptor of ``name``, in the stead of that of its parent."""
    try:
        return os.open(name, DIRECTORY, dir_fd=fd)
    finally:
        os.close(fd)


def record(parent: int, name: bytes, status: os.stat_result, path: bytes, *, overlaid: bool) -> Record:
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    content, allocated = contents(parent, name, status.st_size) if kind == "file" else ("", 0)
    return Record(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        device=status.st_rdev if kind.endswith("device") else 0,
        size=0 if kind == "directory" else status.st_size,
        links=0 if kind == "directory" or is_whiteout(status) else status.st_nlink,
        mtime=status.st_mtime_ns,
        xattrs=attributes(parent, name, overlaid=overlaid),
        content=content,
        target=os.readlink(name, dir_fd=parent) if kind == "symlink" else b"",
        first=path,
        allocated=allocated,
    )


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def attributes(parent: int, name: bytes, *, overlaid: bool) -> dict[str, bytes]:
    # There is no getxattrat(2) in Python, and opening a fifo or a device wouldn't do.
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    shown = sorted(os.listxattr(path, follow_symlinks=False))
    kept = [each for each in shown if overlaid or not is_overlays(each)]
    return {each: os.getxattr(path, each, follow_symlinks=False) for each in kept}


def is_overlays(name: str) -> bool:
    return name.startswith("trusted.overlay.") and not name.startswith("trusted.overlay.overlay.")


def contents(parent: int, name: bytes, size: int) -> tuple[str, int]:
    """Digest and allocated size of a file; what is a hole isn't read."""
    fd = os.open(name, FILE, dir_fd=parent)
    try:
        found = list(extents(fd, size))
        digest = hashlib.sha256()
        for offset, block in blocks(fd, found):
            digest.update(offset.to_bytes(8, "big") + block.ljust(BLOCK, b"\0"))
        return digest.hexdigest(), sum(end - start for start, end in found)
    finally:
        os.close(fd)


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data, as start and end."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def blocks(fd: int, found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The blocks with anything in them, by their offsets; each once, however extents lie in them."""
    done = 0
    for start, end in found:
        begin = max(done, start // BLOCK * BLOCK)
        done = max(done, -(-end // BLOCK) * BLOCK)
        for offset in range(begin, done, PIECE):
            piece = os.pread(fd, min(PIECE, done - offset), offset)
            if piece.count(0) == len(piece):
                continue
            for place in range(0, len(piece), BLOCK):
                block = piece[place : place + BLOCK]
                if block.count(0) != len(block):
                    yield offset + place, block


def differences(
    before: Census,
    after: Census,
    *,
    ignore: Collection[str] = (),
    root: bool = True,
    sockets: bool = True,
    image: bool = False,
) -> list[str]:
    """One line `PATH: FACT: WAS -> IS` for each difference, in the order of paths; `PATH: gone` and `PATH: new` for
    what is on one side only.

    ``ignore`` are names of facts (`FACTS`) that don't count. Without ``root`` the facts of the top itself don't: an
    overlay shows there those of its upper's own root. Without ``sockets`` they may come and go, as tar leaves them out.
    Allocation may double or halve, and 64 KiB more, for file systems round in their own ways. Of what was made an
    ``image`` it may shrink as it will: mkfs.erofs makes holes of blocks that are all zero."""
    assert set(ignore) <= set(FACTS), ignore
    lines = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if (path == ROOT and not root) or (not sockets and "socket" in {kind_of(was), kind_of(now)}):
            continue
        lines += [f"{shown_path(path)}: {text}" for text in compared(was, now, ignore, image=image)]
    return lines


def kind_of(entry: Record | None) -> str | None:
    return entry and entry.kind


def compared(was: Record | None, now: Record | None, ignore: Collection[str], *, image: bool) -> Iterator[str]:
    if was is None or now is None:
        yield "new" if was is None else "gone"
        return
    # Between entries of two kinds nothing else is worth a word.
    for fact in FACTS if was.kind == now.kind else ("kind",):
        old, new = getattr(was, fact), getattr(now, fact)
        if fact in ignore or old == new or (fact == "allocated" and is_alike(old, new, image=image)):
            continue
        yield from compared_xattrs(old, new) if fact == "xattrs" else [f"{fact}: {shown(fact, old, new)}"]


def is_alike(old: int, new: int, *, image: bool = False) -> bool:
    least = old if image else min(old, new)
    return max(old, new) <= 2 * least + ALLOCATION_SLACK


def compared_xattrs(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was != now:
            yield f"xattrs: {name}: {shown('', was, now)}"


def shown(fact: str, old: object, new: object) -> str:
    return " -> ".join(shortened(oct(value) if fact == "mode" else value) for value in (old, new))  # type: ignore[arg-type]


def shortened(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-20:]}"


def shown_path(path: bytes) -> str:
    return shortened(repr(path)[2:-1])
