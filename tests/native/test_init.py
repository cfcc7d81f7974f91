"""serac-init, sanitized, as PID 1 of a real pid namespace: what a job's sessions can rely on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import InitJob, ending, fifo, output, run, settle, shell, until, wait_exit

from engine import session
from engine.errors import Busy, NotFound, WrongState
from engine.model import SessionSpec

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


def test_background_processes_that_hold_the_pipes_do_not_delay_the_end(job: InitJob) -> None:
    events = run(
        job, shell("(sleep 100; echo late) & (while :; do echo flood; done) & sleep 0.1; echo end >&2; exit 4")
    )
    assert ending(events) == (4, None)
    assert output(events, 2) == b"end\n"


def test_all_that_was_written_before_the_end_is_there(job: InitJob) -> None:
    for _ in range(20):
        assert len(output(run(job, shell("head -c 60000 /dev/zero")))) == 60_000
        assert len(output(run(job, shell("stty raw; head -c 60000 /dev/zero", tty=(24, 80))))) == 60_000


def test_a_hundred_sessions_at_once(job: InitJob) -> None:
    connections = [job.connect() for _ in range(100)]
    for number, connection in enumerate(connections):
        tty = (24, 80) if number % 4 == 0 else None
        connection.start(shell(f"read x < {fifo(job)}; echo {number}", tty=tty), attach=True)
    with job.connect() as control:
        assert len(control.sessions()) == 100
    with open(fifo(job), "w") as gate:
        gate.write("go\n" * 100)
        gate.flush()  # closed before the last of them has opened it, it would keep no line for that
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
        connection.start(
            shell("trap 'echo usr1' USR1; trap 'exit 8' TERM; echo up; while :; do sleep 0.01; done", id=0), attach=True
        )
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


def test_a_term_ends_a_job_without_sessions(job: InitJob) -> None:
    with job.connect():
        job.signal(signal.SIGTERM)
    assert job.wait() == 0


def test_signal_reaches_the_process_group(job: InitJob) -> None:
    with job.connect() as connection, job.connect() as control:
        status = connection.start(shell("echo up; sleep 1000"), attach=True)
        until(connection.events(), b"up")
        control.signal(signal.SIGTERM, status.id)
        assert ending(list(connection.events())) == (None, signal.SIGTERM)
        with pytest.raises(NotFound):
            control.signal(signal.SIGTERM, status.id)

    with job.connect() as terminal:
        terminal.start(shell("echo up; sleep 1000", tty=(24, 80)), attach=True)
        until(terminal.events(), b"up")
        terminal.signal(signal.SIGTERM)
        assert ending(list(terminal.events())) == (None, signal.SIGTERM)


def test_an_id_is_kept_and_never_used_twice(job: InitJob) -> None:
    with job.connect() as control:
        assert control.start(shell("true", id=5)).id == 5
        assert control.start(shell("sleep 1000")).id == 6
        with pytest.raises(WrongState):
            control.start(shell("true", id=6))
        control.start(shell("sleep 1000", id=0))
        with pytest.raises(WrongState):
            control.start(shell("true", id=0))
