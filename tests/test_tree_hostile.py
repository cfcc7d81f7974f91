"""Images whose maker meant no good: all that is wrong is told as `Damaged`, at once."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import nodes
import pytest
from hostile import BLOCK, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged
from engine.tree import Node, erofs

SECONDS = 5
INODE_FORMAT, INODE_XATTRS, INODE_MODE, INODE_HIGH, INODE_SIZE = 0, 2, 4, 6, 8
INODE_UNION, INODE_NANOSECONDS, INODE_NLINK = 16, 40, 44


def plant(tree: Path) -> Path:
    (tree / "directory/inner").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(10_000))
    os.truncate(tree / "file", 100 * BLOCK)
    (tree / "empty").touch()
    (tree / "link").symlink_to("file")
    (tree / "long").symlink_to("s/" * 2047 + "t")
    os.link(tree / "file", tree / "directory/hard")
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "file", "user.name", b"value")
    os.setxattr(tree / "file", "user.other", b"another value")
    (tree / "crowd").mkdir()
    for number in range(300):
        (tree / f"crowd/{number:030}").touch()
    return tree


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(plant(tmp_path / "tree"), tmp_path / "image")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Image:
    top = tmp_path_factory.mktemp("shared")
    return Image(plant(top / "tree"), top / "image")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """What takes long is an error as any other."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(10 * SECONDS)
    yield
    signal.alarm(0)


def _too_long(*_: object) -> None:
    raise AssertionError("it takes too long")


def look(root: Node) -> None:
    nodes.take(root, xattrs=lambda node: node.xattrs())


def test_the_image_itself_is_sound(image: Image) -> None:
    image.check(visit=look)


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


def put_root(image: Image, form: str, field: int, *values: int) -> None:
    image.put(form, erofs.SUPER_OFFSET + field, *values)


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


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_wrong_is_found(image: Image, change: Change) -> None:
    change(image)
    with pytest.raises(Damaged):
        image.check()


def test_an_inode_of_many_names_is_looked_at_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "file", "wb") as file:
        file.truncate(4 << 30)
        file.seek(1 << 30)
        file.write(b"data")
    for number in range(2000):
        os.link(tree / "file", tree / f"{number}")
    image = Image(tree, tmp_path / "image")
    assert len(image.meta) > 400_000
    image.check()


cuts = st.integers(0, 60_000)
bytes_put = st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=8) | st.just(bytes(64)))


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(bytes_put, min_size=1, max_size=4), cut=st.none() | cuts)
def test_no_bytes_do_anything_else(shared: Image, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    good = bytes(shared.meta)
    try:
        for at, data in changes:
            start = at % len(good)
            shared.meta[start : start + len(data)] = data[: len(good) - start]
        if cut is not None:
            del shared.meta[cut % len(good) :]
        shared.check(visit=look)
    except Damaged:
        pass
    finally:
        shared.meta[:] = good


def test_a_blob_that_is_cut(image: Image) -> None:
    _, blob = image.files
    os.truncate(blob, BLOCK)
    with pytest.raises(Damaged):
        image.check()
