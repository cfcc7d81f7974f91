"""A tree that is read from an image, without mounting it. Nothing in the image is trusted."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from engine.errors import Damaged
from engine.tree import erofs
from engine.tree.node import BLOCK, PIECE, Node

TARGET_MAX = 4095
"""bytes of a symbolic link's target"""
DIRECTORY_MAX = 1 << 30
"""bytes of a directory"""
NO_ID = 0xFFFFFFFF
"""what no user or group has: chown(2) takes it for nothing to change"""

_TYPES = {number: kind for kind, number in erofs.FILE_TYPES.items()}


@contextlib.contextmanager
def open_image(meta: Path, blob: Path) -> Iterator[Node]:
    """The tree in an image's two files. Raises Damaged, also later from its nodes, and OSError."""
    with contextlib.ExitStack() as stack:
        image = _Image(stack, meta, blob)
        yield _ImageNode(image, image.root)


def sound(root: Node, *, devices: Callable[[Node], bool]) -> None:
    """Look at every entry of a tree that comes from elsewhere. Raises Damaged for what is malformed, for a directory
    that is in two places, and for a device that ``devices`` doesn't allow."""
    if not root.is_directory:
        raise Damaged("its root is no directory")
    _sound(b"/", root, devices)
    seen = {root.key}
    waiting = [root]
    while waiting:
        for name, node in waiting.pop().children():
            if node.key in seen:
                if node.is_directory:
                    raise Damaged(f"a directory is in two places: {name[:80]!r}")
                continue
            if node.is_directory or node.size > PIECE:  # a large file takes long: one of many names is enough
                seen.add(node.key)
            _sound(name, node, devices)
            if node.is_directory:
                waiting.append(node)


def _sound(name: bytes, node: Node, devices: Callable[[Node], bool]) -> None:
    if NO_ID in (node.uid, node.gid):
        raise Damaged(f"nobody can own {name[:80]!r}")
    node.xattrs()
    if node.is_link:
        node.target()
    elif node.is_file:
        for _ in node.extents():
            pass
    elif node.is_device and not node.is_whiteout and not devices(node):
        kind = "c" if stat.S_ISCHR(node.mode) else "b"
        number = f"{kind} {os.major(node.rdev)}:{os.minor(node.rdev)}"
        raise Damaged(f"it has a device, {name[:80]!r} ({number})", hint="only whoever trusts its maker may take it")


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path} is a link") from error
        raise
    stack.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Damaged(f"{path} is no file")
    return fd


class _Image:
    def __init__(self, stack: contextlib.ExitStack, meta: Path, blob: Path) -> None:
        self.name = os.fspath(meta)
        fd = _opened(stack, meta)
        if os.fstat(fd).st_size < BLOCK:
            raise self.damaged("it is too short")
        self.meta = stack.enter_context(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        self.blob = _opened(stack, blob)
        self.blob_size = os.fstat(self.blob).st_size
        fields = self.unpack(erofs.SUPER, erofs.SUPER_OFFSET)
        magic, block_bits, self.root, incompatible = fields[0], fields[3], fields[5], fields[14]
        if magic != erofs.MAGIC or 1 << block_bits != BLOCK or fields[10] != 0:
            raise self.damaged("it is no EROFS of serac's kind")
        if incompatible & ~(erofs.INCOMPAT_CHUNKED | erofs.INCOMPAT_DEVICES):
            raise self.damaged(f"it has features that are unknown here: {incompatible:#x}")
        self.shared = fields[11] * BLOCK
        """where the xattrs lie that several inodes have"""

    def unpack(self, form: struct.Struct, at: int) -> tuple[int, ...]:
        try:
            return form.unpack_from(self.meta, at)
        except struct.error as error:
            raise self.damaged("it points beyond its end") from error

    def bytes(self, at: int, size: int) -> bytes:
        found = self.meta[at : at + size]
        if at < 0 or len(found) != size:
            raise self.damaged("it points beyond its end")
        return found

    def damaged(self, why: str) -> Damaged:
        return Damaged(f"{self.name}: {why}")


class _ImageNode(Node):
    __slots__ = ("_data", "_image", "_layout", "_nid", "_union", "_xattr_size")

    def __init__(self, image: _Image, nid: int) -> None:
        self._image, self._nid = image, nid
        at = nid * erofs.SLOT
        (form,) = image.unpack(_FORMAT, at)
        if form & erofs.EXTENDED:
            _, xattrs, mode, _, size, union, _, uid, gid, seconds, nanoseconds, nlink = image.unpack(erofs.INODE, at)
            if nanoseconds >= 10**9:
                raise image.damaged("a time is none")
            self.mtime_ns = seconds * 10**9 + nanoseconds
        else:
            _, xattrs, mode, nlink, size, _, union, _, uid, gid = image.unpack(erofs.COMPACT, at)
            fields = image.unpack(erofs.SUPER, erofs.SUPER_OFFSET)
            self.mtime_ns = fields[7] * 10**9 + fields[8]
        self._layout, self._union = form >> 1 & 7, union
        self._xattr_size = erofs.XATTRS.size + 4 * (xattrs - 1) if xattrs else 0
        self._data = at + (erofs.INODE if form & erofs.EXTENDED else erofs.COMPACT).size + self._xattr_size
        self.mode, self.uid, self.gid, self.size, self.nlink = mode, uid, gid, size, nlink
        if stat.S_IFMT(mode) not in erofs.FILE_TYPES:
            raise image.damaged("an inode has no type")
        self.rdev = erofs.decode_device(union) if self.is_device else 0

    @property
    def key(self) -> Hashable:
        return id(self._image), self._nid

    def xattrs(self) -> dict[bytes, bytes]:
        if not self._xattr_size:
            return {}
        image, at = self._image, self._data - self._xattr_size
        _, shared = image.unpack(erofs.XATTRS, at)
        at += erofs.XATTRS.size
        found = {}
        for number in range(shared):
            (place,) = image.unpack(_PLACE, at + 4 * number)
            name, value, _ = self._xattr(image.shared + 4 * place)
            found[name] = value
        at += 4 * shared
        while at < self._data:
            name, value, at = self._xattr(at)
            found[name] = value
        if at != self._data:
            raise image.damaged("an extended attribute is cut")
        return found

    def _xattr(self, at: int) -> tuple[bytes, bytes, int]:
        length, prefix, size = self._image.unpack(erofs.XATTR, at)
        if prefix not in erofs.PREFIXES:
            raise self._image.damaged("an extended attribute has no known prefix")
        at += erofs.XATTR.size
        name = erofs.PREFIXES[prefix] + self._image.bytes(at, length)
        value = self._image.bytes(at + length, size)
        at += length + size
        return name, value, at + -at % 4

    def target(self) -> bytes:
        if self.size > TARGET_MAX:
            raise self._image.damaged("a link's target is too long")
        target = b"".join(self._flat())
        if not target or b"\0" in target:
            raise self._image.damaged("a link has no target")
        return target

    def _flat(self) -> Iterator[bytes]:
        """The data that lies in the metadata, by blocks."""
        whole = self.size // BLOCK if self._layout == erofs.FLAT_INLINE else -(-self.size // BLOCK)
        if self._layout not in (erofs.FLAT_INLINE, erofs.FLAT_PLAIN):
            raise self._image.damaged("data lies where it may not")
        for number in range(whole):
            size = min(BLOCK, self.size - number * BLOCK)
            yield self._image.bytes((self._union + number) * BLOCK, size)
        if tail := self.size - whole * BLOCK if self._layout == erofs.FLAT_INLINE else 0:
            if self._data % BLOCK + tail > BLOCK:
                raise self._image.damaged("data crosses a block's end")
            yield self._image.bytes(self._data, tail)

    def _chunks(self) -> Iterator[tuple[int, int, int]]:
        """Of a file in chunks: offset, length, and place in the blob or -1 for a hole."""
        if not self._union & erofs.CHUNK_INDEXES:
            raise self._image.damaged("a file's chunks have no devices")
        chunk = BLOCK << (self._union & erofs.CHUNK_BITS)
        at = self._data + -self._data % erofs.INDEX.size
        for offset in range(0, self.size, chunk):
            _, device, block = self._image.unpack(erofs.INDEX, at)
            at += erofs.INDEX.size
            length = min(chunk, self.size - offset)
            if block == erofs.HOLE:
                yield offset, length, -1
                continue
            # The last block of a file is there in full.
            if device != erofs.BLOB or block * BLOCK + length + -length % BLOCK > self._image.blob_size:
                raise self._image.damaged("a file's data lies beyond the blob's end")
            yield offset, length, block * BLOCK

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """As `_chunks`, with what is contiguous in one."""
        begin = length = place = 0
        for offset, more, where in self._chunks():
            if length and (where == place + length if place >= 0 else where < 0):
                length += more
                continue
            if length:
                yield begin, length, place
            begin, length, place = offset, more, where
        if length:
            yield begin, length, place

    def extents(self) -> Iterator[tuple[int, int]]:
        if self._layout != erofs.CHUNKED:
            if self.size:
                yield 0, self.size
            return
        begin = end = 0
        for offset, length, place in self._pieces():
            if place < 0:
                continue
            if offset != end and end > begin:
                yield begin, end - begin
            begin = offset if offset != end or end == begin else begin
            end = offset + length
        if end > begin:
            yield begin, end - begin

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        if offset + length > self.size:
            raise self._image.damaged("a file is shorter than it was said to be")
        if self._layout != erofs.CHUNKED:
            yield b"".join(self._flat())[offset : offset + length]
            return
        waiting = bytearray()
        for begin, size, place in self._pieces():
            at, stop = max(begin, offset), min(begin + size, offset + length)
            while at < stop:
                want = min(PIECE - len(waiting), stop - at)
                waiting += self._from_blob(place + at - begin, want) if place >= 0 else bytes(want)
                at += want
                if len(waiting) == PIECE:
                    yield bytes(waiting)
                    waiting.clear()
        if waiting:
            yield bytes(waiting)

    def _from_blob(self, at: int, length: int) -> bytes:
        found = os.pread(self._image.blob, length, at)
        if len(found) != length:
            raise self._image.damaged("its blob is cut")
        return found

    def children(self) -> list[tuple[bytes, Node]]:
        return [(name, _ImageNode(self._image, nid)) for name, nid in self._entries() if name not in (b".", b"..")]

    def child(self, name: bytes) -> Node | None:
        for found, nid in self._entries():
            if found == name:
                return _ImageNode(self._image, nid)
        return None

    def _entries(self) -> Iterator[tuple[bytes, int]]:
        """Names in order, with their nids."""
        if self.size > DIRECTORY_MAX:
            raise self._image.damaged("a directory is too large")
        last = b""
        for block in self._flat():
            for name, nid in self._block_entries(block):
                if name <= last or len(name) > erofs.NAME_MAX or b"/" in name:
                    raise self._image.damaged(f"a directory has a name that can't be: {name[:80]!r}")
                last = name
                yield name, nid

    def _block_entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        try:
            first = erofs.DIRENT.unpack_from(block, 0)[1]
            entries = [erofs.DIRENT.unpack_from(block, at) for at in range(0, first, erofs.DIRENT.size)]
        except struct.error as error:
            raise self._image.damaged("a directory is cut") from error
        if not entries:
            raise self._image.damaged("a directory is cut")
        starts = [entry[1] for entry in entries]
        ends = [*starts[1:], len(block)]
        for (nid, start, _, _), end in zip(entries, ends, strict=True):
            name = block[start:end]
            yield (name.rstrip(b"\0") if end == len(block) else name), nid


_FORMAT = struct.Struct("<H")
_PLACE = struct.Struct("<I")
