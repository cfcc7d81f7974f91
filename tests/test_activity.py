"""What is seen of a job from outside, whatever it does, and that to look is nothing that it does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from roots import inside, shell, until, wait_for

from engine import Engine, SessionSpec, session
from engine.errors import ProtocolError, WrongState
from engine.kernel import pressure
from engine.lifecycle import activity, processes
from engine.lifecycle.activity import Activity
from engine.model import Net

pytestmark = pytest.mark.root

ASK = "/.serac/ask --reason 'a question' --state '{\"n\": 1}'"
TERMINAL = SessionSpec(argv=("/bin/sh",), tty=(24, 80))


def look(engine: Engine, ref: str = "a") -> Activity:
    return activity.look(engine._root, engine.job(ref))


def settled(engine: Engine, clients: int) -> None:
    """Init takes a moment to find that a connection was closed."""
    wait_for(lambda: look(engine).clients == clients)


def test_an_idle_job_does_nothing_however_often_it_is_looked_at(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    settled(engine, 0)

    def unmoved() -> bool:  # not at once: its command may still be on its way to its sleep
        first = look(engine)
        return all(look(engine) == first for _ in range(200))

    wait_for(unmoved)
    last = look(engine)
    assert (last.question, last.asked, last.lease, last.clients) == (None, None, None, 0)


def test_a_busy_job_uses_cpu(engine: Engine) -> None:
    engine.run(shell("while :; do :; done", name="a"))
    first = look(engine).cpu
    wait_for(lambda: look(engine).cpu > first + 0.1)


def test_what_used_cpu_and_ended_counts_on(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    before = look(engine).cpu
    inside(engine, "a", "i=0; while test $i -lt 20000; do i=$((i+1)); done")
    assert look(engine).cpu > before


def test_a_frozen_job_uses_none(engine: Engine) -> None:
    engine.run(shell("while :; do :; done", name="a"))
    engine.freeze("a")
    before = look(engine)
    time.sleep(0.1)  # the kernel says that all is frozen a moment before the last one has left its CPU
    first = look(engine)
    time.sleep(0.2)
    assert look(engine) == first
    assert first.cpu - before.cpu < 0.05


@pytest.mark.parametrize("spec", [SessionSpec(argv=("/bin/cat",)), TERMINAL], ids=["pipes", "terminal"])
def test_output_is_seen(engine: Engine, spec: SessionSpec) -> None:
    engine.run(shell("sleep 1000", name="a"))
    before = look(engine).trace
    with engine.exec("a", spec, stdin=spec.tty is None) as connection:
        started = look(engine).trace
        assert started.files > before.files
        connection.send(b"echo word\n")
        until(engine, "a", b"word", 1)
        assert look(engine).trace != started


@pytest.mark.parametrize("net", ["none", "host"])
@pytest.mark.parametrize("userns", ["private", "host"])
def test_clients_are_counted(engine: Engine, net: Net, userns: str) -> None:
    engine.run(shell("sleep 1000", name="a", net=net, userns=userns))
    settled(engine, 0)
    with engine.attach("a"):
        settled(engine, 1)
        with engine.exec("a", TERMINAL) as terminal:
            settled(engine, 2)
            with engine.attach("a", terminal.session):
                settled(engine, 3)
        settled(engine, 1)  # the terminal's shell goes on, and nobody looks at it
    settled(engine, 0)


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_clients_are_counted_in_a_later_life(engine: Engine, mode: str) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.exec("a", TERMINAL).close()
    engine.pause("a", mode=mode)  # type: ignore[arg-type]
    engine.resume("a")
    settled(engine, 0)
    with engine.attach("a", 1), engine.attach("a"):
        settled(engine, 2)
    settled(engine, 0)


def test_a_question_is_seen_and_who_asks_is_no_client(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    session_id = engine.start("a", SessionSpec(argv=("/bin/sh", "-c", ASK))).id
    wait_for(lambda: look(engine).question)
    settled(engine, 0)
    seen = look(engine)
    assert seen.question is not None
    assert (seen.question.reason, seen.question.state) == ("a question", '{"n": 1}')
    first = seen.asked
    with processes.connected(engine._root, engine.job("a").id) as connection:
        connection.signal(9, session_id)
    wait_for(lambda: look(engine).question is None)
    assert look(engine).asked is None
    engine.start("a", SessionSpec(argv=("/bin/sh", "-c", ASK)))
    wait_for(lambda: look(engine).question)
    assert look(engine).asked not in (None, first)


def test_a_lease_is_seen(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    inside(engine, "a", r"printf 'until=123\0reason=builds\0' > /run/serac/awake")
    assert look(engine).lease == session.Lease(until_ns=123, reason="builds")
    inside(engine, "a", r"printf 'reason=\0' > /run/serac/awake")
    assert look(engine).lease == session.Lease(until_ns=0, reason="")
    inside(engine, "a", "rm /run/serac/awake")
    assert look(engine).lease is None


BAD = (
    "ln -s /etc/passwd F",
    "mkfifo F",
    "mkdir F",
    "truncate -s 1T F",
    "printf nonsense > F",
    r"printf 'until=-1\0pid=x\0' > F",
    r"printf 'until=99999999999999999999\0pid=\0' > F",
)


def test_what_is_no_question_or_lease_is_none(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    for make in BAD:
        files = [f"/run/serac/{name}" for name in ("awake", "ask")]
        inside(
            engine, "a", "; ".join([f"rm -rf {file}" for file in files] + [make.replace("F", file) for file in files])
        )
        seen = look(engine)
        assert (seen.question, seen.asked, seen.lease) == (None, None, None), make


def test_what_has_ended_is_not_looked_at(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    job = engine.job("a")
    engine.stop("a", grace=0)
    with pytest.raises(WrongState):
        activity.look(engine._root, job)


def test_traces_follow_no_link_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.log").symlink_to("/etc/passwd")
    (tmp_path / "generation").write_text("no session's")
    (tmp_path / "1.status").write_bytes(b"12345")
    os.utime(tmp_path / "1.status", ns=(1 << 61, 1 << 61))
    found = session.trace(tmp_path)
    assert found == session.Trace(files=2, size=len("/etc/passwd") + 5, newest_ns=1 << 61)
    monkeypatch.setattr(session.files, "ENTRIES_MAX", 2)
    with pytest.raises(ProtocolError):
        session.trace(tmp_path)


def test_the_hosts_memory_is_looked_at() -> None:
    assert 0 < pressure.memory_available() <= 100
    stall = pressure.memory_stall()
    assert stall is None or 0 <= stall <= 100


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.write_text("some avg10=1.50 avg60=2.00\nfull avg10=9.99\n"), 1.5),
        (lambda path: path.write_text("full avg10=9.99\n"), None),
        (Path.mkdir, None),
        (lambda path: path, None),
    ],
)
def test_pressure_is_read_as_the_kernel_writes_it(
    tmp_path: Path, make: Callable[[Path], object], expected: float | None
) -> None:
    make(tmp_path / "memory")
    assert pressure.memory_stall(tmp_path / "memory") == expected
