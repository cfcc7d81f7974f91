"""Layers as tar streams, judged by Python's tarfile and GNU tar."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path

import pytest
import trees

from engine.errors import InvalidInput
from engine.exchange import Entry, Tar, changes
from engine.exchange import tar as exchange_tar
from engine.tree import Node, merged, open_directory

DEEP = "d" * 250
"""of `trees.grow`: directories below each other"""


def stream(*entries: Entry, whiteouts: bool = True) -> bytes:
    out = io.BytesIO()
    tar = Tar(out)
    tar.add(entries, whiteouts=whiteouts)
    tar.finish()
    return out.getvalue()


def layer(directory: Path, before: Path | None = None) -> bytes:
    """The stream that makes a directory of nothing, or of what lies below it as a layer does."""
    with open_directory(directory) as top:
        if before is None:
            return stream(*changes(None, merged([top])))
        with open_directory(before) as bottom:
            return stream(*changes(merged([bottom]), merged([top, bottom])))


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: info for info in archive}


class File(Node):
    """A file that is on no disk."""

    def __init__(self, *, size: int = 0, mtime_ns: int = 0, uid: int = 0, **xattrs: bytes) -> None:
        self.mode, self.uid, self.gid, self.rdev, self.nlink = 0o100644, uid, uid, 0, 1
        self.size, self.mtime_ns, self._xattrs = size, mtime_ns, xattrs

    @property
    def key(self) -> Hashable:
        return id(self)

    def xattrs(self) -> dict[bytes, bytes]:
        return {os.fsencode(name).replace(b"_", b"."): value for name, value in self._xattrs.items()}

    def extents(self) -> Iterator[tuple[int, int]]:
        yield from ()


def test_gnu_tar_makes_the_same_tree_of_it(tmp_path: Path) -> None:
    """Also names that are no UTF-8, and times before 1970."""
    trees.grow(tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree" / DEEP)
    (tmp_path / "out").mkdir()
    command = ["tar", "-x", "--warning=no-timestamp", "-C", tmp_path / "out"]
    done = subprocess.run(command, input=layer(tmp_path / "tree"), check=True, stderr=subprocess.PIPE)
    assert done.stderr == b""
    assert trees.look(tmp_path / "out") == trees.look(tmp_path / "tree")


def test_a_path_longer_than_path_max(tmp_path: Path) -> None:
    trees.grow(tmp_path / "tree")
    assert "/".join([DEEP] * 20 + ["bottom"]) in members(layer(tmp_path / "tree"))


@pytest.mark.parametrize("length", range(75, 102))
def test_a_record_of_any_length_says_its_own(length: int) -> None:
    """Around 99 bytes, where the length gets a digit more."""
    node = File(user_x=b"v" * length)
    (info,) = members(stream(Entry(b"file", node))).values()
    assert info.pax_headers == {"SCHILY.xattr.user.x": "v" * length}


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    trees.grow(tmp_path / "tree")
    assert layer(tmp_path / "tree") == layer(tmp_path / "tree")


def test_extended_attributes_are_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    for name, value in (("user.text", b"a=b"), ("user.bytes", b"\0\xff\n"), ("user.caf\u00e9", b"")):
        os.setxattr(tmp_path / "tree/file", name, value)
    (tmp_path / "out").mkdir()
    command = ["tar", "-x", "--xattrs", "--xattrs-include=*", "-C", tmp_path / "out"]
    subprocess.run(command, input=layer(tmp_path / "tree"), check=True)
    seen = {name: os.getxattr(tmp_path / "out/file", name) for name in os.listxattr(tmp_path / "out/file")}
    assert seen == {"user.text": b"a=b", "user.bytes": b"\0\xff\n", "user.caf\u00e9": b""}


def test_what_an_overlay_keeps_stays_here_and_what_a_jobs_own_keeps_goes_along() -> None:
    node = File(
        trusted_overlay_opaque=b"y",
        trusted_overlay_origin=b"",
        trusted_overlay_overlay_opaque=b"x",
        **{"user_a=b": b""},
    )
    (info,) = members(stream(Entry(b"file", node))).values()
    assert info.pax_headers == {"SCHILY.xattr.trusted.overlay.opaque": "x"}


@pytest.mark.parametrize("nanoseconds", [0, 1, 10**9, 10**9 + 1, -1, -(10**9), -1_500_000_000, 2**33 * 10**9 + 7])
def test_times_are_exact(nanoseconds: int) -> None:
    (info,) = members(stream(Entry(b"file", File(mtime_ns=nanoseconds)))).values()
    text = info.pax_headers.get("mtime", str(info.mtime))
    whole, _, rest = text.lstrip("-").partition(".")
    sign = -1 if text.startswith("-") else 1
    assert sign * (int(whole) * 10**9 + int(rest.ljust(9, "0"))) == nanoseconds


def test_large_ids() -> None:
    (info,) = members(stream(Entry(b"file", File(uid=4_000_000_000)))).values()
    assert (info.uid, info.gid) == (4_000_000_000, 4_000_000_000)


def test_sockets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mknod(tmp_path / "tree/socket", 0o140600)
    assert list(members(layer(tmp_path / "tree"))) == ["."]


def test_a_file_that_two_names_of_a_layer_have(tmp_path: Path) -> None:
    """A third name outside of what is written doesn't matter."""
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/b").write_bytes(b"x" * 1000)
    os.link(tmp_path / "tree/b", tmp_path / "tree/sub/a")
    os.link(tmp_path / "tree/b", tmp_path / "outside")
    found = members(layer(tmp_path / "tree"))
    assert (found["b"].type, found["sub/a"].type) == (tarfile.REGTYPE, tarfile.LNKTYPE)
    assert (found["sub/a"].linkname, found["sub/a"].size) == ("b", 0)


def test_nothing_but_changes_is_in_a_diff(tmp_path: Path) -> None:
    for name in ("base/same/deep", "base/changed", "layer/changed"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "base/same/deep/file").touch()
    (tmp_path / "base/changed/old").touch()
    (tmp_path / "layer/changed/new").touch()
    assert list(members(layer(tmp_path / "layer", tmp_path / "base"))) == [".", "changed", "changed/new"]


def test_a_path_of_ours_is_left_out(tmp_path: Path) -> None:
    for name in (".serac/deep", "kept/.serac"):
        (tmp_path / name).mkdir(parents=True)
    with open_directory(tmp_path) as top:
        found = [path for path, _ in changes(None, merged([top]), but={b".serac"})]
    assert found == [b"", b"kept", b"kept/.serac"]


def test_what_is_gone_comes_first() -> None:
    data = stream(Entry(b"", File()), Entry(b"sub/gone", None), Entry(b"sub/new", File()))
    assert list(members(data)) == [".", "sub/.wh.gone", "sub/new"]
    gone = members(data)["sub/.wh.gone"]
    assert (gone.type, gone.size) == (tarfile.REGTYPE, 0)


def test_a_stream_without_whiteouts() -> None:
    entries = (Entry(b"gone", None), Entry(b".wh.mine", File()))
    assert list(members(stream(*entries, whiteouts=False))) == [".wh.mine"]


def test_names_that_would_be_whiteouts_are_named() -> None:
    entries = [Entry(b"good", File()), Entry(b"a/.wh.x", File()), Entry(b"b/.wh..wh..opq", File())]
    with pytest.raises(InvalidInput, match=r"\.wh\.: '/a/\.wh\.x', '/b/\.wh\.\.wh\.\.opq'$"):
        stream(*entries)


def test_a_hole_that_is_too_large_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InvalidInput, match="/big has holes of 1024 GiB"):
        stream(Entry(b"big", File(size=1 << 40)))


def test_holes_are_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_tar, "HOLES_MAX", 3 << 20)
    data = stream(Entry(b"hole", File(size=3 << 20)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("hole")
        assert file is not None
        assert file.read() == bytes(3 << 20)


def test_memory_does_not_grow_with_a_file() -> None:
    """A reader that takes its time sees the beginning before the end was made."""
    reading, writing = os.pipe()
    done = threading.Event()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as out:
            Tar(out).add([Entry(b"hole", File(size=64 << 20))])
        done.set()

    threading.Thread(target=write).start()
    with os.fdopen(reading, "rb") as stream_:
        with tarfile.open(fileobj=stream_, mode="r|") as archive:
            assert archive.next().size == 64 << 20  # type: ignore[union-attr]
            assert not done.is_set()
        while stream_.read(1 << 20):
            pass
    assert done.wait(30)
