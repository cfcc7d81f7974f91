"""Every error that serac raises on purpose.

One class is one kind of failure: it has one ``code`` (stable, for programs), one exit status of the command and one
``hint`` (what to do about it, in a sentence). A raise may give a better hint than its class has. Statuses lie above
199, so that they are never taken for the status of a command that ``run`` or ``exec`` passed on.
"""

from __future__ import annotations

import contextlib
import errno as _errno
import os
from collections.abc import Iterator
from typing import ClassVar


class SeracError(Exception):
    """The root of all. ``str(error)`` is one line that says what went wrong; ``error.hint`` says what to do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 219
    default_hint: ClassVar[str] = "run `serac doctor`"

    def __init__(self, message: str, *, hint: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint
        self.reason = reason
        """of a checkpoint or restore that can't be: a key of `engine.checkpoint.REASONS`"""


class InvalidInput(SeracError):
    code, status, default_hint = "invalid-input", 200, "see `serac VERB --help`"


class NotFound(SeracError):
    code, status, default_hint = (
        "not-found",
        201,
        "`serac ps --all`, `serac snapshot ls` and `serac base ls` list what there is",
    )


class NameTaken(SeracError):
    code, status, default_hint = "name-taken", 202, "choose another name, or remove what has it"


class WrongState(SeracError):
    code, status, default_hint = "wrong-state", 203, "`serac show JOB` says what state it is in"


class Paused(WrongState):
    """The job was paused, and a caller that was attached to it or wants to be has to wait for its resume."""

    code, status, default_hint = "paused", 220, "`serac resume JOB`, then attach again"


class Repeated(SeracError):
    """The same request was carried out before: nothing was done now."""

    code, status, default_hint = "repeated", 221, "nothing: it is done; a new request needs an id of its own"


class LimitReached(SeracError):
    code, status, default_hint = "limit-reached", 222, "delete a session, or raise `sessions` in config.json"


class InUse(SeracError):
    code, status, default_hint = "in-use", 204, "remove what uses it first"


class Busy(SeracError):
    code, status, default_hint = "busy", 205, "another engine works on it; try again, or raise --timeout"


class Timeout(SeracError):
    code, status, default_hint = "timeout", 206, "the verb can be called again; raise --timeout"


class NotPrivileged(SeracError):
    code, status, default_hint = "not-privileged", 207, "run it as root"


class HostLacks(SeracError):
    """The kernel or the machine doesn't offer what is needed; the hint is the remedy."""

    code, status, default_hint = "host-lacks", 208, "run `serac doctor`"


class ToolMissing(SeracError):
    code, status, default_hint = "tool-missing", 209, "run scripts/setup, or install it"


class ToolFailed(SeracError):
    """A program that serac drives failed; the message has its last telling lines."""

    code, status, default_hint = "tool-failed", 210, "its own message says why"


class BadRoot(SeracError):
    """The root directory can't be used: its filesystem can't hold an upper, or it is not a serac root."""

    code, status, default_hint = "bad-root", 211, "choose a --root on ext4, xfs or btrfs"


class LaunchFailed(SeracError):
    """A step of serac-launch failed. ``step``, ``errno`` and ``path`` are what it reported."""

    code, status, default_hint = "launch-failed", 212, "run `serac doctor`"

    def __init__(self, step: str, errno: int, path: str, *, hint: str | None = None) -> None:
        self.step, self.errno, self.path = step, errno, path
        where = f" ({path})" if path else ""
        super().__init__(f"launch failed at {step}: {os.strerror(errno)}{where}", hint=hint)


class NoSpace(SeracError):
    code, status, default_hint = "no-space", 213, "free some space: `serac rm`, `serac snapshot rm`, `serac base rm`"


class Damaged(SeracError):
    """Bytes on disk aren't what they must be. Nothing was changed."""

    code, status, default_hint = "damaged", 214, "build or import it again"


class ProtocolError(SeracError):
    """A job's init sent what the protocol doesn't allow, or went away in the middle."""

    code, status, default_hint = "protocol", 215, "the job's init was tampered with or killed; `serac stop JOB`"


class BadPath(SeracError):
    """A path in a job that doesn't exist, is of the wrong type or leads out of the job's root."""

    code, status, default_hint = "bad-path", 216, "paths in a job are JOB:/absolute/path"


class CommandNotFound(SeracError):
    code, status, default_hint = "command-not-found", 127, "is it installed in the base?"


class CommandNotExecutable(SeracError):
    code, status, default_hint = "command-not-executable", 126, "is it executable, and for this machine?"


class CannotCheckpoint(SeracError):
    """The job's processes can't be written to disk now; the job runs on."""

    code, status, default_hint = "cannot-checkpoint", 217, "use --mode filesystem or auto"


class CannotRestore(SeracError):
    """The processes of a snapshot can't be brought back here or now; the snapshot stays."""

    code, status, default_hint = "cannot-restore", 218, "--mode filesystem starts it again from its files"


def outcome(error: BaseException | None) -> str:
    """How something ended, in a word for programs: ``ok``, the error's code, or the name of what is none of ours."""
    if error is None:
        return "ok"
    return error.code if isinstance(error, SeracError) else type(error).__name__


def from_os(error: OSError, doing: str) -> SeracError:
    """Translate an OSError at a module's border: ``raise from_os(e, "seal layer") from e``."""
    where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    message = f"{doing}: {error.strerror}{where}"
    if error.errno in (_errno.ENOSPC, _errno.EDQUOT):
        return NoSpace(message)
    if error.errno in (_errno.EPERM, _errno.EACCES):
        return NotPrivileged(message)
    if error.errno == _errno.EROFS:
        return BadRoot(message, hint="the root directory must be writable")
    return SeracError(message)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """What the system refuses a verb, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise from_os(error, doing) from error
