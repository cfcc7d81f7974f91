"""``serac snapshot export``, ``import`` and ``verify`` as their users have them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, serac, up
from forge import Bundle
from roots import another_root
from terminals import Terminal
from travels import exported, names

from engine import Engine

__all__ = ["serac", "up"]  # fixtures

pytestmark = pytest.mark.root


@pytest.fixture
def there(small_tree: Path) -> Iterator[Command]:
    """The command on another host."""
    with another_root(small_tree) as engine:
        yield Command(engine.config.root)


@pytest.fixture
def snapshot(serac: Command, up: str) -> str:
    serac.good("exec", up, "--", "sh", "-c", "head -c 2500000 /dev/urandom > /file; echo kept > /kept")
    found: str = serac.json("pause", up, "--mode", "filesystem", "--label", "mr=42")["snapshot"]
    return found


def test_from_host_to_host_by_a_file(serac: Command, there: Command, snapshot: str, tmp_path: Path) -> None:
    file = os.fspath(tmp_path / "build.serac")
    assert serac.good("snapshot", "export", snapshot[:6], file) == f"wrote {file}\n"
    assert there.good("snapshot", "import", file) == f"imported {snapshot} (up, filesystem)\n"
    assert there.good("snapshot", "import", file) == f"imported {snapshot} (up, filesystem)\n"
    assert there.good("snapshot", "verify", snapshot) == f"{snapshot} is whole\n"
    shown = there.good("snapshot", "show", snapshot)
    assert "mr=42" in shown
    assert "pinned:" in shown
    there.good("resume", snapshot, "--as", "b")
    assert there.good("exec", "b", "--", "cat", "/kept") == "kept\n"


def test_by_programs(serac: Command, there: Command, snapshot: str, tmp_path: Path) -> None:
    file = os.fspath(tmp_path / "build.serac")
    said = serac.json("snapshot", "export", snapshot, file)
    archive = serac.json("snapshot", "show", snapshot)["archive"]
    assert said == {"snapshot": snapshot, "archive": archive, "file": file}
    taken = there.json("snapshot", "import", file)
    assert (taken["id"], taken["archive"], taken["pinned"], taken["mode"]) == (snapshot, archive, True, "filesystem")
    assert there.json("snapshot", "show", snapshot) == taken
    report = {"snapshot": snapshot, "archive": archive, "damaged": []}
    assert there.json("snapshot", "verify", snapshot) == report


def test_by_a_pipe(serac: Command, there: Command, snapshot: str) -> None:
    done = serac("snapshot", "export", "--with-base", snapshot, "-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(there.good("--json", "snapshot", "import", "-", given=done.stdout))["id"] == snapshot
    digest = Bundle.of(done.stdout).manifest["base"]["digest"]
    assert there.json("base", "show", "small")["digest"] == digest


def test_damage_is_told_by_file_and_piece(serac: Command, there: Command, snapshot: str) -> None:
    there.good("snapshot", "import", "-", given=serac("snapshot", "export", snapshot, "-").stdout)
    (image,) = (there.root / "images").iterdir()
    with (image / "data.blob").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"damage")
    done = there("snapshot", "verify", snapshot)
    line = f"{image}/data.blob is damaged: piece 2, at byte 2097152"
    assert (done.returncode, done.stdout.decode(), done.stderr) == (214, f"{line}\n", b"")
    done = there("--json", "snapshot", "verify", snapshot)
    assert (done.returncode, json.loads(done.stdout)["damaged"]) == (214, [line])


def test_what_is_no_snapshot(serac: Command, there: Command, snapshot: str, tmp_path: Path) -> None:
    whole = serac("snapshot", "export", snapshot, "-").stdout
    for given, said in (
        (b"", "it ends too early"),
        (whole[:-1], "it ends too early"),
        (whole[: len(whole) // 2], "it ends too early"),
        (b"no snapshot" * 100, "it is no snapshot of serac's"),
    ):
        done = there("snapshot", "import", "-", given=given)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout, len(lines)) == (214, b"", 2), lines
        assert lines[0].startswith(f"serac: {said}")
        assert lines[1].startswith("hint: ")
    done = there("--json", "snapshot", "import", "-", given=whole[:700])
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], error["status"]) == (214, "damaged", 214)
    assert there.json("snapshot", "ls") == []


def test_privileges_need_trust(serac: Command, there: Command, snapshot: str) -> None:
    forged = Bundle.of(serac("snapshot", "export", snapshot, "-").stdout)
    forged.manifest["spec"]["net"] = "host"
    done = there("snapshot", "import", "-", given=forged.stream())
    assert (done.returncode, done.stderr.decode().splitlines()) == (
        200,
        ["serac: the snapshot asks for the host's network", "hint: --trust, if you know who made it"],
    )
    assert there.good("snapshot", "import", "--trust", "-", given=forged.stream()).startswith("imported ")


ERRORS: list[tuple[list[str], int]] = [
    (["verify", "SNAP"], 203),
    (["export", "nothing", "/tmp/x"], 201),
    (["export", "SNAP", "/"], 200),
    (["export", "SNAP", "/no/such/file"], 200),
    (["export", "SNAP", "/dev/full"], 213),
    (["export", "--json", "SNAP", "-"], 200),
    (["export", "SNAP"], 200),
    (["import", "/no/such"], 200),
    (["import", "/"], 200),
    (["import", "/etc/passwd"], 214),
    (["import", "/dev/null"], 214),
    (["import"], 200),
    (["verify", "nothing"], 201),
]


def test_errors(serac: Command, engine: Engine, snapshot: str) -> None:
    for words, status in ERRORS:
        found = serac("snapshot", *(snapshot if word == "SNAP" else word for word in words))
        assert found.returncode == status, (words, found.stderr)
        lines = found.stderr.decode().splitlines() or json.loads(found.stdout)["error"]
        assert len(lines) in (2, 4), (words, lines)
        assert [entry.id for entry in engine.snapshots()] == [snapshot]


def test_another_one_of_that_id(serac: Command, there: Command, snapshot: str) -> None:
    stream = serac("snapshot", "export", snapshot, "-").stdout
    other = Bundle.of(stream)
    other.manifest["labels"] = {"other": "1"}
    there.good("snapshot", "import", "-", given=stream)
    done = there("snapshot", "import", "-", given=other.stream())
    assert done.returncode == 202
    assert snapshot in done.stderr.decode()


def test_a_stream_is_nothing_for_a_terminal(serac: Command, snapshot: str) -> None:
    with Terminal(serac.root, "snapshot", "export", snapshot, "-") as user:
        user.expect("is nothing for a terminal")
        assert user.wait() == 200


def test_a_terminal_is_no_source(serac: Command) -> None:
    with Terminal(serac.root, "snapshot", "import", "-") as user:
        user.expect("is nothing from a terminal")
        assert user.wait() == 200


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_to_the_end(serac: Command, snapshot: str, unbuffered: str) -> None:
    serac.good("snapshot", "archive", snapshot)
    process = subprocess.Popen(
        serac.words("snapshot", "export", snapshot, "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1000)
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_on_a_full_disk(serac: Command, snapshot: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            serac.words("snapshot", "export", snapshot, "-"), stdout=full, stderr=subprocess.PIPE, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (213, 2), lines
    assert lines[0] == "serac: export: No space left on device"


def test_to_what_standard_output_is(serac: Command, engine: Engine, snapshot: str, tmp_path: Path) -> None:
    """/dev/stdout is a link that anybody may name, and stays what it is."""
    done = serac("snapshot", "export", snapshot, "/dev/stdout")
    assert done.returncode == 0, done.stderr
    assert done.stdout == exported(engine, snapshot) + b"wrote /dev/stdout\n"
    assert os.path.islink("/dev/stdout")
    assert names(tmp_path) == set()
