"""The threads, iterators and waits that `AsyncEngine` is made of, by themselves; and what it doesn't bring along."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from engine import AsyncEngine
from engine.aio.watch import Await, Watch
from engine.aio.workers import Pull, Workers
from engine.errors import WrongState


async def until(*events: threading.Event) -> None:
    for event in events:
        assert await asyncio.to_thread(event.wait, 30)


def test_no_more_threads_than_were_asked_for() -> None:
    at_once, most = set(), 0

    def work() -> None:
        nonlocal most
        at_once.add(threading.get_ident())
        most = max(most, len(at_once))
        barrier.wait(30)

    barrier = threading.Barrier(3)

    async def main() -> None:
        workers = Workers(3)
        await asyncio.gather(*(workers.call(work) for _ in range(30)))
        await workers.close(lambda: None)

    asyncio.run(main())
    assert most == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("serac")]


def test_context_variables_go_along() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def main() -> None:
        workers = Workers(1)
        variable.set("mine")
        assert await workers.call(variable.get) == "mine"
        await workers.call(lambda: variable.set("theirs"))
        assert variable.get() == "mine"
        await workers.close(lambda: None)

    asyncio.run(main())


def test_a_call_that_waits_for_its_turn_can_be_taken_back() -> None:
    begun, go, done = threading.Event(), threading.Event(), list[str]()

    def first_call() -> None:
        begun.set()
        if go.wait(30):
            done.append("first")

    async def main() -> None:
        workers = Workers(1)
        first = asyncio.create_task(workers.call(first_call))
        second = asyncio.create_task(workers.call(lambda: done.append("second")))
        await until(begun)
        first.cancel()
        second.cancel()
        assert await asyncio.gather(first, second, return_exceptions=True) != [None, None]
        go.set()
        await workers.close(lambda: done.append("last"))

    asyncio.run(main())
    assert done == ["first", "last"]


def test_what_nobody_waits_for_is_disposed_of_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    begun, go, unwanted = (threading.Event(), threading.Event()), threading.Event(), list[int]()

    def give() -> int:
        begun[0].set()
        go.wait(30)
        return 7

    def fail() -> int:
        begun[1].set()
        go.wait(30)
        raise WrongState("too late")

    async def main() -> None:
        workers = Workers(2)
        calls = [
            asyncio.create_task(workers.call(give, unwanted=unwanted.append)),
            asyncio.create_task(workers.call(fail)),
        ]
        await until(*begun)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        go.set()
        await workers.close(lambda: None)

    asyncio.run(main())
    assert unwanted == [7]
    assert "nobody waits for any more failed: too late" in caplog.text


def test_an_iterator_gives_all_before_its_error() -> None:
    def numbers() -> Any:
        yield from range(1000)
        raise WrongState("the end")

    pull, seen = Pull(numbers), list[int]()
    while len(seen) < 1000:
        seen += pull.some()
    assert seen == list(range(1000))
    with pytest.raises(WrongState):
        pull.some()


def test_an_iterator_is_closed_while_it_is_drawn_from() -> None:
    there, go, closed = threading.Event(), threading.Event(), threading.Event()

    def numbers() -> Any:
        try:
            there.set()
            yield go.wait(30)
            yield 2
        finally:
            closed.set()

    pull = Pull(numbers)
    drawing = threading.Thread(target=pull.some)
    drawing.start()
    assert there.wait(10)
    closing = threading.Thread(target=pull.close)
    closing.start()
    go.set()
    for thread in (drawing, closing):
        thread.join(30)
    assert closed.is_set()
    assert pull.some() == []


def test_waiting_for_descriptors_and_time() -> None:
    async def main() -> None:
        watch, loop, (reader, writer) = Watch(), asyncio.get_running_loop(), os.pipe()
        assert await watch.until(Await(seconds=0.001))
        assert await watch.until(Await(fd=reader, seconds=0.001))
        assert await watch.until(Await(fd=writer, writable=True))
        reading = asyncio.create_task(watch.until(Await(fd=reader)))
        await asyncio.sleep(0)
        os.write(writer, b"x")
        assert await reading
        assert not loop.remove_reader(reader)
        assert not loop.remove_writer(writer)
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


def test_what_is_waited_for_can_be_given_up_or_cancelled() -> None:
    async def main() -> None:
        watch, loop, (reader, writer) = Watch(), asyncio.get_running_loop(), os.pipe()
        cancelled = asyncio.create_task(watch.until(Await(fd=reader)))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert not loop.remove_reader(reader)
        waiting = [asyncio.create_task(watch.until(what)) for what in (Await(fd=reader), Await(seconds=60))]
        await asyncio.sleep(0)
        watch.give_up()
        assert not loop.remove_reader(reader)
        assert await asyncio.gather(*waiting) == [False, False]
        assert not await watch.until(Await(seconds=60))
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


def test_neither_the_library_nor_the_command_brings_asyncio_along() -> None:
    for what in ("import engine.engine", "import engine.cli; engine.cli.main(['--help'])"):
        code = f"{what}; import sys; assert not {{'asyncio', 'engine.aio'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_it_must_be_open() -> None:
    async def main() -> None:
        engine = AsyncEngine("/nowhere")
        with pytest.raises(RuntimeError, match="not open"):
            await engine.jobs()
        await engine.close()

    asyncio.run(main())
