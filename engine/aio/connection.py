"""A view of one session, for tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from engine.aio.watch import Await, Watch
from engine.session import CHUNK_MAX, Connection, Exit, SessionEvent


class AsyncConnection:
    """`engine.session.Connection` as ``exec`` and ``attach`` give it, with the same names: what waits is awaited by the
    event loop itself and takes no thread. One task may receive while others send.

    A cancelled `receive` has taken nothing; a cancelled `send` may have sent a part. Closing it detaches, and ends what
    waits for it; the session goes on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watch = Watch()
        self._turn = asyncio.Lock()

    @property
    def session(self) -> int:
        return self._connection.session

    @property
    def tty(self) -> bool:
        return self._connection.tty

    @property
    def offset(self) -> int:
        return self._connection.offset

    @property
    def taken(self) -> int | None:
        return self._connection.taken

    async def events(self) -> AsyncIterator[SessionEvent]:
        """What the session does, as it comes. Ends with its Exit; without one the connection was lost."""
        held: Exit | None = None
        while (event := await self.receive()) is not None:
            held = event if isinstance(event, Exit) else None  # one in the middle is of an earlier life
            if held is None:
                yield event
        if held is not None and not self._connection.runs():
            yield held

    async def receive(self) -> SessionEvent | None:
        """The next thing that the session does, None at the connection's end."""
        if not await self._watch.until(Await(fd=self.fileno())):
            return None
        return self._connection.receive()

    async def asked(self) -> int | None:
        """The number of the next question, None at the connection's end; of a connection that `listen` gave."""
        if not await self._watch.until(Await(fd=self.fileno())):
            return None
        return self._connection.asked()

    async def send(self, data: bytes) -> int:
        """Input for the session, as it takes it. How much was sent: less than all when the connection is lost."""
        for at in range(0, len(data), CHUNK_MAX):
            if not await self._can_send() or self._connection.send(data[at : at + CHUNK_MAX]) == 0:
                return at
        return len(data)

    async def feed(self) -> None:
        if await self._can_send():
            self._connection.feed()

    async def close_input(self) -> None:
        if await self._can_send():
            self._connection.close_input()

    async def resize(self, rows: int, columns: int) -> None:
        if await self._can_send():
            self._connection.resize(rows, columns)

    async def signal(self, signo: int) -> None:
        """To the process group of the session, by a connection of its own, which takes a thread for a moment."""
        if self.fileno() >= 0:
            await asyncio.to_thread(self._connection.signal, signo)

    def fileno(self) -> int:
        return self._connection.fileno()

    async def close(self) -> None:
        self._watch.give_up()
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _can_send(self) -> bool:
        """What can be written to takes one message: its room is for several."""
        async with self._turn:
            return await self._watch.until(Await(fd=self.fileno(), writable=True))
