"""The calls: create, pause, resume, delete and look at sessions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import get_args

from engine.engine import Engine
from engine.errors import InvalidInput, SeracError
from engine.hosted import arguments, sessions
from engine.hosted.changes import Asked, Call, Changes
from engine.hosted.results import Accepted, ChangeResult, DeleteResult, ListResult, SessionResult, Status, failed
from engine.hosted.session import Session
from engine.model import JobSpec, Limits, Mode, Net, RequestVerb


class Sandboxes:
    """All sessions of a root. ``timeout`` is the engine's own: how long one step of its work may take.

    May be used from any thread; any number of processes may have one on the same root. Raises what `Engine` does."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, timeout: float = 60.0) -> None:
        self.engine = Engine(root, timeout=timeout)
        self._changes = Changes(self.engine)

    def __enter__(self) -> Sandboxes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """When all that was accepted is done; the sessions stay."""
        self._changes.close()
        self.engine.close()

    def create(
        self,
        image: str,
        labels: Mapping[str, str] | None = None,
        *,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        request_id: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str = "/",
        net: Net = "none",
        limits: Limits | None = None,
    ) -> SessionResult:
        """A new session from a base: it runs when this returns. ``timeout`` is for the wait for another process that
        makes it, or that makes another one where their number is limited."""
        own, variables = arguments.texts(labels, "labels"), arguments.texts(env, "env")
        arguments.text(image, "image")
        arguments.text(workdir, "workdir")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits are a Limits, not {limits!r}")
        request, wait = arguments.request(request_id), arguments.wait(timeout, poll_interval)
        try:
            arguments.check(request, wait)
            if net not in get_args(Net):
                raise InvalidInput(f"no network {net!r}", hint=", ".join(get_args(Net)))
            if sessions.LABEL in own:
                raise InvalidInput(f"the label {sessions.LABEL} is serac's own", hint="choose another name for it")
            spec = JobSpec(base=image, env=variables, workdir=workdir, net=net, limits=limits or Limits(), labels=own)
            job = sessions.created(self.engine, sessions.requested(spec, request), wait)
        except SeracError as error:
            return failed(SessionResult, request, error)
        return SessionResult(success=True, request_id=request, session=Session.of(job, self))

    def get_session(self, session_id: str) -> SessionResult:
        """A session as it is now, whoever made it."""
        request = arguments.request(None)
        try:
            job = sessions.job_of(self.engine, arguments.text(session_id, "session_id"))
        except SeracError as error:
            return failed(SessionResult, request, error)
        return SessionResult(success=True, request_id=request, session=Session.of(job, self))

    def list(
        self,
        labels: Mapping[str, str] | None = None,
        page: int = 1,
        limit: int = 10,
        *,
        status: Status | str | None = None,
    ) -> ListResult:
        """The sessions that have all of ``labels``, oldest first, ``limit`` a page; those that have ended too."""
        wanted, request = arguments.texts(labels, "labels"), arguments.request(None)
        first = (arguments.whole(page, "page") - 1) * arguments.whole(limit, "limit")
        try:
            if page < 1 or limit < 1:
                raise InvalidInput("page and limit begin with 1")
            if status is not None and status not in list(Status):
                raise InvalidInput(f"no status {status!r}", hint=", ".join(Status))
            jobs = self.engine.jobs(ended=True)
        except SeracError as error:
            return failed(ListResult, request, error)
        found = [Session.of(job, self) for job in jobs if sessions.is_session(job)]
        those = [one for one in found if wanted.items() <= one.labels.items() and status in (None, one.status)]
        page_of = tuple(those[first : first + limit])
        return ListResult(success=True, request_id=request, sessions=page_of, total_count=len(those))

    def pause(
        self,
        session: Session | str,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        *,
        request_id: str | None = None,
        mode: Mode = "auto",
    ) -> ChangeResult:
        """Give back all that a session holds of the host, and wait until that is so. A pause that fails leaves it
        running. ``mode``: what is to be kept, see `Engine.pause`; the result says what was."""
        call = self._begun("pause", session, mode, request_id, arguments.wait(timeout, poll_interval))
        return self._changes.awaited(call)

    def resume(
        self,
        session: Session | str,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        *,
        request_id: str | None = None,
        mode: Mode = "auto",
    ) -> ChangeResult:
        """Let a paused session go on, and wait until it does. A resume that fails leaves it paused."""
        call = self._begun("resume", session, mode, request_id, arguments.wait(timeout, poll_interval))
        return self._changes.awaited(call)

    def pause_async(
        self,
        session: Session | str,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        *,
        request_id: str | None = None,
        mode: Mode = "auto",
    ) -> Accepted:
        """Begin a pause: returns as soon as the session is PAUSING, or can't be. ``await`` it for the outcome."""
        call = self._begun("pause", session, mode, request_id, arguments.wait(timeout, poll_interval))
        return self._changes.accepted(call)

    def resume_async(
        self,
        session: Session | str,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        *,
        request_id: str | None = None,
        mode: Mode = "auto",
    ) -> Accepted:
        """Begin a resume: returns as soon as the session is RESUMING, or can't be. ``await`` it for the outcome."""
        call = self._begun("resume", session, mode, request_id, arguments.wait(timeout, poll_interval))
        return self._changes.accepted(call)

    def delete(
        self,
        session: Session | str,
        timeout: float = 300.0,
        poll_interval: float = 5.0,
        *,
        request_id: str | None = None,
    ) -> DeleteResult:
        """Remove a session, whatever state it is in, with its files and what it is paused to."""
        wait, request = arguments.wait(timeout, poll_interval), arguments.request(request_id)
        try:
            arguments.check(request, wait)
            sessions.deleted(self.engine, _identity(session), wait)
        except SeracError as error:
            return failed(DeleteResult, request, error)
        return DeleteResult(success=True, request_id=request)

    def _begun(
        self, verb: RequestVerb, session: Session | str, mode: Mode, request_id: str | None, wait: arguments.Wait
    ) -> Call:
        """Under way; what can't be is a call that is over."""
        request = arguments.request(request_id)
        asked = Asked(_identity(session), verb, request, request_id is not None, mode, wait)
        try:
            arguments.check(request, wait)
            sessions.job_of(self.engine, asked.session)
        except SeracError as error:
            over: Future[ChangeResult] = Future()
            over.set_result(failed(ChangeResult, request, error))
            return Call(asked, over)
        return self._changes.begin(asked)


def _identity(session: Session | str) -> str:
    """Raises TypeError."""
    return session.session_id if isinstance(session, Session) else arguments.text(session, "session")
