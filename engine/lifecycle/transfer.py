"""cp, both ways: a tar stream through a pipe whose other end is a packer or an unpacker in the job's own sandbox.

In a running job that is a session which is lent the pipe itself, so that nothing of the stream passes through init or
a log. Out of a job that doesn't run it is a packer over its chain (`engine.lifecycle.chains`). Nothing is committed
here; a copy that is killed leaves what it had written on the receiving side."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import BinaryIO

from engine import copy
from engine.errors import BadPath, InvalidInput, ProtocolError, SeracError, from_os
from engine.kernel.write import write_all
from engine.lifecycle import chains, processes
from engine.lifecycle.root import Root, require
from engine.model import Job, JobState, SessionSpec
from engine.session import Connection, Exit

_PROBLEM_MAX = 4096
_PIECE = 256 << 10
"""bytes that are read and written at once"""


def copy_in(root: Root, settled: Callable[[], Job], source: str | BinaryIO, target: str) -> None:
    """``settled``: the job when no verb is under way; ``source``: a path of the host, or a tar stream. Raises
    InvalidInput (no such source), BadPath, WrongState (the job doesn't run)."""
    require(settled(), JobState.RUNNING, verb="copy into")
    if isinstance(source, str) and not os.path.lexists(source):
        raise InvalidInput(f"{source}: no such file or directory", hint="the source must exist")
    with _translated(), _worker(root, settled, ("unpack", target), feed=True) as stream:
        if isinstance(source, str):
            copy.pack_host(source, stream)
        else:
            shutil.copyfileobj(source, stream)


def copy_out(root: Root, settled: Callable[[], Job], source: str, target: str | BinaryIO) -> None:
    """``target``: a path of the host, or where a tar stream goes. Raises BadPath, NoSpace."""
    with _translated(), _packed(root, settled, source) as stream:
        if isinstance(target, str):
            copy.unpack_host(stream, target, outward_links=True)
        else:
            while piece := stream.read(_PIECE):
                write_all(target, piece)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A reader that went away is no error of ours: BrokenPipeError goes through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os(error, "copy") from error


@contextlib.contextmanager
def _packed(root: Root, settled: Callable[[], Job], source: str) -> Iterator[BinaryIO]:
    job = settled()
    if job.state is JobState.RUNNING:
        with _worker(root, settled, ("pack", source), feed=False) as stream:
            yield stream
        return
    require(job, JobState.PAUSED, JobState.EXITED, JobState.FAILED, verb="copy from")
    chain = (*job.layers, job.upper) if job.upper else job.layers
    with chains.packed(root, job.base, chain, source) as stream:
        yield stream


@contextlib.contextmanager
def _worker(root: Root, settled: Callable[[], Job], arguments: tuple[str, ...], *, feed: bool) -> Iterator[BinaryIO]:
    """The host's end of the worker's input (``feed``) or output. What went wrong first is what is raised: the other end
    only saw the stream break."""
    with contextlib.ExitStack() as stack:
        ours, theirs = _pipe(stack, feed=feed)
        said, problems = _pipe(stack, feed=False)

        def admitted() -> Job:
            job = settled()
            require(job, JobState.RUNNING, verb="copy into" if feed else "copy from")
            return job

        def start(init: Connection, job: Job) -> None:
            spec = SessionSpec(argv=(processes.recall(root, job).program, *arguments), workdir="/")
            # It gets the one pipe for both: the packer reads nothing, the unpacker says nothing.
            init.start(spec, attach=True, lend=(theirs.fileno(), theirs.fileno(), problems.fileno()))

        connection, _ = processes.heard(root, admitted, start)
        stack.enter_context(connection)
        theirs.close()
        problems.close()
        failure = None
        try:
            yield ours
            ours.close()
        except (SeracError, OSError) as error:
            failure = error
            with contextlib.suppress(BrokenPipeError):
                ours.close()
        _check(connection, said, failure, broken=BrokenPipeError if feed else ProtocolError)


def _check(connection: Connection, said: BinaryIO, failure: Exception | None, *, broken: type[Exception]) -> None:
    """``broken``: how our end sees that the worker's is gone."""
    if failure is not None and not isinstance(failure, broken):
        raise failure
    exits = [event.exit for event in connection.events() if isinstance(event, Exit)]
    if exits != [0]:
        lines = said.read(_PROBLEM_MAX).decode(errors="replace").splitlines()
        raise BadPath(lines[0] if lines else "the copy was killed in the job") from failure
    if failure is not None:
        raise failure


def _pipe(stack: contextlib.ExitStack, *, feed: bool) -> tuple[BinaryIO, BinaryIO]:
    """Our end and theirs."""
    reading, writing = os.pipe()
    reader, writer = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
    for end in (reader, writer):
        stack.callback(_close, end)
    return (writer, reader) if feed else (reader, writer)


def _close(end: BinaryIO) -> None:
    with contextlib.suppress(BrokenPipeError):
        end.close()
