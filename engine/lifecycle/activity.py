"""What a job does, seen from outside. All of it is read from the host's files: to look neither wakes the job nor is a
connection to its init, so that it can't be taken for something that the job does."""

from __future__ import annotations

import contextlib
import os

from engine import cgroup, session
from engine.errors import ProtocolError
from engine.kernel import procfs
from engine.launch import IO_INSIDE
from engine.lifecycle import processes
from engine.lifecycle.root import Root
from engine.model import Job, Value
from engine.session import Lease, RawQuestion, Trace

SOCKET = f"{IO_INSIDE}/init.sock"


class Activity(Value, frozen=True, kw_only=True):
    """A live job at one moment."""

    cpu: float
    """seconds that its processes have used since they were begun or brought back"""
    trace: Trace
    """of what its sessions wrote"""
    clients: int
    """connections to its init from outside: attached terminals, ``logs -f`` and the like. With ``--net host`` those
    from inside can't be told apart, and count too"""
    question: RawQuestion | None = None
    """what it asks for, to be paused"""
    asked: tuple[int, int] | None = None
    """what that question is known by from any other"""
    lease: Lease | None = None
    """that keeps it awake"""


def look(root: Root, job: Job) -> Activity:
    """The job can write its io directory: what is no question or lease there is none. Raises WrongState when it has
    ended, ProtocolError when it has put too much there."""
    io = root.io(job.id)
    question, asked = _question(root, job)
    lease = None
    with contextlib.suppress(ProtocolError):
        lease = session.lease(io)
    return Activity(
        cpu=cgroup.cpu_seconds(root.group_of(job)),
        trace=session.trace(io),
        clients=_clients(root, job),
        question=question,
        asked=asked,
        lease=lease,
    )


def _question(root: Root, job: Job) -> tuple[RawQuestion | None, tuple[int, int] | None]:
    io = root.io(job.id)
    try:
        status = os.lstat(io / "ask")
        question = session.raw_question(io)
    except (FileNotFoundError, ProtocolError):
        return None, None
    return question, (status.st_ino, status.st_mtime_ns) if question is not None else None


def _clients(root: Root, job: Job) -> int:
    """A connection is held by init, or by the holder of the terminal that it shows, which is the same program."""
    init = processes.recall(root, job).pid
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the job ends: the next look tells
        program = procfs.program(init)
        for pid in cgroup.pids(root.group_of(job)):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if pid == init or procfs.program(pid) == program:
                    found |= _from_outside(job, pid)
    return len(found)


def _from_outside(job: Job, pid: int) -> set[int]:
    """The sockets of a process that are of another network namespace, as one is that is accepted from there. In the
    host's all are of the same."""
    held = _sockets(pid)
    if job.spec.net == "host":
        return held & procfs.accepted_sockets(pid, SOCKET)
    return held - procfs.unix_sockets(pid)


def _sockets(pid: int) -> set[int]:
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it is closed just now
            link = os.readlink(procfs.descriptor(pid, int(number)))
            if link.startswith("socket:["):
                found.add(int(link[8:-1]))
    return found
