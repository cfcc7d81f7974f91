"""The contents of files as blocks of one file, the blob, which is digested while it is written."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from engine.errors import InvalidInput
from engine.kernel.write import write_all
from engine.tree.node import BLOCK, PIECE, Node

KNOWN_MAX = 1 << 20
"""blocks whose digests are remembered: 4 GiB of contents, in some 150 MB of memory"""
COARSE_MIN = 64 << 10
"""bytes of a file's holes that may become zeros where that makes its index smaller; as many as it has data, if more"""
CHUNKS_MAX = 1 << 21
"""of a file with holes"""
ZEROS_MAX = 4 << 30
"""bytes of holes that become zeros in a file so large that its chunks are; as many as it has data, if more"""
AHEAD = 8
"""pieces that wait to be written"""
REPORT = 8 << 20
"""bytes between two calls of ``tick``"""


_sha256 = hashlib.sha256
_ZEROS = bytes(BLOCK)


class Digested(NamedTuple):
    sha256: str
    size: int


class Run(NamedTuple):
    """Blocks of a file that lie one after the other in the blob, too."""

    start: int
    """block of the file"""
    blocks: int
    address: int
    """block of the blob"""


class Blob:
    """Write `store` by `store`, then `finish`; a context that closes the file."""

    def __init__(self, path: Path, tick: Callable[[int], None] | None) -> None:
        self._file = _DigestedFile(path)
        self._known: dict[bytes, int] = {}
        self._blocks = 0
        self._tick, self._read, self._told = tick, 0, 0

    def __enter__(self) -> Blob:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self) -> tuple[Digested, tuple[str, ...]]:
        """The digests of all of it and of each piece."""
        return self._file.finish()

    def store(self, node: Node) -> list[Run]:
        """A file's contents, equal blocks once and holes not at all."""
        extents, width = list(node.extents()), 1
        if extents != [(0, node.size)]:
            width = node.grain or _width(node.size, extents)
            extents = _rounded(extents, width * BLOCK, node.size)
        runs: list[Run] = []
        for offset, length in extents:
            place = offset // BLOCK
            for piece in node.read(offset, length):
                self._report(len(piece))
                if width == 1:
                    self._add_once(place, piece, runs)
                else:
                    self._add(place, piece, runs)
                place += -(-len(piece) // BLOCK)
        return runs

    def _add(self, place: int, piece: bytes, runs: list[Run]) -> None:
        count = self._file.add_blocks(piece)
        _append(runs, Run(place, count, self._blocks))
        self._blocks += count

    def _add_once(self, place: int, piece: bytes, runs: list[Run]) -> None:
        """Blocks that are in the blob already aren't added."""
        known, unused, view = self._known, self._blocks, memoryview(piece)
        fresh, begin, start = 0, place, -1
        for at in range(0, len(piece), BLOCK):
            digest = _sha256(view[at : at + BLOCK]).digest()
            address = known.get(digest, unused)
            if address == unused:
                unused += 1
                if address < KNOWN_MAX:
                    known[digest] = address
            else:
                self._file.add_blocks(view[fresh:at])
                fresh = at + BLOCK
            if address != start + place - begin:
                if start >= 0:
                    _append(runs, Run(begin, place - begin, start))
                begin, start = place, address
            place += 1
        self._file.add_blocks(view[fresh:])
        _append(runs, Run(begin, place - begin, start))
        self._blocks = unused

    def _report(self, size: int) -> None:
        self._read += size
        if self._tick is not None and self._read - self._told >= REPORT:
            self._told = self._read
            self._tick(self._read)


def _append(runs: list[Run], run: Run) -> None:
    last = runs[-1] if runs else None
    if last and last.start + last.blocks == run.start and last.address + last.blocks == run.address:
        runs[-1] = Run(last.start, last.blocks + run.blocks, last.address)
    else:
        runs.append(run)


def _width(size: int, extents: list[tuple[int, int]]) -> int:
    """Blocks of a chunk of a file with holes, a power of two: what makes index and data the smallest together.

    Every chunk has an entry of 8 bytes in the index, and what of a hole shares a chunk with data becomes zeros."""
    blocks, data = -(-size // BLOCK), sum(length for _, length in extents)
    best, lowest, added = 1, 8 * blocks, 0
    width = 1
    while width < blocks:
        width *= 2
        zeros = sum(length for _, length in _rounded(extents, width * BLOCK, size)) - data
        chunks = -(-blocks // width)
        if zeros > max(data, COARSE_MIN) and 2 * chunks <= CHUNKS_MAX:
            break
        if 8 * chunks + zeros < lowest or 2 * chunks > CHUNKS_MAX:
            best, lowest, added = width, 8 * chunks + zeros, zeros
    if added > max(data, ZEROS_MAX):
        raise InvalidInput(f"a file of {size} bytes has data in too many places between its holes", hint="remove it")
    return best


def _rounded(extents: list[tuple[int, int]], unit: int, size: int) -> list[tuple[int, int]]:
    """The extents grown to whole units, those that touch in one."""
    grown: list[tuple[int, int]] = []
    for offset, length in extents:
        start = offset - offset % unit
        end = min(offset + length + -(offset + length) % unit, size)
        if grown and start <= grown[-1][0] + grown[-1][1]:
            grown[-1] = (grown[-1][0], end - grown[-1][0])
        else:
            grown.append((start, end - start))
    return grown


class _DigestedFile:
    """Written and digested by a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._parts: list[bytes | memoryview] = []
        """of the piece that is next"""
        self._room = PIECE
        self._whole, self._size, self._pieces = hashlib.sha256(), 0, list[str]()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def add_blocks(self, data: bytes | memoryview) -> int:
        """Data and what its last block lacks; how many blocks there were."""
        size = len(data)
        lacking = -size % BLOCK
        if size > self._room:
            data, rest = memoryview(data)[: self._room], memoryview(data)[self._room :]
            self._parts.append(data)
            self._send()
            data = rest
        self._parts.append(data)
        self._room -= len(data) + lacking
        if lacking:
            self._parts.append(_ZEROS[:lacking])
        if not self._room:
            self._send()
        return (size + lacking) // BLOCK

    def finish(self) -> tuple[Digested, tuple[str, ...]]:
        if self._parts:
            self._send()
        while self._waiting:
            self._waiting.popleft().result()
        return Digested(self._whole.hexdigest(), self._size), tuple(self._pieces)

    def _send(self) -> None:
        self._waiting.append(self._thread.submit(self._put, self._parts))
        self._parts, self._room = [], PIECE
        if len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def _put(self, parts: list[bytes | memoryview]) -> None:
        piece = b"".join(parts)
        write_all(self._file, piece)
        self._pieces.append(hashlib.sha256(piece).hexdigest())
        self._whole.update(piece)
        self._size += len(piece)
