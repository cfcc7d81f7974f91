"""What init keeps of a session's output: cursors, rotation, kills, full disks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, output, run, shell, until

from engine import session
from engine.aio import AsyncConnection
from engine.cli.relay import Lost, Relay, Wishes
from engine.model import SessionSpec
from engine.session import Exit, Output, SessionEvent

pytestmark = pytest.mark.root


LOG_LIMIT = 256 << 10
"""of the build that is used for what happens when a log is full"""


@pytest.fixture(scope="module")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return initjob.build(tmp_path_factory.mktemp("small-log"), f"-DLOG_LIMIT={LOG_LIMIT}")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(300):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


def test_attaches_again_where_it_left(job: InitJob) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done"
    with job.connect() as connection:
        status = connection.start(shell(script), attach=True)
        seen = [next(events) for events in [connection.events()] for _ in range(1)]
    while not isinstance(seen[-1], Exit):
        seen.append(next(session.follow(job.io, status.id, offset=seen[-1].end)))
    assert output(seen) == b"".join(b"line %d\n" % number for number in range(1, 301))


def test_a_lost_connection_is_no_end_though_an_earlier_life_had_one(job: InitJob, sanitized: Path) -> None:
    assert ending(run(job, shell("exit 3", id=1))) == (3, None)
    job.signal(signal.SIGKILL)
    job.wait()

    async def told(connection: session.Connection) -> list[SessionEvent]:
        return [event async for event in AsyncConnection(connection).events()]

    with initjob.started(sanitized / "serac-init", job.io) as again, again.connect() as control:
        control.start(SessionSpec(argv=("sleep", "1000"), env=PATH, id=1))
        with contextlib.ExitStack() as stack:
            plain, tasks, shown = (stack.enter_context(again.connect()) for _ in range(3))
            for connection in (plain, tasks, shown):
                connection.attach(1)
            follower = iter(session.follow(again.io, 1))
            with again.connect() as pausing:
                pausing.quiesce()
            assert list(plain.events()) == []
            assert asyncio.run(told(tasks)) == []
            assert isinstance(Relay(print, Wishes(remark=print)).run(shown), Lost)
        again.signal(signal.SIGKILL)
        assert list(follower) == []


def test_tail_and_live_begin_near_the_end(job: InitJob) -> None:
    with job.connect() as connection:
        status = connection.start(
            shell("head -c 300000 /dev/zero; echo; echo ready; read x; echo bye", tty=(24, 80)), attach=True
        )
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
        assert kept[-1].end - kept[0].offset > LOG_LIMIT // 4


def test_a_client_behind_a_rotation_goes_on_with_the_oldest_kept(small_log: Path) -> None:
    with initjob.started(small_log) as job, job.connect() as slow:
        status = slow.start(shell("seq 500000", id=7), attach=True)
        list(session.follow(job.io, status.id, offset=session.LIVE))
        events = list(slow.events())
        numbers = [int(line) for line in output(events).split() if len(line) == 6]
        assert numbers[-1] == 500_000
        assert ending(events) == (0, None)


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
def test_a_full_disk_costs_output_and_nothing_else(
    sanitized: Path, tmp_path: Path, tty: tuple[int, int] | None
) -> None:
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
