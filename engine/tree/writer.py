"""A tree becomes an image: EROFS metadata, and a blob with the contents of files, in one pass over the tree.

mkfs.erofs does neither of two things that layers need: leave out the attributes that mean something on one host alone
(`engine.tree.node.portable`), and take paths longer than PATH_MAX, which any job can make; and what it has written
would have to be read again for the digests.

Every inode is written when the walk comes to it, a directory with the names of all that is in it; the numbers of those
are filled in as they become known. The metadata is held in memory until all of it is known.
"""

from __future__ import annotations

import hashlib
import itertools
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import InvalidInput
from engine.kernel.write import write_all
from engine.tree import erofs
from engine.tree.blob import Blob, Digested, Run
from engine.tree.node import BLOCK, Node, portable

XATTR_MAX = 0xFFFF
"""bytes of an extended attribute's value; the kernel itself takes one more"""
XATTRS_MAX = 4 * 0xFFFF
"""bytes of an inode's extended attributes"""


class Written(NamedTuple):
    meta: Digested
    blob: Digested
    pieces: tuple[str, ...]
    """SHA-256 of each PIECE of the blob, in order"""


def write_image(root: Node, meta: Path, blob: Path, *, tick: Callable[[int], None] | None = None) -> Written:
    """Write the tree of ``root`` into two new files. ``tick`` is called with the bytes of contents that were read so
    far, and may end it by raising. Raises InvalidInput for what no image can hold, OSError, and what the tree raises.
    """
    with Blob(blob, tick) as contents:
        writer = _Writer(contents)
        writer.write(root)
        digest, pieces = contents.finish()
    data = writer.finish(digest)
    with open(meta, "xb", buffering=0) as file:
        write_all(file, data)
    return Written(Digested(hashlib.sha256(data).hexdigest(), len(data)), digest, pieces)


class _Due(NamedTuple):
    """An entry of a directory that waits for its inode."""

    node: Node
    into: bytearray
    at: int
    above: int
    """nid of the directory"""


class _Writer:
    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._meta = bytearray(erofs.SUPER_OFFSET + erofs.HEAD)
        self._apart = bytearray()
        """blocks of directories and links, which follow when all inodes are written"""
        self._addresses: list[tuple[int, int]] = []
        """where in the metadata the number of such a block belongs, and which of them it is"""
        self._links: dict[Hashable, tuple[int, int]] = {}
        """nid, and names so far, of inodes that have several names"""
        self._inodes = 0
        self._root = 0

    def write(self, root: Node) -> None:
        if not root.is_directory:
            raise InvalidInput("the root of a tree is a directory")
        self._root, due = self._directory(root, None)
        levels = [due]
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
                continue
            if entry.node.is_directory:
                nid, due = self._directory(entry.node, entry.above)
                levels.append(due)
            else:
                nid = self._named(entry.node)
            erofs.DIRENT_NID.pack_into(entry.into, entry.at, nid)
        for nid, names in self._links.values():
            erofs.NUMBER.pack_into(self._meta, nid * erofs.SLOT + erofs.INODE_NLINK, names)

    def finish(self, blob: Digested) -> bytearray:
        """The metadata, when the tree is written.

        Its UUID comes from all of its contents: overlayfs tells the layers of a chain apart by them, and doesn't keep
        inode numbers steady where two are alike."""
        meta = self._meta
        meta += bytes(-len(meta) % BLOCK)
        first = len(meta) // BLOCK
        for at, block in self._addresses:
            erofs.NUMBER.pack_into(meta, at, first + block)
        meta += self._apart
        blocks = len(meta) // BLOCK
        head = erofs.head(root=self._root, inodes=self._inodes, blocks=blocks, blob_blocks=blob.size // BLOCK)
        meta[erofs.SUPER_OFFSET : erofs.SUPER_OFFSET + erofs.HEAD] = head
        digest = hashlib.sha256(meta)
        digest.update(blob.sha256.encode())
        at = erofs.SUPER_OFFSET + erofs.SUPER_UUID
        meta[at : at + 16] = digest.digest()[:16]
        return meta

    def _directory(self, node: Node, above: int | None) -> tuple[int, Iterator[_Due]]:
        """The inode with all names, and the entries whose inodes are still to come."""
        children = node.children()
        named = sorted([(b".", node), (b"..", node), *children], key=lambda entry: entry[0])
        data, places = _directory_data(named)
        at, where = self._flat(node, data, nlink=2 + sum(child.is_directory for _, child in children))
        nid = at // erofs.SLOT
        due = []
        for (name, child), place in zip(named, places, strict=True):
            into, start = where(place)
            if name == b".":
                erofs.DIRENT_NID.pack_into(into, start, nid)
            elif name == b"..":
                erofs.DIRENT_NID.pack_into(into, start, nid if above is None else above)
            else:
                due.append(_Due(child, into, start, nid))
        return nid, iter(due)

    def _named(self, node: Node) -> int:
        """The inode of what is no directory: a new one, or the one that another name has."""
        # overlayfs gives all whiteouts of a filesystem one inode.
        if node.nlink == 1 or node.is_whiteout:
            return self._other(node)
        nid, names = self._links.get(node.key) or (self._other(node), 0)
        self._links[node.key] = nid, names + 1
        return nid

    def _other(self, node: Node) -> int:
        if node.is_file and node.size:
            return self._file(node)
        if node.is_link:
            return self._flat(node, node.target())[0] // erofs.SLOT
        union = erofs.encode_device(node.rdev) if node.is_device else 0
        return self._inode(node, _xattrs(node), erofs.FLAT_PLAIN, union=union) // erofs.SLOT

    def _file(self, node: Node) -> int:
        bits, index = _chunk_index(self._blob.store(node), -(-node.size // BLOCK))
        xattrs = _xattrs(node)
        xattrs_end = erofs.INODE.size + len(xattrs)
        index = bytes(-xattrs_end % erofs.INDEX.size) + index
        at = self._inode(node, xattrs, erofs.CHUNKED, size=node.size, union=erofs.CHUNK_INDEXES | bits)
        self._meta += index
        return at // erofs.SLOT

    def _flat(self, node: Node, data: bytes, *, nlink: int = 1) -> tuple[int, Callable[[int], tuple[bytearray, int]]]:
        """An inode whose data lies in the metadata too: whole blocks apart, the rest behind the inode where one block
        holds both. Where the inode is, and where a place of the data is."""
        xattrs = _xattrs(node)
        whole = len(data) - len(data) % BLOCK
        head = erofs.INODE.size + len(xattrs)
        # Inline data that ends with a block would have all of that block behind the inode.
        inline = whole < len(data) and head + len(data) - whole <= BLOCK
        if not inline:
            whole = len(data) + -len(data) % BLOCK
        apart = len(self._apart)
        self._apart += data[:whole].ljust(whole, b"\0")
        layout = erofs.FLAT_INLINE if inline else erofs.FLAT_PLAIN
        at = self._inode(node, xattrs, layout, size=len(data), nlink=nlink, tail=len(data) - whole if inline else 0)
        if whole:
            self._addresses.append((at + erofs.INODE_UNION, apart // BLOCK))
        if inline:
            self._meta += data[whole:]

        def where(place: int) -> tuple[bytearray, int]:
            return (self._apart, apart + place) if place < whole else (self._meta, at + head + place - whole)

        return at, where

    def _inode(
        self, node: Node, xattrs: bytes, layout: int, *, size: int = 0, union: int = 0, nlink: int = 1, tail: int = 0
    ) -> int:
        """Append an inode and its extended attributes; where it is. ``tail`` bytes that follow lie in one block."""
        meta = self._meta
        meta += bytes(-len(meta) % erofs.SLOT)
        behind = len(meta) + erofs.INODE.size + len(xattrs)
        if tail and behind % BLOCK + tail > BLOCK:
            meta += bytes(-len(meta) % BLOCK)
        at = len(meta)
        seconds, nanoseconds = divmod(node.mtime_ns, 10**9)
        self._inodes += 1
        meta += erofs.INODE.pack(
            erofs.EXTENDED | layout << 1, len(xattrs) and (len(xattrs) - erofs.XATTRS.size) // 4 + 1, node.mode, 0,
            size, union, self._inodes, node.uid, node.gid, seconds, nanoseconds, nlink,
        )  # fmt: skip
        meta += xattrs
        return at


def _xattrs(node: Node) -> bytes:
    """An inode's extended attributes as they follow it."""
    kept = portable(node, node.xattrs())
    if not kept:
        return b""
    encoded = bytearray(erofs.XATTRS.pack(0, 0))
    for name, value in sorted(kept.items()):
        prefix = next((number for number, text in erofs.PREFIXES.items() if name.startswith(text)), None)
        if prefix is None:
            continue
        rest = name[len(erofs.PREFIXES[prefix]) :]
        if len(value) > XATTR_MAX:
            raise InvalidInput(f"an extended attribute has {len(value)} bytes", hint=f"{XATTR_MAX} is the most")
        encoded += erofs.XATTR.pack(len(rest), prefix, len(value)) + rest + value
        encoded += bytes(-len(encoded) % 4)
    if len(encoded) > XATTRS_MAX:
        raise InvalidInput(
            f"an inode has {len(encoded)} bytes of extended attributes", hint=f"{XATTRS_MAX} is the most"
        )
    return bytes(encoded)


def _directory_data(named: list[tuple[bytes, Node]]) -> tuple[bytes, list[int]]:
    """A directory's blocks, with the names and types of its entries, and where each entry's nid belongs.

    A block has its entries first and their names behind them."""
    data, places, start = bytearray(), [], 0
    while start < len(named):
        count = _fitting(itertools.islice(named, start, None))
        block, start = named[start : start + count], start + count
        data += bytes(-len(data) % BLOCK)
        name_at = count * erofs.DIRENT.size
        for name, node in block:
            places.append(len(data))
            data += erofs.DIRENT.pack(0, name_at, erofs.FILE_TYPES[stat.S_IFMT(node.mode)], 0)
            name_at += len(name)
        data += b"".join(name for name, _ in block)
    return bytes(data), places


def _fitting(named: Iterable[tuple[bytes, Node]]) -> int:
    """How many of the entries one block holds."""
    room, count = BLOCK, 0
    for name, _ in named:
        room -= erofs.DIRENT.size + len(name)
        if room < 0:
            break
        count += 1
    return count


def _chunk_index(runs: list[Run], blocks: int) -> tuple[int, bytes]:
    """A file's index of chunks, as large ones as can be, and the logarithm of a chunk's blocks."""
    edges = 0
    for start, count, _ in runs:
        edges |= start | (start + count if start + count != blocks else 0)
    widest = min((blocks - 1).bit_length(), erofs.CHUNK_BITS)
    bits = min(widest, (edges & -edges).bit_length() - 1) if edges else widest
    index = bytearray(erofs.INDEX.pack(0, 0, erofs.HOLE) * -(-blocks >> bits))
    for start, count, address in runs:
        for chunk in range(start >> bits, -(-(start + count) >> bits)):
            erofs.INDEX.pack_into(index, chunk * erofs.INDEX.size, 0, erofs.BLOB, address + (chunk << bits) - start)
    return bits, bytes(index)
