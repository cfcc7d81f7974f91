"""engine.archive.stream: what was written is read again, through whatever it goes, and memory stays small."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from forge import (
    ALL,
    BASE,
    EMPTY,
    LOWER,
    PIECE,
    PROCESSES,
    Bundle,
    Files,
    bundle,
    content,
    described,
    header,
    member,
    small,
    with_piece,
)
from readings import read

from engine.archive import stream
from engine.archive.stream import Reader
from engine.errors import Damaged


def written(images: list[Files], below: Path, encoded: bytes) -> bytes:
    out = io.BytesIO()
    stream.write(out, encoded, [image.write(below) for image in images])
    return out.getvalue()


def on_disk(below: Path) -> list[Path]:
    """The images of `bundle`, in the order of a stream."""
    below.mkdir()
    places = {image: image.write(below) for image in ALL}
    return [places[image] for image in (BASE, LOWER, EMPTY, LOWER, PROCESSES)]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


# there and back


@pytest.mark.parametrize("with_base", [True, False])
def test_what_was_forged_well_is_read(scratch: Path, with_base: bool) -> None:
    forged = bundle(with_base=with_base)
    taken = read(forged.stream(), scratch)
    assert list(taken.files) == [image.digest for image in (ALL if with_base else ALL[1:])]
    assert taken.files == {image.digest: image for image in forged.images}
    for image in forged.images:
        assert sorted(path.name for path in (scratch / image.digest).iterdir()) == [
            "data.blob",
            "image.json",
            "meta.erofs",
        ]
        assert (scratch / image.digest / "image.json").read_bytes() == image.index


def test_the_writer_writes_what_the_forger_does(tmp_path: Path) -> None:
    out = io.BytesIO()
    forged = bundle()
    encoded = forged.encoded
    stream.write(out, encoded, on_disk(tmp_path / "store"))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert tar.getnames() == [name for name, _ in forged.members()]
    assert Bundle.of(out.getvalue()).images == list(dict.fromkeys(forged.images))
    again = io.BytesIO()
    stream.write(again, encoded, on_disk(tmp_path / "again"))
    assert again.getvalue() == out.getvalue()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_sizes_about_a_piece(tmp_path: Path, scratch: Path, size: int, kind: str) -> None:
    image = Files(content(size, max(size, 1)), bytes(size) if kind == "zeros" else content(size, size))
    encoded = Bundle(described([image], base=BASE), []).encoded
    (tmp_path / "store").mkdir()
    assert read(written([image], tmp_path / "store", encoded), scratch).files == {image.digest: image}


def test_what_is_here_is_verified_and_not_written(scratch: Path) -> None:
    forged = bundle()
    taken = read(forged.stream(), scratch, have=lambda part: part.digest != LOWER.digest)
    assert list(taken.files) == [path.name for path in scratch.iterdir()] == [LOWER.digest]
    spoilt = forged.stream().replace(lz4.frame.compress(BASE.blob), lz4.frame.compress(BASE.blob[::-1]))
    with pytest.raises(Damaged, match=rf"image {BASE.digest[:12]}: piece 0 of data.blob is damaged"):
        read(spoilt, scratch, have=lambda part: True)


def test_ticks_rise_to_the_sum(tmp_path: Path, scratch: Path) -> None:
    told: list[int] = []
    out = io.BytesIO()
    stream.write(out, bundle().encoded, on_disk(tmp_path / "store"), tick=told.append)
    heard: list[int] = []
    reader = Reader(io.BytesIO(out.getvalue()))
    assert sum(part.size for part in reader.following()) == sum(len(image.meta) + len(image.blob) for image in ALL)
    assert len(list(reader.images(scratch, have=lambda part: False, tick=heard.append))) == len(ALL)
    assert told == heard == sorted(told)
    assert told[-1] == sum(part.size for part in Reader(io.BytesIO(out.getvalue())).following())


class Trickle(io.RawIOBase):
    """A stream without a buffer that gives and takes little at a time."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.random = random.Random(7)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        count = min(size, self.random.choice((1, 100, 5000, 70000)))
        found = bytes(self.data[:count])
        del self.data[:count]
        return found

    def write(self, data: Any) -> int:
        count = min(len(data), self.random.choice((1, 100, 5000, 70000)))
        self.data += bytes(data[:count])
        return count


def test_short_reads_and_short_writes(tmp_path: Path, scratch: Path) -> None:
    images = small().images
    (tmp_path / "store").mkdir()
    out = Trickle()
    encoded = small().encoded
    stream.write(out, encoded, [image.write(tmp_path / "store") for image in images])  # type: ignore[arg-type]
    assert bytes(out.data) == small_written(tmp_path)
    assert list(read(out, scratch).files.values()) == images  # type: ignore[arg-type]


def small_written(tmp_path: Path) -> bytes:
    (tmp_path / "second").mkdir()
    return written(small().images, tmp_path / "second", small().encoded)


def test_a_writer_that_would_not_wait_is_an_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    places = on_disk(tmp_path / "store")
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0) as out, pytest.raises(BlockingIOError):
        stream.write(out, b"{}", places)


def test_through_a_pipe(tmp_path: Path, scratch: Path) -> None:
    reading, writing = os.pipe()
    places = on_disk(tmp_path / "store")

    def feed() -> None:
        with os.fdopen(writing, "wb") as out:
            stream.write(out, bundle().encoded, places)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reading, "rb", buffering=0) as source:
        taken = read(source, scratch)
    thread.join()
    assert list(taken.files.values()) == ALL


def test_a_reader_that_goes_away_is_told_as_such(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    places = on_disk(tmp_path / "store")
    out = os.fdopen(writing, "wb", buffering=0)
    with out, pytest.raises(BrokenPipeError):
        stream.write(out, b"{}", places)


def test_errors_of_the_disk_go_through(tmp_path: Path, scratch: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
        stream.write(out, b"{}", on_disk(tmp_path / "store"))
    with open("/proc/self/mem", "rb") as source, pytest.raises(OSError, match="Input/output"):
        Reader(source)
    with pytest.raises(FileNotFoundError):
        stream.write(io.BytesIO(), b"{}", [tmp_path / "nothing"])


def test_few_pieces_are_held_at_once() -> None:
    taken, gate = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        gate.wait()
        return number

    with ThreadPoolExecutor(stream.WORKERS) as workers:
        results = stream.in_order(workers, work, items())
        threading.Timer(0.1, gate.set).start()
        assert next(results) == 0
        assert len(taken) == stream.AHEAD
        assert list(results) == list(range(1, 100))


# memory


MEASURED = """
import os, sys, threading
from pathlib import Path
from engine.archive import stream
from engine.errors import Damaged

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def read(source):
    try:
        return len(list(stream.Reader(source).images(Path(sys.argv[2]), have=lambda part: False)))
    except Damaged:
        return -1

def write(descriptor):
    with os.fdopen(descriptor, "wb") as out:
        stream.write(out, Path(sys.argv[3]).read_bytes(), [Path(sys.argv[1])])

before = peak()
if len(sys.argv) > 3:
    reading, writing = os.pipe()
    thread = threading.Thread(target=write, args=(writing,))
    thread.start()
    with os.fdopen(reading, "rb") as source:
        found = read(source)
    thread.join()
else:
    with open(sys.argv[1], "rb") as source:
        found = read(source)
print(found, peak() - before)
"""


def measured(*arguments: Path) -> tuple[int, int]:
    """The images that were read, -1 when it was refused; bytes of memory that it took at most."""
    command = [sys.executable, "-c", MEASURED, *map(os.fspath, arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(said[0]), int(said[1]) << 10


@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_memory_is_the_same_for_any_size(tmp_path: Path, scratch: Path, kind: str) -> None:
    piece = content(9, PIECE) if kind == "random" else bytes(PIECE)
    image = Files(b"meta" * 1024, piece * 150)
    (tmp_path / "manifest").write_bytes(Bundle(described([image], base=BASE), []).encoded)
    images, taken = measured(image.write(tmp_path), scratch, tmp_path / "manifest")
    assert images == 1
    assert taken < 40 << 20


def test_a_bomb_takes_no_memory(tmp_path: Path, scratch: Path) -> None:
    """A piece of a megabyte that says it were 200 of them."""
    bomb = lz4.frame.compress(bytes(200 << 20), block_size=lz4.frame.BLOCKSIZE_MAX4MB)
    assert len(bomb) < stream.PACKED_MAX
    (tmp_path / "bomb").write_bytes(with_piece(bomb))
    images, taken = measured(tmp_path / "bomb", scratch)
    assert images == -1
    assert taken < 40 << 20


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_large_member_takes_no_memory(tmp_path: Path, scratch: Path, at: int) -> None:
    members = small().members()
    before = b"".join(member(name, packed) for name, packed in members[:at])
    with (tmp_path / "large").open("wb") as file:
        file.write(before + header(members[at][0], 7 << 30))
        file.truncate(7 << 30)
    images, taken = measured(tmp_path / "large", scratch)
    assert images == -1
    assert taken < 40 << 20
