"""Connections to init: slow ones, many, and none at all while it is quiesced."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, fifo, output, shell, until

from engine import session
from engine.errors import Busy
from engine.model import SessionSpec

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for what never comes fails by itself, and what it started is ended."""
    with initjob.time_limit(60):
        yield


@pytest.fixture
def job(sanitized: Path) -> Iterator[InitJob]:
    with initjob.started(sanitized / "serac-init") as started:
        yield started


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


def test_more_clients_than_the_limit_are_refused(job: InitJob) -> None:
    connections = [job.connect() for _ in range(256)]
    with pytest.raises(Busy):
        job.connect()
    connections.pop().close()
    with job.connect() as control:
        assert control.sessions() == []
    for connection in connections:
        connection.close()


def test_the_end_of_the_job_waits_for_slow_clients_but_not_for_long(job: InitJob) -> None:
    with job.connect() as quick, job.connect() as deaf:
        quick.start(shell("read x; head -c 3000000 /dev/zero; exit 3", id=0), attach=True, stdin=True)
        deaf.attach(0)
        quick.send(b"\n")
        events = list(quick.events())
        assert (len(output(events)), ending(events)) == (3_000_000, (3, None))
        assert job.wait() == 3


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


def test_input_that_finds_no_room_waits_and_output_goes_on(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(
            shell("echo first; read go < IO; cat | wc -c".replace("IO", fifo(job))), attach=True, stdin=True
        )
        feeder = threading.Thread(target=lambda: (connection.send(b"x" * (1 << 20)), connection.close_input()))
        feeder.start()
        events = connection.events()
        until(events, b"first")
        Path(fifo(job)).write_text("go\n")
        assert until(events, b"\n").strip() == b"1048576"
        feeder.join()


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


def test_input_ends_with_its_connection(job: InitJob) -> None:
    with job.connect() as connection:
        status = connection.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)
        connection.send(b"the last words\n")
    events = list(session.follow(job.io, status.id))
    assert (output(events), ending(events)) == (b"the last words\n", (0, None))
