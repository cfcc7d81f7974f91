"""The command as its users have it: every verb from outside, on pipes and on terminals, over a real engine."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, serac, up
from roots import inside
from terminals import Terminal

from engine import Engine, JobState
from engine.errors import NoSpace

__all__ = ["serac", "up"]  # fixtures

pytestmark = pytest.mark.root

HEAVY = {"asyncio", "pyroute2", "rich", "shtab", "tarfile", "logging.config", "psutil", "http", "email", "ssl"}


def test_run_passes_output_and_status_on(serac: Command) -> None:
    done = serac("run", "--base", "small", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_run_takes_the_only_base(serac: Command) -> None:
    assert serac.good("run", "--", "echo", "hello") == "hello\n"


def test_run_loses_no_output(serac: Command) -> None:
    done = serac("run", "--", "seq", "200000")
    assert done.stdout.split() == [str(number).encode() for number in range(1, 200001)]


def test_run_says_which_signal(serac: Command) -> None:
    assert serac("run", "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_run_as_json_is_a_stream_of_records(serac: Command) -> None:
    done = serac("--json", "run", "--", "sh", "-c", "echo out; printf '\\377' >&2; exit 3")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    outputs = {record["stream"]: record for record in records if "stream" in record}
    assert outputs["stdout"]["data"] == "out\n"
    assert outputs["stderr"]["base64"] == "/w=="
    assert (records[-1]["exit"], records[-1]["signal"]) == (3, None)


def test_run_marks_steps(serac: Command) -> None:
    done = serac("run", "--step", "one=echo 1", "--step", "two=exit 4", "--step", "three=echo 3")
    assert (done.returncode, done.stdout) == (4, b"1\n")
    marks = ["--- step one", "--- step one completed", "--- step two", "--- step two failed"]
    assert done.stderr.decode().splitlines() == marks


def test_environment_and_directory(serac: Command) -> None:
    words = ("run", "--env", "A=b c", "--env", "E=", "--workdir", "/src", "--", "sh", "-c", 'echo "$A|$E|$PWD"')
    assert serac.good(*words) == "b c||/src\n"


def test_a_job_from_its_start_to_its_removal(serac: Command) -> None:
    assert (
        serac.good("run", "--detach", "--name", "web", "--label", "mr=4", "--", "sh", "-c", "echo hi; sleep 900")
        == "web\n"
    )
    serac.good("exec", "web", "--", "true")
    listed = serac.good("ps").splitlines()
    assert listed[0].split() == ["NAME", "STATE", "BASE", "COMMAND", "CREATED", "PAUSES", "SNAPSHOT", "ARCHIVE"]
    assert listed[1].split()[:3] == ["web", "running", "small"]
    shown = serac.good("show", "web")
    assert "mr=4" in shown
    assert "0: running" in shown
    assert serac.good("freeze", "web") == "froze web\n"
    assert serac.json("show", "web")["state"] == "frozen"
    assert serac.good("thaw", "web") == "thawed web\n"
    assert serac.good("stop", "--grace", "0.1", "web").startswith("stopped web")
    assert serac.json("ps") == []
    assert [job["name"] for job in serac.json("ps", "--all")] == ["web"]
    assert serac.good("logs", "web") == "hi\n"
    assert serac.good("rm", "web") == "removed web\n"
    assert serac.good("ps", "--all", "--quiet") == ""


def test_pause_and_resume(serac: Command, up: str) -> None:
    serac.good("exec", up, "--", "sh", "-c", "echo kept > /file")
    paused = serac.json("pause", up, "--mode", "filesystem", "--label", "why=test", "--state", '{"a": [1]}')
    assert {"job", "snapshot", "mode", "reason", "timings", "sizes"} <= set(paused)
    snapshot = serac.json("snapshot", "show", paused["snapshot"])
    assert (snapshot["labels"], snapshot["context"]["state"]) == ({"why": "test"}, {"a": [1]})
    assert serac.good("snapshot", "ls", "--quiet", "--job", up).split() == [paused["snapshot"]]
    resumed = serac.json("resume", up)
    assert {"job", "snapshot", "strategy", "mode", "timings"} <= set(resumed)
    assert serac.good("exec", up, "--", "cat", "/file") == "kept\n"
    text = serac.good("pause", up)
    assert text.startswith("paused up to snapshot ")
    assert serac.good("resume", up, "--as", "other").startswith("forked ")
    assert serac.good("exec", "other", "--", "cat", "/file") == "kept\n"
    assert serac.json("show", up)["state"] == "paused"


def test_resume_takes_a_snapshot(serac: Command, up: str) -> None:
    snapshot = serac.json("pause", up)["snapshot"]
    forked = serac.json("resume", snapshot)
    assert forked["snapshot"] == snapshot
    assert serac.json("show", forked["job"])["forked_from"] == snapshot


def test_exec_streams_both_ways(serac: Command, up: str) -> None:
    data = os.urandom(5 << 20)
    done = serac("exec", up, "--", "cat", given=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_exec_stops_reading_when_the_command_ends(serac: Command, up: str) -> None:
    assert serac.good("exec", up, "--", "head", "-c", "3", given=b"x" * (8 << 20)) == "xxx"


def test_exec_statuses(serac: Command, up: str) -> None:
    assert serac("exec", up, "--", "sh", "-c", "exit 42").returncode == 42
    assert serac("exec", up, "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert serac("exec", up, "--", "/no/such").returncode == 127
    assert serac("exec", up, "--", "/etc/passwd").returncode == 126


def test_exec_detached_and_its_log(serac: Command, up: str) -> None:
    number = serac.good("exec", "-d", up, "--", "sh", "-c", "echo one; read x < /fifo || sleep 900").strip()
    session = serac.json("exec", "--detach", up, "--", "sh", "-c", "echo two; exit 5")
    assert serac.good("logs", "-f", up, str(session["id"])) == "two\n"
    records = [json.loads(line) for line in serac.good("--json", "logs", up, str(session["id"])).splitlines()]
    assert [record.get("data") for record in records] == ["two\n", None]
    assert records[-1]["exit"] == 5
    assert int(number) < session["id"]


def test_paused_under_the_users_eyes(serac: Command, engine: Engine) -> None:
    with serac.begun("run", "--name", "watched", "--", "sh", "-c", "echo ready; sleep 900") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        engine.pause("watched")
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 220
    assert errors.splitlines() == [
        "serac: job watched was paused",
        "hint: `serac resume watched`, `serac attach watched`",
    ]


def test_cp_there_and_back(serac: Command, up: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_bytes(b"\0\xff")
    serac.good("cp", str(tmp_path / "dir"), f"{up}:/tmp")
    serac.good("cp", f"{up}:/tmp/dir/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"\0\xff"


def test_cp_takes_and_gives_tar_streams(serac: Command, up: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("hello")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"hi"))
    serac.good("cp", "-", f"{up}:/tmp", given=buffer.getvalue())
    done = serac("cp", f"{up}:/tmp/hello", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        (found,) = archive.getmembers()
        content = archive.extractfile(found)
        assert content is not None
        assert (found.name, content.read()) == ("hello", b"hi")


@pytest.mark.parametrize("state", ["running", "paused"])
def test_cp_out_says_what_is_wrong_on_the_host(serac: Command, up: str, state: str) -> None:
    serac.good("exec", up, "--", "sh", "-c", "head -c 4000000 /dev/zero > /big")
    if state == "paused":
        serac.good("pause", up, "--mode", "filesystem")
    status, lines = serac.error("cp", f"{up}:/big", "/no/such/x")
    assert (status, lines[0]) == (216, "serac: copy to /no/such/x: No such file or directory (/no/such)")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(serac.words("cp", f"{up}:/big", "-"), stdout=full, stderr=subprocess.PIPE, check=False)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines), lines[0]) == (213, 2, "serac: copy: No space left on device")
    with serac.begun("cp", f"{up}:/big", "-", text=False) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1000)
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


def test_cp_in_says_what_is_wrong_on_the_host(serac: Command, up: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    os.mknod(tmp_path / "dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert serac.error("cp", str(tmp_path / "dir"), f"{up}:/tmp") == (
        216,
        ["serac: dir/null is a device", "hint: copy files and directories"],
    )
    with open("/proc/self/mem", "rb") as unreadable:
        done = subprocess.run(
            serac.words("cp", "-", f"{up}:/tmp"), stdin=unreadable, stderr=subprocess.PIPE, check=False
        )
    lines = done.stderr.decode().splitlines()
    assert (len(lines), lines[0]) == (2, "serac: copy: Input/output error")


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Path]:
    """A file that there is room for a block of."""
    (tmp_path / "little").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", tmp_path / "little"], check=True)
    yield tmp_path / "little/file"
    subprocess.run(["umount", tmp_path / "little"], check=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    ["exec up -- head -c 6000 /dev/zero", "cp up:/file -", "completion bash"],
    ids=lambda words: words.split()[0],
)
def test_what_standard_output_takes_in_part_is_an_error(
    serac: Command, up: str, little: Path, words: str, unbuffered: str
) -> None:
    serac.good("exec", up, "--", "sh", "-c", "head -c 6000 /dev/zero > /file")
    with little.open("wb") as stdout:
        done = subprocess.run(
            serac.words(*words.split()), stdout=stdout, stderr=subprocess.PIPE, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"\n")) == (213, 2), done.stderr
    assert b"No space left on device" in done.stderr


def test_what_a_stream_takes_in_part_is_an_error(engine: Engine, up: str, little: Path) -> None:
    inside(engine, up, "head -c 6000 /dev/zero > /file")
    with little.open("wb", buffering=0) as out, pytest.raises(NoSpace):
        engine.copy_out(up, "/file", out)


def test_bases(serac: Command, small_tree: Path) -> None:
    built = serac.good("base", "build", "again", "--dir", str(small_tree))
    assert built.startswith("again: ")
    base = serac.json("base", "show", "again")["digest"]
    assert sorted(serac.good("base", "ls", "--quiet").split()) == ["again", "small"]
    assert base in serac.good("base", "show", "again")
    warmth = serac.json("base", "warm", "again")
    assert warmth["cached_after"] == warmth["size"] > 0
    assert serac.good("base", "rm", "again") == "removed again\n"
    assert serac.good("base", "ls", "--quiet").split() == ["small"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["show", "nobody"], 201),
        (["run", "--base", "nothing", "--", "true"], 201),
        (["run", "--name", "up", "--", "true"], 202),
        (["run", "--name", "a/b", "--", "true"], 200),
        (["run", "--workdir", "src", "--", "true"], 200),
        (["run", "--", "/no/such"], 127),
        (["resume", "up"], 203),
        (["resume", "up", "--as", "x"], 203),
        (["resume", "nobody"], 201),
        (["rm", "up"], 203),
        (["snapshot", "show", "nothing"], 201),
        (["base", "rm", "small"], 204),
        (["logs", "up", "77"], 201),
        (["attach", "up", "77"], 201),
        (["exec", "up", "-w", "/no/such", "--", "true"], 216),
        (["cp", "/no/such", "up:/tmp"], 200),
        (["cp", "up:/no/such", "/tmp/x"], 216),
        (["base", "build", "x", "--tar", "/no/such"], 200),
        (["base", "build", "x", "--snapshot", "nothing"], 201),
    ],
    ids=str,
)
def test_errors_change_nothing(serac: Command, engine: Engine, up: str, words: list[str], status: int) -> None:
    before = engine.jobs(ended=True), engine.snapshots(), engine.bases()
    found, lines = serac.error(*words)
    assert (found, len(lines)) == (status, 2), lines
    assert lines[0].startswith("serac: ")
    assert lines[1].startswith("hint: ")
    assert (engine.jobs(ended=True), engine.snapshots(), engine.bases()) == before


def test_ps_imports_nothing_heavy(serac: Command, up: str) -> None:
    command = [sys.executable, "-X", "importtime", *serac.words("ps")[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert up in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {name for name in imported if name in HEAVY or name.split(".")[0] in HEAVY} == set()


def test_terminal_knows_its_size_and_follows_it(serac: Command, up: str) -> None:
    with Terminal(serac.root, "exec", "-t", up, "--", "sh", rows=33, columns=111) as user:
        user.type("stty size\r")
        user.expect("33 111")
        user.resize(44, 122)
        user.type("until stty size | grep -qx '44 122'; do sleep 0.05; done; echo follo''wed\r")
        user.expect("followed")
        user.type("exit 9\r")
        assert user.wait() == 9


def test_detach_keys_and_attach_again(serac: Command, up: str) -> None:
    with Terminal(serac.root, "exec", "-t", up, "--", "sh") as user:
        user.type("colour=blue; echo he''re\r")
        user.expect("here")
        user.type("\x10\x11")
        user.expect("detached")
        user.expect("serac attach up 1")
        assert user.wait() == 0
    with Terminal(serac.root, "attach", up, "1") as one, Terminal(serac.root, "attach", up, "1") as two:
        one.expect("here")
        two.expect("here")
        two.type("echo still $colour\r")
        one.expect("still blue")
        two.expect("still blue")
        one.type("exit 3\r")
        assert (one.wait(), two.wait()) == (3, 3)


def test_run_on_a_terminal(serac: Command) -> None:
    with Terminal(serac.root, "run", "--tty", "--", "sh", "-c", "stty size; read line; echo got $line; exit 2") as user:
        user.expect("24 80")
        user.type("it\r")
        user.expect("got it")
        assert user.wait() == 2


def test_ctrl_c_reaches_the_job_and_the_next_one_detaches(serac: Command, engine: Engine) -> None:
    script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done"
    with Terminal(serac.root, "run", "--name", "deaf", "--", "sh", "-c", script) as user:
        user.expect("ready")
        user.type("\x03")
        user.expect("caught")
        user.type("\x03")
        user.expect("serac attach deaf")
        assert user.wait() == 130
    assert engine.job("deaf").state is JobState.RUNNING


def test_sigterm_puts_the_terminal_back(serac: Command, up: str) -> None:
    with Terminal(serac.root, "exec", "-t", up, "--", "sh", "-c", "echo ready; sleep 900") as user:
        user.expect("ready")
        user.signal(signal.SIGTERM)
        assert user.wait() == 128 + signal.SIGTERM


def test_end_of_input_at_a_terminal_without_tty(serac: Command, up: str) -> None:
    with Terminal(serac.root, "exec", up, "--", "cat") as user:
        user.type("line\n")
        user.expect("line\r\nline\r\n")
        user.type("\x04")
        assert user.wait() == 0


@pytest.mark.parametrize("words", [["exec", "-t", "up", "--", "sh"], ["run", "-t", "--", "sh"]], ids=str)
def test_tty_wants_a_terminal(serac: Command, up: str, words: list[str]) -> None:
    status, lines = serac.error(*words)
    assert (status, lines[0]) == (200, "serac: --tty needs a terminal on standard input")


def test_attach_without_a_terminal_only_looks(serac: Command, up: str) -> None:
    number = serac.good("exec", "-t", "-d", up, "--", "sh", "-c", "echo hello; until test -e /go; do sleep 0.05; done")
    with serac.begun("attach", up, number.strip(), text=False, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hello\r\n"
        serac.good("exec", up, "--", "touch", "/go")
        assert process.wait(30) == 0
