"""What the calls of `engine.hosted` answer."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import SeracError
from engine.model import Job, Value

if TYPE_CHECKING:
    from engine.hosted.session import Session


class Status(enum.StrEnum):
    """A job's state, as hosted sandboxes write it."""

    CREATED = "CREATED"
    """it is being made"""
    RUNNING = "RUNNING"
    FROZEN = "FROZEN"
    """it stands still in memory; only the engine does that"""
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    RESUMING = "RESUMING"
    EXITED = "EXITED"
    """it was stopped"""
    FAILED = "FAILED"
    """its processes were killed, or the host went down: its files are there until it is deleted"""


class Result(Value, frozen=True, kw_only=True):
    success: bool
    request_id: str
    error_code: str | None = None
    """of `engine.errors`"""
    error_message: str = ""
    hint: str = ""
    """what to do about it"""


class SessionResult(Result, frozen=True, kw_only=True):
    session: Session | None = None

    @property
    def status(self) -> Status | None:
        return self.session.status if self.session is not None else None


class ListResult(Result, frozen=True, kw_only=True):
    sessions: tuple[Session, ...] = ()
    """of this page"""
    total_count: int = 0
    """of all pages"""

    @property
    def session_ids(self) -> list[str]:
        return [session.session_id for session in self.sessions]


class ChangeResult(Result, frozen=True, kw_only=True):
    """Of a pause or a resume. ``status`` is the session's when this was answered, None when there is none."""

    status: Status | None = None
    mode: str | None = None
    """of a session that is paused: ``process`` or ``filesystem``, what the pause kept"""
    reason: str | None = None
    """why it didn't keep the processes"""


class Accepted(ChangeResult, frozen=True, kw_only=True):
    """Begun, or done by now. ``await`` gives the outcome."""

    outcome: Callable[[], Awaitable[ChangeResult]]

    def __await__(self) -> Generator[Any, Any, ChangeResult]:
        return self.outcome().__await__()


class DeleteResult(Result, frozen=True, kw_only=True):
    """A session that isn't there is deleted."""


class CommandResult(Result, frozen=True, kw_only=True):
    """``success`` is an exit status of 0. A command that wasn't run, or isn't known to have ended, has no
    ``exit_code``; one that a signal ended has 128 + the signal. Of what was printed the last `OUTPUT_MAX` bytes of both
    streams together are kept."""

    exit_code: int | None = None
    truncated: bool = False
    """whether there was more"""
    output_bytes: bytes = b""
    """both streams, in the order in which it came"""
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""

    @property
    def output(self) -> str:
        """As text; what is no UTF-8 becomes U+FFFD."""
        return self.output_bytes.decode(errors="replace")

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")


_Result = TypeVar("_Result", bound=Result)


def failed(kind: type[_Result], request: str, error: SeracError, **fields: object) -> _Result:
    return kind(
        success=False,
        request_id=request,
        error_code=error.code,
        error_message=str(error),
        hint=error.hint,
        **fields,
    )


def status_of(job: Job) -> Status:
    return Status[job.state.name]
