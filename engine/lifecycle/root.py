"""An opened root: its configuration, catalog, journal, places on disk and locks, handed to every verb."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path

from engine import cgroup, store
from engine.catalog import Catalog
from engine.config import Config
from engine.errors import Damaged, InvalidInput, NoSpace, NotFound, NotPrivileged, SeracError, WrongState, from_os
from engine.journal import Journal, about
from engine.lifecycle.shelf import Shelf
from engine.model import Job, JobState, Limits, Snapshot

log = logging.getLogger("serac")

BALLAST, OPENING = 1 << 20, 128 << 10
"""bytes that a removal can have on a full disk, enough for the catalog's log; and of these what opening the catalog can
have"""


class Places:
    """Where a root has its things, on the disk and on the host."""

    def __init__(self, config: Config) -> None:
        """Raises HostLacks where there is no cgroup v2."""
        self.config = config
        self.host = cgroup.hierarchies()
        self.bases, self.images, self.layers, self.jobs, self.tmp = (
            config.root / name for name in ("bases", "images", "layers", "jobs", "tmp")
        )
        self.mounts, self.run_jobs = config.run / "mounts", config.run / "jobs"
        self.catalog_file = config.root / "catalog.sqlite"

    def layer(self, layer_id: str) -> Path:
        return self.layers / layer_id

    def io(self, job_id: str) -> Path:
        """Logs, status files and init's socket; the job writes it, so nothing in it is trusted."""
        return self.jobs / job_id / "io"

    def run_job(self, job_id: str) -> Path:
        return self.run_jobs / job_id

    def in_use(self) -> bool:
        """Whether there is anything that a catalog would tell of."""
        places = (self.bases, self.images, self.layers, self.jobs)
        return any(place.is_dir() and os.listdir(place) for place in places)


class Root(Places):
    """``timeout`` is in seconds: how long a verb waits for a lock, a freeze, a launch or a kill, each."""

    def __init__(self, config: Config, *, timeout: float) -> None:
        """Raises NotPrivileged, BadRoot, HostLacks or Damaged; makes the root if it is new."""
        if os.geteuid() != 0:
            raise NotPrivileged("serac needs root rights", hint="run it as root, for instance with sudo")
        super().__init__(config)
        self.timeout = timeout
        self.journal = Journal(config.root)
        self.unmended: set[str] = set()
        """jobs that this engine couldn't mend, and has told so"""
        self.shelf = Shelf()
        self._removals: set[Future[None]] = set()
        self._make()
        try:
            self._refuse_without_catalog()
            self.catalog = self._open_catalog()
        except SeracError:
            self._leave_run()
            raise
        if not (config.root / "ballast").exists():
            self._keep_room()

    def _open_catalog(self) -> Catalog:
        """SQLite makes two files beside it when nobody else has it open. A full disk has room for them again, or nobody
        could remove anything."""
        path, ballast = self.config.root / "catalog.sqlite", self.config.root / "ballast"
        try:
            return Catalog(path)
        except NoSpace:
            with contextlib.suppress(OSError):
                os.truncate(ballast, max(0, ballast.stat().st_size - OPENING))
            return Catalog(path)

    def _make(self) -> None:
        places = (self.bases, self.images, self.layers, self.jobs, self.tmp, self.mounts, self.run_jobs)
        if all(place.is_dir() for place in places):
            return
        from engine.doctor import check_root_filesystem

        check_root_filesystem(self.config.root)
        try:
            self.config.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in places:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise from_os(error, "open root") from error

    def _refuse_without_catalog(self) -> None:
        """A new catalog would know nothing of what is here, and the next sweep would remove it all."""
        if not self.catalog_file.exists() and self.in_use():
            raise Damaged(
                f"{self.config.root} has lost its catalog",
                hint="`serac check --repair` makes it anew from what lies on the disk",
            )

    def close(self) -> None:
        """The run directory goes too, unless a base is mounted or a job has something in it."""
        self.await_removals()
        self.catalog.close()
        self._leave_run()

    def await_removals(self) -> None:
        """Until what was taken away is gone."""
        wait(list(self._removals))

    def _remove_later(self, marker: Path) -> None:
        """While the caller goes on, at the latest with the next sweep: a resume needn't wait until blocks are freed,
        nor, as in `threading.Thread.start`, until somebody begins to."""
        removal: Future[None] = Future()
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        _thread.start_new_thread(self._remove_for, (removal, marker))

    def _remove_for(self, removal: Future[None], marker: Path) -> None:
        try:
            self._remove(marker)
        finally:
            removal.set_result(None)

    def _remove(self, marker: Path) -> None:
        try:
            with store.locked(self.tmp, timeout=self.timeout, shared=True):
                store.remove_tree(marker)
        except (SeracError, OSError) as error:
            log.warning("%s can't be removed: %s", marker, error)

    def _leave_run(self) -> None:
        for place in (self.mounts, self.run_jobs):
            with contextlib.suppress(OSError):
                place.rmdir()
        if self.mounts.exists() or self.run_jobs.exists():
            return
        with contextlib.suppress(OSError):
            for cache in self.config.run.glob("criu-*.kdat"):
                cache.unlink(missing_ok=True)
            self.config.run.rmdir()
            self.config.run.parent.rmdir()

    def make_private(self, directory: Path) -> None:
        """Make a directory of the run directory, open to nobody else all the way: a base has set-user-ID programs.

        Again and again, for engines that close take away what is empty."""
        while True:
            try:
                directory.mkdir(mode=0o700)
            except FileExistsError:
                return
            except FileNotFoundError:
                self.make_private(directory.parent)
            else:
                return

    def stage(self, job_id: str) -> Path:
        """An empty directory for serac-launch to mount on."""
        stage = self.run_job(job_id) / "stage"
        self.make_private(stage)
        return stage

    def group(self, job_id: str, limits: Limits) -> cgroup.Group:
        return cgroup.locate(self.host, self.config.name, job_id, limits)

    def group_of(self, job: Job) -> cgroup.Group:
        return self.group(job.id, job.spec.limits)

    def pages_group(self, job_id: str) -> cgroup.Group:
        """Of what brings a job's memory in; not below the job's own, with which it must not be frozen or killed."""
        return cgroup.locate(self.host, f"{self.config.name}.pages", job_id, Limits())

    @contextlib.contextmanager
    def locked(self, ref: str, *, timeout: float | None = None) -> Iterator[Job]:
        """Find a job, take its lock and give it as it is then. Raises NotFound, Busy."""
        found = self.catalog.job(ref)
        with contextlib.ExitStack() as stack:
            patience = self.timeout if timeout is None else timeout
            try:
                stack.enter_context(store.locked(self.jobs / found.id, timeout=patience))
            except FileNotFoundError as error:
                raise NotFound(f"job {found.name} was removed meanwhile") from error
            about(job=found.id, name=found.name)
            yield self.catalog.job_with(found.id)

    def snapshot(self, ref: str) -> Snapshot:
        """Find the snapshot that a verb is about. Raises NotFound."""
        snapshot = self.catalog.snapshot(ref)
        about(job=snapshot.job, name=snapshot.name, snapshot=snapshot.id)
        return snapshot

    def intent(
        self, name: str, *, scratch: bool = False, marked: bool = True
    ) -> contextlib.AbstractContextManager[store.Intent]:
        return store.intent(
            self.tmp, name, timeout=self.timeout, scratch=scratch, marked=marked, later=self._remove_later
        )

    def give_way(self) -> None:
        """Let a full disk have the room that is kept for removals; the next engine keeps some again."""
        free = os.statvfs(self.config.root)
        if free.f_bavail * free.f_frsize < BALLAST:
            (self.config.root / "ballast").unlink(missing_ok=True)

    def _keep_room(self) -> None:
        with contextlib.suppress(OSError):  # there is none to keep: the next engine tries again
            store.reserve(self.config.root / "ballast", BALLAST)

    def put(self, job: Job) -> Job:
        with self.catalog.transaction() as transaction:
            transaction.put_job(job)
        return job


def require(job: Job, *states: JobState, verb: str, hint: str | None = None) -> None:
    """Raise WrongState unless the job is in one of ``states``."""
    if job.state not in states:
        raise WrongState(f"job {job.name} is {job.state}: can't {verb} it", hint=hint or _NEXT.get(job.state))


_NEXT = {
    JobState.PAUSED: "`serac resume JOB` first",
    JobState.FROZEN: "`serac thaw JOB` first",
    JobState.EXITED: "it has ended; `serac logs JOB`, `serac rm JOB`",
    JobState.FAILED: "it has failed; `serac show JOB` says why",
    JobState.RUNNING: "`serac pause JOB` or `serac stop JOB` first",
}


def now() -> float:
    return round(time.time(), 3)


NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def check_name(name: str) -> str:
    """Raises InvalidInput: names become host names and file names, and may not be taken for ids."""
    if re.fullmatch(r"[0-9a-f]{12}", name):
        raise InvalidInput(f"{name!r} looks like an id", hint="choose another name")
    if not NAME.fullmatch(name):
        raise InvalidInput(f"not a name: {name!r}", hint="lower-case letters, digits, '.', '_', '-'; at most 63")
    return name
