"""abandoned: what a criu that was killed in the middle of a dump leaves in a job; a part of `engine.lifecycle.dump`.

The kernel lets the processes go when their tracer dies, and criu's own code in one of them ends with criu's socket.
What stays as it was then: TCP connections in repair mode, in which every read and write fails with EPERM; and one more
name for files whose own is gone (``link_remap.N``).

A process may have met such a failure before the engine came, for they run again at once; and one that is killed in the
microseconds in which criu puts its code into it, or takes it out, may be lost. After criu's ``post-dump`` neither can
happen: the engine freezes the job again there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from engine import cgroup
from engine.kernel import process, procfs
from engine.lifecycle import processes
from engine.lifecycle.root import Root
from engine.model import Job

_TCP_REPAIR = 19
"""of linux/tcp.h"""
_GONE = " (deleted)"
"""what proc_pid_fd(5) has after a name that is gone"""


def mend(root: Root, job: Job) -> None:
    """Put the processes right, and leave them frozen. Raises SeracError when the job has ended."""
    group = root.group_of(job)
    cgroup.freeze(group, timeout=root.timeout)
    init = processes.recall(root, job).pid
    for pid in cgroup.pids(group):
        with contextlib.suppress(OSError):  # a zombie has none of this
            links = procfs.descriptors(pid)
            _leave_repair(pid, [number for number, link in links.items() if link.startswith("socket:")])
            for number, link in links.items():
                if link.startswith("/") and link.endswith(_GONE):
                    _take_name(init, os.stat(procfs.descriptor(pid, number)), link.removesuffix(_GONE))


def _leave_repair(pid: int, numbers: list[int]) -> None:
    with process.opened(pid) as pidfd:
        for number in numbers:
            # Only connections can be in that mode: to a socket of another kind the option means nothing, or is denied.
            with (
                socket.socket(fileno=process.descriptor(pidfd, number)) as connection,
                contextlib.suppress(OSError),
            ):
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)


def _take_name(init: int, file: os.stat_result, name: str) -> None:
    """Remove what criu has linked where the file was, or further up if that directory is gone too."""
    parts = name.strip("/").split("/")[:-1]
    for depth in range(len(parts), -1, -1) if file.st_nlink else ():
        with contextlib.suppress(OSError), process.inside(init, *parts[:depth]) as directory:
            for entry in _links(directory):
                status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
                if (status.st_dev, status.st_ino) == (file.st_dev, file.st_ino):
                    os.unlink(entry, dir_fd=directory)


def _links(directory: int) -> Iterator[str]:
    yield from (name for name in os.listdir(directory) if name.startswith("link_remap."))
