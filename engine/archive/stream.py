"""A snapshot as one file or stream: a tar of its manifest and its images, which is written and read in one pass.

    serac-snapshot/DIGEST.json    the manifest (`engine.archive.manifest`), by its own digest
    DIGEST/image.json             for each image: the base if it is along, the layers, the oldest first, the processes;
    DIGEST/meta.erofs/N.lz4       an image that comes twice is there once
    DIGEST/data.blob/N.lz4        N counts the pieces of the file from 0: 1 MiB each, an LZ4 frame of its own

Headers are ustar's with no extensions: every name is short and every size small, all else is the same in each. Then two
empty blocks, and nothing after them. Whoever reads takes nothing from a name: it knows what comes next. Memory is a few
pieces, whatever the size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
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
from engine.kernel.write import write_all
from engine.model import Image
from engine.store import sync_directory, sync_file

NAME = "serac-snapshot/{}.json"
"""of the manifest"""
PACKED_MAX = PIECE_SIZE + (64 << 10)
"""bytes of a compressed piece"""
INDEX_FIXED, INDEX_PIECE = 1 << 10, 67
"""bytes of an image.json: without its pieces at most, and of each"""
WORKERS = max(2, min(4, os.cpu_count() or 2))
AHEAD = 2 * WORKERS
"""pieces that are held at once"""

_MANIFEST = re.compile(NAME.format("[0-9a-f]{64}").replace(".", r"\."))
_HINT = "is it whole, and a file that `snapshot export` wrote?"
_END = bytes(2 * tarfile.BLOCKSIZE)

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def write(out: BinaryIO, encoded: bytes, images: Iterable[Path], *, tick: Callable[[int], None] | None = None) -> None:
    """Write a snapshot: its encoded manifest, and the directories of its images, in their order and each once.

    ``tick`` is called with the bytes of images done. Raises OSError, Damaged."""
    _put(out, NAME.format(manifest.digest(encoded)), encoded)
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
    write_all(out, _END)


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
    write_all(out, _head(name, len(content)))
    write_all(out, content)
    write_all(out, bytes(-len(content) % tarfile.BLOCKSIZE))


def _head(name: str, size: int) -> bytes:
    """Raises ValueError for what has no such header."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT)


class Reader:
    """A stream, from its beginning: `manifest`, then `images`. Raises Damaged for whatever isn't as it must be."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._next: tuple[str, int] | None = None
        """name and size of the member whose header was read already"""
        self.encoded = self._manifest()
        self.manifest: Manifest = manifest.decode(self.encoded)

    def images(
        self, scratch: Path, *, have: Callable[[Part], bool], tick: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Path]]:
        """Write the images that follow into directories below ``scratch``, every byte verified and flushed; digest and
        directory of each. One that ``have`` says is here already is passed over.

        Raises OSError too. Whatever was written is the caller's to remove."""
        done = 0
        with ThreadPoolExecutor(WORKERS) as workers:
            for part in self.following():
                index, image = self._index(part)
                target = None if have(part) else scratch / part.digest
                for piece in self._image(workers, part.digest, image, index, target):
                    done += piece
                    if tick is not None:
                        tick(done)
                if target is not None:
                    yield part.digest, target
        if self._peek():
            raise Damaged(f"more follows: {self._peek()[:80]!r}")
        if any(self._exactly(tarfile.BLOCKSIZE)) or self._stream.read(1):
            raise Damaged("more follows after its end")

    def _manifest(self) -> bytes:
        name = self._peek()
        if not _MANIFEST.fullmatch(name):
            raise Damaged(f"{name[:100]!r} stands where the manifest must be", hint=_HINT)
        encoded = self._member(name, MANIFEST_MAX)
        if name != NAME.format(manifest.digest(encoded)):
            raise Damaged("the manifest is damaged")
        return encoded

    def following(self) -> list[Part]:
        """The images that the stream has, in their order."""
        parts = list({part.digest: part for part in manifest.parts(self.manifest)}.values())
        return [self.manifest.base, *parts] if self.has_base() else parts

    def has_base(self) -> bool:
        """Whether the base is along; asked before `images`."""
        return self._peek().partition("/")[0] == self.manifest.base.digest

    def pass_over(self) -> None:
        """Read to the end, so that whoever writes the stream comes to his."""
        while self._stream.read(PIECE_SIZE):
            pass

    def _index(self, part: Part) -> tuple[bytes, Image]:
        """The next image's, its bytes and what they say."""
        name = f"image {part.digest[:12]}"
        limit = min(INDEX_FIXED + INDEX_PIECE * -(-part.size // PIECE_SIZE), INDEX_MAX)
        index = self._member(f"{part.digest}/{INDEX}", limit)
        if hashlib.sha256(index).hexdigest() != part.digest:
            raise Damaged(f"{name}: its index is another's")
        image = decode_image(index, name)
        size = image.meta.size + image.blob.size
        if size != part.size:
            raise Damaged(f"{name} has {size} bytes, the manifest says {part.size}")
        return index, image

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
                        write_all(file, piece)
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
            raise Damaged(f"{self._peek()[:100]!r} stands where {name} must be")
        assert self._next is not None
        size, self._next = self._next[1], None
        if size > limit:
            raise Damaged(f"{name} is too large: {size} bytes")
        content = self._exactly(size)
        if any(self._exactly(-size % tarfile.BLOCKSIZE)):
            raise Damaged(f"something follows {name}")
        return content

    def _peek(self) -> str:
        """The name of what comes next; empty at the end."""
        if self._next is None:
            block = self._exactly(tarfile.BLOCKSIZE)
            self._next = _parsed(block) if any(block) else ("", 0)
        return self._next[0]

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._stream.read(size)
            if not piece:
                raise Damaged("it ends too early", hint=_HINT)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _parsed(block: bytes) -> tuple[str, int]:
    """Name and size of a member by its header, which has nothing else to say."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        plain = info.isreg() and _head(info.name, info.size) == block
    except (tarfile.HeaderError, ValueError) as error:
        raise Damaged(f"it is no snapshot of serac's: {error}", hint=_HINT) from error
    if not plain:
        raise Damaged(f"{info.name[:100]!r} is not a plain file")
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
