"""Connections to init: slow ones, many, and none at all while it is quiesced."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import initjob
import pytest
from initjob import PATH, InitJob, ending, fifo, output, settle, shell, until, wait_exit

from engine import session
from engine.errors import Busy
from engine.model import SessionSpec
from engine.session import protocol
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
    full = job.descriptors()
    connections.pop().close()
    settle(lambda: job.descriptors() < full)
    with job.connect() as control:
        assert control.sessions() == []
    for connection in connections:
        connection.close()


def test_the_end_of_the_job_waits_for_slow_clients_but_not_for_long(job: InitJob) -> None:
    with job.connect() as quick, job.connect() as deaf:
        quick.start(shell("read x; head -c 500000 /dev/zero; exit 3", id=0), attach=True, stdin=True)
        deaf.attach(0)
        quick.send(b"\n")
        events = list(quick.events())
        assert (len(output(events)), ending(events)) == (500_000, (3, None))
        assert job.wait() == 3


def test_quiesce_closes_connections_and_nothing_else(job: InitJob) -> None:
    with job.connect() as pipe, job.connect() as terminal, job.connect() as idle, job.connect() as control:
        fed = pipe.start(SessionSpec(argv=("cat",), env=PATH), attach=True, stdin=True)
        shown = terminal.start(shell("echo up; read x; echo got $x", tty=(24, 80)), attach=True)
        seen = until(terminal.events(), b"up\r\n")
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

        def feed() -> None:
            connection.send(b"x" * (1 << 20))
            connection.close_input()

        feeder = threading.Thread(target=feed)
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


def test_input_of_who_leaves_output_unread_is_taken(job: InitJob) -> None:
    """The kernel says once that the connection was reset, before it gives what was sent."""
    with job.connect() as connection:
        status = connection.start(shell(f"echo unread; read go < {fifo(job)}; cat | wc -c"), attach=True, stdin=True)
        assert select.select([connection], [], [], initjob.TIMEOUT)[0]
        connection.send(b"x" * (1 << 20))
    Path(fifo(job)).write_text("go\n")
    assert output(wait_exit(job, status.id)) == b"unread\n1048576\n"


def test_input_ends_with_who_left_before_the_session_had_started(job: InitJob) -> None:
    for number in range(1, 21):
        with job.raw() as starting:
            spec = protocol.encode_spec(SessionSpec(argv=("cat",), env=PATH, id=number), attach=True, stdin=True)
            starting.send(Message(type=Type.START, payload=spec).encode())
            starting.send(Message(type=Type.INPUT, payload=b"words").encode())
        settle(functools.partial(ended, job, number))
        assert output(wait_exit(job, number)) == b"words"


def ended(job: InitJob, number: int) -> bool:
    status = session.statuses(job.io).get(number)
    return status is not None and not status.running


def test_a_signal_does_not_wait_behind_input(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("sleep", "1000"), env=PATH), attach=True, stdin=True)
        connection.send(b"x" * (1 << 20))
        connection.signal(signal.SIGTERM)
        assert ending(list(connection.events())) == (None, signal.SIGTERM)
        connection.signal(signal.SIGTERM)


def test_a_signal_for_a_job_that_stands_still_is_left_there(job: InitJob) -> None:
    with job.connect() as connection:
        connection.start(SessionSpec(argv=("sleep", "1000"), env=PATH), attach=True)
        job.signal(signal.SIGSTOP)
        connection.signal(signal.SIGTERM)
        job.signal(signal.SIGCONT)
        assert ending(list(connection.events())) == (None, signal.SIGTERM)


def test_who_leaves_with_input_stuck_holds_no_output_up(job: InitJob) -> None:
    """It would be waited for where it lags, and the command, which waits for room, reads no input then."""
    with job.connect() as connection:
        script = f"read go < {fifo(job)}; head -c 12000000 /dev/zero; cat | wc -c >&2"
        status = connection.start(shell(script), attach=True, stdin=True)
        connection.send(b"x" * (1 << 20))
    Path(fifo(job)).write_text("go\n")
    settle(lambda: ended(job, status.id))
    events = wait_exit(job, status.id)
    assert (len(output(events)), output(events, 2).strip()) == (12_000_000, b"1048576")


def outside(job: InitJob) -> list[str]:
    """Descriptors of the job's processes, but those that init and its sessions have of their own."""
    found = []
    for pid in {job.pid, *job.children()}:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(f"{pid}:{number} {os.readlink(f'/proc/{pid}/fd/{number}')}")
    return sorted(found)


def readers(job: InitJob) -> list[str]:
    """Logs that init or a holder has open for reading."""
    found = []
    for line in outside(job):
        place, name = line.split(" ", 1)
        if ".log" not in name:
            continue  # of a session's process, which may have closed it by now
        pid, number = place.split(":")
        flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().split("flags:\t")[1].split()[0]
        if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY:
            found.append(line)
    return found


def test_after_quiesce_nothing_of_a_client_is_left(job: InitJob) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(job.connect()) for _ in range(6)]
        connections[0].start(shell("echo up; exec sleep 1000"), attach=True, stdin=True)
        connections[1].start(shell("echo up; exec sleep 1000", tty=(24, 80)), attach=True)
        for number in (0, 1):
            until(connections[number].events(), b"up")
        connections[2].attach(1)
        connections[3].attach(2)
        until(connections[2].events(), b"up")
        until(connections[3].events(), b"up")
        assert readers(job)
        with job.connect() as control:
            control.quiesce()
            assert readers(job) == []
            sockets = sum("socket:" in line for line in outside(job))
    # The listener, and a pair between init and the holder.
    assert sockets == 3


def test_quiesce_ends_sessions_with_lent_files(job: InitJob) -> None:
    reader, writer = os.pipe()
    with job.connect() as lending, job.connect() as control, open(reader, "rb") as mine:
        with open(writer, "wb"), open(os.devnull, "rb") as null:
            lending.start(shell("echo up; sleep 1000; echo late"), attach=True, lend=(null.fileno(), writer, writer))
        assert mine.readline() == b"up\n"
        control.quiesce()
        assert job.children() == {}
        assert mine.read() == b""
        assert list(lending.events()) == []


def test_quiesce_lets_a_start_be_answered(job: InitJob) -> None:
    """Whoever hears nothing of a start can't know whether its command runs."""
    for _ in range(50):
        with job.connect() as starting, job.connect() as control:
            spec = protocol.encode_spec(SessionSpec(argv=("/bin/sleep", "1000"), env=PATH), attach=True)
            starting._send(Message(type=Type.START, payload=spec))
            control.quiesce()
            message = starting._receive()
        with job.connect() as control:
            live = [status.id for status in control.sessions()]
            assert live == ([message.session] if message is not None else [])
            for number in live:
                control.signal(signal.SIGKILL, number)
                wait_exit(job, number)


def test_what_was_sent_before_quiesce_is_taken_as_far_as_there_is_room(job: InitJob) -> None:
    script = f"read go < {fifo(job)}; cat"
    data = os.urandom(300_000)
    with job.connect() as feeding, job.connect() as control:
        status = feeding.start(shell(script), attach=True, stdin=True)
        assert (feeding.offset, feeding.taken) == (0, 0)
        assert feeding.send(data) == len(data)
        control.quiesce()
    with job.connect() as again:
        again.attach(status.id)
        assert again.taken is not None
        assert 0 < again.taken < len(data)
        again.feed()
        Path(fifo(job)).write_text("go\n")
        again.send(data[again.taken :])
        again.close_input()
        assert output(again.events()) == data


def test_all_that_was_sent_by_who_has_left_is_taken_before_quiesce(job: InitJob) -> None:
    data = os.urandom(1 << 20)
    with job.connect() as feeding:
        status = feeding.start(shell(f"read go < {fifo(job)}; cat"), attach=True, stdin=True)
        feeding.send(data)
    with job.connect() as control:
        control.quiesce()
    with job.connect() as watching:
        watching.attach(status.id)
        assert watching.taken == len(data)
        Path(fifo(job)).write_text("go\n")
        assert output(watching.events()) == data


def test_input_of_who_has_left_is_not_mixed_with_that_of_others(job: InitJob) -> None:
    with job.connect() as feeding:
        status = feeding.start(shell(f"read go < {fifo(job)}; cat"), attach=True, stdin=True)
        feeding.send(b"x" * (1 << 20))
    with job.connect() as control:
        control.quiesce()
    with job.connect() as other, job.connect() as watching:
        watching.attach(status.id)
        other.attach(status.id)
        other.close_input()
        other.send(b"y")
        with pytest.raises(Busy):
            list(other.events())
        Path(fifo(job)).write_text("go\n")
        assert output(watching.events()) == b"x" * (1 << 20)


def test_keys_typed_before_quiesce_reach_the_terminal(job: InitJob) -> None:
    with job.connect() as typing, job.connect() as control:
        status = typing.start(shell("stty -echo; echo up; read a; read b; echo $a-$b", tty=(24, 80)), attach=True)
        until(typing.events(), b"up")
        typing.send(b"eins\n")
        typing.send(b"zwei\n")
        control.quiesce()
        assert typing.send(b"lost") == 0
    assert b"eins-zwei" in output(wait_exit(job, status.id))


def test_who_quiesces_and_leaves_opens_the_door_again(job: InitJob) -> None:
    """A holder that is held back makes the first wait, and a second one is refused meanwhile."""
    with job.connect() as shown, job.connect() as first:
        shown.start(shell("echo up; read x; echo got $x", tty=(24, 80)), attach=True)
        until(shown.events(), b"up")
        with initjob.held_back(*job.holders()):
            for _ in range(2):
                first._send(Message(type=Type.QUIESCE))
            refusal = first._receive()
            assert refusal is not None
            assert (refusal.type, refusal.offset) == (Type.ERROR, errno.EBUSY)
            first.close()
    with job.connect() as control:
        control.quiesce()
