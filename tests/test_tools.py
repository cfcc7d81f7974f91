"""The door for other programs: what is chosen, and that nothing of a program outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import tools
from engine.errors import NoSpace, Timeout, ToolFailed, ToolMissing


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three empty places to look for programs in: ``own``, ``setup``, ``path``."""
    for name in ("own", "setup", "path"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SERAC_TOOLS", str(tmp_path / "own"))
    monkeypatch.setattr(tools, "SETUP_BIN", tmp_path / "setup")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(tools, "_FIXED_PATH", str(tmp_path / "path"))
    return tmp_path


def test_places_are_searched_in_order(places: Path) -> None:
    chosen = []
    for place in ("path", "setup", "own"):
        program(places / place / "criu", "echo Version: 4.10; echo GitID: v4.10")
        tool = tools.find("criu")
        chosen.append((tool.path, tool.version, tool.origin))
    assert chosen == [
        (places / "path/criu", "4.10", "PATH"),
        (places / "setup/criu", "4.10", "setup"),
        (places / "own/criu", "4.10", "SERAC_TOOLS"),
    ]


def test_an_old_program_is_passed_over_and_named(places: Path) -> None:
    old = program(places / "own/criu", "echo Version: 3.17.1; echo GitID: v3.17")
    program(places / "path/criu", "echo Version: 4.1.1")
    tool = tools.find("criu")
    assert tool.path == places / "path/criu"
    assert f"passed over {old}: 3.17.1 is older than 4.1.1" in tool.why


def test_only_old_programs_are_as_good_as_none(places: Path) -> None:
    program(places / "path/criu", "echo Version: 3.17.1")
    with pytest.raises(ToolMissing, match=r"3\.17\.1 is older than 4\.1\.1") as caught:
        tools.find("criu")
    assert "Debian package criu" in caught.value.hint


def test_a_replaced_program_is_asked_again(places: Path) -> None:
    path = program(places / "path/criu", "echo Version: 4.1.1")
    assert tools.find("criu").version == "4.1.1"
    program(places / "new", "echo Version: 4.2").rename(path)  # another inode, as a package manager does it
    assert tools.find("criu").version == "4.2"


def test_a_broken_program_is_passed_over(places: Path) -> None:
    program(places / "path/criu", "kill -9 $$")
    with pytest.raises(ToolMissing, match="no version"):
        tools.find("criu")


@pytest.mark.parametrize("name", ["umoci", "no-such-program"])
def test_a_missing_program_names_its_package(places: Path, name: str) -> None:
    with pytest.raises(ToolMissing, match="not installed") as caught:
        tools.run([name])
    assert f"Debian package {name}" in caught.value.hint


def test_a_program_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing):
        tools.run([tmp_path / "nothing"])


def test_output_and_arguments_pass_untouched() -> None:
    done = tools.run(["/usr/bin/printf", "%s|", "a b", "$HOME", "*", "\n"])
    assert done == tools.CompletedOutput(b"a b|$HOME|*|\n|", b"")


def test_data_of_any_size_goes_through() -> None:
    data = os.urandom(3 << 20)
    assert tools.run(["/bin/cat"], data=data).stdout == data


def test_data_that_nobody_reads_is_no_error() -> None:
    assert tools.run(["/bin/true"], data=bytes(1 << 20)).stdout == b""


def test_a_descriptor_as_standard_input_shares_its_position(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    with file.open("rb") as stream:
        assert tools.run(["/bin/cat"], stdin=stream.fileno()).stdout == bytes(100_000)
        assert os.lseek(stream.fileno(), 0, os.SEEK_CUR) == 100_000


def test_environment_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAR_OPTIONS", "--absolute-names")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    lines = tools.run(["/usr/bin/env"], env={"EXTRA": "1"}).stdout.decode().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"PATH", "LC_ALL", "EXTRA", "https_proxy"} <= names
    assert "TAR_OPTIONS" not in names


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        listed = tools.run(["/bin/ls", "/proc/self/fd"]).stdout.split()
    assert listed == [b"0", b"1", b"2", b"3"]


def test_the_directory_is_the_programs_own(tmp_path: Path) -> None:
    assert os.fsdecode(tools.run(["/bin/pwd"], cwd=tmp_path).stdout.strip()) == str(tmp_path)


def test_failure_tells_the_last_telling_lines() -> None:
    script = "seq 100000 >&2; echo 'E: Unable to locate package nonsense' >&2; echo bye >&2; exit 7"
    with pytest.raises(ToolFailed) as caught:
        tools.run(["/bin/sh", "-c", script])
    assert str(caught.value) == "sh failed with status 7: E: Unable to locate package nonsense"


def test_a_signal_is_named() -> None:
    with pytest.raises(ToolFailed, match="was killed by SIGSEGV"):
        tools.run(["/bin/sh", "-c", "kill -SEGV $$"])


def test_other_statuses_can_be_good() -> None:
    assert tools.run(["/bin/sh", "-c", "echo no; exit 1"], accept=(0, 1)).stdout == b"no\n"


@pytest.mark.parametrize(
    "script", ["dd if=/dev/zero of=/dev/full bs=1 count=1", "echo write /x: no space left on device >&2; exit 1"]
)
def test_a_full_disk_is_told_apart(script: str) -> None:
    with pytest.raises(NoSpace):
        tools.run(["/bin/sh", "-c", script])


def test_standard_error_is_kept_to_its_end_only() -> None:
    done = tools.run(["/bin/sh", "-c", "seq 1000000 >&2"])
    assert len(done.stderr) == tools.STDERR_KEPT
    assert done.stderr.endswith(b"\n1000000\n")


def test_endless_output_is_ended() -> None:
    with pytest.raises(ToolFailed, match="wrote more than 1000 bytes"):
        tools.run(["/usr/bin/yes"], stdout_max=1000)


DYING = """
import os, sys
from engine import tools
def tick():
    # Until the program itself is executed it hasn't been told yet to die with us.
    (child,) = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    if open(f"/proc/{child}/comm").read() == "sleep\\n":
        os.kill(os.getpid(), 9)
tools.run(["/bin/sleep", "1000"], pass_fds=[int(sys.argv[1])], tick=tick)
"""


def test_a_program_dies_with_us() -> None:
    witness = Witness()
    command = [sys.executable, "-c", DYING, str(witness.writing)]
    killed = subprocess.run(command, pass_fds=[witness.writing], check=False, cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    assert witness.all_gone()


class Witness:
    """A pipe whose reading end sees the end of file when the last process that holds its writing end is gone."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def all_gone(self) -> bool:
        os.close(self.writing)
        try:
            return os.read(self.reading, 1) == b""
        finally:
            os.close(self.reading)


def test_timeout_ends_the_whole_group() -> None:
    witness = Witness()
    with pytest.raises(Timeout):
        tools.run(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.3, pass_fds=[witness.writing])
    assert witness.all_gone()


def test_an_interrupt_ends_the_whole_group() -> None:
    witness = Witness()

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tools.run(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], tick=interrupt, pass_fds=[witness.writing])
    assert witness.all_gone()


def test_what_a_program_leaves_running_is_ended_and_not_waited_for() -> None:
    witness = Witness()
    done = tools.run(["/bin/sh", "-c", "echo out; sleep 1000 & exit 0"], timeout=30, pass_fds=[witness.writing])
    assert done.stdout == b"out\n"
    assert witness.all_gone()


def test_ticks_while_it_runs() -> None:
    ticks: list[int] = []
    reading, writing = os.pipe()

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            os.write(writing, b"\n")

    try:
        tools.run(["/bin/sh", "-c", "read -r line"], stdin=reading, tick=tick)
    finally:
        os.close(reading)
        os.close(writing)
    assert len(ticks) >= 3


def test_descriptors_are_not_lost() -> None:
    tools.run(["/bin/true"])
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        tools.run(["/bin/cat"], data=b"x")
        with pytest.raises(ToolFailed):
            tools.run(["/bin/false"])
    assert sorted(os.listdir("/proc/self/fd")) == before
