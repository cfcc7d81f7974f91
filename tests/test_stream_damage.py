"""engine.archive.stream: what is damaged, cut, swapped or forged is refused, whatever it is that was done to it, and
nothing is written but what was named."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from forge import (
    BASE,
    END,
    MANIFEST,
    Bundle,
    Files,
    bundle,
    canonical,
    described,
    header,
    member,
    rebuilt,
    small,
    with_piece,
)
from hypothesis import given
from hypothesis import strategies as st
from readings import read, refused

from engine.archive import stream
from engine.archive.stream import Reader
from engine.errors import Damaged


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where a directory will be made."""
    return tmp_path / "scratch"


def test_cut_anywhere(scratch: Path) -> None:
    whole = small().stream()
    places, at = [0], 0
    for name, packed in small().members():
        size = len(member(name, packed))
        places += [at + 1, at + 511, at + 512, at + 512 + len(packed) // 2, at + 512 + len(packed), at + size - 1]
        at += size
        places.append(at)
    for place in [*places, at + 1, at + 512, at + 1023]:
        refused(whole[:place], scratch, "ends too early")


def test_any_bit_flipped(scratch: Path) -> None:
    """Some in what is compressed change nothing of what comes out."""
    forged, random_ = small(), random.Random(5)
    whole = forged.stream()
    for _ in range(150):
        spoilt = bytearray(whole)
        at = random_.randrange(len(spoilt))
        spoilt[at] ^= 1 << random_.randrange(8)
        scratch.mkdir()
        try:
            taken = read(bytes(spoilt), scratch)
        except Damaged:
            pass
        else:
            assert list(taken.files.values()) == forged.images, at
            assert not _is_plain(forged, at), at
        shutil.rmtree(scratch)


def _is_plain(forged: Bundle, place: int) -> bool:
    """Whether what is at that place isn't compressed."""
    at = 0
    for name, packed in forged.members():
        if at + 512 <= place < at + 512 + len(packed):
            return not name.endswith(".lz4")
        at += len(member(name, packed))
    return True


def test_members_dropped_repeated_and_swapped(scratch: Path) -> None:
    members = bundle().members()
    for at in range(len(members)):
        refused(rebuilt(members[:at] + members[at + 1 :]), scratch)
        refused(rebuilt(members[: at + 1] + members[at:]), scratch)
        if at:
            refused(rebuilt([*members[: at - 1], members[at], members[at - 1], *members[at + 1 :]]), scratch)


def test_contents_of_members_swapped(scratch: Path) -> None:
    """Under the right names."""
    members = small().members()
    for one in range(1, len(members)):
        for two in range(1, one):
            if members[one][1] != members[two][1]:
                swapped = list(members)
                swapped[one], swapped[two] = (members[one][0], members[two][1]), (members[two][0], members[one][1])
                refused(rebuilt(swapped), scratch)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.AREGTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        b"Z",
    ],
)
def test_what_is_no_file(scratch: Path, kind: bytes) -> None:
    members = small().members()
    for at in (0, 1, 3, len(members) - 1):
        parts = [member(name, packed) for name, packed in members]
        refused(b"".join([*parts[:at], member(members[at][0], members[at][1], type=kind), *parts[at + 1 :]]), scratch)
        refused(b"".join([*parts[:at], member("more", b"x" * 20, type=kind), *parts[at:]]) + END, scratch)


@pytest.mark.parametrize(
    "fields",
    [{"mode": 0o777}, {"uid": 1}, {"gname": "root"}, {"mtime": 1}, {"linkname": "/etc/passwd"}, {"devmajor": 8}],
    ids=str,
)
def test_headers_say_nothing_else(scratch: Path, fields: dict[str, Any]) -> None:
    members = small().members()
    parts = [member(name, packed) for name, packed in members]
    parts[2] = member(*members[2], **({"type": tarfile.REGTYPE} | fields))
    if parts[2] != member(*members[2]):
        refused(b"".join(parts) + END, scratch, "not a plain file")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "x" * 99, "a/../b", "", ".", "\udcff", "\x1b[31m", MANIFEST, f"{BASE.digest}/../x"]
)
def test_names_that_lead_elsewhere(scratch: Path, name: str) -> None:
    members = small().members()
    for at in range(len(members)):
        if members[at][0] != name:
            refused(rebuilt([*members[:at], (name, members[at][1]), *members[at + 1 :]]), scratch)


@pytest.mark.parametrize("size", [17 << 20, 8 << 30, 1 << 60])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_sizes_in_headers_that_lie(scratch: Path, size: int, at: int) -> None:
    members = small().members()
    before = b"".join(member(name, packed) for name, packed in members[:at])
    info = tarfile.TarInfo(members[at][0])
    info.size, info.mode = size, 0o600
    refused(before + info.tobuf(tarfile.GNU_FORMAT) + members[at][1], scratch)


def test_a_negative_size(scratch: Path) -> None:
    head = bytearray(header(MANIFEST, 5))
    head[124:136] = b"\xff" * 12
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    refused(bytes(head) + bytes(1024), scratch)


def test_pieces_that_decompress_to_something_else(scratch: Path) -> None:
    right = small().images[0].meta
    frame = lz4.frame.compress(right)
    assert Reader(io.BytesIO(with_piece(frame)))
    for wrong in (
        b"",
        b"x" * 50,
        frame[:-1],
        frame[:-4],
        frame + b"\0",
        frame + frame,
        lz4.frame.compress(right[:-1]),
        lz4.frame.compress(right + b"x"),
        lz4.frame.compress(b""),
        lz4.frame.compress(right, store_size=True)[:8],
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + frame,
    ):
        refused(with_piece(wrong), scratch)


@given(data=st.data())
def test_no_piece_does_anything_else(data: st.DataObject) -> None:
    frame = bytearray(lz4.frame.compress(small().images[0].meta * 3))
    for at in data.draw(st.lists(st.integers(0, len(frame) - 1), min_size=1, max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    try:
        piece, _ = stream._unpacked((bytes(frame), 1800, "piece"))
    except Damaged:
        return
    assert len(piece) == 1800


def test_what_follows_the_end(scratch: Path) -> None:
    whole = small().stream()
    for more in (b"x", b"\0", bytes(512), whole, member("more", b"")):
        refused(whole + more, scratch, "more follows")
    for more in (member("more", b""), member(MANIFEST, b"{}")):
        refused(whole[: -len(END)] + more + END, scratch, "more follows")
    refused(whole[:-512] + b"x" * 512, scratch, "more follows")


def test_bytes_between_members(scratch: Path) -> None:
    parts = []
    for name, packed in small().members():
        padding = -len(packed) % 512
        parts.append((header(name, len(packed)) + packed, padding))
    for at, (_, size) in enumerate(parts):
        if size:
            pads = [bytes(pad - (number == at)) + b"x" * (number == at) for number, (_, pad) in enumerate(parts)]
            refused(b"".join(part + pad for (part, _), pad in zip(parts, pads, strict=True)) + END, scratch, "follows")


# manifest, index and images that don't belong together


def test_images_that_nobody_named(scratch: Path) -> None:
    forged = small()
    other = Files(b"other", b"")
    refused(Bundle(forged.manifest, [*forged.images, other]).stream(), scratch, "more follows")
    refused(Bundle(forged.manifest, [other, *forged.images]).stream(), scratch, "stands where")
    refused(Bundle(forged.manifest, forged.images[:1]).stream(), scratch, "'' stands where")
    refused(Bundle(forged.manifest, forged.images[::-1]).stream(), scratch, "stands where")
    refused(Bundle(forged.manifest, [*forged.images, BASE]).stream(), scratch, "more follows")


def test_the_index_of_another_image(scratch: Path) -> None:
    forged = small()
    members = forged.members()
    members[1] = (members[1][0], forged.images[1].index)
    refused(rebuilt(members), scratch, "its index is another's")


@pytest.mark.parametrize(
    "said",
    [
        {"format": "serac-image/2"},
        {"piece_size": 4096},
        {"meta": {"sha256": "0" * 64, "size": 600}},
        {"blob": {"sha256": "0" * 64, "size": 700}},
        {"pieces": ["0" * 64]},
        {"pieces": []},
        {"meta": {"sha256": "0" * 64, "size": 1 << 62}},
        {"blob": {"sha256": "0" * 64, "size": -1}},
        {"meta": {"sha256": "../../../../etc/passwd", "size": 600}},
        {"more": "x" * 2000},
    ],
    ids=str,
)
def test_an_index_that_lies(scratch: Path, said: dict[str, Any]) -> None:
    image = small().images[0]
    image = image._replace(forged=canonical(json.loads(image.index) | said))
    scratch.mkdir()
    with pytest.raises(Damaged):
        read(Bundle(described([image], base=BASE), [image]).stream(), scratch)
    assert {path.name for path in scratch.iterdir()} <= {image.digest}


@pytest.mark.parametrize("size", [1, 1299, 1301, 1 << 40, 1 << 50])
def test_a_manifest_that_lies_about_sizes(scratch: Path, size: int) -> None:
    forged = small()
    forged.manifest["layers"][0]["size"] = size
    refused(forged.stream(), scratch, "has 1300 bytes, the manifest says")


# whatever comes


@given(data=st.binary(max_size=2000))
def test_no_bytes_do_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.raises(Damaged):
        read(data, tmp_path_factory.getbasetemp())


@given(data=st.data())
def test_no_header_does_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With a checksum that is right."""
    head = bytearray(header(MANIFEST, 100))
    for at in data.draw(st.lists(st.integers(0, 511), min_size=1, max_size=6)):
        head[at] = data.draw(st.integers(0, 255))
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    with pytest.raises(Damaged):
        read(bytes(head) + b"{" * 512, tmp_path_factory.getbasetemp())
