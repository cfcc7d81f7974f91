"""What a job's init refuses, and the error of ours that it is."""

from __future__ import annotations

import errno

from engine.errors import (
    BadPath,
    Busy,
    CommandNotExecutable,
    CommandNotFound,
    InvalidInput,
    LaunchFailed,
    NoSpace,
    NotFound,
    ProtocolError,
    SeracError,
    WrongState,
)
from engine.model import SessionSpec
from engine.session.protocol import Message, error_text


class Refused(Exception):
    """An M_ERROR: ``errno`` and ``what`` failed."""

    def __init__(self, message: Message) -> None:
        self.errno = message.offset
        self.what = message.payload[:200].decode("ascii", "replace")
        super().__init__(f"{self.what}: {error_text(self.errno)}")


def start_error(refusal: Refused, spec: SessionSpec) -> SeracError:
    command = spec.argv[0] if spec.argv else "/bin/sh"
    if refusal.what == "exec" and refusal.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(f"no such command in the job: {command}")
    if refusal.what == "exec":
        return CommandNotExecutable(f"{command} can't be executed: {error_text(refusal.errno)}")
    if refusal.what == "cwd":
        return BadPath(f"can't work in {spec.workdir} of the job: {error_text(refusal.errno)}")
    if refusal.what == "spec":
        return InvalidInput(f"the job's init can't start that: {error_text(refusal.errno)}")
    return error_of(refusal)


def error_of(refusal: Refused) -> SeracError:
    what, number = refusal.what, refusal.errno
    if (what, number) in (("session", errno.ESRCH), ("signal", errno.ESRCH)):
        return NotFound("no such session runs in the job")
    if (what, number) == ("ask", errno.ENOENT):
        return NotFound("nobody in the job waits for an answer")
    if what in ("sessions", "connections", "input", "fork") and number in (errno.EAGAIN, errno.EBUSY):
        return Busy(f"the job's init can't take more: {refusal}", hint="try again when other sessions have ended")
    if what in ("job", "id", "terminal"):
        return WrongState(f"the job's init refused: {refusal}")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the job's init has no room: {refusal}")
    if number in errno.errorcode:
        return LaunchFailed(what, number, "")
    return ProtocolError(f"init reported an error that there isn't: {number}")
