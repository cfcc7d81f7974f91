"""The public verbs. Thin: an `Engine` finds and locks the job, mends what a crash left of it, and calls the verb's
module in `engine.lifecycle`, whose docstring tells the verb's steps, its commit point and its crash table.

Any number of engines, in threads and processes, may work on one root at the same time. A verb that was interrupted
can always be called again. References to jobs are names, ids or unambiguous beginnings of ids, of four characters or
more; to snapshots ids or beginnings; to bases names, digests or beginnings.

What only some verbs need (building bases, copying, the doctor) is imported by them: the command's start counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from engine import journal, launch, network
from engine.attaching import Attaching
from engine.config import Config
from engine.errors import SeracError, ToolMissing, translated
from engine.lifecycle import ahead, pause, recover, remove, resume, run, stop
from engine.lifecycle.root import Root
from engine.model import (
    ENDED,
    Archiving,
    Base,
    Check,
    Durability,
    Finding,
    ForkResult,
    Job,
    JobSpec,
    JobState,
    Memory,
    Mode,
    PauseResult,
    Pool,
    Prefetch,
    Profile,
    ResumeResult,
    SnapshotSource,
    Warmth,
)
from engine.questions import Questions
from engine.snapshots import Snapshots
from engine.verbs import verb
from engine.watching import Watching

if TYPE_CHECKING:
    from engine.base import Source
    from engine.lifecycle.archiving import Progress
    from engine.lifecycle.bases import Progress as BaseProgress


class Engine(Attaching, Snapshots, Questions, Watching):
    """One root on this host. ``timeout`` (seconds) bounds each wait of a verb: for a lock, a freeze, a launch, a kill.

    ``pool``: what it keeps ready for new jobs until it is closed.

    Opening makes the root if it is new, and puts right what a crash or a reboot left. Raises NotPrivileged, BadRoot,
    HostLacks, InvalidInput (a bad config.json) or Damaged."""

    def __init__(
        self, root: str | os.PathLike[str] | None = None, *, timeout: float = 60.0, pool: Pool | None = None
    ) -> None:
        self.config = Config.load(root)
        self._pool = pool
        self._root = Root(self.config, timeout=timeout)
        recover.recover(self._root)
        self._fill_pool()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engine's descriptors, and what it kept ready; jobs run on."""
        ahead.close(self._root)
        self._root.close()

    def _fill_pool(self) -> None:
        if self._pool is not None:
            ahead.fill(self._root, self._pool)

    @staticmethod
    def doctor(root: str | os.PathLike[str] | None = None) -> list[Finding]:
        """What this host can do for serac, with a remedy for what is missing. Needs no root rights, opens nothing."""
        try:
            program: Path | None = launch.program("serac-launch")
        except ToolMissing:
            program = None
        from engine import doctor

        return [*doctor.examine(Config.load(root), launch=program), _forwarding()]

    @staticmethod
    def check(root: str | os.PathLike[str] | None = None, *, repair: bool = False, timeout: float = 60.0) -> Check:
        """Whether all of a root is as it must be; every violation by name. Opens no engine, and changes nothing,
        unless ``repair``: then what can be put right without losing anything is, a lost catalog among it. Raises
        NotPrivileged, BadRoot, and with ``repair`` Busy while a verb is at work."""
        from engine.lifecycle import check

        return check.check(Config.load(root), timeout=timeout, repair=repair)

    # bases

    @verb("base.build")
    def base_build(self, name: str, source: Source | SnapshotSource, *, progress: BaseProgress | None = None) -> Base:
        """Build a base and let ``name`` (a tag, moved if it is there) mean it. Raises InvalidInput, ToolMissing,
        ToolFailed, NotFound, NoSpace; a build that fails leaves nothing."""
        from engine.lifecycle import bases

        with translated("build base"):
            return bases.build(self._root, name, source, progress=progress)

    def bases(self) -> list[Base]:
        return sorted(self._root.catalog.bases(), key=lambda base: base.created)

    def base(self, ref: str) -> Base:
        return self._root.catalog.base(ref)

    @verb("base.warm", told=False)
    def base_warm(self, ref: str, *, whole: bool = False) -> Warmth:
        """Bring into the page cache what `base_profile` has noted of a base, or without a profile, and with ``whole``,
        all of it."""
        from engine.lifecycle import bases

        return bases.warm(self._root, ref, whole=whole)

    @verb("base.profile")
    def base_profile(self, spec: JobSpec) -> Profile:
        """Run a job on its base, of which nothing is in memory then, and note what it reads: the base's profile from
        now on. Raises InUse while another job is on the base, ToolFailed when its status isn't 0; what `run` raises."""
        from engine.lifecycle import bases

        return bases.record(self._root, spec)

    @verb("base.remove")
    def base_remove(self, ref: str) -> None:
        """Remove a name; with the last one the base. Raises InUse while a job or snapshot needs it."""
        from engine.lifecycle import bases

        with translated("remove base"):
            bases.remove(self._root, ref)

    # jobs

    @verb("run")
    def run(self, spec: JobSpec, *, terminal: tuple[int, int] | None = None) -> Job:
        """Start a job and return when its command was executed. ``terminal`` (rows, columns) is the size that a
        ``tty`` job begins with. Raises NotFound (base), NameTaken, InvalidInput, CommandNotFound, LaunchFailed ...;
        then there is no job."""
        with translated("run job"):
            job = run.run(self._root, spec, terminal=terminal)
        self._fill_pool()
        return job

    def jobs(self, *, ended: bool = False) -> list[Job]:
        """Jobs by age; without ``ended`` only those that run or can go on.

        A job that is being made, or that only reads a chain for a copy, is ``created`` and none of these."""
        found = [recover.look(self._root, job) for job in self._root.catalog.jobs()]
        return sorted(
            (job for job in found if ended or job.state not in {JobState.CREATED, *ENDED}), key=lambda job: job.created
        )

    def job(self, ref: str) -> Job:
        return recover.seen(self._root, ref)

    @verb("stop")
    def stop(self, ref: str, *, grace: float | None = None) -> Job:
        """TERM, then after ``grace`` seconds KILL. Does nothing to a job that has ended."""
        with recover.taken(self._root, ref) as job:
            return stop.stop(self._root, job, grace=grace)

    @verb("remove")
    def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove a paused or ended job (``force``: any) with its upper, logs and the snapshot it is paused to."""
        # By force even a job that can't be mended.
        with translated("remove job"), self._root.locked(ref) if force else recover.taken(self._root, ref) as job:
            remove.remove(self._root, job, force=force)

    @verb("freeze")
    def freeze(self, ref: str) -> Job:
        with recover.taken(self._root, ref) as job:
            return stop.freeze(self._root, job)

    @verb("thaw")
    def thaw(self, ref: str) -> Job:
        with recover.taken(self._root, ref) as job:
            return stop.thaw(self._root, job)

    # pause and resume

    def pause(
        self,
        ref: str,
        *,
        mode: Mode = "auto",
        labels: Mapping[str, str] | None = None,
        state: Any | msgspec.UnsetType = msgspec.UNSET,
        archive: Archiving | None = None,
        ttl: float | None = None,
        durability: Durability = "full",
        progress: Progress | None = None,
        request: str | None = None,
    ) -> PauseResult:
        """Make a snapshot of a running or frozen job and give its compute back. ``state`` replaces the job's own JSON
        value. A pause that fails leaves the job as it was. What a process of it asks (see `asked`) goes into the
        snapshot, and the question's state becomes the job's unless ``state`` is given.

        ``mode`` ``process``: the processes are kept, or CannotCheckpoint is raised; ``filesystem``: they are not;
        ``auto``: they are if it can be done, else the result has the reason.

        ``archive`` (default: as config.json has it): ``background``: a process of low priority makes images of the
        snapshot, so that it can leave the host; ``wait``: that is done before this returns, with ``progress``, and
        what it raises doesn't undo the pause; ``never``: `snapshot_archive` does it when it is called.

        ``ttl``: seconds after which `collect` removes the snapshot, and the job if it is still paused to it; without
        it the root's policies decide.

        ``durability`` ``full``: all of it is on the device when this returns; ``fast``: it will be in some seconds, and
        a host that goes down before loses the snapshot, not unnoticed.

        ``request``: an id of the caller's for this call. Once it was carried out, the same one raises Repeated."""
        how = self._archiving(archive)
        result = self._pause(
            ref,
            mode=mode,
            labels=labels or {},
            state=state,
            archive=how,
            ttl=ttl,
            durability=durability,
            request=request,
        )
        return self._archived(result, how, progress)

    @verb("pause")
    def _pause(self, ref: str, **how: Any) -> PauseResult:
        with recover.taken(self._root, ref) as job:
            return pause.pause(self._root, job, **how)

    @verb("resume")
    def resume(
        self,
        ref: str,
        *,
        mode: Mode = "auto",
        workdir: str | None = None,
        keep_tcp: bool = False,
        memory: Memory = "auto",
        answer: Any | msgspec.UnsetType = msgspec.UNSET,
        idle: bool = False,
        request: str | None = None,
    ) -> ResumeResult:
        """Let a paused job go on, with its processes (``process``), started again from its files (``filesystem``), or
        with what the snapshot has. A resume that fails leaves it paused. Raises CannotRestore, InvalidInput ...

        ``workdir``: where its command starts from now on, if not where it began (that directory may be gone).
        ``keep_tcp``: don't close its connections to the outside; those within the job are always kept.
        ``memory``: ``lazy`` lets processes run before their memory is there, ``eager`` brings it back first, ``auto``
        chooses by size; the result says which. A job whose memory never came is ``failed`` and can be resumed again.
        ``answer``: a JSON value for the process that asks (see `asked`), which gets null without one.
        ``idle``: start nothing: the job is up for `exec`, and starts its command, or the step that is next, when it was
        paused with mode ``filesystem`` and is resumed. A job that failed and was kept is resumed where it failed.
        ``request``: as with `pause`."""
        how = resume.How(
            mode=mode, memory=memory, workdir=workdir, keep_tcp=keep_tcp, answer=answer, idle=idle, request=request
        )
        with recover.taken(self._root, ref) as job:
            return resume.resume(self._root, job, how)

    @verb("prefetch", told=False)
    def prefetch(
        self, ref: str, *, mode: Mode = "auto", memory: Memory = "auto", idle: bool = False, seconds: float = 60.0
    ) -> Prefetch:
        """Announce the resume of a paused job: mount its chain, read what will be read, and keep a process waiting for
        it, for ``seconds``. A `resume` in this engine that is of the same ``mode`` takes that; the job stays paused
        until then, and nothing else changes. Raises what `resume` would before it does anything."""
        from engine.lifecycle import prefetch

        how = resume.How(mode=mode, memory=memory, idle=idle)
        with recover.taken(self._root, ref) as job:
            return prefetch.prefetch(self._root, job, how, seconds=seconds)

    @verb("fork")
    def fork(
        self,
        ref: str,
        *,
        name: str | None = None,
        mode: Mode = "auto",
        env: Mapping[str, str] | None = None,
        keep_tcp: bool = False,
        memory: Memory = "auto",
        answer: Any | msgspec.UnsetType = msgspec.UNSET,
        idle: bool = False,
    ) -> ForkResult:
        """Resume a snapshot as a new job; the snapshot stays, and so does the job that it came from. ``env`` is added
        to the environment of the sessions that are started in it; all else as with `resume`."""
        snapshot = self._root.catalog.snapshot(ref)
        journal.about(snapshot=snapshot.id)
        with translated("fork snapshot"):
            how = resume.How(mode=mode, memory=memory, keep_tcp=keep_tcp, answer=answer, idle=idle)
            result = run.fork(self._root, snapshot, how, name=name, env=env or {})
        self._fill_pool()
        return result


def _forwarding() -> Finding:
    """Whether the packets of ``--net bridge`` jobs get through this host."""
    remedy = "let the interfaces sr* through in that chain"
    try:
        blocked = ", ".join(network.obstacles())
    except SeracError as error:
        blocked, remedy = str(error), error.hint
    detail = blocked or "no other program's nftables rules drop it"
    return Finding(name="forwarding", ok=not blocked, detail=detail, remedy=remedy, required=False)
