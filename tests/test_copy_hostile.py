"""engine.copy and native/unpack.c against streams that mean harm: what is outside of the target stays as it is."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import END, HOSTILE, damaged, entry, pax, raw, record
from trees import Node, look, refused, run, unpacked

from engine.copy import unpack_host
from engine.errors import BadPath, ProtocolError, SeracError


@pytest.fixture
def program(sanitized: Path) -> Path:
    return sanitized / "serac-init"


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    """A target, and beside it what no stream may touch."""
    (tmp_path / "target").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path


def outside(arena: Path) -> dict[str, Node]:
    return {name: node for name, node in look(arena).items() if name and not name.startswith("/target")}


@pytest.mark.parametrize("case", HOSTILE)
def test_the_jobs_side_refuses(arena: Path, program: Path, case: str) -> None:
    before = outside(arena)
    message = refused(program, HOSTILE[case], arena / "target")
    assert message.startswith("unpack: ")
    assert outside(arena) == before


@pytest.mark.parametrize("outward_links", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_the_host_refuses(arena: Path, case: str, outward_links: bool) -> None:
    before, descriptors = outside(arena), len(os.listdir("/proc/self/fd"))
    with pytest.raises((BadPath, ProtocolError)):
        unpack_host(io.BytesIO(HOSTILE[case]), arena / "target", outward_links=outward_links)
    assert outside(arena) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_several_tops_need_a_directory(arena: Path, program: Path) -> None:
    data = entry("a") + entry("b") + END
    assert "several top entries" in refused(program, data, arena / "new")
    with pytest.raises(BadPath, match="several"):
        unpack_host(io.BytesIO(data), arena / "other")
    unpacked(program, data, arena / "target")
    assert {path.name for path in (arena / "target").iterdir()} == {"a", "b"}


def test_links_of_a_renamed_tree_stay_within(arena: Path, program: Path) -> None:
    data = entry("a", tarfile.DIRTYPE) + entry("a/b") + entry("a/c", tarfile.LNKTYPE, link="a/b") + END
    unpacked(program, data, arena / "new")
    unpack_host(io.BytesIO(data), arena / "other")
    for name in ("new", "other"):
        assert (arena / name / "b").samefile(arena / name / "c")


def test_a_link_that_is_there_is_replaced_and_not_followed(arena: Path, program: Path) -> None:
    data = entry("x", content=b"new") + END
    for unpack in (
        lambda: unpacked(program, data, arena / "target"),
        lambda: unpack_host(io.BytesIO(data), arena / "target"),
    ):
        (arena / "target" / "x").unlink(missing_ok=True)
        os.symlink("../outside/secret", arena / "target" / "x")
        unpack()
        assert (arena / "target" / "x").read_text() == "new"
        assert (arena / "outside" / "secret").read_text() == "secret"


@pytest.mark.parametrize("link", ["/etc/passwd", "../outside/secret", "..", "d/../../outside", "a/b/../.."])
def test_links_that_lead_out_are_refused_on_the_host(arena: Path, link: str) -> None:
    data = entry("x", tarfile.SYMTYPE, link=link) + END
    with pytest.raises(BadPath, match="leads out"):
        unpack_host(io.BytesIO(data), arena / "target")
    assert list((arena / "target").iterdir()) == []
    unpack_host(io.BytesIO(data), arena / "target", outward_links=True)
    assert os.readlink(arena / "target" / "x") == link


@pytest.mark.parametrize("link", ["y", "d/y", "./y", "nowhere"])
def test_links_that_stay_are_taken(arena: Path, link: str) -> None:
    unpack_host(io.BytesIO(entry("x", tarfile.SYMTYPE, link=link) + END), arena / "target")
    assert os.readlink(arena / "target" / "x") == link


def test_a_link_may_climb_as_far_as_it_is_deep(arena: Path) -> None:
    unpack_host(io.BytesIO(entry("a/b/x", tarfile.SYMTYPE, link="../../y") + END), arena / "target")
    with pytest.raises(BadPath, match="leads out"):
        unpack_host(io.BytesIO(entry("a/b/x", tarfile.SYMTYPE, link="../../../y") + END), arena / "target")


def test_messages_hold_no_control_characters(arena: Path, program: Path) -> None:
    data = pax(record(b"path", b"../\x1b[31m\n\rx")) + raw() + END
    message = refused(program, data, arena / "target")
    assert message[:-1].isprintable()


def test_ids_out_of_range(arena: Path, program: Path) -> None:
    for owner in (b"-1", b"4294967295", b"1.5", b"x"):
        assert "unpack: " in refused(program, pax(record(b"uid", owner)) + raw() + END, arena / "target")


@pytest.mark.parametrize("seed", range(8))
def test_damaged_streams_do_no_harm_in_the_job(arena: Path, program: Path, seed: int) -> None:
    random_ = random.Random(seed)
    before = outside(arena)
    for _ in range(60):
        target = arena / "target" / "into"
        target.mkdir()
        done = run(program, "unpack", target, data=damaged(random_))
        assert done.returncode in (0, 1), done.stderr
        assert done.stderr.count(b"\n") == done.returncode, done.stderr
        subprocess.run(["rm", "-rf", target], check=True)
    assert outside(arena) == before


@given(seed=st.integers(0, 1 << 32))
def test_damaged_streams_do_no_harm_on_the_host(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    arena = tmp_path_factory.mktemp("arena")
    (arena / "target").mkdir()
    with contextlib.suppress(SeracError):
        unpack_host(io.BytesIO(damaged(random.Random(seed))), arena / "target")
    assert [path.name for path in arena.iterdir()] == ["target"]
    subprocess.run(["rm", "-rf", arena], check=True)
