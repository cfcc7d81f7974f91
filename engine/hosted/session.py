"""A session, as one looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import SeracError
from engine.hosted import arguments, command, sessions
from engine.hosted.results import ChangeResult, CommandResult, DeleteResult, Status, failed, status_of
from engine.model import Job, SessionSpec

if TYPE_CHECKING:
    from engine.hosted.sandboxes import Sandboxes


@dataclass(frozen=True, kw_only=True)
class Session:
    """As it was at the look; `Sandboxes.get_session` looks again. Its calls are those of `Sandboxes`."""

    session_id: str
    image: str
    labels: dict[str, str]
    status: Status
    created: float
    """seconds since the epoch"""
    sandboxes: Sandboxes = field(repr=False, compare=False)

    @classmethod
    def of(cls, job: Job, sandboxes: Sandboxes) -> Session:
        return cls(
            session_id=job.id,
            image=job.spec.base,
            labels={key: value for key, value in job.spec.labels.items() if key != sessions.LABEL},
            status=status_of(job),
            created=job.created,
            sandboxes=sandboxes,
        )

    @property
    def command(self) -> Command:
        return Command(self)

    def pause(
        self, timeout: float = 300.0, poll_interval: float = 5.0, *, request_id: str | None = None
    ) -> ChangeResult:
        return self.sandboxes.pause(self, timeout, poll_interval, request_id=request_id)

    def resume(
        self, timeout: float = 300.0, poll_interval: float = 5.0, *, request_id: str | None = None
    ) -> ChangeResult:
        return self.sandboxes.resume(self, timeout, poll_interval, request_id=request_id)

    def delete(self) -> DeleteResult:
        return self.sandboxes.delete(self)


class Command:
    """``session.command``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def execute_command(
        self,
        line: str,
        timeout: float = 60.0,
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> CommandResult:
        """Run a line of /bin/sh as the session's root and wait for its end. ``cwd``: default the session's directory.

        What takes more than ``timeout`` seconds is killed, with what it started: its process group, and all that has
        its environment. A command that outlives the call (the caller was killed, the session was paused with its
        processes) is found again by its ``request_id``: the same call reads it from its first byte on and waits for its
        end. A pause that keeps the files alone ends it, and the same call then runs it anew."""
        argv = ("/bin/sh", "-c", "--", arguments.text(line, "command"))
        spec = SessionSpec(argv=argv, workdir=arguments.text(cwd, "cwd"), env=arguments.texts(env, "env"))
        waiting, request = arguments.wait(timeout, timeout), arguments.request(request_id)
        engine = self._session.sandboxes.engine
        try:
            arguments.check(request, waiting)
            job = sessions.job_of(engine, self._session.session_id)
        except SeracError as error:
            return failed(CommandResult, request, error)
        return command.execute(engine, job.id, spec, request=request, named=request_id is not None, timeout=timeout)
