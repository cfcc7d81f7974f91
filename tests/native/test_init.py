"""serac-init, sanitized, as PID 1 of a real pid namespace: what a job's sessions can rely on."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import initjob
import pytest
from initjob import InitJob

from engine import session
from engine.errors import Busy, NotFound, WrongState
from engine.model import SessionSpec, Step
from engine.session import Connection, Event, Exit, Output, StepMark

pytestmark = pytest.mark.root

PATH = {"PATH": os.environ["PATH"]}
LOG_LIMIT = 256 << 10
"""of the build that is used for what happens when a log is full"""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(60):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


@pytest.fixture(scope="module")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return initjob.build(tmp_path_factory.mktemp("small-log"), f"-DLOG_LIMIT={LOG_LIMIT}")


def shell(script: str, **fields: object) -> SessionSpec:
    return SessionSpec(argv=("/bin/sh", "-c", script), env=PATH, **fields)  # type: ignore[arg-type]


def output(events: Iterable[Event], stream: int = 1) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output) and event.stream == stream)


def run(job: InitJob, spec: SessionSpec) -> list[Event]:
    with job.connect() as connection:
        connection.start(spec, attach=True)
        return list(connection.events())


def until(events: Iterator[Event], wanted: bytes) -> bytes:
    """Read on until the bytes have come; what came with them."""
    seen = b""
    for event in events:
        if isinstance(event, Output):
            seen += event.data
        if wanted in seen:
            return seen
    raise AssertionError(f"ended without {wanted!r}: {seen!r}")


def ending(events: list[Event]) -> tuple[int | None, int | None]:
    assert isinstance(events[-1], Exit)
    return events[-1].exit, events[-1].signal


def test_output_comes_by_stream_and_then_the_exit(job: InitJob) -> None:
    events = run(job, shell("echo out; echo err >&2; exit 3"))
    assert (output(events), output(events, 2), ending(events)) == (b"out\n", b"err\n", (3, None))


def test_status_and_output_survive_that_nobody_listens(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(shell("echo alone; exit 41", id=0))
    assert job.wait() == 41
    status = session.statuses(job.io)[0]
    assert (status.running, status.exit, status.status) == (False, 41, 41)
    events = list(session.follow(job.io, 0))
    assert (output(events), ending(events)) == (b"alone\n", (41, None))


def test_job_ends_with_128_and_the_signal(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(shell("kill -KILL $$", id=0))
    assert job.wait() == 137
    assert session.statuses(job.io)[0].signal == signal.SIGKILL


def test_status_is_written_before_a_client_hears_the_exit(job: InitJob) -> None:
    for tty in (None, (24, 80)) * 10:
        events = run(job, shell("exit 5", tty=tty))
        assert session.statuses(job.io)[events[-1].session].exit == 5


def test_streams_ten_megabytes_through_standard_input(job: InitJob) -> None:
    data = os.urandom(10 << 20)
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)

        def feed() -> None:
            connection.send(data)
            connection.close_input()

        feeder = threading.Thread(target=feed)
        feeder.start()
        back = output(connection.events())
        feeder.join()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


def test_input_that_finds_no_room_waits_and_output_goes_on(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(shell("echo first; read go < IO; cat | wc -c".replace("IO", fifo(job))), attach=True, stdin=True)
        feeder = threading.Thread(target=lambda: (connection.send(b"x" * (1 << 20)), connection.close_input()))
        feeder.start()
        events = connection.events()
        until(events, b"first")
        Path(fifo(job)).write_text("go\n")
        assert until(events, b"\n").strip() == b"1048576"
        feeder.join()


def fifo(job: InitJob) -> str:
    path = job.io / "gate"
    if not path.exists():
        os.mkfifo(path)
    return os.fspath(path)


def test_input_ends_with_its_connection(job: InitJob) -> None:
    with job.connect() as connection:
        status = connection.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)
        connection.send(b"the last words\n")
    events = list(session.follow(job.io, status.id))
    assert (output(events), ending(events)) == (b"the last words\n", (0, None))


def test_input_of_another_connection_is_refused(job: InitJob) -> None:
    with job.connect() as owner, job.connect() as other:
        status = owner.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)
        other.attach(status.id)
        other.send(b"mine")
        with pytest.raises(Busy):
            list(other.events())
        owner.send(b"ours")
        owner.close_input()
        assert output(owner.events()) == b"ours"


def test_a_client_that_does_not_read_slows_nobody_and_loses_nothing(job: InitJob) -> None:
    with job.connect() as slow:
        status = slow.start(shell("head -c 5000000 /dev/zero; echo done >&2"), attach=True)
        with job.connect() as quick:
            quick.attach(status.id)
            assert len(output(quick.events())) == 5_000_000
        assert len(output(slow.events())) == 5_000_000


def test_background_processes_that_hold_the_pipes_do_not_delay_the_end(job: InitJob) -> None:
    events = run(job, shell("(sleep 100; echo late) & (while :; do echo flood; done) & sleep 0.1; echo end >&2; exit 4"))
    assert ending(events) == (4, None)
    assert output(events, 2) == b"end\n"


def test_all_that_was_written_before_the_end_is_there(job: InitJob) -> None:
    for _ in range(20):
        assert len(output(run(job, shell("head -c 60000 /dev/zero")))) == 60_000
        assert len(output(run(job, shell("stty raw; head -c 60000 /dev/zero", tty=(24, 80))))) == 60_000


def test_several_clients_share_a_terminal(job: InitJob) -> None:
    with job.connect() as one, job.connect() as two:
        status = one.start(shell("stty -echo; echo ready; read a; echo got $a; read b; echo got $b", tty=(24, 80)), attach=True)
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


def test_attaches_again_where_it_left(job: InitJob) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done"
    with job.connect() as connection:
        status = connection.start(shell(script), attach=True)
        seen = [next(events) for events in [connection.events()] for _ in range(1)]
    while not isinstance(seen[-1], Exit):
        seen.append(next(session.follow(job.io, status.id, offset=seen[-1].end)))
    assert output(seen) == b"".join(b"line %d\n" % number for number in range(1, 3001))


def test_tail_and_live_begin_near_the_end(job: InitJob) -> None:
    with job.connect() as connection:
        status = connection.start(shell("head -c 300000 /dev/zero; echo; echo ready; read x; echo bye", tty=(24, 80)), attach=True)
        until(connection.events(), b"ready")
        with job.connect() as tail, job.connect() as live:
            tail.attach(status.id, offset=session.TAIL)
            live.attach(status.id, offset=session.LIVE)
            connection.send(b"\n")
            assert 60_000 <= len(output(tail.events())) <= 120_000
            assert output(live.events()).split() == [b"bye"]


def test_a_wrong_offset_is_refused(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as other:
        status = connection.start(shell("echo something; read x", tty=(24, 80)), attach=True)
        until(connection.events(), b"something")
        other.attach(status.id, offset=7)
        with pytest.raises(Exception, match="log"):
            list(other.events())


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_log_is_rotated_within_its_limit(small_log: Path, tty: tuple[int, int] | None) -> None:
    with initjob.started(small_log) as job:
        with job.connect() as connection:
            status = connection.start(shell("seq 200000; echo done", tty=tty), attach=True)
            seen = output(connection.events())
        assert seen.endswith(b"done\r\n" if tty else b"done\n")
        sizes = [(job.io / f"{status.id}.{name}").stat().st_size for name in ("log", "log.old")]
        assert max(sizes) <= LOG_LIMIT // 2
        kept = list(session.read_log(job.io, status.id))
        assert kept[0].offset > 0
        assert [event.end for event in kept[:-1]] == [event.offset for event in kept[1:]]
        assert seen.endswith(output(kept))
        assert len(output(kept)) > LOG_LIMIT // 4


def test_a_client_behind_a_rotation_goes_on_with_the_oldest_kept(small_log: Path) -> None:
    with initjob.started(small_log) as job, job.connect() as slow:
        status = slow.start(shell("seq 500000", id=7), attach=True)
        list(session.follow(job.io, status.id, offset=session.LIVE))
        events = list(slow.events())
        numbers = [int(line) for line in output(events).split() if len(line) == 6]
        assert numbers[-1] == 500_000
        assert ending(events) == (0, None)


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
        connection.send(b"kill -KILL %1; wait; echo $((6 * 7))\n")
        seen += until(events, b"42\r\n")
        connection.send(b"exit 6\n")
        rest = list(events)
    assert b"no job control" not in seen
    assert ending(rest) == (6, None)


def wait_for_child(job: InitJob, name: str) -> None:
    """Until a grandchild of that name runs in the foreground: what it is asked for is in no output."""
    for _ in range(2000):
        for child in job.children():
            children = Path(f"/proc/{child}/task/{child}/children").read_text().split()
            if any(Path(f"/proc/{pid}/comm").read_text().strip() == name for pid in children):
                return
        initjob.pause()
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_steps_run_in_order_from_the_first_not_done(job: InitJob, tty: tuple[int, int] | None) -> None:
    steps = tuple(Step(name=name, script=f"echo in {name}") for name in ("one", "two", "three"))
    with job.connect() as connection:
        connection.start(SessionSpec(id=0, steps=steps, done=("one",), env=PATH, tty=tty))
    events = list(session.follow(job.io, 0))
    assert job.wait() == 0
    told = [f"{event.name} {event.outcome}" if isinstance(event, StepMark) else event.data.decode().strip()
            for event in events if not isinstance(event, Exit)]  # fmt: skip
    assert told == ["two begins", "in two", "two completed", "three begins", "in three", "three completed"]
    assert session.statuses(job.io)[0].done == ("one", "two", "three")
    assert session.specs(job.io)[0].steps == steps


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_a_failing_step_ends_the_session(job: InitJob, tty: tuple[int, int] | None) -> None:
    steps = (Step(name="a", script="true"), Step(name="b", script="false; echo never"), Step(name="c", script="echo never"))
    events = run(job, SessionSpec(steps=steps, env=PATH, tty=tty))
    assert [(event.name, event.outcome) for event in events if isinstance(event, StepMark)] == [
        ("a", "begins"), ("a", "completed"), ("b", "begins"), ("b", "failed"),
    ]  # fmt: skip
    assert (output(events), ending(events)) == (b"", (1, None))
    assert session.statuses(job.io)[1].done == ("a",)


def test_status_of_a_step_is_there_before_it_runs(job: InitJob) -> None:
    status = f"tr '\\0' ' ' < {job.io}/1.status; echo"
    steps = (Step(name="a", script="true"), Step(name="b", script=status))
    assert re.search(rb"running=1 step=b done=a", output(run(job, SessionSpec(steps=steps, env=PATH))))


def test_steps_that_are_all_done_end_well(job: InitJob) -> None:
    events = run(job, SessionSpec(steps=(Step(name="a", script="false"),), done=("a",), env=PATH))
    assert [type(event) for event in events] == [Exit]
    assert ending(events) == (0, None)


def test_steps_share_one_standard_input_and_terminal(job: InitJob) -> None:
    steps = (Step(name="a", script="tty; test -t 0"), Step(name="b", script="tty; echo x > /dev/tty"))
    events = run(job, SessionSpec(steps=steps, env=PATH, tty=(24, 80)))
    lines = output(events).split()
    assert (lines[0], lines[2]) == (lines[1], b"x")
    assert ending(events) == (0, None)


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


def wait_exit(job: InitJob, number: int) -> list[Event]:
    """What the log says once the session isn't listed any more."""
    with job.connect() as control:
        while any(status.id == number for status in control.sessions()):
            initjob.pause()
    return list(session.read_log(job.io, number))


def test_a_hundred_sessions_at_once(job: InitJob) -> None:
    connections = [job.connect() for _ in range(100)]
    for number, connection in enumerate(connections):
        tty = (24, 80) if number % 4 == 0 else None
        connection.start(shell(f"read x < {fifo(job)}; echo {number}", tty=tty), attach=True)
    with job.connect() as control:
        assert len(control.sessions()) == 100
    with open(fifo(job), "w") as gate:
        gate.write("go\n" * 100)
    for number, connection in enumerate(connections):
        with connection:
            lines = output(connection.events())
            assert lines.strip() in (b"%d" % number,)


def test_more_sessions_than_the_limit_are_refused(job: InitJob) -> None:
    with job.connect() as control:
        for _ in range(1024):
            control.start(SessionSpec(argv=("/bin/sleep", "1000")))
        with pytest.raises(Busy):
            control.start(SessionSpec(argv=("/bin/sleep", "1000")))
        assert len(control.sessions()) == 1024
        control.signal(signal.SIGKILL, 1)
        wait_exit(job, 1)
        control.start(SessionSpec(argv=("/bin/sleep", "1000")))


def test_more_clients_than_the_limit_are_refused(job: InitJob) -> None:
    connections: list[Connection] = []
    with pytest.raises(Busy):
        while True:
            connections.append(job.connect())
    assert len(connections) == 256
    connections.pop().close()
    with job.connect() as control:
        assert control.sessions() == []
    for connection in connections:
        connection.close()


def test_nothing_is_left_after_two_hundred_sessions(job: InitJob) -> None:
    with job.connect():
        before = job.descriptors() - 1
    for number in range(200):
        spec = shell("echo $$; (sleep 0.001 &)", tty=(24, 80) if number % 3 == 0 else None)
        if number % 5 == 4:
            spec = SessionSpec(argv=("/no/such/program",), tty=spec.tty)
            with pytest.raises(Exception, match="no such command"):
                run(job, spec)
        else:
            run(job, spec)
    settle(lambda: not job.children() and job.descriptors() == before)


def settle(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        initjob.pause()
    raise AssertionError("it doesn't settle")


def test_a_failed_start_leaves_nothing(job: InitJob) -> None:
    with job.connect() as control:
        with pytest.raises(Exception, match="no such command"):
            control.start(SessionSpec(argv=("/no/such/program",)))
        assert control.sessions() == []
    assert [path.name for path in job.io.iterdir()] == ["init.sock"]


def test_sessions_begin_clean(job: InitJob) -> None:
    script = "cat /proc/self/status; ls -l /proc/self/fd; umask; pwd; env; ps -o sid=,pid= -p $$"
    text = output(run(job, shell(script, workdir="/usr"))).decode()
    assert re.search(r"SigBlk:\s+0+\n", text)
    assert re.search(r"SigIgn:\s+0+\n", text)
    assert "0022\n/usr\n" in text
    assert len(re.findall(r"-> ", text)) == 4
    sid, pid = text.split()[-2:]
    assert sid == pid


def test_a_session_runs_as_the_user_asked_for(job: InitJob) -> None:
    events = run(job, shell("id -u; id -g; id -G; stat -c %u $(tty)", uid=65534, gid=12345, tty=(24, 80)))
    assert output(events).split() == [b"65534", b"12345", b"12345", b"65534"]


def test_commands_are_looked_up_in_the_sessions_own_path(job: InitJob, tmp_path: Path) -> None:
    tool = tmp_path / "serac-test-tool"
    tool.write_text("#!/bin/sh\necho here\n")
    tool.chmod(0o755)
    spec = SessionSpec(argv=("serac-test-tool",), env={"PATH": f"/nowhere:{tmp_path}"})
    assert output(run(job, spec)) == b"here\n"
    assert output(run(job, SessionSpec(argv=("sh", "-c", "echo found")))) == b"found\n"


def test_orphans_are_reaped(job: InitJob) -> None:
    run(job, shell("for i in $(seq 50); do (sleep 0.01 &) ; done"))
    settle(lambda: not job.children())


def test_signals_to_init_go_to_session_0(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(shell("trap 'echo usr1' USR1; trap 'exit 8' TERM; echo up; while :; do sleep 0.01; done", id=0), attach=True)
        events = connection.events()
        until(events, b"up")
        job.signal(signal.SIGUSR1)
        until(events, b"usr1")
        job.signal(signal.SIGTERM)
        assert ending(list(events)) == (8, None)
    assert job.wait() == 8


def test_without_session_0_a_term_ends_all_and_then_init(job: InitJob) -> None:
    with job.connect() as one, job.connect() as two:
        one.start(shell("trap 'echo bye; exit 2' TERM; echo up; while :; do sleep 0.01; done"), attach=True)
        two.start(shell("echo up; read x", tty=(24, 80)), attach=True)
        until(one.events(), b"up")
        until(two.events(), b"up")
        job.signal(signal.SIGTERM)
        events = list(one.events())
        assert (output(events), ending(events)) == (b"bye\n", (2, None))
        assert ending(list(two.events())) == (None, signal.SIGTERM)
    assert job.wait() == 0


def test_the_end_of_the_job_waits_for_slow_clients_but_not_for_long(job: InitJob) -> None:
    with job.connect() as quick, job.connect() as deaf:
        quick.start(shell("read x; head -c 3000000 /dev/zero; exit 3", id=0), attach=True, stdin=True)
        deaf.attach(0)
        quick.send(b"\n")
        events = list(quick.events())
        assert (len(output(events)), ending(events)) == (3_000_000, (3, None))
        assert job.wait() == 3


def test_signal_reaches_the_process_group(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as control:
        status = connection.start(shell("echo up; sleep 1000"), attach=True)
        until(connection.events(), b"up")
        control.signal(signal.SIGINT, status.id)
        assert ending(list(connection.events())) == (None, signal.SIGINT)
        with pytest.raises(NotFound):
            control.signal(signal.SIGINT, status.id)
        connection = job.connect()
        connection.start(shell("echo up; sleep 1000", tty=(24, 80)), attach=True)
        until(connection.events(), b"up")
        connection.signal(signal.SIGTERM)
        assert ending(list(connection.events())) == (None, signal.SIGTERM)
        connection.close()


def test_an_id_is_kept_and_never_used_twice(job: InitJob) -> None:
    with job.connect() as control:
        assert control.start(shell("true", id=5)).id == 5
        assert control.start(shell("sleep 1000")).id == 6
        with pytest.raises(WrongState):
            control.start(shell("true", id=6))
        control.start(shell("sleep 1000", id=0))
        with pytest.raises(WrongState):
            control.start(shell("true", id=0))


def test_quiesce_closes_connections_and_nothing_else(job: InitJob) -> None:
    with job.connect() as pipe, job.connect() as terminal, job.connect() as idle, job.connect() as control:
        fed = pipe.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)
        shown = terminal.start(shell("echo up; read x; echo got $x", tty=(24, 80)), attach=True)
        seen = until(terminal.events(), b"up")
        control.quiesce()
        assert [list(pipe.events()), list(terminal.events())] == [[], []]
        assert idle._receive() is None
        assert seen.startswith(b"up")
    with job.connect() as pipe, job.connect() as terminal:
        pipe.attach(fed.id)
        pipe.send(b"after")
        pipe.close_input()
        assert output(pipe.events()) == b"after"
        terminal.attach(shown.id, offset=session.LIVE)
        terminal.send(b"after\n")
        assert b"got after" in output(terminal.events())


def test_a_log_goes_on_where_the_last_init_was_killed(sanitized: Path, tmp_path: Path) -> None:
    io = Path(os.fspath(tmp_path))
    program = sanitized / "serac-init"
    with initjob.started(program, io) as job, job.connect() as connection:
        connection.start(shell("echo first; read x", tty=(24, 80), id=3), attach=True)
        until(connection.events(), b"first")
    before = list(session.read_log(io, 3))
    with (io / "3.log").open("ab") as log:
        log.write(b"\x06\x01\0\0\x03\0\0\0\xff\0\0\0torn")
    with initjob.started(program, io) as job, job.connect() as connection:
        connection.start(shell("echo second", id=3), attach=True)
        assert output(connection.events()) == b"second\n"
        assert connection.session == 3
        with job.connect() as control:
            assert control.start(shell("true")).id == 4
    after = list(session.read_log(io, 3))
    assert after[: len(before)] == before
    assert after[len(before)].offset == before[-1].end
    assert output(after[len(before) :]) == b"second\n"


def test_a_session_that_comes_back_is_followed_past_its_first_exit(sanitized: Path, tmp_path: Path) -> None:
    program = sanitized / "serac-init"
    for word in ("first", "second"):
        with initjob.started(program, tmp_path) as job:
            assert output(run(job, shell(f"echo {word}", id=3))) == word.encode() + b"\n"
    with initjob.started(program, tmp_path):
        events = list(session.follow(tmp_path, 3))
    assert [type(event) for event in events] == [Output, Output, Exit]


@pytest.mark.parametrize("tty", [None, (24, 80)])
def test_a_full_disk_costs_output_and_nothing_else(sanitized: Path, tmp_path: Path, tty: tuple[int, int] | None) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "serac-test", tmp_path], check=True)
    try:
        (tmp_path / "ballast").write_bytes(bytes(128 << 10))
        script = "seq 200000; echo half >&2; read x < GATE; echo room again; exit 3".replace("GATE", f"{tmp_path}/gate")
        os.mkfifo(tmp_path / "gate")
        with initjob.started(sanitized / "serac-init", tmp_path) as job:
            with job.connect() as connection:
                status = connection.start(shell(script, tty=tty))
            with (tmp_path / "gate").open("w") as gate:
                (tmp_path / "ballast").unlink()
                gate.write("go\n")
            events = list(session.follow(tmp_path, status.id))
            text = output(events) + output(events, 2)
            assert re.search(rb"serac: \d+ bytes of output were lost: no space", text)
            assert b"room again" in text
            assert ending(events) == (3, None)
            assert session.statuses(tmp_path)[status.id].exit == 3
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_log_that_is_no_file_is_no_trap(job: InitJob) -> None:
    os.mkfifo(job.io / "1.log")
    (job.io / "2.log").symlink_to("/dev/full")
    (job.io / "3.log").mkdir()
    for number in (1, 2):
        assert output(run(job, shell("echo fine", id=number))) == b"fine\n"
    with job.connect() as connection:
        connection.start(shell("exit 7", id=3), attach=True)
        assert ending(list(connection.events())) == (7, None)


INSIDE = """
import errno, socket, struct, sys
head = struct.Struct("<BBHIIIQQ")
def talk(kind, payload=b""):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(sys.argv[1] + "/init.sock")
    assert sock.recv(1000)[0] == 1
    sock.send(head.pack(kind, 0, 0, 0, len(payload), 0, 0, 0) + payload)
    reply = sock.recv(1000)
    return reply[0], head.unpack_from(reply)[6]
"""


def inside(job: InitJob, script: str, uid: int = 0) -> bytes:
    python = shutil.which("python3", path="/usr/bin:/bin")
    assert python
    spec = SessionSpec(argv=(python, "-c", INSIDE + script, os.fspath(job.io)), env=PATH, uid=uid, gid=uid)
    events = run(job, spec)
    assert ending(events) == (0, None), output(events, 2).decode()
    return output(events)


def test_others_inside_may_only_ask(job: InitJob) -> None:
    kinds = "print([talk(kind, b'arg=true\\0') for kind in (2, 4, 12, 13, 16, 17, 99)])"
    assert inside(job, kinds, uid=65534).strip() == repr([(19, errno.EPERM)] * 7).encode()
    assert b"(14," in inside(job, "print(talk(13))")


def test_nobody_inside_keeps_the_engine_out(job: InitJob) -> None:
    hoard = "s = []\nfor i in range(1000):\n s.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)); s[-1].connect(sys.argv[1] + '/init.sock')\n"
    held = hoard + "print('held', flush=True); open(sys.argv[1] + '/gate').read()"
    python = shutil.which("python3", path="/usr/bin:/bin")
    assert python
    fifo(job)
    with job.connect() as connection:
        connection.start(
            SessionSpec(argv=(python, "-c", INSIDE + held, os.fspath(job.io)), env=PATH, uid=65534), attach=True
        )
        job.io.chmod(0o777)
        until(connection.events(), b"held")
        with job.connect() as control:
            assert len(control.sessions()) == 1
        Path(fifo(job)).write_text("go\n")
        assert ending(list(connection.events())) == (0, None)


def ask(job: InitJob, sanitized: Path, *words: str) -> SessionSpec:
    """`serac-init ask` where it finds the socket, in the mount namespace that is the job's alone."""
    mounts = 'mountpoint -q /run/serac || { mount -t tmpfs run /run; mkdir /run/serac; mount --bind "$0" /run/serac; }'
    program = os.fspath(sanitized / "serac-init")
    return SessionSpec(argv=("/bin/sh", "-c", f'{mounts}; exec "$@"', os.fspath(job.io), program, "ask", *words), env=PATH)


def test_a_process_inside_asks_and_is_answered(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking, job.connect() as control:
        asking.start(ask(job, sanitized, "wait for review", '{"n": 1}'), attach=True)
        settle(lambda: session.question(job.io) is not None)
        question = session.question(job.io)
        assert question is not None
        assert (question.reason, question.state) == ("wait for review", '{"n": 1}')
        second = run(job, ask(job, sanitized, "me too"))
        assert ending(second) == (2, None)
        assert b"busy" in output(second, 2)
        control.quiesce()
    with job.connect() as control:
        control.answer("resumed", text="welcome back", state="{}")
        events = list(session.follow(job.io, 1))
        assert output(events) == b"outcome=resumed\ntext=welcome back\nstate={}\n"
        assert ending(events) == (0, None)
        assert session.question(job.io) is None
        with pytest.raises(NotFound):
            control.answer("refused")


def test_a_question_goes_with_who_asked(job: InitJob, sanitized: Path) -> None:
    with job.connect() as asking:
        status = asking.start(ask(job, sanitized, "never mind"), attach=True)
        settle(lambda: session.question(job.io) is not None)
        asking.signal(signal.SIGKILL)
        list(asking.events())
        settle(lambda: session.question(job.io) is None)
        assert session.statuses(job.io)[status.id].signal == signal.SIGKILL
