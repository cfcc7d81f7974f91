"""Reading a chain that no job runs on: a packer in a sandbox of its own over it, as a job would see it.

So no link in the chain leads to the host, and the chain stays as it is meanwhile (`engine.lifecycle.run.reader`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from engine import launch
from engine.errors import BadPath, SeracError
from engine.lifecycle import mounting, processes, run
from engine.lifecycle.root import Root
from engine.model import Job

_PROBLEM_MAX = 4096


@contextlib.contextmanager
def packed(root: Root, base: str, chain: tuple[str, ...], path: str) -> Iterator[BinaryIO]:
    """A tar stream of ``path`` on a chain, in the host's ids. What went wrong in the packer is what is raised."""
    with run.reader(root, base, chain) as job, contextlib.ExitStack() as stack:
        problems = stack.enter_context(open(root.jobs / job.id / "problems", "w+b", buffering=0))
        reading, writing = os.pipe()
        stream = stack.enter_context(os.fdopen(reading, "rb"))
        with os.fdopen(writing, "wb") as output:
            _launch(root, job, path, output.fileno(), problems.fileno())
        failure = None
        try:
            yield stream
        except SeracError as error:
            failure = error
        problems.seek(0)
        said = problems.read(_PROBLEM_MAX).decode(errors="replace").splitlines()
        if said:
            raise BadPath(said[0]) from failure
        if failure is not None:
            raise failure


def _launch(root: Root, job: Job, path: str, stdout: int, stderr: int) -> None:
    birth = processes.job_birth(job, processes.place(root, job))
    arguments = ("pack", "--one-file-system", path)
    birth = msgspec.structs.replace(birth, args=arguments, stdout=stdout, stderr=stderr)
    with launch.JobSlot(birth, descriptors=[stdout, stderr]) as slot:
        chain = root.catalog.chain(job.layers)
        mounting.mount_chain(root, job.base, chain)
        view = processes.job_view(root, job, processes.view(root, job, chain))
        slot.launch(msgspec.structs.replace(view, writes=(), listen=None), timeout=root.timeout)
