"""Both faces of the engine, `Engine` and `AsyncEngine`, behind one: so that one test is a test of both.

`face` is a fixture: the engine itself, and an `AsyncEngine` on the same root that is driven, call by call, on an event
loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, cast

import pytest

from engine import AsyncEngine, Engine
from engine.aio import AsyncConnection

PATIENCE = 120


@pytest.fixture(params=["Engine", "AsyncEngine"])
def face(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Engine]:
    if request.param == "Engine":
        yield engine
        return
    with looping() as loop:
        made = AsyncEngine(engine.config.root, timeout=30)
        driven = Driven(loop, made)
        driven.open()
        try:
            yield cast(Engine, driven)
        finally:
            driven.close()


@contextlib.contextmanager
def looping() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class Driven:
    """Calls what is asynchronous of an object and waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: object) -> None:
        self._loop, self._target = loop, target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return self._called(found) if callable(found) else found

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _called(self, method: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            made = method(*args, **named)
            if inspect.iscoroutine(made):
                made = self._done(made)
            if isinstance(made, AsyncConnection):
                return Driven(self._loop, made)
            return self._drawn(made) if hasattr(made, "__anext__") else made

        return call

    def _done(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def _drawn(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def next_one() -> list[Any]:
            async for item in items:
                return [item]
            return []

        async def end() -> None:
            await cast(Any, items).aclose()

        try:
            while found := self._done(next_one()):
                yield from found
        finally:
            self._done(end())
