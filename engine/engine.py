"""The public verbs. Thin: an `Engine` finds and locks the job, mends what a crash left of it, and calls the verb's
module in `engine.lifecycle`, whose docstring tells the verb's steps, its commit point and its crash table.

Any number of engines, in threads and processes, may work on one root at the same time. A verb that was interrupted
can always be called again. References to jobs are names, ids or unambiguous beginnings of ids, of four characters or
more; to snapshots ids or beginnings; to bases names, digests or beginnings.

What only some verbs need (building bases, copying, the doctor) is imported by them: the command's start counts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from engine import launch, network, session
from engine.config import Config
from engine.errors import Busy, Paused, SeracError, Timeout, ToolMissing, WrongState
from engine.lifecycle import pause, processes, recover, remove, resume, run, sessions, stop
from engine.lifecycle.root import Root, require
from engine.model import (
    ENDED,
    Archiving,
    Base,
    Finding,
    ForkResult,
    Job,
    JobSpec,
    JobState,
    Memory,
    Mode,
    PauseResult,
    ResumeResult,
    SessionSpec,
    SessionStatus,
    SnapshotSource,
    Warmth,
)
from engine.session import Connection, SessionEvent
from engine.snapshots import Snapshots

if TYPE_CHECKING:
    from engine.base import Source
    from engine.lifecycle.archiving import Progress
    from engine.lifecycle.bases import Progress as BaseProgress

_GLANCE = 0.2
"""seconds between two looks at a job that is to run again"""
_LOOK = 1.0
"""seconds between two looks at a job that is waited for"""


class Engine(Snapshots):
    """One root on this host. ``timeout`` (seconds) bounds each wait of a verb: for a lock, a freeze, a launch, a kill.

    Opening makes the root if it is new, and puts right what a crash or a reboot left. Raises NotPrivileged, BadRoot,
    HostLacks, InvalidInput (a bad config.json) or Damaged."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, timeout: float = 60.0) -> None:
        self.config = Config.load(root)
        self._root = Root(self.config, timeout=timeout)
        recover.recover(self._root)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engine's descriptors; jobs run on."""
        self._root.close()

    @staticmethod
    def doctor(root: str | os.PathLike[str] | None = None) -> list[Finding]:
        """What this host can do for serac, with a remedy for what is missing. Needs no root rights, opens nothing."""
        try:
            program: Path | None = launch.program("serac-launch")
        except ToolMissing:
            program = None
        from engine import doctor

        return [*doctor.examine(Config.load(root), launch=program), _forwarding()]

    # bases

    def base_build(self, name: str, source: Source | SnapshotSource, *, progress: BaseProgress | None = None) -> Base:
        """Build a base and let ``name`` (a tag, moved if it is there) mean it. Raises InvalidInput, ToolMissing,
        ToolFailed, NotFound, NoSpace; a build that fails leaves nothing."""
        from engine.lifecycle import bases

        return bases.build(self._root, name, source, progress=progress)

    def bases(self) -> list[Base]:
        return sorted(self._root.catalog.bases(), key=lambda base: base.created)

    def base(self, ref: str) -> Base:
        return self._root.catalog.base(ref)

    def base_warm(self, ref: str) -> Warmth:
        """Bring a base into the page cache."""
        from engine.lifecycle import bases

        return bases.warm(self._root, ref)

    def base_remove(self, ref: str) -> None:
        """Remove a name; with the last one the base. Raises InUse while a job or snapshot needs it."""
        from engine.lifecycle import bases

        bases.remove(self._root, ref)

    # jobs

    def run(self, spec: JobSpec, *, terminal: tuple[int, int] | None = None) -> Job:
        """Start a job and return when its command was executed. ``terminal`` (rows, columns) is the size that a
        ``tty`` job begins with. Raises NotFound (base), NameTaken, InvalidInput, CommandNotFound, LaunchFailed ...;
        then there is no job."""
        return run.run(self._root, spec, terminal=terminal)

    def jobs(self, *, ended: bool = False) -> list[Job]:
        """Jobs by age; without ``ended`` only those that run or can go on.

        A job that is being made, or that only reads a chain for a copy, is ``created`` and none of these."""
        found = [recover.look(self._root, job) for job in self._root.catalog.jobs()]
        return sorted(
            (job for job in found if ended or job.state not in {JobState.CREATED, *ENDED}), key=lambda job: job.created
        )

    def job(self, ref: str) -> Job:
        return recover.look(self._root, self._root.catalog.job(ref))

    def wait(self, ref: str, *, timeout: float | None = None) -> Job:
        """Wait until a job has ended or is paused. Raises Timeout; None = wait for ever."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (job := self.job(ref)).state not in {JobState.PAUSED, *ENDED}:
            left = _LOOK if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"job {job.name} is still {job.state}")
            # Not for ever: the engine that had frozen it may have died.
            if processes.wait_init(self._root, job, timeout=min(left, _LOOK)):
                with recover.taken(self._root, job.id):
                    pass  # whoever ended or paused it holds the lock until it is done
        return job

    def stop(self, ref: str, *, grace: float | None = None) -> Job:
        """TERM, then after ``grace`` seconds KILL. Does nothing to a job that has ended."""
        with recover.taken(self._root, ref) as job:
            return stop.stop(self._root, job, grace=grace)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove a paused or ended job (``force``: any) with its upper, logs and the snapshot it is paused to."""
        # By force even a job that can't be mended.
        with self._root.locked(ref) if force else recover.taken(self._root, ref) as job:
            remove.remove(self._root, job, force=force)

    def freeze(self, ref: str) -> Job:
        with recover.taken(self._root, ref) as job:
            return stop.freeze(self._root, job)

    def thaw(self, ref: str) -> Job:
        with recover.taken(self._root, ref) as job:
            return stop.thaw(self._root, job)

    # sessions

    def sessions(self, ref: str) -> list[SessionStatus]:
        """Every session that the job has or had since it began."""
        job = self._root.catalog.job(ref)
        return [status for _, status in sorted(session.statuses(self._root.io(job.id)).items())]

    def start(self, ref: str, spec: SessionSpec) -> SessionStatus:
        """Start a session that nobody is attached to; it comes back after a pause if it lives then."""
        job, complete = self._session(ref, msgspec.structs.replace(spec, keep=True))
        with processes.connected(self._root, job.id) as connection:
            return connection.start(complete)

    def exec(self, ref: str, spec: SessionSpec, *, stdin: bool = False) -> Connection:
        """Start a session and stay attached. Raises WrongState, CommandNotFound, CommandNotExecutable, BadPath."""
        job, complete = self._session(ref, spec)
        connection = session.connect(self._root.io(job.id), timeout=self._root.timeout)
        try:
            connection.start(complete, attach=True, stdin=stdin)
        except BaseException:
            connection.close()
            raise
        return connection

    def attach(self, ref: str, number: int = 0, *, offset: int = session.TAIL, wait: bool = False) -> Connection:
        """Attach to a session that runs, beginning with the tail of its output or at an ``offset`` of its log.

        A pause or resume that is under way is waited for; with ``wait``, for as long as it takes, the resume of a
        paused job and the thaw of a frozen one too. Raises Paused, WrongState, NotFound. Whose connection ends without
        an Exit calls this again, with the ``end`` of the last event: it goes on there if the pause failed, or is told.
        """
        for _ in range(2):
            with contextlib.suppress(WrongState):  # a pause may come between a look at the state and the connection
                return self._attached(self._attachable(ref, number, wait=wait), number, offset)
        return self._attached(self._attachable(ref, number, wait=wait), number, offset)

    def follow(self, ref: str, number: int = 0, *, offset: int = 0, live: bool = True) -> Iterator[SessionEvent]:
        """A session's output from ``offset`` on; ``live``: until it ends, else what there is. Works in every state."""
        job = self._root.catalog.job(ref)
        read = session.follow if live else session.read_log
        return read(self._root.io(job.id), number, offset=offset)

    def copy_in(self, ref: str, source: str | BinaryIO, target: str) -> None:
        """Copy a file, a directory or a tar stream into a running job; see `engine.copy` for how names are chosen.

        Paths are strings, for their end counts: ``dir/.`` is the contents of ``dir``. Raises BadPath."""
        from engine.lifecycle import transfer

        transfer.copy_in(self._root, self.job(ref), source, target)

    def copy_out(self, ref: str, source: str, target: str | BinaryIO) -> None:
        """Copy out of a job in any state but frozen, to a path or as a tar stream. No link in the job leads to the
        host."""
        from engine.lifecycle import transfer

        transfer.copy_out(self._root, self.job(ref), source, target)

    def _attachable(self, ref: str, number: int, *, wait: bool) -> Job:
        job = self._settled(ref, wait=wait)
        if job.state is JobState.PAUSED:
            again = f"serac attach {job.name}" + (f" {number}" if number else "")
            raise Paused(f"job {job.name} was paused", hint=f"`serac resume {job.name}`, `{again}`")
        require(job, JobState.RUNNING, verb="attach to")
        return job

    def _attached(self, job: Job, number: int, offset: int) -> Connection:
        connection = session.connect(self._root.io(job.id), timeout=self._root.timeout)
        try:
            connection.attach(number, offset=offset)
        except BaseException:
            connection.close()
            raise
        return connection

    def _settled(self, ref: str, *, wait: bool) -> Job:
        """The job when nobody pauses or resumes it any more; ``wait``: when it runs, or has ended."""
        passing = {JobState.PAUSING, JobState.RESUMING}
        while (job := self.job(ref)).state in passing | ({JobState.PAUSED, JobState.FROZEN} if wait else set()):
            if job.state not in passing:
                time.sleep(_GLANCE)
                continue
            with contextlib.suppress(*((Busy,) if wait else ())), recover.taken(self._root, job.id):
                pass  # whoever works on it holds the lock until it is done
        return job

    def _session(self, ref: str, spec: SessionSpec) -> tuple[Job, SessionSpec]:
        job = self.job(ref)
        require(job, JobState.RUNNING, verb="exec in")
        return job, sessions.exec_session(job, self._root.catalog.base(job.base).env, spec)

    # pause and resume

    def pause(
        self,
        ref: str,
        *,
        mode: Mode = "auto",
        labels: Mapping[str, str] | None = None,
        state: Any | msgspec.UnsetType = msgspec.UNSET,
        archive: Archiving | None = None,
        progress: Progress | None = None,
        request: str | None = None,
    ) -> PauseResult:
        """Make a snapshot of a running or frozen job and give its compute back. ``state`` replaces the job's own JSON
        value. A pause that fails leaves the job as it was.

        ``mode`` ``process``: the processes are kept, or CannotCheckpoint is raised; ``filesystem``: they are not;
        ``auto``: they are if it can be done, else the result has the reason.

        ``archive`` (default: as config.json has it): ``background``: a process of low priority makes images of the
        snapshot, so that it can leave the host; ``wait``: that is done before this returns, with ``progress``, and
        what it raises doesn't undo the pause; ``never``: `snapshot_archive` does it when it is called.

        ``request``: an id of the caller's for this call. Once it was carried out, the same one raises Repeated."""
        how = self._archiving(archive)
        with recover.taken(self._root, ref) as job:
            result = pause.pause(
                self._root, job, mode=mode, labels=labels or {}, state=state, archive=how, request=request
            )
        return self._archived(result, how, progress)

    def resume(
        self,
        ref: str,
        *,
        mode: Mode = "auto",
        workdir: str | None = None,
        keep_tcp: bool = False,
        memory: Memory = "auto",
        request: str | None = None,
    ) -> ResumeResult:
        """Let a paused job go on, with its processes (``process``), started again from its files (``filesystem``), or
        with what the snapshot has. A resume that fails leaves it paused. Raises CannotRestore, InvalidInput ...

        ``workdir``: where its command starts from now on, if not where it began (that directory may be gone).
        ``keep_tcp``: don't close its connections to the outside; those within the job are always kept.
        ``memory``: ``lazy`` lets processes run before their memory is there, ``eager`` brings it back first, ``auto``
        chooses by size; the result says which. A job whose memory never came is ``failed`` and can be resumed again.
        ``request``: as with `pause`."""
        with recover.taken(self._root, ref) as job:
            return resume.resume(
                self._root, job, mode=mode, workdir=workdir, keep_tcp=keep_tcp, memory=memory, request=request
            )

    def fork(
        self,
        ref: str,
        *,
        name: str | None = None,
        mode: Mode = "auto",
        env: Mapping[str, str] | None = None,
        keep_tcp: bool = False,
        memory: Memory = "auto",
    ) -> ForkResult:
        """Resume a snapshot as a new job; the snapshot stays, and so does the job that it came from. ``env`` is added
        to the environment of the sessions that are started in it; all else as with `resume`."""
        snapshot = self._root.catalog.snapshot(ref)
        return run.fork(self._root, snapshot, name=name, mode=mode, env=env or {}, keep_tcp=keep_tcp, memory=memory)


def _forwarding() -> Finding:
    """Whether the packets of ``--net bridge`` jobs get through this host."""
    remedy = "let the interfaces sr* through in that chain"
    try:
        blocked = ", ".join(network.obstacles())
    except SeracError as error:
        blocked, remedy = str(error), error.hint
    detail = blocked or "no other program's nftables rules drop it"
    return Finding(name="forwarding", ok=not blocked, detail=detail, remedy=remedy, required=False)
