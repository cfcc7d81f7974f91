"""Pauses and resumes: begun once a request in this process, carried out by a thread, waited for or not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from engine.engine import Engine
from engine.errors import Busy, LimitReached, NotFound, Repeated, SeracError, Timeout, WrongState
from engine.hosted import sessions
from engine.hosted.arguments import Wait
from engine.hosted.results import Accepted, ChangeResult, Status, failed, status_of
from engine.lifecycle import requests
from engine.model import Job, JobState, Mode, RequestVerb

WORKERS = 32
"""those that one process has under way at a time; more wait for their turn"""
_GLANCE = 0.005
"""seconds between two looks at a session that this process is about to change"""

_GOAL: dict[RequestVerb, JobState] = {"pause": JobState.PAUSED, "resume": JobState.RUNNING}
_PASSING: dict[RequestVerb, JobState] = {"pause": JobState.PAUSING, "resume": JobState.RESUMING}


class Asked(NamedTuple):
    session: str
    verb: RequestVerb
    request: str
    named: bool
    """whether the request's id is the caller's"""
    mode: Mode
    wait: Wait

    @property
    def key(self) -> tuple[str, RequestVerb, str]:
        return self.session, self.verb, self.request


class Call(NamedTuple):
    asked: Asked
    future: Future[ChangeResult]


class Changes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="serac-hosted")
        self._under_way: dict[tuple[str, RequestVerb, str], Future[ChangeResult]] = {}
        self._guard = threading.Lock()

    def close(self) -> None:
        """When all that was begun is done."""
        self._workers.shutdown()

    def begin(self, asked: Asked) -> Call:
        with self._guard:
            future = self._under_way.get(asked.key)
            if future is None:
                future = Future()
                future.set_running_or_notify_cancel()  # whoever stops waiting for it calls nothing off
                self._workers.submit(self._carry_out, asked, future)
                self._under_way[asked.key] = future
        return Call(asked, future)

    def _carry_out(self, asked: Asked, future: Future[ChangeResult]) -> None:
        """In a thread."""
        try:
            try:
                result = self._persisted(asked)
            finally:
                with self._guard:
                    del self._under_way[asked.key]
        except BaseException as error:  # is for those who wait
            future.set_exception(error)
        else:
            future.set_result(result)

    def awaited(self, call: Call) -> ChangeResult:
        try:
            return call.future.result(call.asked.wait.left())
        except TimeoutError:
            return self._late(call.asked)

    def accepted(self, call: Call) -> Accepted:
        """When the session is on its way, for everybody to see, or all is over."""
        asked = call.asked
        while not call.future.done() and asked.wait.left() and self._state(asked.session) is not _PASSING[asked.verb]:
            time.sleep(_GLANCE)
        if call.future.done():
            return accepted(call.future.result(), lambda: self._outcome(call))
        now = ChangeResult(success=True, request_id=asked.request, status=self._status(asked.session))
        return accepted(now, lambda: self._outcome(call))

    async def _outcome(self, call: Call) -> ChangeResult:
        future = asyncio.wrap_future(call.future)
        await asyncio.wait({future}, timeout=call.asked.wait.left())
        if future.done():
            return future.result()
        future.cancel()
        return self._late(call.asked)

    def _late(self, asked: Asked) -> ChangeResult:
        status = self._status(asked.session)
        error = Timeout(
            f"session {asked.session} is still {status} after {asked.wait.timeout:g} seconds; the {asked.verb} goes on",
            hint=f"call again with request id {asked.request} to wait for it",
        )
        return failed(ChangeResult, asked.request, error, status=status)

    def _persisted(self, asked: Asked) -> ChangeResult:
        """Tries again while others keep it from its turn."""
        while True:
            try:
                self._change(asked)
            except Repeated:
                break
            except Busy as error:
                if not asked.wait.left():
                    return self._failed(asked, error)
                time.sleep(asked.wait.until_look())
                continue
            except WrongState as error:
                if asked.named or self._state(asked.session) is not _GOAL[asked.verb]:
                    return self._failed(asked, self._explained(asked, error))
            except SeracError as error:
                return self._failed(asked, error)
            break
        return self._done(asked)

    def _change(self, asked: Asked) -> None:
        if asked.verb == "pause":
            self._engine.pause(asked.session, mode=asked.mode, request=asked.request)
        elif self._engine.config.settings.sessions_paused:
            self._engine.resume(asked.session, mode=asked.mode, request=asked.request)
        else:
            self._resume_with_room(asked)

    def _resume_with_room(self, asked: Asked) -> None:
        """Where paused sessions have no place of their own."""
        try:
            with sessions.room(self._engine, asked.wait, but=asked.session):
                self._engine.resume(asked.session, mode=asked.mode, request=asked.request)
        except LimitReached:
            requests.refuse_repeated(sessions.job_of(self._engine, asked.session), "resume", asked.request)
            raise

    def _explained(self, asked: Asked, error: WrongState) -> WrongState:
        """Who did it instead."""
        with contextlib.suppress(NotFound):
            job = self._engine.job(asked.session)
            if job.state is _GOAL[asked.verb]:
                before = job.pauses - (asked.verb == "pause")
                those = [done.id for done in job.requests if (done.verb, done.pauses) == (asked.verb, before)]
                by = f"request {those[0]}" if those else "a call without a request id"
                return WrongState(
                    f"session {job.id} is {status_of(job)} already, by {by}", hint="nothing is to be done"
                )
        return error

    def _done(self, asked: Asked) -> ChangeResult:
        mode = reason = None
        job = self._look(asked.session)
        if job is not None and job.state is JobState.PAUSED and job.snapshot is not None:
            with contextlib.suppress(NotFound):  # it is being resumed
                snapshot = self._engine.snapshot(job.snapshot)
                mode, reason = snapshot.mode, snapshot.reason
        status = status_of(job) if job is not None else None
        return ChangeResult(success=True, request_id=asked.request, status=status, mode=mode, reason=reason)

    def _failed(self, asked: Asked, error: SeracError) -> ChangeResult:
        return failed(ChangeResult, asked.request, error, status=self._status(asked.session))

    def _look(self, session: str) -> Job | None:
        try:
            return self._engine._root.catalog.job_with(session)
        except NotFound:
            return None

    def _state(self, session: str) -> JobState | None:
        job = self._look(session)
        return None if job is None else job.state

    def _status(self, session: str) -> Status | None:
        job = self._look(session)
        return None if job is None else status_of(job)


def accepted(result: ChangeResult, outcome: Callable[[], Awaitable[ChangeResult]]) -> Accepted:
    fields = {name: getattr(result, name) for name in result.__struct_fields__}
    return Accepted(**fields, outcome=outcome)
