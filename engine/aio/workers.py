"""Worker threads for verbs: a bounded number of them, whose calls go to their ends whatever becomes of the waiters."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from engine.aio.watch import Await, in_loop

log = logging.getLogger("serac")

BATCH, BATCH_SECONDS = 256, 0.05
"""how many items an iterator is asked for in one call, and how long, so that the first ones don't wait for the last"""

R = TypeVar("R")
T = TypeVar("T")


class Workers:
    """Every call runs in a copy of its caller's context (contextvars), one of ``count`` at a time; others queue."""

    def __init__(self, count: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="serac")
        self._under_way: set[concurrent.futures.Future[Any]] = set()

    async def call(self, function: Callable[[], R], *, unwanted: Callable[[R], object] | None = None) -> R:
        """Call a function in a thread. When the waiter is cancelled a call that hasn't begun never does, any other goes
        to its end; its result is given to ``unwanted``, its error to the log."""
        future = self._submit(function)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():
                future.add_done_callback(functools.partial(_dispose, unwanted))
            raise

    def soon(self, function: Callable[[], None]) -> None:
        """Call a function in a thread and don't wait for it; here, when the threads have ended."""
        try:
            self._submit(function)
        except RuntimeError:
            function()

    async def close(self, last: Callable[[], None]) -> None:
        """Wait for every call, then for one more; the threads end."""
        loop = asyncio.get_running_loop()
        while pending := list(self._under_way):
            ended = asyncio.Event()
            for future in pending:
                future.add_done_callback(functools.partial(_wake, loop, ended))
            await ended.wait()
        try:
            await asyncio.wrap_future(self._submit(last))
        finally:
            self._pool.shutdown()

    def abandon(self) -> None:
        """No more calls; the threads end by themselves."""
        self._pool.shutdown(wait=False)

    def _submit(self, function: Callable[[], R]) -> concurrent.futures.Future[R]:
        future = self._pool.submit(contextvars.copy_context().run, function)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event, _: object) -> None:
    in_loop(loop, event.set)


def _dispose(unwanted: Callable[[R], object] | None, future: concurrent.futures.Future[R]) -> None:
    error = future.exception()
    if error is not None:
        log.warning("a verb that nobody waits for any more failed: %s", error)
    elif unwanted is not None:
        unwanted(future.result())


class Pull(Generic[T]):
    """An iterator that blocks, drawn from in worker threads: in one at a time, always in the same context."""

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._iterator: Iterator[T] | None = None
        self._error: Exception | None = None
        self._context = contextvars.copy_context()
        self._guard = threading.Lock()
        self._closed = False

    def some(self) -> list[T]:
        """The next items, [] at the end; what is to be awaited before the next one is the last of its list. What the
        iterator raises comes after the items before it."""
        with self._guard:
            return [] if self._closed else self._context.run(self._some)

    def close(self) -> None:
        """Waits for a `some` that is under way."""
        with self._guard:
            self._closed = True
            close = getattr(self._iterator, "close", None)
            if close is not None:
                self._context.run(close)

    def _some(self) -> list[T]:
        if self._error is not None:
            raise self._error
        items: list[T] = []
        until = time.monotonic() + BATCH_SECONDS
        try:
            if self._iterator is None:
                self._iterator = self._make()
            for item in itertools.islice(self._iterator, BATCH):
                items.append(item)
                if isinstance(item, Await) or time.monotonic() >= until:
                    break
        except Exception as error:
            if not items:
                raise
            self._error = error
        return items
