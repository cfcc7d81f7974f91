"""What may be wrong with an image's directories. The rest is in `wrongs_inodes`.

The image is the one that `hostile.plant` makes the tree of."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hostile import BLOCK, Image

from engine.tree import erofs

INODE_FORMAT, INODE_SIZE, INODE_UNION = 0, 8, 16
"""where these fields of an inode are in it"""

Change = Callable[[Image], None]
CHANGES: dict[str, Change] = {}
"""what is wrong -> how it is made so"""


def wrong(change: Change) -> Change:
    CHANGES[change.__name__] = change
    return change


def entry(image: Image, at: int, number: int) -> int:
    """Where an entry of a directory is, all of which lies behind its inode."""
    return image.data(at) + 12 * number


def name(image: Image, at: int, number: int) -> int:
    (place,) = struct.unpack_from("<H", image.meta, entry(image, at, number) + 8)
    return image.data(at) + place


@wrong
def a_directory_holds_itself(image: Image) -> None:
    at = image.inode(b"directory")
    image.put("<Q", entry(image, at, 3), at // 32)


@wrong
def a_directory_holds_the_root(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 3), image.inode() // 32)


@wrong
def a_directory_is_in_two_places(image: Image) -> None:
    image.put("<QHB", entry(image, image.inode(b"directory"), 2), image.inode(b"crowd") // 32, 48, 2)


@wrong
def a_directory_is_not_its_own_dot(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 0), image.inode(b"crowd") // 32)


@wrong
def a_directory_has_another_parent(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 1), image.inode(b"crowd") // 32)


def rename(image: Image, into: bytes) -> None:
    """Of directory/hard."""
    at = name(image, image.inode(b"directory"), 2)
    assert image.meta[at : at + 4] == b"hard"
    image.meta[at : at + 4] = into


@wrong
def a_name_has_a_slash(image: Image) -> None:
    rename(image, b"h/rd")


@wrong
def a_name_has_a_nul(image: Image) -> None:
    rename(image, b"h\0rd")


@wrong
def a_name_is_out_of_order(image: Image) -> None:
    rename(image, b"zard")


@wrong
def a_name_is_there_twice(image: Image) -> None:
    """'..' becomes '.', and what follows one byte longer."""
    at = entry(image, image.inode(b"directory"), 2)
    (place,) = struct.unpack_from("<H", image.meta, at + 8)
    image.put("<H", at + 8, place - 1)


@wrong
def the_last_name_has_a_nul(image: Image) -> None:
    at = name(image, image.inode(b"directory"), 3)
    assert image.meta[at : at + 5] == b"inner"
    image.meta[at : at + 5] = b"in\0er"


@wrong
def a_name_is_empty(image: Image) -> None:
    image.put("<H", entry(image, image.inode(b"directory"), 3) + 8, 48 + 1 + 2)


@wrong
def a_name_begins_beyond_its_block(image: Image) -> None:
    image.put("<H", entry(image, image.inode(b"directory"), 3) + 8, 0xFFFF)


@wrong
def a_name_is_too_long(image: Image) -> None:
    image.put("<H", entry(image, image.inode(b"crowd"), 3) + 8, 4000)


@wrong
def a_block_has_no_entries(image: Image) -> None:
    image.put("<H", entry(image, image.inode(b"directory"), 0) + 8, 0)


@wrong
def the_entries_end_within_one(image: Image) -> None:
    image.put("<H", entry(image, image.inode(b"directory"), 0) + 8, 40)


@wrong
def an_entry_has_another_type(image: Image) -> None:
    image.put("<B", entry(image, image.inode(b"directory"), 2) + 10, 3)


@wrong
def an_entry_has_no_inode(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 2), (1 << 64) - 1)


@wrong
def an_entrys_inode_is_beyond_the_end(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 2), len(image.meta) // 32)


@wrong
def an_entrys_inode_is_round_the_corner(image: Image) -> None:
    image.put("<Q", entry(image, image.inode(b"directory"), 2), (1 << 59) + image.inode(b"file") // 32)


@wrong
def a_directory_is_empty(image: Image) -> None:
    image.put("<Q", image.inode(b"directory") + INODE_SIZE, 0)


@wrong
def a_directory_is_enormous(image: Image) -> None:
    image.put("<Q", image.inode(b"directory") + INODE_SIZE, 1 << 60)


@wrong
def a_directory_is_large(image: Image) -> None:
    image.put("<Q", image.inode(b"crowd") + INODE_SIZE, 1 << 29)


@wrong
def a_directory_is_in_the_blob(image: Image) -> None:
    image.put("<H", image.inode(b"directory") + INODE_FORMAT, erofs.EXTENDED | erofs.CHUNKED << 1)


@wrong
def a_directory_of_a_whole_block_is_inline(image: Image) -> None:
    """The last block of inline data is behind the inode, however large."""
    at = image.inode(b"crowd")
    (size,) = struct.unpack_from("<Q", image.meta, at + INODE_SIZE)
    image.put("<Q", at + INODE_SIZE, size - size % BLOCK)


@wrong
def inline_data_crosses_a_block(image: Image) -> None:
    image.put("<Q", image.inode(b"directory") + INODE_SIZE, BLOCK - 1)


@wrong
def data_is_beyond_the_end(image: Image) -> None:
    image.put("<I", image.inode(b"crowd") + INODE_UNION, len(image.meta) // BLOCK)
