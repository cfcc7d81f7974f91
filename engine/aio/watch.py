"""Waiting in an event loop for descriptors and for time to pass."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple


class Await(NamedTuple):
    """What is waited for: a descriptor that can be read (or written to), or so many seconds, whichever comes first."""

    fd: int | None = None
    seconds: float | None = None
    writable: bool = False


class Watch:
    """What tasks wait for. Given up, none of them waits any more, and no descriptor is watched."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], Await] = {}
        self._over = False

    async def until(self, what: Await) -> bool:
        """False when it was given up. One task at a time for a descriptor and a direction."""
        if self._over:
            return False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = None if what.seconds is None else loop.call_later(what.seconds, _end, future, True)
        if what.fd is not None:
            add = loop.add_writer if what.writable else loop.add_reader
            add(what.fd, _end, future, True)
        self._waiting[future] = what
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiting.pop(future, None) is not None:
                _forget(loop, what)

    def give_up(self) -> None:
        """Call this before a descriptor is closed that may be waited for."""
        self._over = True
        for future, what in list(self._waiting.items()):
            _forget(future.get_loop(), what)
            _end(future, False)
        self._waiting.clear()


def in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """From another thread; nothing happens when the loop has ended meanwhile."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _end(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


def _forget(loop: asyncio.AbstractEventLoop, what: Await) -> None:
    if what.fd is not None:
        remove = loop.remove_writer if what.writable else loop.remove_reader
        remove(what.fd)
