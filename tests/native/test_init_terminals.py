"""Terminals of a job's sessions: their holders, windows, job control."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, fifo, held_back, output, run, shell, until, wait_exit

from engine.errors import WrongState
from engine.model import SessionSpec, Step
from engine.session import Exit
from engine.session.protocol import Message, Type

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(300):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


def test_several_clients_share_a_terminal(job: InitJob) -> None:
    with job.connect() as one, job.connect() as two:
        status = one.start(
            shell("stty -echo; echo ready; read a; echo got $a; read b; echo got $b", tty=(24, 80)), attach=True
        )
        first = one.events()
        until(first, b"ready")
        two.attach(status.id)
        second = two.events()
        until(second, b"ready")
        one.send(b"eins\n")
        until(second, b"got eins")
        two.send(b"zwei\n")
        rest = list(first)
        assert b"got zwei" in output(rest)
        assert ending(rest) == ending(list(second)) == (0, None)


def test_window_size_follows_the_last_resize(job: InitJob) -> None:
    with job.connect() as one, job.connect() as two:
        script = "trap 'echo changed' WINCH; while :; do stty size; sleep 0.02; done"
        status = one.start(shell(script, tty=(30, 90)), attach=True)
        events = one.events()
        until(events, b"30 90")
        two.attach(status.id)
        two.resize(41, 132)
        until(events, b"changed")
        until(events, b"41 132")
        one.resize(10, 20)
        until(events, b"10 20")
        one.signal(signal.SIGKILL)
        assert isinstance(list(events)[-1], Exit)


def test_job_control_in_a_terminal(job: InitJob) -> None:
    spec = SessionSpec(argv=("bash", "--norc", "-i"), env={**PATH, "PS1": "$ ", "TERM": "dumb"}, tty=(24, 80))
    with job.connect() as connection:
        connection.start(spec, attach=True)
        events = connection.events()
        seen = until(events, b"$ ")
        connection.send(b"sleep 1000\n")
        until(events, b"sleep 1000")
        wait_for_child(job, "sleep")
        connection.send(b"\x1a")
        seen += until(events, b"Stopped")
        connection.send(b"kill -KILL %1; echo $((6 * 7))\n")
        seen += until(events, b"42\r\n")
        connection.send(b"exit 6\nexit 6\n")  # one may meet a job that is known as stopped still
        rest = list(events)
    assert b"no job control" not in seen
    assert ending(rest) == (6, None)


def wait_for_child(job: InitJob, name: str) -> None:
    """Until a grandchild of that name runs in the foreground: what it is asked for is in no output."""

    def there() -> bool:
        found = set()
        for child in job.children():
            for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split():
                found.add(Path(f"/proc/{pid}/comm").read_text().strip())
        return name in found

    initjob.settle(there)


def test_a_killed_holder_hangs_up_its_own_session_only(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as other:
        status = connection.start(shell("echo up; read x", tty=(24, 80)), attach=True)
        until(connection.events(), b"up")
        (holder,) = job.holders()
        other.start(shell("echo other; read x; echo $x", tty=(24, 80)), attach=True)
        until(other.events(), b"other")
        os.kill(holder, signal.SIGKILL)
        assert ending(wait_exit(job, status.id)) == (None, signal.SIGHUP)
        other.send(b"alive\n")
        assert output(other.events()).count(b"alive") == 2


def test_a_session_that_outlives_its_holder_still_ends_in_the_log(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as control:
        script = f"trap '' HUP; echo up; read x; read go < {fifo(job)}; exit 9"
        status = connection.start(shell(script, tty=(24, 80)), attach=True)
        until(connection.events(), b"up")
        os.kill(job.holders()[0], signal.SIGKILL)
        list(connection.events())
        with pytest.raises(WrongState):
            control.attach(status.id)
        Path(fifo(job)).write_text("go\n")
        assert ending(wait_exit(job, status.id)) == (9, None)


def test_steps_share_one_standard_input_and_terminal(job: InitJob) -> None:
    steps = (Step(name="a", script="tty; test -t 0"), Step(name="b", script="tty; echo x > /dev/tty"))
    events = run(job, SessionSpec(steps=steps, env=PATH, tty=(24, 80)))
    lines = output(events).split()
    assert (lines[0], lines[2]) == (lines[1], b"x")
    assert ending(events) == (0, None)


def birth_order(job: InitJob) -> list[str]:
    """Names of init's children, oldest first, as the kernel lists them and criu goes through them."""
    return list(job.children().values())


def test_a_holder_is_younger_than_every_step_of_its_terminal(job: InitJob) -> None:
    gates = [f"{job.io}/gate{number}" for number in range(4)]
    for gate in gates:
        os.mkfifo(gate)
    steps = tuple(Step(name=gate, script=f"read x < {gate}; echo {number}$x") for number, gate in enumerate(gates))
    with job.connect() as one, job.connect() as two:
        status = one.start(SessionSpec(steps=steps, env=PATH, tty=(30, 90)), attach=True)
        events = one.events()
        two.attach(status.id)
        two.resize(41, 132)
        for number, gate in enumerate(gates):
            with open(gate, "w") as opened:  # the step has begun, and its holder is born again
                initjob.settle(lambda: birth_order(job) == ["sh", "serac-terminal"])
                opened.write("!\n")
            until(events, f"{number}!".encode())
        assert ending(list(events)) == (0, None)
        assert output(list(two.events())).split() == [b"0!", b"1!", b"2!", b"3!"]
    initjob.settle(lambda: job.holders() == [])


def test_a_terminal_is_as_it_was_when_the_next_step_begins(job: InitJob) -> None:
    """Window, settings, what was typed ahead."""
    steps = (
        Step(name="a", script="stty rows 41 columns 132 -echo; read x; echo 1$x"),
        Step(name="b", script="stty size; stty -a | grep -q -- '-echo ' && echo quiet; read x; echo 2$x"),
    )
    with job.connect() as connection:
        connection.start(SessionSpec(steps=steps, env=PATH, tty=(30, 90)), attach=True)
        connection.send(b"eins\nzwei\n")
        events = list(connection.events())
    assert ending(events) == (0, None)
    lines = [line for line in output(events).split(b"\r\n") if line not in (b"eins", b"zwei", b"")]  # echoed before
    assert lines == [b"1eins", b"41 132", b"quiet", b"2zwei"]


def test_several_terminals_each_come_before_their_holder(job: InitJob) -> None:
    with job.connect() as control:
        for _ in range(3):
            control.start(SessionSpec(argv=("sleep", "1000"), env=PATH, tty=(24, 80)))
    initjob.settle(lambda: birth_order(job) == ["sleep", "serac-terminal"] * 3)


def test_many_short_steps_on_a_terminal_lose_nothing(job: InitJob) -> None:
    steps = tuple(Step(name=str(number), script=f"seq {number * 100} {number * 100 + 99}") for number in range(60))
    events = run(job, SessionSpec(steps=steps, env=PATH, tty=(24, 80)))
    assert ending(events) == (0, None)
    assert output(events).split() == [str(number).encode() for number in range(6000)]


def test_a_holder_killed_between_steps_ends_its_session(job: InitJob) -> None:
    gate = fifo(job)
    steps = tuple(Step(name=f"s{number}", script=f"trap '' HUP; echo up; read x < {gate}") for number in range(2))
    with job.connect() as connection:
        status = connection.start(SessionSpec(steps=steps, env=PATH, tty=(24, 80)), attach=True)
        until(connection.events(), b"up")
        os.kill(job.holders()[0], signal.SIGKILL)
        list(connection.events())
        Path(gate).write_text("!\n")
    assert ending(wait_exit(job, status.id)) == (126, None)


def quiesce(job: InitJob) -> None:
    with job.connect() as control:
        control.quiesce()


def test_quiesce_makes_every_holder_younger_than_all_processes(job: InitJob) -> None:
    """criu restores the children of init in another order than they were born in."""
    with job.connect() as control:
        leaders = [control.start(shell("exec sleep 1000", tty=(24, 80))).pid for _ in range(3)]
        control.start(shell("exec sleep 1000"))
    initjob.settle(lambda: birth_order(job) == ["sleep", "serac-terminal"] * 3 + ["sleep"])
    others = [pid for pid, name in job.children().items() if name == "sleep"]
    for _ in range(4):
        before = job.holders()
        quiesce(job)
        assert list(job.children())[:4] == others  # and of those before them nothing is left, not even to be reaped
        assert birth_order(job) == ["sleep"] * 4 + ["serac-terminal"] * 3
        assert min(job.holders()) > max(before + others)
    with job.connect() as control:
        assert [status.pid for status in control.sessions()][:3] == leaders


def test_a_terminal_is_as_it_was_after_quiesce(job: InitJob) -> None:
    """Window, settings, scrollback, what was typed ahead, and what is said meanwhile."""
    script = "stty -echo; echo up; read a; seq 3000; read b; stty size; stty -a | grep -q -- '-echo ' && echo $a-$b"
    with job.connect() as one:
        status = one.start(shell(script, tty=(24, 80)), attach=True)
        until(one.events(), b"up")
        one.resize(41, 132)
        one.send(b"eins\n")
        for _ in range(3):
            quiesce(job)
    with job.connect() as two:
        two.attach(status.id, offset=0)
        two.send(b"zwei\n")
        events = list(two.events())
    assert ending(events) == (0, None)
    assert output(events).decode().split() == ["up", *map(str, range(1, 3001)), "41", "132", "eins-zwei"]


def test_steps_go_on_through_quiesce(job: InitJob) -> None:
    steps = tuple(Step(name=str(number), script=f"seq {number * 100} {number * 100 + 99}") for number in range(40))
    with job.connect() as control:
        status = control.start(SessionSpec(steps=steps, env=PATH, tty=(24, 80)))
    for _ in range(20):
        quiesce(job)
    events = wait_exit(job, status.id)
    assert ending(events) == (0, None)
    assert output(events).split() == [str(number).encode() for number in range(4000)]


def test_quiesce_sets_a_stopped_holder_going(job: InitJob) -> None:
    with job.connect() as connection:
        status = connection.start(shell("echo up; read x; exit 5", tty=(24, 80)), attach=True)
        until(connection.events(), b"up")
        os.kill(job.holders()[0], signal.SIGSTOP)
        quiesce(job)
    with job.connect() as connection:
        connection.attach(status.id)
        connection.send(b"\n")
        assert ending(list(connection.events())) == (5, None)


def test_a_holder_that_dies_meanwhile_does_not_hold_up_quiesce(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as control:
        doomed = connection.start(shell("exec sleep 1000", tty=(24, 80)), attach=True)
        control.start(shell("exec sleep 1000", tty=(24, 80)))
        initjob.settle(lambda: len(job.holders()) == 2)
        first, second = job.holders()
        with held_back(first):
            control._send(Message(type=Type.QUIESCE))
            initjob.settle(lambda: second not in job.holders())
            os.kill(first, signal.SIGKILL)
        answer = control._receive()
        assert answer is not None
        assert answer.type == Type.OK
        assert second < job.holders()[0]
    assert ending(wait_exit(job, doomed.id)) == (None, signal.SIGHUP)
    assert len(job.holders()) == 1


def test_a_holder_that_is_held_back_does_not_hold_up_quiesce_for_ever(job: InitJob) -> None:
    with job.connect() as control:
        status = control.start(shell("read x; exit 5", tty=(24, 80)))
    initjob.settle(lambda: len(job.holders()) == 1)
    with held_back(*job.holders()):
        quiesce(job)
    with job.connect() as connection:
        connection.attach(status.id)
        connection.send(b"\n")
        assert ending(list(connection.events())) == (5, None)
