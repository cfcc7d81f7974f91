"""`AsyncEngine`: the verbs of `engine.engine.Engine` for asyncio.

Its methods are made of the engine's own, so that names, signatures and docstrings are the same: a verb is a coroutine,
an iterator an async iterator, and a connection to a session an `AsyncConnection`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from engine import counters, session
from engine.aio.connection import AsyncConnection
from engine.aio.watch import Await, Watch, in_loop
from engine.aio.workers import Pull, Workers
from engine.config import Config
from engine.counters import Counters
from engine.engine import Engine
from engine.errors import Busy, Timeout, WrongState
from engine.journal import POLL
from engine.lifecycle import processes
from engine.model import ENDED, LIVE, PASSING, Check, Event, Finding, Job, JobState, Pool, SessionSpec
from engine.session import Connection, SessionEvent
from engine.watching import LOOK, arrived, states

__all__ = ["AsyncConnection", "AsyncEngine"]

WORKERS = 8
GLANCE, SOON = 0.2, 0.05
"""seconds between two looks at a job that is to run again, and at one that a verb is about to be done with"""

_TO_RUN = PASSING | {JobState.PAUSED, JobState.FROZEN}
"""states that an attach may wait in"""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _verb(
    method: Callable[Concatenate[Engine, P], R],
) -> Callable[Concatenate[AsyncEngine, P], Coroutine[Any, Any, R]]:
    @functools.wraps(method)
    async def call(self: AsyncEngine, /, *args: P.args, **named: P.kwargs) -> R:
        return await self._call(method, *args, **named)

    return call


def _iterated(
    method: Callable[Concatenate[Engine, P], Iterator[T]],
    source: Callable[..., Iterator[T | Await]] | None = None,
) -> Callable[Concatenate[AsyncEngine, P], AsyncIterator[T]]:
    @functools.wraps(method)
    def call(self: AsyncEngine, /, *args: P.args, **named: P.kwargs) -> AsyncIterator[T]:
        return self._stream(functools.partial(source or method, self._opened(), *args, **named))

    return call


def _following(
    engine: Engine, ref: str, number: int = 0, *, offset: int = 0, live: bool = True
) -> Iterator[SessionEvent | Await]:
    io = engine._root.io(engine._root.catalog.job(ref).id)
    read = session.follow_unblocked if live else session.read_log
    for event in read(io, number, offset=offset):
        yield Await(fd=event.fileno()) if isinstance(event, Connection) else event


def _tailing(
    engine: Engine, *, follow: bool = False, since: float | None = None, poll_interval: float = POLL
) -> Iterator[Event | Await]:
    with engine._root.journal.tail(since=since) as tail:
        while True:
            while found := tail.more():
                yield from found
            if not follow:
                return
            yield Await(seconds=poll_interval)


class AsyncEngine:
    """One root on this host, for tasks of an event loop.

        async with AsyncEngine("/var/lib/serac") as engine:
            job = await engine.run(JobSpec(base="debian", argv=("make",)))
            async with asyncio.timeout(60):
                await engine.pause(job.id)

    Verbs run in at most ``workers`` threads, with the caller's context variables; more of them wait for their turn.
    What may take for ever (`wait`, `follow`, `events`, an `attach` that waits, a connection) takes no thread.
    ``progress`` is called in the event loop.

    **Cancelled**, by a timeout or otherwise, is the waiting, never the verb. One that has begun goes on in its thread
    to its own end: it is done, or it fails and is undone, as ever. The journal (`events`) says which, and so does the
    job's state; the verb can be called again, and waits for the first one then. One that waited for its turn doesn't
    begin. A connection that comes when nobody waits for it any more is closed, and its session goes on.

    `close` (or leaving the context) takes no more verbs, waits for those under way, and ends iterators; jobs run on. A
    cancelled `close` goes on by itself, and can be called again. Threads and descriptors are gone then."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 60.0,
        pool: Pool | None = None,
        workers: int = WORKERS,
    ) -> None:
        self._make = functools.partial(Engine, root, timeout=timeout, pool=pool)
        self._count = workers
        self._engine: Engine | None = None
        self._workers: Workers | None = None
        self._watch = Watch()
        self._pulls: set[Pull[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """What ``Engine(...)`` does, and raises. ``async with`` calls it."""
        if self._workers is not None:
            raise RuntimeError("an AsyncEngine is opened once")
        self._workers = Workers(self._count)
        try:
            self._engine = await self._workers.call(self._make, unwanted=Engine.close)
        except BaseException:
            self._workers.abandon()
            raise
        return self

    async def close(self) -> None:
        """See above."""
        if self._closing is None and self._engine is not None:
            self._closing = asyncio.create_task(self._close(self._engine))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, engine: Engine) -> None:
        assert self._workers is not None
        self._watch.give_up()
        for pull in self._pulls:
            self._workers.soon(pull.close)
        await self._workers.close(engine.close)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def config(self) -> Config:
        return self._opened().config

    @staticmethod
    async def doctor(root: str | os.PathLike[str] | None = None) -> list[Finding]:
        """As of the engine."""
        return await asyncio.to_thread(Engine.doctor, root)

    @staticmethod
    async def check(
        root: str | os.PathLike[str] | None = None,
        *,
        repair: bool = False,
        timeout: float = 60.0,  # noqa: ASYNC109 - the engine's own
    ) -> Check:
        """As of the engine. Cancelled it goes on to its end."""
        return await asyncio.to_thread(Engine.check, root, repair=repair, timeout=timeout)

    @staticmethod
    async def counters() -> Counters:
        """As of the engine."""
        return counters.read()

    base_build = _verb(Engine.base_build)
    bases = _verb(Engine.bases)
    base = _verb(Engine.base)
    prefetch = _verb(Engine.prefetch)
    base_profile = _verb(Engine.base_profile)
    base_warm = _verb(Engine.base_warm)
    base_remove = _verb(Engine.base_remove)

    run = _verb(Engine.run)
    jobs = _verb(Engine.jobs)
    job = _verb(Engine.job)
    stop = _verb(Engine.stop)
    remove = _verb(Engine.remove)
    freeze = _verb(Engine.freeze)
    thaw = _verb(Engine.thaw)
    pause = _verb(Engine.pause)
    resume = _verb(Engine.resume)
    fork = _verb(Engine.fork)

    sessions = _verb(Engine.sessions)
    start = _verb(Engine.start)
    copy_in = _verb(Engine.copy_in)
    copy_out = _verb(Engine.copy_out)
    follow = _iterated(Engine.follow, _following)
    events = _iterated(Engine.events, _tailing)

    asked = _verb(Engine.asked)
    answer = _verb(Engine.answer)
    refuse = _verb(Engine.refuse)

    snapshot_take = _verb(Engine.snapshot_take)
    snapshots = _verb(Engine.snapshots)
    snapshot = _verb(Engine.snapshot)
    snapshot_pin = _verb(Engine.snapshot_pin)
    snapshot_remove = _verb(Engine.snapshot_remove)
    snapshot_archive = _verb(Engine.snapshot_archive)
    archiving = _verb(Engine.archiving)
    snapshot_verify = _verb(Engine.snapshot_verify)
    snapshot_flatten = _verb(Engine.snapshot_flatten)
    snapshot_diff = _iterated(Engine.snapshot_diff)
    snapshot_export = _verb(Engine.snapshot_export)
    snapshot_import = _verb(Engine.snapshot_import)
    demote = _verb(Engine.demote)
    collect = _verb(Engine.collect)
    verdicts = _verb(Engine.verdicts)

    async def exec(self, ref: str, spec: SessionSpec, *, stdin: bool = False) -> AsyncConnection:
        """As of the engine, with a connection for tasks."""
        return await self._connected(Engine.exec, ref, spec, stdin=stdin)

    async def attach(
        self, ref: str, number: int = 0, *, offset: int = session.TAIL, wait: bool = False
    ) -> AsyncConnection:
        """As of the engine, with a connection for tasks."""
        tries = 0
        while True:
            try:
                return await self._connected(Engine.attach, ref, number, offset=offset)
            except (Busy, WrongState):
                state = (await self.job(ref)).state if wait else None
                tries += state is JobState.RUNNING  # it was resumed since
                if state is None or state in ENDED or tries == processes.TRIES:
                    raise
            while (await self.job(ref)).state in _TO_RUN:
                await self._watch.until(Await(seconds=GLANCE))

    async def listen(self, ref: str) -> AsyncConnection:
        """As of the engine, with a connection for tasks."""
        return await self._connected(Engine.listen, ref)

    async def wait(
        self,
        ref: str,
        state: JobState | Iterable[JobState] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the engine's own
        poll_interval: float = LOOK,
    ) -> Job:
        """As of the engine, and without a thread that waits."""
        wanted, deadline = states(state), None if timeout is None else time.monotonic() + timeout
        job = await self.job(ref)
        while not arrived(job, wanted):
            left = poll_interval if deadline is None else min(poll_interval, deadline - time.monotonic())
            if left <= 0:
                raise Timeout(f"job {job.name} is still {job.state}")
            await self._pass(job, left)
            job = await self.job(job.id)
        return job

    def _opened(self) -> Engine:
        if self._engine is None or self._closing is not None:
            raise RuntimeError("the AsyncEngine is not open: `async with AsyncEngine(...) as engine`")
        return self._engine

    async def _call(self, method: Callable[..., R], *args: Any, **named: Any) -> R:
        if (progress := named.get("progress")) is not None:
            named["progress"] = functools.partial(in_loop, asyncio.get_running_loop(), progress)
        return await self._work(functools.partial(method, self._opened(), *args, **named))

    async def _connected(self, method: Callable[..., Connection], *args: Any, **named: Any) -> AsyncConnection:
        begin = functools.partial(method, self._opened(), *args, **named)
        return AsyncConnection(await self._work(begin, unwanted=Connection.close))

    async def _work(self, function: Callable[[], R], *, unwanted: Callable[[R], object] | None = None) -> R:
        assert self._workers is not None
        return await self._workers.call(function, unwanted=unwanted)

    async def _stream(self, make: Callable[[], Iterator[T | Await]]) -> AsyncIterator[T]:
        assert self._workers is not None
        pull: Pull[T | Await] = Pull(make)
        self._pulls.add(pull)
        try:
            while self._closing is None and (batch := await self._work(pull.some)):
                for each in batch:
                    if not isinstance(each, Await):
                        yield each
                    elif not await self._watch.until(each):
                        return
        finally:
            self._pulls.discard(pull)
            self._workers.soon(pull.close)

    async def _pass(self, job: Job, seconds: float) -> None:
        """Return when a job may have changed, after so many seconds at the latest."""
        if job.state in LIVE:
            with processes.opened_init(self._opened()._root, job.id) as init:
                if init is not None:
                    await self._watch.until(Await(fd=init, seconds=seconds))
                    return
        await self._watch.until(Await(seconds=min(seconds, SOON)))
