"""Images: a tree of files as an EROFS filesystem in two files, named by a digest, checked down to each piece.

An image is a directory:

    image.json   `engine.model.Image` as JSON with sorted keys; the image's digest is the SHA-256 of these bytes
    meta.erofs   inodes, directories, xattrs
    data.blob    contents of files in chunks of 4 KiB, equal ones once, holes not at all; may be empty

The same tree gives the same digest wherever and whenever it is built: the UUID is made of the contents, there is no
build time, names are sorted, and nothing of inode numbers, atime or ctime is in it.

Written history of the format: serac-image/1, the first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine.errors import Damaged, NotFound, from_os
from engine.model import Digest, Image
from engine.store import sync_directory, sync_file
from engine.tree import Node, open_image, sound, write_image

INDEX, META, BLOB = "image.json", "meta.erofs", "data.blob"
FORMAT = "serac-image/1"
PIECE_SIZE = 1 << 20
INDEX_MAX = 128 << 20
"""bytes of image.json; enough for a blob of 1.8 TB"""
HEAD_MAX = 1 << 10
"""bytes of image.json before its pieces"""

Progress = Callable[[int, int], None]
"""called with bytes done and bytes in all; the sum is an estimate until the last call"""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def build_image(root: Node, into: Path, *, tick: Callable[[int], None] | None = None) -> Image:
    """Write the image of a tree into the directory ``into`` (made unless it is there) and flush it to disk.

    The tree must not change meanwhile and is only read. ``tick``: as of `engine.tree.write_image`. Raises InvalidInput
    for a tree that no image can hold, NoSpace, Damaged; what was written then is the caller's to remove, with ``into``.
    """
    try:
        into.mkdir(mode=0o700, exist_ok=True)
        written = write_image(root, into / META, into / BLOB, tick=tick)
        image = Image(
            format=FORMAT,
            meta=Digest(**written.meta._asdict()),
            blob=Digest(**written.blob._asdict()),
            piece_size=PIECE_SIZE,
            pieces=written.pieces,
        )
        (into / INDEX).write_bytes(encode_image(image))
        for name in (META, BLOB, INDEX):
            sync_file(into / name)
        sync_directory(into)
    except OSError as error:
        raise from_os(error, "build image") from error
    return image


def load_image(directory: Path) -> Image:
    """What image.json says, checked for sense but not against the files. Raises NotFound, Damaged."""
    return decode_image(_index(directory), directory / INDEX)


def image_digest(directory: Path) -> str:
    """The SHA-256 of image.json as 64 hex digits. Raises NotFound, Damaged."""
    return hashlib.sha256(_index(directory)).hexdigest()


def verify_image(directory: Path, digest: str, *, progress: Progress | None = None) -> Image:
    """Read every byte and compare. Raises Damaged, which says all that is wrong."""
    wrong = list(damages(directory, digest, progress=progress))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Damaged(f"{wrong[0]}{more}")
    return load_image(directory)


def damages(directory: Path, digest: str, *, progress: Progress | None = None) -> Iterator[str]:
    """What is wrong with an image, a line for each file or piece; every byte of it is read."""
    try:
        index = _index(directory)
        if hashlib.sha256(index).hexdigest() != digest:
            yield f"{directory / INDEX} is not the one of {digest}"
            return
        image = decode_image(index, directory / INDEX)
    except (NotFound, Damaged) as error:
        yield str(error)
        return
    for name, wanted in ((META, image.meta), (BLOB, image.blob)):
        try:
            yield from _damages(directory / name, wanted, image.pieces if name == BLOB else (), progress)
        except OSError as error:
            yield f"{directory / name}: {error.strerror}"


def _damages(path: Path, wanted: Digest, pieces: tuple[str, ...], progress: Progress | None) -> Iterator[str]:
    size = path.stat().st_size
    if size != wanted.size:
        yield f"{path} has {size} bytes instead of {wanted.size}"
    found, digests = _hash(path, progress=progress)
    bad = [number for number, digest in enumerate(pieces) if digests[number : number + 1] != [digest]]
    yield from (f"{path} is damaged: piece {number}, at byte {number * PIECE_SIZE}" for number in bad)
    if found != wanted and not bad and size == wanted.size:
        yield f"{path} is damaged"


def check_files(directory: Path) -> Image:
    """What image.json says, but for the pieces, when the files can be the ones that were verified: nobody else's, and
    of the right size.

    Cheap, for whoever is about to mount it; reading every byte is `verify_image`'s work. Raises NotFound, Damaged."""
    image = _without_pieces(directory)
    try:
        for name, size in ((META, image.meta.size), (BLOB, image.blob.size)):
            status = os.stat(directory / name, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise Damaged(
                    f"{directory / name} is another's to write", hint="remove it, and build or import it again"
                )
            if status.st_size != size:
                raise Damaged(f"{directory / name} has {status.st_size} bytes instead of {size}")
    except OSError as error:
        raise _read_error(error) from error
    return image


def check_tree(directory: Path, *, devices: Callable[[Node], bool]) -> None:
    """Whether an image from elsewhere is a tree that jobs may be given: well-formed, with no device nodes but those
    that ``devices`` allows. Raises Damaged."""
    try:
        with open_image(directory / META, directory / BLOB) as root:
            sound(root, devices=devices)
    except OSError as error:
        raise _read_error(error) from error


def _hash(path: Path, *, progress: Progress | None = None) -> tuple[Digest, list[str]]:
    """The digests of a file and of each of its pieces in one pass: the whole here, the pieces in a thread."""
    whole, size, pieces = hashlib.sha256(), 0, list[str]()
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        total = os.fstat(file.fileno()).st_size
        for piece in pieces_of(file):
            waiting = hasher.submit(_sha256, piece)
            whole.update(piece)
            pieces.append(waiting.result())
            size += len(piece)
            if progress:
                progress(size, total)
    return Digest(sha256=whole.hexdigest(), size=size), pieces


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces of PIECE_SIZE, the last one shorter; read(2) may return less than it was asked for."""
    while piece := file.read(PIECE_SIZE):
        while len(piece) < PIECE_SIZE and (more := file.read(PIECE_SIZE - len(piece))):
            piece += more
        yield piece


def _sha256(piece: bytes) -> str:
    return hashlib.sha256(piece).hexdigest()


def encode_image(image: Image) -> bytes:
    return msgspec.json.encode(image, order="sorted")


def decode_image(index: bytes, name: object) -> Image:
    """The contents of an image.json, which ``name`` is in errors. Raises Damaged."""
    image = _decoded(index, name)
    if len(image.pieces) != -(-image.blob.size // PIECE_SIZE):
        raise Damaged(f"{name}: {len(image.pieces)} pieces for {image.blob.size} bytes")
    return image


def _without_pieces(directory: Path) -> Image:
    """What image.json says, read as far as its last field, the pieces: they are as many as the blob is long."""
    head, pieces, _ = _beginning(directory, HEAD_MAX).partition(b'"pieces":[')
    return _decoded(head + pieces + b"]}", directory / INDEX)


def _decoded(index: bytes, name: object) -> Image:
    try:
        image = msgspec.json.decode(index, type=Image)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{name}: {error}") from error
    nonsense = _nonsense(image)
    if nonsense:
        raise Damaged(f"{name}: {nonsense}")
    return image


def _nonsense(image: Image) -> str | None:
    if image.format != FORMAT:
        return f"format {image.format[:40]!r} is not {FORMAT}"
    if image.piece_size != PIECE_SIZE:
        return f"pieces of {image.piece_size} bytes"
    if image.meta.size <= 0 or image.blob.size < 0:
        return "impossible sizes"
    if not all(map(_SHA256.fullmatch, (image.meta.sha256, image.blob.sha256, *image.pieces))):
        return "a digest is not one"
    return None


def _index(directory: Path) -> bytes:
    index = _beginning(directory, INDEX_MAX + 1)
    if len(index) > INDEX_MAX:
        raise Damaged(f"{directory / INDEX} is larger than {INDEX_MAX} bytes")
    return index


def _beginning(directory: Path, size: int) -> bytes:
    try:
        with open(directory / INDEX, "rb", buffering=0) as file:
            return file.read(size)
    except FileNotFoundError as error:
        raise NotFound(f"{directory} has no image") from error
    except OSError as error:
        raise _read_error(error) from error


def _read_error(error: OSError) -> Exception:
    if error.errno in (errno.EIO, errno.ENOENT, errno.EUCLEAN):
        return Damaged(f"{os.fsdecode(error.filename or 'image')}: {error.strerror}")
    return from_os(error, "read image")
