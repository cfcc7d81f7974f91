"""`AsyncEngine` where tasks are cancelled, time out, are many, or close it under each other.

What it does when all goes well is in test_contract.py, what it is made of in test_aio_workers.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from roots import inside, output, shell, until, wait_for

from engine import AsyncEngine, Engine, JobSpec, JobState, SessionSpec
from engine.errors import SeracError, WrongState
from engine.lifecycle import flush, pause, resume
from engine.lifecycle.root import Root
from engine.session import Exit, Output

pytestmark = pytest.mark.root

COUNTER = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
LEGAL = {JobState.RUNNING, JobState.PAUSED}


def driven(root: Path, act: Callable[[AsyncEngine], Coroutine[Any, Any, None]], **how: int) -> None:
    """Run ``act`` with an AsyncEngine on a loop of its own, which it leaves with no other task."""

    async def main() -> None:
        async with AsyncEngine(root, timeout=30, **how) as engine:
            await act(engine)

    asyncio.run(main())


def held(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> tuple[threading.Event, threading.Event]:
    """Stop the next call of a function: the first event says that it has come there, the second lets it go on."""
    there, go = threading.Event(), threading.Event()
    real = getattr(owner, name)

    def stopped(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(owner, name, real)
        there.set()
        assert go.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, stopped)
    return there, go


async def came(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


# cancelled


@pytest.mark.parametrize("mode", ["process", "filesystem"])
@pytest.mark.parametrize("moment", ["_still", "_keep", "_commit"])
def test_a_cancelled_pause_is_done_all_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, mode: Any, moment: str
) -> None:
    if (mode, moment) == ("filesystem", "_still"):
        moment = "_look"
    engine.run(shell(COUNTER, name="a"))
    until(engine, "a", b"line 2\n")
    there, go = held(monkeypatch, pause, moment)

    async def act(face: AsyncEngine) -> None:
        pausing = asyncio.create_task(face.pause("a", mode=mode))
        await came(there)
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert (await face.job("a")).state is JobState.PAUSING
        go.set()
        assert (await face.wait("a", timeout=60)).state is JobState.PAUSED
        await face.resume("a")
        await face.pause("a", mode=mode)
        kinds = [(event.kind, event.outcome) async for event in face.events() if event.name == "a"]
        # An event is written when the job is free for the next verb.
        assert sorted(kinds[-3:]) == [("pause", "ok"), ("pause", "ok"), ("resume", "ok")]

    driven(engine.config.root, act)


@pytest.mark.parametrize("moment", ["_prepare", "_commit", "_finish"])
def test_a_cancelled_resume_is_done_all_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    engine.run(shell(COUNTER, name="a"))
    until(engine, "a", b"line 2\n")
    engine.pause("a", mode="process")
    there, go = held(monkeypatch, resume, moment)

    async def act(face: AsyncEngine) -> None:
        resuming = asyncio.create_task(face.resume("a"))
        await came(there)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resuming, 0.01)
        asyncio.get_running_loop().call_later(0.2, go.set)
        with pytest.raises(WrongState):  # it waits for the first one
            await face.resume("a")
        assert (await face.job("a")).state is JobState.RUNNING
        await face.pause("a", mode="process")
        await face.resume("a")

    driven(engine.config.root, act)
    said = [line for line in output(engine, "a", live=False).splitlines() if line]
    assert said == [f"line {number}" for number in range(1, len(said) + 1)]


def test_a_cancelled_pause_that_fails_is_undone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(shell(COUNTER, name="a"))
    until(engine, "a", b"line 2\n")
    there, go = held(monkeypatch, flush, "through")

    async def act(face: AsyncEngine) -> None:
        pausing = asyncio.create_task(face.pause("a"))
        await came(there)
        pausing.cancel()
        with monkeypatch.context() as patch:

            def full(*_: object, **__: object) -> None:
                raise WrongState("not this time")

            patch.setattr(pause, "_commit", full)
            go.set()
            told = await anext(event async for event in face.events(follow=True) if event.kind == "pause")
        assert (told.outcome, told.reason) == ("wrong-state", "not this time")
        assert (await face.job("a")).state is JobState.RUNNING
        assert (await face.pause("a")).mode == "process"

    driven(engine.config.root, act)


def test_cancelled_at_any_moment(engine: Engine) -> None:
    """Not only where a test can stop it: after ever longer times the job is in a legal state, and goes on."""
    engine.run(shell(COUNTER, name="a"))

    async def act(face: AsyncEngine) -> None:
        for number in range(16):
            verb = face.pause if (await face.job("a")).state is JobState.RUNNING else face.resume
            # What was given up may not have begun yet, and be done when it is asked for once more.
            with contextlib.suppress(TimeoutError, WrongState):
                async with asyncio.timeout(0.004 * number):
                    await verb("a")
            settled = await face.wait("a", LEGAL, timeout=60)
            assert settled.state in LEGAL

    driven(engine.config.root, act)
    if engine.job("a").state is JobState.PAUSED:
        engine.resume("a")
    said = [line for line in output(engine, "a", live=False).splitlines() if line]
    assert said == [f"line {number}" for number in range(1, len(said) + 1)]


def test_a_connection_that_nobody_waits_for_is_closed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(JobSpec(base="small", name="a"))
    there, go = held(monkeypatch, Engine, "_session")
    before = os.listdir("/proc/self/fd")

    async def act(face: AsyncEngine) -> None:
        starting = asyncio.create_task(face.exec("a", SessionSpec(argv=("sleep", "1000"))))
        await came(there)
        starting.cancel()
        go.set()

    driven(engine.config.root, act)
    assert [status.running for status in engine.sessions("a")] == [True]
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the catalog may have one more connection


# many at once


def test_many_verbs_on_one_loop(engine: Engine) -> None:
    """More waiters than threads: those that may wait for ever keep nobody from working."""

    async def one(face: AsyncEngine, number: int) -> None:
        name = f"j{number}"
        await face.run(shell(f"test -e /n || echo {number} > /n; echo up; sleep 1000", name=name))
        waiting = asyncio.create_task(face.wait(name, timeout=120))
        following = asyncio.create_task(said(face, name))
        await up(face, name)
        await face.pause(name, mode="filesystem")
        assert (await waiting).state is JobState.PAUSED
        await following
        await face.resume(name)
        async with await face.exec(name, SessionSpec(argv=("cat", "/n"))) as connection:
            found = [event async for event in connection.events()]
        assert [event.data for event in found if isinstance(event, Output)] == [f"{number}\n".encode()]
        with pytest.raises(WrongState):
            await face.resume(name)
        await face.remove(name, force=True)

    async def up(face: AsyncEngine, name: str) -> None:
        async for event in face.follow(name):
            if isinstance(event, Output):
                return

    async def said(face: AsyncEngine, name: str) -> None:
        assert [event async for event in face.follow(name)]

    async def act(face: AsyncEngine) -> None:
        await asyncio.gather(*(one(face, number) for number in range(6)))
        assert await face.jobs(ended=True) == []

    driven(engine.config.root, act, workers=2)


def test_verbs_of_one_job_take_turns(engine: Engine) -> None:
    engine.run(shell(COUNTER, name="a"))

    async def act(face: AsyncEngine) -> None:
        found = await asyncio.gather(*(face.pause("a") for _ in range(5)), return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in found) == 1
        assert all(isinstance(result, WrongState) for result in found if isinstance(result, BaseException))

    driven(engine.config.root, act)


def test_the_loop_goes_on_while_verbs_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(shell(COUNTER, name="a"))
    there, go = held(monkeypatch, flush, "through")

    async def act(face: AsyncEngine) -> None:
        pausing = asyncio.create_task(face.pause("a"))
        await came(there)
        for _ in range(100):
            await asyncio.sleep(0)
            assert not pausing.done()
        assert (await face.job("a")).state is JobState.PAUSING
        go.set()
        await pausing

    driven(engine.config.root, act)


# closing


def test_closing_waits_for_what_is_under_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(shell(COUNTER, name="a"))
    there, go = held(monkeypatch, flush, "through")

    async def main() -> None:
        face = await AsyncEngine(engine.config.root, timeout=30).open()
        pausing = asyncio.create_task(face.pause("a"))
        await came(there)
        with pytest.raises(TimeoutError):  # a cancelled close goes on
            async with asyncio.timeout(0.05):
                await face.close()
        with pytest.raises(RuntimeError, match="not open"):
            await face.job("a")
        asyncio.get_running_loop().call_later(0.1, go.set)
        await face.close()
        assert pausing.done()
        assert (await pausing).mode == "process"
        await face.close()

    asyncio.run(main())
    assert engine.job("a").state is JobState.PAUSED
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("serac")]


def test_closing_ends_what_waits_for_ever(engine: Engine) -> None:
    engine.run(shell("echo up; sleep 1000", name="a"))
    until(engine, "a", b"up\n")
    snapshot = engine.snapshot_take("a").snapshot
    begun, ended = {what: asyncio.Event() for what in ("follow", "events", "connection")}, list[str]()

    async def drawn(what: str, items: Any) -> None:
        async for _ in items:
            begun[what].set()
        ended.append(what)

    async def waited(face: AsyncEngine) -> None:
        with pytest.raises(RuntimeError, match="not open"):
            await face.wait("a")
        ended.append("wait")

    async def main() -> None:
        async with AsyncEngine(engine.config.root, timeout=30) as face:
            connection = await face.attach("a")
            tasks = [
                asyncio.create_task(drawn("follow", face.follow("a"))),
                asyncio.create_task(drawn("events", face.events(follow=True))),
                asyncio.create_task(drawn("connection", connection.events())),
                asyncio.create_task(waited(face)),
            ]
            async for change in face.snapshot_diff(snapshot):
                assert change
                break  # it is left in the middle
            for each in begun.values():
                await each.wait()
            await connection.close()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert sorted(ended) == ["connection", "events", "follow", "wait"]


def test_an_opening_that_fails_or_is_cancelled_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{")

    async def fail() -> None:
        with pytest.raises(SeracError):
            await AsyncEngine(tmp_path).open()

    asyncio.run(fail())
    there, go = held(monkeypatch, Root, "_make")
    before = os.listdir("/proc/self/fd")

    async def cancel() -> None:
        opening = asyncio.create_task(AsyncEngine(engine.config.root).open())
        await came(there)
        opening.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(cancel())
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("serac")])
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_a_session_is_fed_and_read_by_two_tasks(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    data = os.urandom(1 << 20)

    async def act(face: AsyncEngine) -> None:
        spec = SessionSpec(argv=("cat",))
        async with await face.exec("a", spec, stdin=True) as connection:

            async def feed() -> None:
                assert await connection.send(data) == len(data)
                await connection.close_input()

            feeding = asyncio.create_task(feed())
            events = [event async for event in connection.events()]
            await feeding
        assert b"".join(event.data for event in events if isinstance(event, Output)) == data
        assert isinstance(events[-1], Exit)

    driven(engine.config.root, act)


def test_an_attach_that_waits_meets_a_resume(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.pause(engine.run(shell(COUNTER, name="a")).id)

    async def resumed(face: AsyncEngine, ref: str) -> Any:
        monkeypatch.undo()
        await face.resume(ref)
        return await face.job(ref)

    async def act(face: AsyncEngine) -> None:
        monkeypatch.setattr(AsyncEngine, "job", resumed)
        await (await face.attach("a", wait=True)).close()

    driven(engine.config.root, act)


def test_tasks_send_at_the_same_time(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    script = "stty raw -echo; echo up; head -c 300000 | wc -c; stty size"

    async def act(face: AsyncEngine) -> None:
        async with await face.exec("a", SessionSpec(argv=("sh", "-c", script), tty=(24, 80))) as connection:
            await connection.receive()
            sizes = (connection.resize(20 + number, 100) for number in range(20))
            sent, *_ = await asyncio.gather(connection.send(b"x" * 300_000), *sizes)
            said = b"".join([event.data async for event in connection.events() if isinstance(event, Output)])
        assert sent == 300_000
        assert said.split() == [b"300000", b"39", b"100"]

    driven(engine.config.root, act)


def test_an_abandoned_verb_is_logged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="serac")
    engine.run(JobSpec(base="small", name="a"))
    there, go = held(monkeypatch, Root, "snapshot")

    async def act(face: AsyncEngine) -> None:
        removing = asyncio.create_task(face.snapshot_remove("nothing"))
        await came(there)
        removing.cancel()
        go.set()

    driven(engine.config.root, act)
    assert "no snapshot nothing" in caplog.text
    assert inside(engine, "a", "echo ok") == "ok\n"
