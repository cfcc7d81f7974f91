"""The verbs of sessions and of files, a part of `engine.engine.Engine`: start one, attach to it, follow it, copy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import msgspec

from engine import session
from engine.errors import Paused
from engine.lifecycle import processes, recover, sessions
from engine.lifecycle.root import Root, require
from engine.model import Job, JobState, SessionSpec, SessionStatus
from engine.session import Connection, SessionEvent
from engine.verbs import verb


class Attaching:
    """What needs an opened root and no more. What is done in a job waits for a pause or resume that is under way, and
    raises Busy where that takes longer than the engine's timeout."""

    _root: Root

    def sessions(self, ref: str) -> list[SessionStatus]:
        """Every session that the job has or had since it began."""
        job = self._root.catalog.job(ref)
        return [status for _, status in sorted(session.statuses(self._root.io(job.id)).items())]

    @verb("start", told=False)
    def start(self, ref: str, spec: SessionSpec) -> SessionStatus:
        """Start a session that nobody is attached to; it comes back after a pause if it lives then."""
        kept = msgspec.structs.replace(spec, keep=True)
        connection, status = processes.heard(
            self._root, partial(self._admitted, ref), lambda init, job: init.start(self._session(job, kept))
        )
        connection.close()
        return status

    @verb("exec", told=False)
    def exec(self, ref: str, spec: SessionSpec, *, stdin: bool = False) -> Connection:
        """Start a session and stay attached. Raises WrongState, CommandNotFound, CommandNotExecutable, BadPath."""
        connection, _ = processes.heard(
            self._root,
            partial(self._admitted, ref),
            lambda init, job: init.start(self._session(job, spec), attach=True, stdin=stdin),
        )
        return connection

    @verb("attach", told=False)
    def attach(self, ref: str, number: int = 0, *, offset: int = session.TAIL, wait: bool = False) -> Connection:
        """Attach to a session that runs, beginning with the tail of its output or at an ``offset`` of its log.

        A pause or resume that is under way is waited for; with ``wait``, for as long as it takes, the resume of a
        paused job and the thaw of a frozen one too. Raises Paused, WrongState, NotFound. Whose connection ends without
        an Exit calls this again, with the ``end`` of the last event: it goes on there if the pause failed, or is told.
        """
        connection, _ = processes.heard(
            self._root,
            partial(self._attachable, ref, number, wait=wait),
            lambda init, _: init.attach(number, offset=offset),
        )
        return connection

    def follow(self, ref: str, number: int = 0, *, offset: int = 0, live: bool = True) -> Iterator[SessionEvent]:
        """A session's output from ``offset`` on; ``live``: until it ends, else what there is. Works in every state;
        what a frozen job is still to say is waited for."""
        job = self._root.catalog.job(ref)
        read = session.follow if live else session.read_log
        return read(self._root.io(job.id), number, offset=offset)

    @verb("copy_in", told=False)
    def copy_in(self, ref: str, source: str | BinaryIO, target: str) -> None:
        """Copy a file, a directory or a tar stream into a running job; see `engine.copy` for how names are chosen.

        Paths are strings, for their end counts: ``dir/.`` is the contents of ``dir``. Raises BadPath."""
        from engine.lifecycle import transfer

        transfer.copy_in(self._root, partial(recover.settled, self._root, ref), source, target)

    @verb("copy_out", told=False)
    def copy_out(self, ref: str, source: str, target: str | BinaryIO) -> None:
        """Copy out of a job in any state but frozen, to a path or as a tar stream. No link in the job leads to the
        host."""
        from engine.lifecycle import transfer

        transfer.copy_out(self._root, partial(recover.settled, self._root, ref), source, target)

    def _attachable(self, ref: str, number: int, *, wait: bool) -> Job:
        job = recover.settled(self._root, ref, wait=wait)
        if job.state is JobState.PAUSED:
            again = f"serac attach {job.name}" + (f" {number}" if number else "")
            raise Paused(f"job {job.name} was paused", hint=f"`serac resume {job.name}`, `{again}`")
        require(job, JobState.RUNNING, verb="attach to")
        return job

    def _admitted(self, ref: str) -> Job:
        job = recover.settled(self._root, ref)
        require(job, JobState.RUNNING, verb="exec in")
        return job

    def _session(self, job: Job, spec: SessionSpec) -> SessionSpec:
        return sessions.exec_session(job, self._root.catalog.base(job.base).env, spec)
