"""What may be wrong with an image's inodes, their contents and attributes, and the superblock."""

from __future__ import annotations

import struct

from hostile import BLOCK, Image
from wrongs import INODE_FORMAT, INODE_SIZE, INODE_UNION, wrong

from engine.tree import erofs

INODE_XATTRS, INODE_MODE, INODE_HIGH, INODE_GID, INODE_NANOSECONDS, INODE_NLINK = 2, 4, 6, 28, 40, 44


@wrong
def an_inode_is_compressed(image: Image) -> None:
    image.put("<H", image.inode(b"file") + INODE_FORMAT, erofs.EXTENDED | 1 << 1)


@wrong
def an_inode_is_of_another_form(image: Image) -> None:
    image.put("<H", image.inode(b"empty") + INODE_FORMAT, erofs.EXTENDED | 1 << 4)


@wrong
def an_inode_is_compact(image: Image) -> None:
    image.put("<H", image.inode(b"empty") + INODE_FORMAT, 0)


@wrong
def a_block_has_48_bits(image: Image) -> None:
    image.put("<H", image.inode(b"crowd") + INODE_HIGH, 1)


@wrong
def an_inode_has_no_type(image: Image) -> None:
    image.put("<H", image.inode(b"empty") + INODE_MODE, 0o644)


@wrong
def an_inode_has_no_links(image: Image) -> None:
    image.put("<I", image.inode(b"empty") + INODE_NLINK, 0)


@wrong
def an_owner_is_none(image: Image) -> None:
    image.put("<I", image.inode(b"empty") + INODE_GID, (1 << 32) - 1)


@wrong
def a_time_has_too_many_nanoseconds(image: Image) -> None:
    image.put("<I", image.inode(b"empty") + INODE_NANOSECONDS, 10**9)


@wrong
def a_file_is_enormous(image: Image) -> None:
    image.put("<Q", image.inode(b"file") + INODE_SIZE, (1 << 63) - 1)


@wrong
def a_file_has_a_great_many_chunks(image: Image) -> None:
    image.put("<Q", image.inode(b"file") + INODE_SIZE, 1 << 52)


@wrong
def a_file_has_a_size_that_is_none(image: Image) -> None:
    at = image.inode(b"file")
    image.put("<Q", at + INODE_SIZE, 1 << 63)
    image.put("<I", at + INODE_UNION, erofs.CHUNK_INDEXES | 31)


@wrong
def a_file_lies_in_the_metadata(image: Image) -> None:
    image.put("<HHHHQ", image.inode(b"empty"), erofs.EXTENDED, 0, 0o100644, 0, BLOCK)


@wrong
def a_files_chunks_have_no_index(image: Image) -> None:
    image.put("<I", image.inode(b"file") + INODE_UNION, 0)


@wrong
def a_files_chunks_are_of_another_form(image: Image) -> None:
    image.put("<I", image.inode(b"file") + INODE_UNION, erofs.CHUNK_INDEXES | 0x40)


def chunk(image: Image) -> int:
    end = image.data(image.inode(b"file"))
    return end + -end % 8


@wrong
def a_chunk_is_beyond_the_blob(image: Image) -> None:
    image.put("<HHI", chunk(image), 0, 1, 3)


@wrong
def a_chunk_is_far_beyond_the_blob(image: Image) -> None:
    image.put("<HHI", chunk(image), 0, 1, 0xFFFFFFFE)


@wrong
def a_chunk_is_in_the_metadata(image: Image) -> None:
    image.put("<HHI", chunk(image), 0, 0, 0)


@wrong
def a_chunk_is_on_a_device_that_is_none(image: Image) -> None:
    image.put("<HHI", chunk(image), 0, 3, 0)


@wrong
def a_link_is_too_long(image: Image) -> None:
    image.put("<Q", image.inode(b"long") + INODE_SIZE, 4096)


@wrong
def a_link_is_enormous(image: Image) -> None:
    image.put("<Q", image.inode(b"long") + INODE_SIZE, 1 << 40)


@wrong
def a_link_leads_nowhere(image: Image) -> None:
    image.put("<Q", image.inode(b"link") + INODE_SIZE, 0)


@wrong
def a_link_has_a_nul(image: Image) -> None:
    image.meta[image.data(image.inode(b"link"))] = 0


@wrong
def attributes_are_cut(image: Image) -> None:
    image.put("<H", image.inode(b"file") + INODE_XATTRS, 2)


@wrong
def attributes_are_none(image: Image) -> None:
    image.put("<H", image.inode(b"empty") + INODE_XATTRS, 1)


@wrong
def attributes_are_beyond_the_end(image: Image) -> None:
    image.put("<H", image.inode(b"crowd", b"%030d" % 299) + INODE_XATTRS, 0xFFFF)


def attribute(image: Image) -> int:
    """The first one of the file."""
    return image.inode(b"file") + 64 + 12


@wrong
def an_attribute_is_of_no_kind(image: Image) -> None:
    image.put("<B", attribute(image) + 1, 5)


@wrong
def an_attribute_is_shared(image: Image) -> None:
    image.put("<B", attribute(image) - 8, 1)


@wrong
def an_attribute_has_no_name(image: Image) -> None:
    image.put("<BBH", attribute(image), 0, 1, 4 + 5)


@wrong
def an_attributes_name_has_a_nul(image: Image) -> None:
    image.put("<B", attribute(image) + 4 + 2, 0)


@wrong
def an_attributes_value_is_too_long(image: Image) -> None:
    image.put("<H", attribute(image) + 2, 0xFFFF)


@wrong
def an_attribute_is_there_twice(image: Image) -> None:
    """user.name with two bytes less in its value, and user.name again."""
    at = attribute(image)
    first = struct.pack("<BBH", 4, 1, 1) + b"nameX" + bytes(3)
    image.meta[at : at + 24] = (first * 2)[:24]
    image.put("<H", image.inode(b"file") + INODE_XATTRS, 1 + 24 // 4)


def attribute_of_overlays(image: Image, text: bytes) -> None:
    """In the stead of user.other=another value."""
    at = attribute(image) + 16
    assert image.meta[at : at + 9] == struct.pack("<BBH", 5, 1, 13) + b"other"
    value = 4 + 5 + 13 - 4 - len(text)
    image.put("<BBH", at, len(text), 4, value)
    image.meta[at + 4 : at + 4 + len(text)] = text


@wrong
def an_attribute_makes_a_whiteout(image: Image) -> None:
    attribute_of_overlays(image, b"overlay.whiteout")


@wrong
def an_attribute_names_an_origin(image: Image) -> None:
    attribute_of_overlays(image, b"overlay.origin")


@wrong
def an_attribute_says_that_data_is_elsewhere(image: Image) -> None:
    attribute_of_overlays(image, b"overlay.metacopy")


def put_root(image: Image, form: str, field: int, *values: int) -> None:
    image.put(form, erofs.SUPER_OFFSET + field, *values)


@wrong
def the_magic_is_another(image: Image) -> None:
    put_root(image, "<B", 0, 0)


@wrong
def the_root_is_beyond_the_end(image: Image) -> None:
    put_root(image, "<H", 14, 0xFFFF)


@wrong
def the_root_is_a_file(image: Image) -> None:
    put_root(image, "<H", 14, image.inode(b"empty") // 32)


@wrong
def attributes_are_filtered(image: Image) -> None:
    put_root(image, "<I", 8, erofs.COMPAT_MTIME | 0x4)


@wrong
def blocks_are_larger(image: Image) -> None:
    put_root(image, "<B", 12, 255)


@wrong
def the_superblock_is_longer(image: Image) -> None:
    put_root(image, "<B", 13, 1)


@wrong
def blocks_of_directories_are_larger(image: Image) -> None:
    put_root(image, "<B", 90, 1)


@wrong
def there_is_no_second_device(image: Image) -> None:
    put_root(image, "<H", 86, 0)


@wrong
def devices_are_listed_elsewhere(image: Image) -> None:
    put_root(image, "<H", 88, 100)


@wrong
def it_has_features_of_tomorrow(image: Image) -> None:
    put_root(image, "<I", 80, 0xC | 0x80)


@wrong
def inodes_begin_elsewhere(image: Image) -> None:
    put_root(image, "<I", 40, 1)


@wrong
def the_blob_is_mapped_over_the_metadata(image: Image) -> None:
    put_root(image, "<I", 128 + 68, 0)


@wrong
def it_is_too_short(image: Image) -> None:
    del image.meta[1000:]


@wrong
def it_is_empty(image: Image) -> None:
    del image.meta[:]


@wrong
def its_last_block_is_gone(image: Image) -> None:
    del image.meta[-BLOCK:]
