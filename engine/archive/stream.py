"""A snapshot as one file or stream: a tar of its manifest and its images, which is written and read in one pass.

    serac-snapshot.json           the manifest (`engine.archive.manifest`)
    DIGEST/image.json             for each image: the base if it is along, the layers, the oldest first, the processes;
    DIGEST/meta.erofs/N.lz4       an image that comes twice is there once
    DIGEST/data.blob/N.lz4        N counts the pieces of the file from 0: 1 MiB each, an LZ4 frame of its own

Headers are ustar's with no extensions: every name is short and every size small. Whoever reads takes nothing from a
name: it knows what comes next. Memory is a few pieces, whatever the size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import lz4.frame

from engine.archive import manifest
from engine.archive.image import BLOB, INDEX, INDEX_MAX, META, PIECE_SIZE, decode_image, pieces_of
from engine.archive.manifest import MANIFEST_MAX, Manifest, Part
from engine.errors import Damaged
from engine.model import Image
from engine.store import sync_directory, sync_file

NAME = "serac-snapshot.json"
PACKED_MAX = PIECE_SIZE + (64 << 10)
"""bytes of a compressed piece"""
WORKERS = max(2, min(4, os.cpu_count() or 2))
AHEAD = 2 * WORKERS
"""pieces that are held at once"""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def write(out: BinaryIO, encoded: bytes, images: Iterable[Path], *, tick: Callable[[int], None] | None = None) -> None:
    """Write a snapshot: its encoded manifest, and the directories of its images, in their order and each once.

    ``tick`` is called with the bytes of images done. Raises OSError, Damaged."""
    _put(out, NAME, encoded)
    done = 0
    with ThreadPoolExecutor(WORKERS) as workers:
        for directory in dict.fromkeys(images):
            _put(out, f"{directory.name}/{INDEX}", (directory / INDEX).read_bytes())
            for name in (META, BLOB):
                with open(directory / name, "rb", buffering=0) as file:
                    packed = in_order(workers, _pack, pieces_of(file))
                    for number, (piece, size) in enumerate(packed):
                        _put(out, f"{directory.name}/{name}/{number}.lz4", piece)
                        done += size
                        if tick is not None:
                            tick(done)
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def in_order(workers: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """The results, in the order of the items, of which no more than AHEAD are held at once."""
    waiting: deque[Future[_Out]] = deque()
    for item in items:
        waiting.append(workers.submit(work, item))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _pack(piece: bytes) -> tuple[bytes, int]:
    return lz4.frame.compress(piece, content_checksum=False), len(piece)


def _put(out: BinaryIO, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    out.write(info.tobuf(tarfile.USTAR_FORMAT))
    out.write(content)
    out.write(bytes(-len(content) % tarfile.BLOCKSIZE))


class Reader:
    """A stream, from its beginning: `manifest`, then `images`. Raises Damaged for whatever isn't as it must be."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._next: tuple[str, int] | None = None
        """name and size of the member whose header was read already"""
        self.encoded = self._member(NAME, MANIFEST_MAX)
        self.manifest: Manifest = manifest.decode(self.encoded)

    def images(
        self, scratch: Path, *, have: Callable[[Part], bool], tick: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Path]]:
        """Write the images that follow into directories below ``scratch``, every byte verified and flushed; digest and
        directory of each. One that ``have`` says is here already is passed over.

        Raises OSError too. Whatever was written is the caller's to remove."""
        base = self.manifest.base.digest
        first = self._peek().partition("/")[0]
        parts = list({part.digest: part for part in manifest.parts(self.manifest)}.values())
        wanted = [Part(digest=base, size=manifest.SIZE_MAX)] if first == base else []
        done = 0
        with ThreadPoolExecutor(WORKERS) as workers:
            for part in [*wanted, *parts]:
                index = self._member(f"{part.digest}/{INDEX}", INDEX_MAX)
                if hashlib.sha256(index).hexdigest() != part.digest:
                    raise Damaged(f"image {part.digest[:12]}: its index is another's")
                image = decode_image(index, f"image {part.digest[:12]}")
                size = image.meta.size + image.blob.size
                if part.size not in (size, manifest.SIZE_MAX):
                    raise Damaged(f"image {part.digest[:12]} has {size} bytes, the manifest says {part.size}")
                target = None if have(part) else scratch / part.digest
                for piece in self._image(workers, part.digest, image, index, target):
                    done += piece
                    if tick is not None:
                        tick(done)
                if target is not None:
                    yield part.digest, target
        if self._peek():
            raise Damaged(f"more follows: {self._peek()[:80]!r}")

    def _image(
        self, workers: ThreadPoolExecutor, digest: str, image: Image, index: bytes, target: Path | None
    ) -> Iterator[int]:
        """The two files of an image, piece by piece; the bytes of each."""
        if target is not None:
            target.mkdir(mode=0o700)
        for name, whole, digests in ((META, image.meta, None), (BLOB, image.blob, image.pieces)):
            found = hashlib.sha256()
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(open(target / name, "xb", buffering=0)) if target is not None else None
                packed = self._pieces(digest, name, whole.size)
                for number, (piece, sha256) in enumerate(in_order(workers, _unpacked, packed)):
                    if digests is not None and sha256 != digests[number]:
                        raise Damaged(f"image {digest[:12]}: piece {number} of {name} is damaged")
                    found.update(piece)
                    if file is not None:
                        _write_all(file, piece)
                    yield len(piece)
            if found.hexdigest() != whole.sha256:
                raise Damaged(f"image {digest[:12]}: {name} is damaged")
        if target is not None:
            (target / INDEX).write_bytes(index)
            for name in (META, BLOB, INDEX):
                sync_file(target / name)
            sync_directory(target)

    def _pieces(self, digest: str, name: str, size: int) -> Iterator[tuple[bytes, int, str]]:
        for number in range(-(-size // PIECE_SIZE)):
            member = f"{digest}/{name}/{number}.lz4"
            yield self._member(member, PACKED_MAX), min(PIECE_SIZE, size - number * PIECE_SIZE), member

    def _member(self, name: str, limit: int) -> bytes:
        if self._peek() != name:
            raise Damaged(f"{self._peek()[:100] or 'its end'} stands where {name} must be")
        assert self._next is not None
        size, self._next = self._next[1], None
        if size > limit:
            raise Damaged(f"{name} is too large: {size} bytes")
        content = self._exactly(size)
        self._exactly(-size % tarfile.BLOCKSIZE)
        return content

    def _peek(self) -> str:
        """The name of what comes next; empty at the end."""
        if self._next is None:
            block = self._exactly(tarfile.BLOCKSIZE)
            self._next = _header(block) if any(block) else ("", 0)
        return self._next[0]

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._stream.read(size - len(content))
            if not piece:
                raise Damaged("it ends too early", hint="is it whole, and a file that `snapshot export` wrote?")
            content += piece
        return content


def _header(block: bytes) -> tuple[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged(f"it is no snapshot of serac's: {error}", hint="`snapshot export` writes one") from error
    if not info.isreg() or info.size < 0:
        raise Damaged(f"{info.name[:100]!r} is not a file")
    return info.name, info.size


def _unpacked(packed: tuple[bytes, int, str]) -> tuple[bytes, str]:
    """A piece and its digest."""
    content, size, member = packed
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        piece = decompressor.decompress(content, max_length=size + 1)
    except RuntimeError as error:
        raise Damaged(f"{member} is damaged: {error}") from error
    if len(piece) != size or not decompressor.eof or decompressor.unused_data:
        raise Damaged(f"{member} doesn't have {size} bytes")
    return piece, hashlib.sha256(piece).hexdigest()


def _write_all(file: BinaryIO, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]
