"""Clients that are attached when a job is paused: told, waiting for its resume, or not noticing a pause that failed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import select
import signal
import subprocess
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from commands import Command, serac, up
from roots import inside, shell, until, wait_for
from terminals import Terminal

from engine import Engine, JobSpec, SessionSpec, Step, session
from engine.cli import output
from engine.cli.session import _again
from engine.cli.streams import View
from engine.model import Mode
from engine.session import Connection, Output
from engine.session.protocol import Message

__all__ = ["serac", "up"]  # fixtures

pytestmark = pytest.mark.root

COUNT = "n=0; while :; do n=$((n + 1)); echo $n; test -e /last && exit 7; sleep 0.01; done"
"""a command whose output has to be gapless"""


@contextlib.contextmanager
def watching(serac: Command, *words: str) -> Iterator[subprocess.Popen[str]]:
    with serac.begun(*words) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]  # left unread: communicate() wouldn't have it
        yield process


def hang_up(engine: Engine, name: str) -> None:
    """What a pause does before the freeze, and all that a client sees of one that fails."""
    with session.connect(engine.config.root / "jobs" / engine.job(name).id / "io", timeout=30) as connection:
        connection.quiesce()


def gapless(first: int, output: str) -> int:
    """The last of the numbers, which follow ``first`` one by one."""
    numbers = [int(line) for line in output.splitlines()]
    assert numbers == list(range(first, first + len(numbers)))
    return numbers[-1]


@pytest.mark.parametrize(
    "words", [["run", "--name", "counts", "--", "sh", "-c", COUNT], ["exec", "up", "--", "sh", "-c", COUNT]], ids=str
)
def test_a_client_outlives_pauses_that_fail(serac: Command, engine: Engine, up: str, words: list[str]) -> None:
    job = "counts" if words[0] == "run" else up
    with watching(serac, *words) as process:
        for _ in range(3):
            hang_up(engine, job)
        serac.good("exec", job, "--", "touch", "/last")
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (7, "")
    assert gapless(1, output) > 2


def test_a_pause_that_fails_loses_no_input(serac: Command, engine: Engine, up: str) -> None:
    """More than the pipe holds, to a command that takes it only afterwards."""
    data = os.urandom(12 << 20)
    script = "echo ready; until test -e /go; do sleep 0.01; done; cat | md5sum"
    process = subprocess.Popen(
        serac.words("exec", up, "--", "sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(data[: 512 << 10])
        hang_up(engine, up)
        process.stdin.write(data[512 << 10 : 700 << 10])
        hang_up(engine, up)
        serac.good("exec", up, "--", "touch", "/go")
        output, _ = process.communicate(data[700 << 10 :], timeout=60)
    assert process.returncode == 0
    assert output.split()[0].decode() == hashlib.md5(data).hexdigest()


def test_a_terminal_outlives_a_pause_that_fails(serac: Command, engine: Engine, up: str) -> None:
    with Terminal(serac.root, "exec", "-t", up, "--", "sh", rows=33, columns=111) as user:
        user.type("colour=blue; echo he''re\r")
        user.expect("here")
        hang_up(engine, up)
        user.type("echo still $colour; stty size\r")
        user.expect("still blue")
        user.expect("33 111")
        user.resize(44, 122)
        user.type("until stty size | grep -qx '44 122'; do sleep 0.05; done; echo follo''wed\r")
        user.expect("followed")
        user.type("exit 9\r")
        assert user.wait() == 9


@pytest.mark.parametrize(("mode", "lives"), [("filesystem", 2), ("process", 1)])
def test_a_client_waits_for_the_resume(serac: Command, engine: Engine, mode: Mode, lives: int) -> None:
    script = "echo life; until test -e /last; do sleep 0.01; done; exit 7"
    with watching(serac, "run", "--wait", "--name", "w", "--", "sh", "-c", script) as process:
        engine.pause("w", mode=mode)
        assert process.stderr is not None
        assert process.stderr.readline() == "job w was paused; waiting for its resume, ctrl-c leaves\n"
        engine.resume("w")
        serac.good("exec", "w", "--", "touch", "/last")
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (7, "life\n" * lives, "")


def test_output_goes_on_after_a_pause_with_processes(serac: Command, engine: Engine, up: str) -> None:
    with watching(serac, "exec", "--wait", up, "--", "sh", "-c", COUNT) as process:
        for _ in range(2):
            engine.pause(up, mode="process")
            engine.resume(up)
        serac.good("exec", up, "--", "touch", "/last")
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert gapless(1, output) > 2


def test_input_goes_on_after_a_pause_with_processes(serac: Command, engine: Engine, up: str) -> None:
    data = os.urandom(1 << 20)
    process = subprocess.Popen(
        serac.words(
            "exec", "--wait", up, "--", "sh", "-c", "echo ready; until test -e /go; do sleep 0.01; done; md5sum"
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(data[: 300 << 10])
        engine.pause(up, mode="process")
        engine.resume(up)
        serac.good("exec", up, "--", "touch", "/go")
        output, _ = process.communicate(data[300 << 10 :], timeout=60)
    assert output.split()[0].decode() == hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("mode", ["filesystem", "process"])
def test_attach_waits_and_sends_the_window_again(serac: Command, engine: Engine, up: str, mode: Mode) -> None:
    number = serac.good("exec", "-t", "-d", up, "--", "sh").strip()
    with Terminal(serac.root, "attach", "--wait", up, number, rows=31, columns=99) as user:
        user.type("echo he''re\r")
        user.expect("here")
        engine.pause(up, mode=mode)
        user.expect("waiting for its resume")
        user.resize(31, 98)
        engine.resume(up)
        user.type("until stty size | grep -qx '31 98'; do sleep 0.05; done; echo follo''wed\r")
        user.expect("followed")
        user.type("exit 5\r")
        assert user.wait() == 5


def test_who_waits_may_leave(serac: Command, engine: Engine, up: str) -> None:
    with Terminal(serac.root, "exec", "-t", "--wait", up, "--", "sh") as user:
        user.type("echo he''re\r")
        user.expect("here")
        engine.pause(up)
        user.expect("waiting for its resume")
        user.type("\x03")
        assert user.wait() == 130


def test_a_session_that_does_not_come_back_is_missed(serac: Command, engine: Engine, up: str) -> None:
    with watching(serac, "exec", "--wait", up, "--", "sh", "-c", "echo ready; sleep 900") as process:
        engine.pause(up, mode="filesystem")
        engine.resume(up)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 203
    assert "serac: session 1 of job up ended with a pause, it didn't come back" in errors.splitlines()


def test_logs_follow_through_pauses(serac: Command, engine: Engine) -> None:
    serac.good("run", "--detach", "--name", "counts", "--", "sh", "-c", COUNT)
    with watching(serac, "logs", "-f", "counts") as told, watching(serac, "logs", "-f", "--wait", "counts") as waits:
        hang_up(engine, "counts")
        engine.pause("counts", mode="filesystem")
        output, errors = told.communicate(timeout=30)
        assert (told.returncode, errors.splitlines()[0]) == (220, "serac: job counts was paused")
        assert gapless(1, output) > 2
        engine.resume("counts")
        serac.good("exec", "counts", "--", "touch", "/last")
        output, _ = waits.communicate(timeout=30)
    assert waits.returncode == 0
    assert output.count("1\n2\n") == 2  # in this mode the command began again
    before = output[: output.rindex("\n1\n") + 1]
    assert gapless(1, before) > 2
    assert gapless(1, output[len(before) :]) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["bytes", "records"])
def test_who_shows_what_nobody_reads_hears_signals(
    serac: Command, engine: Engine, up: str, number: signal.Signals, options: list[str]
) -> None:
    """The first goes to the session and the next one detaches, also while a write waits."""
    with serac.begun(*options, "exec", up, "--", "yes") as process:
        wait_for(lambda: Path(f"/proc/{process.pid}/wchan").read_text().endswith("pipe_write"))
        process.send_signal(number)
        if number != signal.SIGHUP:
            wait_for(lambda: not inside(engine, up, "pidof yes || true"))
            assert process.poll() is None
            process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr is not None
        assert "detached" in process.stderr.read()


def test_logs_of_a_frozen_job_go_on_when_it_is_thawed(serac: Command, engine: Engine) -> None:
    serac.good("run", "--detach", "--name", "counts", "--", "sh", "-c", COUNT)
    until(engine, "counts", b"\n3\n")
    engine.freeze("counts")
    with watching(serac, "logs", "-f", "counts") as process:  # which waits for what it shows
        engine.thaw("counts")
        serac.good("exec", "counts", "--", "touch", "/last")
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert gapless(1, output) > 3


def test_who_is_hung_up_on_before_a_freeze_waits_for_the_thaw(engine: Engine) -> None:
    engine.run(shell(COUNT, name="counts"))
    job, out = engine.job("counts"), output.Output()
    found: list[Connection | None] = []
    engine.freeze("counts")
    again = threading.Thread(target=lambda: found.append(_again(engine, job, View(out, 0), Namespace(wait=False), out)))
    again.start()
    again.join(0.5)
    assert again.is_alive()
    engine.thaw("counts")
    again.join(30)
    assert found[0] is not None
    found[0].close()


CALLS: dict[str, Callable[[Engine, str], Connection | object]] = {
    "start": lambda engine, up: engine.start(up, SessionSpec(argv=("true",))),
    "exec": lambda engine, up: engine.exec(up, SessionSpec(argv=("true",))),
    "listen": lambda engine, up: engine.listen(up),
    "copy_in": lambda engine, up: engine.copy_in(up, __file__, "/copy"),
    "copy_out": lambda engine, up: engine.copy_out(up, "/src", io.BytesIO()),
}


@pytest.mark.parametrize("call", CALLS)
def test_who_comes_when_a_pause_begins_comes_again(
    engine: Engine, up: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It has been let in, and is hung up on before it asks."""
    send, pauses = Connection._send, [up]

    def late(self: Connection, message: Message, lent: Sequence[int] = ()) -> None:
        if pauses:
            hang_up(engine, pauses.pop())
        send(self, message, lent)

    monkeypatch.setattr(Connection, "_send", late)
    done = CALLS[call](engine, up)
    if isinstance(done, Connection):
        done.close()
    assert not pauses


def test_attach_to_a_paused_job_is_told(serac: Command, engine: Engine, up: str) -> None:
    engine.pause(up)
    assert serac.error("attach", up) == (
        220,
        ["serac: job up was paused", "hint: `serac resume up`, `serac attach up`"],
    )


def runs(engine: Engine, job: str, step: str) -> bool:
    return engine.sessions(job)[0].step == step


def test_each_step_may_hold_its_terminal_over_a_pause(engine: Engine) -> None:
    """criu wants who holds /dev/tty to be older than who has its master."""
    script = "exec 9<> /dev/tty; read line <&9; echo STEP $line >&9"
    steps = tuple(Step(name=name, script=script.replace("STEP", name)) for name in ("one", "two", "three"))
    job = engine.run(JobSpec(base="small", name="steps", steps=steps, tty=True), terminal=(33, 99))
    offset = 0
    for step in steps:
        wait_for(functools.partial(runs, engine, job.id, step.name))
        engine.pause(job.id, mode="process")
        engine.resume(job.id)
        with engine.attach(job.id, offset=offset) as connection:
            connection.send(b"line\n")
            events = connection.events()
            seen = b""
            while f"{step.name} line".encode() not in seen:
                event = next(events)
                offset = event.end
                seen += event.data if isinstance(event, Output) else b""
    assert engine.wait(job.id, timeout=30).status == 0
