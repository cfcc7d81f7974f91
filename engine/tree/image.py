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
from engine.tree.node import BLOCK, PIECE, Node, portable

TARGET_MAX = 4095
"""bytes of a symbolic link's target"""
DIRECTORY_MAX = 1 << 30
"""bytes of a directory"""
XATTR_NAME_MAX = 255
NO_ID = 0xFFFFFFFF
"""what no user or group has: chown(2) takes it for nothing to change"""


@contextlib.contextmanager
def open_image(meta: Path, blob: Path) -> Iterator[ImageNode]:
    """The tree in an image's two files. Raises Damaged, also later from its nodes, and OSError."""
    with contextlib.ExitStack() as stack:
        image = _Image(stack, meta, blob)
        yield ImageNode(image, image.root)


def sound(root: ImageNode, *, devices: Callable[[Node], bool]) -> None:
    """Look at every entry of a tree that comes from elsewhere. Raises Damaged for what is malformed or means something
    else to the kernel, for a directory that is in two places, and for a device that ``devices`` doesn't allow."""
    if not root.is_directory:
        raise Damaged("its root is no directory")
    root.sound(b"/", devices)
    root.sound_directory(above=root)
    used, seen = root.footprint, {root.key}
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        for name, node in directory.children():
            if node.key in seen:
                if node.is_directory:
                    raise Damaged(f"a directory is in two places: {name[:80]!r}")
                continue
            seen.add(node.key)
            # What inodes share would be looked at again and again.
            used += node.footprint
            root.sound_size(used)
            node.sound(name, devices)
            if node.is_directory:
                node.sound_directory(above=directory)
                waiting.append(node)


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
        self.size = os.fstat(fd).st_size
        if self.size < BLOCK:
            raise self.damaged("it is too short")
        self.meta = stack.enter_context(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        self.blob = _opened(stack, blob)
        self.blob_size = os.fstat(self.blob).st_size
        self.root, inodes = self.unpack(erofs.SUPER, erofs.SUPER_OFFSET)[5:7]
        head = bytearray(self.bytes(erofs.SUPER_OFFSET, erofs.HEAD))
        head[erofs.SUPER_UUID : erofs.SUPER_UUID + 16] = bytes(16)
        # The kernel knows more fields and features than are read here: none may say anything else.
        if head != self._head(inodes):
            raise self.damaged("it is no EROFS of serac's kind, or cut")

    def _head(self, inodes: int) -> bytes:
        blocks, blob_blocks = -(-self.size // BLOCK), -(-self.blob_size // BLOCK)
        return erofs.head(root=self.root, inodes=inodes, blocks=blocks, blob_blocks=blob_blocks)

    def unpack(self, form: struct.Struct, at: int) -> tuple[int, ...]:
        if at + form.size > self.size:
            raise self.damaged("it points beyond its end")
        return form.unpack_from(self.meta, at)

    def bytes(self, at: int, size: int) -> bytes:
        if at + size > self.size:
            raise self.damaged("it points beyond its end")
        return self.meta[at : at + size]

    def damaged(self, why: str) -> Damaged:
        return Damaged(f"{self.name}: {why}")


class ImageNode(Node):
    __slots__ = ("_data", "_image", "_layout", "_nid", "_union", "_xattr_size")

    def __init__(self, image: _Image, nid: int) -> None:
        self._image, self._nid = image, nid
        at = nid * erofs.SLOT
        form, xattrs, mode, high, size, union, _, uid, gid, seconds, nanoseconds, nlink = image.unpack(erofs.INODE, at)
        self._layout, self._union = form >> 1, union
        if form & 1 != erofs.EXTENDED or self._layout not in _LAYOUTS or high or xattrs == 1 or size > _SIZE_MAX:
            raise image.damaged("an inode is of an unknown form")
        if stat.S_IFMT(mode) not in erofs.FILE_TYPES:
            raise image.damaged("an inode has no type")
        if nanoseconds >= 10**9:
            raise image.damaged("a time is none")
        if NO_ID in (uid, gid):
            raise image.damaged("it has something that nobody can own")
        self._xattr_size = erofs.XATTRS.size + 4 * (xattrs - 1) if xattrs else 0
        self._data = at + erofs.INODE.size + self._xattr_size
        self.mode, self.uid, self.gid, self.size, self.nlink = mode, uid, gid, size, nlink
        self.mtime_ns = seconds * 10**9 + nanoseconds
        self.rdev = erofs.decode_device(union) if self.is_device else 0

    @property
    def key(self) -> Hashable:
        return id(self._image), self._nid

    @property
    def footprint(self) -> int:
        """Bytes of the metadata that are this inode's alone, at least."""
        chunked = self._layout == erofs.CHUNKED
        data = erofs.INDEX.size * -(-self.size // self._chunk) if chunked else self.size
        return erofs.INODE.size + self._xattr_size + data

    @property
    def _chunk(self) -> int:
        return BLOCK << (self._union & erofs.CHUNK_BITS)

    def sound_size(self, used: int) -> None:
        """Raises Damaged where inodes have more metadata in all than there is."""
        if used > self._image.size:
            raise self._image.damaged("parts of it overlap")

    def sound_directory(self, *, above: ImageNode) -> None:
        """Raises Damaged where '.' and '..' lead elsewhere."""
        dots = {name: nid for name, nid, _ in self._entries() if name in _DOTS}
        if dots != {b".": self._nid, b"..": above._nid}:
            raise self._image.damaged("a directory has no way back")

    def sound(self, name: bytes, devices: Callable[[Node], bool]) -> None:
        xattrs = self.xattrs()
        if portable(self, xattrs) != xattrs:
            raise self._image.damaged(f"{name[:80]!r} has an attribute that overlayfs takes for its own")
        if not self.nlink:
            raise self._image.damaged(f"{name[:80]!r} has no links")
        if self.is_link:
            self.target()
        elif self.is_file:
            for _ in self.extents():
                pass
        elif self.is_device and not self.is_whiteout and not devices(self):
            kind = "c" if stat.S_ISCHR(self.mode) else "b"
            number = f"{kind} {os.major(self.rdev)}:{os.minor(self.rdev)}"
            raise Damaged(
                f"it has a device, {name[:80]!r} ({number})", hint="only whoever trusts its maker may take it"
            )

    def xattrs(self) -> dict[bytes, bytes]:
        if not self._xattr_size:
            return {}
        image, at = self._image, self._data - self._xattr_size
        if image.unpack(erofs.XATTRS, at)[1]:
            raise image.damaged("extended attributes are shared")
        at += erofs.XATTRS.size
        found: dict[bytes, bytes] = {}
        while at < self._data:
            name, value, at = self._xattr(at)
            if name in found:
                raise image.damaged("an extended attribute is there twice")
            found[name] = value
        if at != self._data:
            raise image.damaged("an extended attribute is cut")
        return found

    def _xattr(self, at: int) -> tuple[bytes, bytes, int]:
        length, prefix, size = self._image.unpack(erofs.XATTR, at)
        at += erofs.XATTR.size
        known, rest = erofs.PREFIXES.get(prefix, b""), self._image.bytes(at, length)
        # A prefix with a dot is none without a rest, and the others are whole.
        if known.endswith(b".") != bool(rest) or not known or b"\0" in rest or len(known + rest) > XATTR_NAME_MAX:
            raise self._image.damaged("an extended attribute has a name that can't be")
        value = self._image.bytes(at + length, size)
        at += length + size
        return known + rest, value, at + -at % 4

    def target(self) -> bytes:
        if self.size > TARGET_MAX:
            raise self._image.damaged("a link's target is too long")
        target = b"".join(self._flat())
        if not target or b"\0" in target:
            raise self._image.damaged("a link has no target")
        return target

    def _flat(self) -> Iterator[bytes]:
        """The data that lies in the metadata, by blocks; the last one behind the inode, if it is inline."""
        if self._layout == erofs.CHUNKED:
            raise self._image.damaged("data lies where it may not")
        inline = self._layout == erofs.FLAT_INLINE
        last = (self.size - 1) // BLOCK if inline else -1
        for number in range(-(-self.size // BLOCK)):
            size = min(BLOCK, self.size - number * BLOCK)
            at = self._data if number == last else (self._union + number) * BLOCK
            if at % BLOCK + size > BLOCK:
                raise self._image.damaged("data crosses a block's end")
            yield self._image.bytes(at, size)

    def _chunks(self, start: int) -> Iterator[tuple[int, int, int]]:
        """Of a file, from the chunk that ``start`` lies in: offset, length, and place in the blob or -1 for a hole."""
        if self._layout != erofs.CHUNKED or self._union & ~erofs.CHUNK_BITS != erofs.CHUNK_INDEXES:
            raise self._image.damaged("a file's chunks are of an unknown form")
        chunk = self._chunk
        start //= chunk
        at = self._data + -self._data % erofs.INDEX.size + start * erofs.INDEX.size
        for offset in range(start * chunk, self.size, chunk):
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

    def _pieces(self, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """As `_chunks`, with what is contiguous in one."""
        begin = length = place = 0
        for offset, more, where in self._chunks(start):
            if length and (where == place + length if place >= 0 else where < 0):
                length += more
                continue
            if length:
                yield begin, length, place
            begin, length, place = offset, more, where
        if length:
            yield begin, length, place

    def extents(self) -> Iterator[tuple[int, int]]:
        if not self.size:
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

    @property
    def grain(self) -> int:
        return 1 << (self._union & erofs.CHUNK_BITS) if self._layout == erofs.CHUNKED else 0

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        if end > self.size:
            raise self._image.damaged("a file is shorter than it was said to be")
        waiting = bytearray()
        for begin, size, place in self._pieces(offset) if length else ():
            at, stop = max(begin, offset), min(begin + size, end)
            while at < stop:
                want = min(PIECE - len(waiting), stop - at)
                waiting += self._from_blob(place + at - begin, want) if place >= 0 else bytes(want)
                at += want
                if len(waiting) == PIECE:
                    yield bytes(waiting)
                    waiting.clear()
            if at >= end:
                break
        if waiting:
            yield bytes(waiting)

    def _from_blob(self, at: int, length: int) -> bytes:
        found = os.pread(self._image.blob, length, at)
        if len(found) != length:
            raise self._image.damaged("its blob is cut")
        return found

    def children(self) -> list[tuple[bytes, ImageNode]]:
        return [(name, self._below(nid, kind)) for name, nid, kind in self._entries() if name not in _DOTS]

    def child(self, name: bytes) -> Node | None:
        if name in _DOTS:
            return None
        return next((self._below(nid, kind) for found, nid, kind in self._entries() if found == name), None)

    def _below(self, nid: int, kind: int) -> ImageNode:
        node = ImageNode(self._image, nid)
        if erofs.FILE_TYPES[stat.S_IFMT(node.mode)] != kind:
            raise self._image.damaged("an entry is of another type than its inode")
        return node

    def _entries(self) -> Iterator[tuple[bytes, int, int]]:
        """Names in order, with their nids and types."""
        if not self.is_directory or self.size > DIRECTORY_MAX:
            raise self._image.damaged("a directory is none, or too large")
        last = b""
        for block in self._flat():
            for name, nid, kind in self._block_entries(block):
                if name <= last or len(name) > erofs.NAME_MAX or b"/" in name or b"\0" in name:
                    raise self._image.damaged(f"a directory has a name that can't be: {name[:80]!r}")
                last = name
                yield name, nid, kind

    def _block_entries(self, block: bytes) -> Iterator[tuple[bytes, int, int]]:
        try:
            first = erofs.DIRENT.unpack_from(block, 0)[1]
            entries = list(erofs.DIRENT.iter_unpack(block[:first]))
        except struct.error as error:
            raise self._image.damaged("a directory is cut") from error
        if not entries:
            raise self._image.damaged("a directory has an empty block")
        starts = [entry[1] for entry in entries]
        for (nid, start, kind, _), end in zip(entries, [*starts[1:], len(block)], strict=True):
            name = block[start:end]
            yield (name.rstrip(b"\0") if end == len(block) else name), nid, kind


_DOTS = (b".", b"..")
_LAYOUTS = (erofs.FLAT_PLAIN, erofs.FLAT_INLINE, erofs.CHUNKED)
_SIZE_MAX = (1 << 63) - 1
