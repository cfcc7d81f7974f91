"""Images: a tree of files as an EROFS filesystem in two files, named by a digest, checked down to each piece.

An image is a directory:

    image.json   `engine.model.Image` as JSON with sorted keys; the image's digest is the SHA-256 of these bytes
    meta.erofs   inodes, directories, xattrs
    data.blob    contents of files in chunks of 4 KiB, equal ones once, holes not at all; may be empty

The same tree gives the same digest wherever and whenever it is built: the UUID and the build time are fixed, names are
sorted, and nothing of inode numbers, atime or ctime is in it.

Written history of the format: serac-image/1, the first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine import tools
from engine.errors import Damaged, InvalidInput, NotFound, ToolFailed, from_os
from engine.model import Digest, Image
from engine.store import sync_directory

INDEX, META, BLOB = "image.json", "meta.erofs", "data.blob"
FORMAT = "serac-image/1"
PIECE_SIZE = 1 << 20
INDEX_MAX = 128 << 20
"""bytes of image.json; enough for a blob of 1.8 TB"""
PATH_MAX = 4095
"""bytes of the longest path that mkfs.erofs reads, from its working directory on"""

Progress = Callable[[int, int], None]
"""called with bytes done and bytes in all; the sum is an estimate until the last call"""

_HASHERS = 2
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPTIONS = (
    "--quiet",
    "--chunksize=4096",
    # Compact inodes lose the nanoseconds of mtimes.
    "-Eforce-inode-extended",
    # These two make it reproducible; without --mkfs-time, -T would overwrite the times of all files.
    "-U00000000-0000-0000-0000-000000000000",
    "-T0",
    "--mkfs-time",
)


def build_image(
    tree: Path,
    into: Path,
    *,
    progress: Progress | None = None,
    low_priority: bool = False,
    timeout: float | None = None,
) -> Image:
    """Write the image of ``tree`` into the directory ``into`` (made unless it is there) and flush it to disk.

    ``tree`` must not change meanwhile and is only read. Raises InvalidInput for a tree that no image can hold, NoSpace,
    ToolMissing and ToolFailed; what was written then is the caller's to remove, with ``into``.
    """
    try:
        into.mkdir(mode=0o700, exist_ok=True)
        _make_filesystem(tree, into, progress=progress, low_priority=low_priority, timeout=timeout)
        image = _describe(into)
        (into / INDEX).write_bytes(_encode(image))
        for name in (META, BLOB, INDEX):
            _sync_file(into / name)
        sync_directory(into)
    except OSError as error:
        raise from_os(error, "build image") from error
    return image


def _make_filesystem(
    tree: Path, into: Path, *, progress: Progress | None, low_priority: bool, timeout: float | None
) -> None:
    blob = into.absolute() / BLOB
    total = _data_size(tree) if progress else 0

    def tick() -> None:
        if progress and blob.exists():
            progress(min(blob.stat().st_size, total), total)

    argv = ["mkfs.erofs", *_OPTIONS, f"--blobdev={blob}", os.fspath(into.absolute() / META), "."]
    try:
        # From inside, so that as little as can be of the longest path is used up by the tree's own.
        tools.run(argv, cwd=tree, low_priority=low_priority, timeout=timeout, tick=tick if progress else None)
    except ToolFailed as error:
        raise _explained(error, tree) from error
    if progress:
        progress(total, total)


def _explained(error: ToolFailed, tree: Path) -> ToolFailed | InvalidInput:
    """mkfs.erofs names a wrong reason when a path in the tree is too long for it."""
    try:
        # LC_ALL=C, because a name needn't be text.
        argv = ["find", ".", "-regextype", "posix-extended", "-regex", f".{{{PATH_MAX}}}.*", "-print", "-quit"]
        long = tools.run(argv, cwd=tree, env={"LC_ALL": "C"}).stdout
    except ToolFailed:
        return error
    if not long:
        return error
    return InvalidInput(
        f"the tree has a path that is too long for an image: {os.fsdecode(long[:60])!r} ...",
        hint=f"remove or move that directory; {PATH_MAX} bytes is the most",
    )


def _data_size(tree: Path) -> int:
    """Bytes that the tree takes on disk, holes not counted. du(1) knows no depth that is too deep."""
    return int(tools.run(["du", "--summarize", "--block-size=1", "."], cwd=tree).stdout.split()[0])


def load_image(directory: Path) -> Image:
    """What image.json says, checked for sense but not against the files. Raises NotFound, Damaged."""
    return _decode(_index(directory), directory)


def image_digest(directory: Path) -> str:
    """The SHA-256 of image.json as 64 hex digits. Raises NotFound, Damaged."""
    return hashlib.sha256(_index(directory)).hexdigest()


def verify_image(directory: Path, digest: str, *, progress: Progress | None = None) -> Image:
    """Read every byte and compare. Raises Damaged, which names the file and the first bad piece of it."""
    index = _index(directory)
    if hashlib.sha256(index).hexdigest() != digest:
        raise Damaged(f"{directory / INDEX} is not the one of {digest}")
    image = _decode(index, directory)
    try:
        for name, wanted in ((META, image.meta), (BLOB, image.blob)):
            size = os.stat(directory / name).st_size
            if size != wanted.size:
                raise Damaged(f"{directory / name} has {size} bytes instead of {wanted.size}")
        _compare(directory, image, progress)
    except OSError as error:
        raise _read_error(error) from error
    return image


def _compare(directory: Path, image: Image, progress: Progress | None) -> None:
    meta, _ = _hash(directory / META)
    if meta != image.meta:
        raise Damaged(f"{directory / META} is damaged")
    blob, pieces = _hash(directory / BLOB, progress=progress)
    bad = [number for number, (is_, should) in enumerate(zip(pieces, image.pieces, strict=True)) if is_ != should]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise Damaged(f"{directory / BLOB} is damaged: piece {bad[0]}{more}, at byte {bad[0] * PIECE_SIZE}")
    if blob != image.blob:
        raise Damaged(f"{directory / BLOB} is damaged")


def _describe(directory: Path) -> Image:
    meta, _ = _hash(directory / META)
    blob, pieces = _hash(directory / BLOB)
    return Image(format=FORMAT, meta=meta, blob=blob, piece_size=PIECE_SIZE, pieces=pieces)


def _hash(path: Path, *, progress: Progress | None = None) -> tuple[Digest, tuple[str, ...]]:
    """The digests of a file and of each of its pieces in one pass: the whole here, the pieces in threads."""
    whole, size, pieces = hashlib.sha256(), 0, list[str]()
    waiting: deque[Future[str]] = deque()
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(_HASHERS) as hashers:
        total = os.fstat(file.fileno()).st_size
        for piece in _pieces(file):
            waiting.append(hashers.submit(_sha256, piece))
            whole.update(piece)
            size += len(piece)
            if len(waiting) > 2 * _HASHERS:
                pieces.append(waiting.popleft().result())
            if progress:
                progress(size, total)
        pieces.extend(future.result() for future in waiting)
    return Digest(sha256=whole.hexdigest(), size=size), tuple(pieces)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces of PIECE_SIZE, the last one shorter; read(2) may return less than it was asked for."""
    while piece := file.read(PIECE_SIZE):
        while len(piece) < PIECE_SIZE and (more := file.read(PIECE_SIZE - len(piece))):
            piece += more
        yield piece


def _sha256(piece: bytes) -> str:
    return hashlib.sha256(piece).hexdigest()


def _encode(image: Image) -> bytes:
    return msgspec.json.encode(image, order="sorted")


def _decode(index: bytes, directory: Path) -> Image:
    try:
        image = msgspec.json.decode(index, type=Image)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{directory / INDEX}: {error}") from error
    nonsense = _nonsense(image)
    if nonsense:
        raise Damaged(f"{directory / INDEX}: {nonsense}")
    return image


def _nonsense(image: Image) -> str | None:
    if image.format != FORMAT:
        return f"format {image.format[:40]!r} is not {FORMAT}"
    if image.piece_size != PIECE_SIZE:
        return f"pieces of {image.piece_size} bytes"
    if image.meta.size <= 0 or image.blob.size < 0:
        return "impossible sizes"
    if len(image.pieces) != -(-image.blob.size // PIECE_SIZE):
        return f"{len(image.pieces)} pieces for {image.blob.size} bytes"
    if not all(map(_SHA256.fullmatch, (image.meta.sha256, image.blob.sha256, *image.pieces))):
        return "a digest is not one"
    return None


def _index(directory: Path) -> bytes:
    try:
        with open(directory / INDEX, "rb") as file:
            index = file.read(INDEX_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{directory} has no image") from error
    except OSError as error:
        raise _read_error(error) from error
    if len(index) > INDEX_MAX:
        raise Damaged(f"{directory / INDEX} is larger than {INDEX_MAX} bytes")
    return index


def _read_error(error: OSError) -> Exception:
    if error.errno in (errno.EIO, errno.ENOENT, errno.EUCLEAN):
        return Damaged(f"{os.fsdecode(error.filename or 'image')}: {error.strerror}")
    return from_os(error, "read image")


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
