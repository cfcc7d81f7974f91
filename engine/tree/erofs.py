"""The on-disk form of EROFS, as far as images use it: extended inodes, files in chunks on a second device.

Source: fs/erofs/erofs_fs.h of the Linux kernel. All numbers are little-endian; a node's number (nid) is its place in
units of 32 bytes, from the start of the metadata here (``meta_blkaddr`` is 0).
"""

from __future__ import annotations

import os
import stat
from struct import Struct

SUPER_OFFSET, MAGIC = 1024, 0xE0F5E1E2
SUPER = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24s")
"""magic, checksum, compatible features, block bits, extension slots, root nid, inodes, build time s, ns, blocks,
metadata block, xattr block, uuid, volume, incompatible features, compression, devices, device slot, directory bits,
prefixes, prefix start, packed nid, reserved"""
SUPER_UUID = 48
"""where it is in it"""
COMPAT_MTIME = 0x2
INCOMPAT_CHUNKED, INCOMPAT_DEVICES = 0x4, 0x8
DEVICE = Struct("<64sII56s")
"""tag, blocks, mapped block, reserved; it follows the superblock"""
HEAD = SUPER.size + DEVICE.size
BLOCK_BITS = 12

SLOT = 32
"""bytes that a nid counts"""
INODE = Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, reserved, size, union, ino, uid, gid, mtime s, mtime ns, nlink"""
INODE_UNION, INODE_NLINK = 16, 44
"""where these fields are in it"""
NUMBER = Struct("<I")
EXTENDED = 1
FLAT_PLAIN, FLAT_INLINE, CHUNKED = 0, 2, 4
"""data layouts, in bits 1 to 3 of an inode's format"""

INDEX = Struct("<HHI")
"""of a chunk: 0, device, block"""
CHUNK_INDEXES, CHUNK_BITS = 0x20, 0x1F
HOLE = 0xFFFFFFFF
BLOB = 1
"""the second device's number"""

DIRENT = Struct("<QHBB")
"""nid, place of the name in the block, type, reserved"""
DIRENT_NID = Struct("<Q")
NAME_MAX = 255

XATTRS = Struct("<IB7x")
"""name filter, number of those that inodes share, which images here don't; the entries follow"""
XATTR = Struct("<BBH")
"""bytes of the name, prefix, bytes of the value; name and value follow, padded to 4 bytes"""
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}

FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def head(*, root: int, inodes: int, blocks: int, blob_blocks: int) -> bytes:
    """The superblock and its one device, all but the UUID."""
    superblock = SUPER.pack(
        MAGIC, 0, COMPAT_MTIME, BLOCK_BITS, 0, root, inodes, 0, 0, blocks, 0, 0, bytes(16), bytes(16),
        INCOMPAT_CHUNKED | INCOMPAT_DEVICES, 0, 1, (SUPER_OFFSET + SUPER.size) // DEVICE.size, 0, 0, 0, 0, bytes(24),
    )  # fmt: skip
    return superblock + DEVICE.pack(bytes(64), blob_blocks, blocks, bytes(56))


def encode_device(rdev: int) -> int:
    """As new_encode_dev() of the kernel has it: 12 bits of major number, 20 of minor."""
    minor = os.minor(rdev)
    return (minor & 0xFF) | (os.major(rdev) << 8) | ((minor & ~0xFF) << 12)


def decode_device(code: int) -> int:
    return os.makedev((code & 0xFFF00) >> 8, (code & 0xFF) | ((code >> 12) & 0xFFF00))
