"""The supervisor at work: look, decide, do; again and again.

One works in a root at a time: it holds the lock of ``supervisor/``. Killed at any moment it leaves what the verbs that
it calls leave, and the next one goes on with what it had seen (`engine.supervisor.watch`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from engine import store
from engine.config import Supervise
from engine.engine import Engine
from engine.errors import Busy, NotFound, SeracError, WrongState, from_os
from engine.kernel import pressure
from engine.lifecycle import activity, archiving, background, collect, demote, recover
from engine.lifecycle.activity import Activity
from engine.model import LIVE, Archiving, Job, JobState, Value
from engine.session import RawQuestion
from engine.supervisor import watch as watching
from engine.supervisor.decide import Action, Facts, Pressure, decide
from engine.supervisor.watch import Watch

log = logging.getLogger("serac")

RETRY_MAX = 3600.0
"""seconds that what has failed again and again waits for its next try, at most"""


class Done(Value, frozen=True, kw_only=True):
    """What became of an action."""

    action: Action
    outcome: str = "ok"
    """or the code of an error; ``planned`` in a dry run"""
    error: str | None = None


class Supervisor:
    """Of one root. ``settings``: instead of config.json's. ``dry_run``: decides and does nothing, needs no lock and
    keeps nothing. ``report`` is told of each action. ``clock`` (monotonic) and ``wall`` are the time, in seconds,
    ``pressure`` how short memory is; default: as the host has it."""

    def __init__(
        self,
        engine: Engine,
        *,
        settings: Supervise | None = None,
        dry_run: bool = False,
        report: Callable[[Done], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        pressure: Callable[[], Pressure] | None = None,
    ) -> None:
        self.settings = settings or engine.config.settings.supervise
        self._engine, self._root = engine, engine._root
        self._dry_run, self._report = dry_run, report
        self._clock, self._wall, self._pressure = clock, wall, pressure or host_pressure
        self._place = engine.config.root / "supervisor"
        self._watches: dict[str, Watch] = {}
        self._swept: float | None = None
        self._stopping = False
        self._held = contextlib.ExitStack()
        self._wake = -1

    def __enter__(self) -> Self:
        """Raises Busy when another supervisor works in the root."""
        with contextlib.ExitStack() as stack:
            if not self._dry_run:
                self._alone(stack)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(self._deaf)
            self._watches = watching.load(self._place, now=self._clock())
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _alone(self, stack: contextlib.ExitStack) -> None:
        try:
            self._place.mkdir(mode=0o700, exist_ok=True)
            stack.enter_context(store.locked(self._place, timeout=0))
        except Busy as error:
            raise Busy(f"a supervisor works in {self._engine.config.root} already") from error
        except OSError as error:
            raise from_os(error, "begin to supervise") from error

    def stop(self) -> None:
        """Let `run` end when what it is doing is done. From any thread, or from a signal's handler."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _deaf(self) -> None:
        wake, self._wake = self._wake, -1
        os.close(wake)

    def run(self) -> None:
        """Tick until `stop`. What fails in one tick is tried in the next."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while not self._stopping:
            began = time.monotonic()
            self._attempt(self.tick)
            left = max(0.0, began + self.settings.interval - time.monotonic())
            poller.poll(left * 1000)

    def tick(self) -> list[Done]:
        """Look once at every job, and do what is due. Raises what a damaged catalog does."""
        now = self._clock()
        if not self._dry_run and (self._swept is None or now - self._swept >= self.settings.sweep):
            self._swept = now
            self._sweep()
        found = self._look(now)
        actions = decide(found, self.settings, self._pressure(), now)
        self._keep(now)
        done = []
        for action in actions:
            if self._stopping:
                break
            done.append(self._act(action, now))
            self._report(done[-1])
        self._keep(now)
        return done

    def _sweep(self) -> None:
        """What nobody waits for: each whatever becomes of the others."""
        self._attempt(lambda: recover.recover(self._root))
        self._attempt(self._collect)
        self._attempt(self._work)

    def _collect(self) -> None:
        found = self._engine.collect()
        if found:
            kinds = [entry.kind for entry in found]
            counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
            self._root.journal.add("supervise.collect", reason="nobody needs them", facts=counts)

    def _work(self) -> None:
        if archiving.due(self._root) is not None:
            background.start(self._root)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (SeracError, OSError) as error:
            log.warning("supervise: %s", error)

    # looking

    def _look(self, now: float) -> list[Facts]:
        """Jobs that can't be looked at now are left for the next time."""
        jobs = [job for job in self._engine.jobs() if job.state in LIVE | {JobState.PAUSED}]
        rows = demote.rows_of(self._root)
        found, watches = [], {}
        for job in jobs:
            try:
                seen = activity.look(self._root, job) if job.state in LIVE else None
            except (SeracError, OSError) as error:
                log.warning("supervise: job=%s can't be looked at: %s", job.id, error)
                if job.id in self._watches:
                    watches[job.id] = self._watches[job.id]
                continue
            watch = watching.observe(
                self._watches.get(job.id), job, seen, now=now, wall=self._wall(), cpu=self.settings.cpu
            )
            watches[job.id] = watch
            found.append(_facts(job, watch, seen, rows))
        self._watches = watches
        return found

    def _keep(self, now: float) -> None:
        if not self._dry_run:
            self._attempt(lambda: watching.save(self._place, self._watches, now=now))

    # doing

    def _act(self, action: Action, now: float) -> Done:
        """Somebody else's work on the job goes before; what fails is said, and tried again later and later."""
        if self._dry_run:
            return Done(action=action, outcome="planned")
        try:
            self._do(action)
        except (Busy, NotFound, WrongState) as error:
            log.info("supervise: %s of job=%s is left for later: %s", action.verb, action.job, error)
            return Done(action=action, outcome=error.code, error=str(error))
        except (SeracError, OSError) as error:
            code = error.code if isinstance(error, SeracError) else "os-error"
            self._failed(action, now)
            self._tell(action, code, str(error))
            return Done(action=action, outcome=code, error=str(error))
        self._succeeded(action, now)
        self._tell(action, "ok", None)
        return Done(action=action)

    def _do(self, action: Action) -> None:
        """Raises Busy where somebody works on the job, or it isn't any more what it was decided for: the actions before
        may have taken minutes."""
        with recover.taken(self._root, action.job, timeout=0) as job:
            seen = activity.look(self._root, job) if job.state in LIVE else None
            self._still(action, job, seen)
        match action.verb:
            case "freeze":
                self._engine.freeze(job.id)
            case "pause" if action.asked and seen is not None:
                self._pause_asking(job, seen)
            case "pause":
                self._engine.pause(job.id, mode=self.settings.mode, archive=self._archive())
            case "archive":
                archiving.make_due(self._root, job.snapshot or "")
                background.start(self._root)
            case "demote":
                self._engine.demote(job.id)

    def _pause_asking(self, job: Job, seen: Activity) -> None:
        """The question goes along, and is answered by whoever resumes the job."""
        watch = self._watches[job.id]
        self._engine.pause(job.id, archive=self._archive())
        self._watches[job.id] = msgspec.structs.replace(watch, asked=seen.asked)

    def _archive(self) -> Archiving:
        """As config.json has it, but for a wait that would keep the supervisor from the other jobs."""
        how = self._engine.config.settings.archive
        return "background" if how == "wait" else how

    def _still(self, action: Action, job: Job, seen: Activity | None) -> None:
        """Raises Busy where the job has gone another way, asks no more, or isn't idle any more."""
        watch = self._watches[job.id]
        if watch.life != watching.life_of(job):
            raise Busy(f"job {job.name} isn't as it was")
        if action.asked:
            if not _asks(watch, seen):
                raise Busy(f"job {job.name} doesn't ask any more")
            return
        now = self._clock()
        fresh = watching.observe(watch, job, seen, now=now, wall=self._wall(), cpu=self.settings.cpu)
        if (fresh.state, fresh.since) != (watch.state, watch.since):
            raise Busy(f"job {job.name} isn't idle any more: {fresh.last}")

    def _succeeded(self, action: Action, now: float) -> None:
        watch = msgspec.structs.replace(self._watches[action.job], failures=0)
        if action.verb == "freeze":
            watch = self._undisturbed(msgspec.structs.replace(watch, state=JobState.FROZEN), action.job)
        elif action.verb == "pause":
            with contextlib.suppress(NotFound):  # it was removed at once
                job = self._root.catalog.job_with(action.job)
                watch = watching.observe(watch, job, None, now=now, wall=self._wall(), cpu=self.settings.cpu)
        self._watches[action.job] = watch

    def _failed(self, action: Action, now: float) -> None:
        watch = self._watches[action.job]
        wait = min(self.settings.interval * 2**watch.failures, RETRY_MAX)
        watch = msgspec.structs.replace(watch, failures=min(watch.failures + 1, 30), retry=now + wait)
        self._watches[action.job] = self._undisturbed(watch, action.job)

    def _undisturbed(self, watch: Watch, job_id: str) -> Watch:
        """What the supervisor's own deed has cost the job was no deed of the job."""
        with contextlib.suppress(SeracError, OSError):
            job = self._root.catalog.job_with(job_id)
            if job.state in LIVE:
                seen = activity.look(self._root, job)
                return msgspec.structs.replace(watch, looked=self._clock(), cpu=seen.cpu, trace=seen.trace)
        return watch

    def _tell(self, action: Action, outcome: str, error: str | None) -> None:
        reason = action.reason if error is None else f"{action.reason}; {error}"
        self._root.journal.add(
            f"supervise.{action.verb}",
            job=action.job,
            name=action.name,
            outcome=outcome,
            reason=reason,
            facts=action.facts,
        )


def _asks(watch: Watch, seen: Activity | None) -> RawQuestion | None:
    """What it asks and wasn't paused for before."""
    return seen.question if seen is not None and seen.asked != watch.asked else None


def _facts(job: Job, watch: Watch, seen: Activity | None, rows: collect.Rows) -> Facts:
    question = _asks(watch, seen)
    return Facts(
        job=job.id,
        name=job.name,
        state=job.state,
        watch=watch,
        pause_after=job.spec.pause_after,
        question=question.reason if question is not None else None,
        rest=demote.rest(job, rows) if job.state is JobState.PAUSED else "local",
    )


def host_pressure() -> Pressure:
    return Pressure(stall=pressure.memory_stall(), available=pressure.memory_available())
