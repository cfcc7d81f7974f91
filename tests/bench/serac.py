"""serac as it is measured: an engine on a root of its own, and jobs that are paused and resumed again and again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from roots import configure, empty

from bench import interrupts
from bench.measure import Sample, timed
from bench.workloads import JOB, Awake, awake, hold
from engine import Engine, JobSpec, SessionSpec
from engine.base import DirSource
from engine.model import Memory, Mode

BASE = "small"
WOKE = "/run/serac/woke"
"""where jobs say that they live; the host sees it in their io directory"""


@contextlib.contextmanager
def opened(directory: Path, tree: Path) -> Iterator[Engine]:
    """An engine with the base ``small``, whose root is gone at the end with all that is in it."""
    root = Path(tempfile.mkdtemp(prefix="root-", dir=directory))
    try:
        with _in_memory(root / "run") as run:
            configure(root / "root", run=os.fspath(run))
            with Engine(root / "root", timeout=120) as engine:
                try:
                    engine.base_build(BASE, DirSource(path=tree))
                    _age(root / "root/catalog.sqlite")
                    yield engine
                finally:
                    with interrupts.put_off():
                        empty(engine)
    finally:
        with interrupts.put_off():
            shutil.rmtree(root)


def _age(catalog: Path) -> None:
    """As it is after some hundred verbs: its log has its size, and is written over from the start again and again,
    which costs the disk half of what it costs to grow."""
    with contextlib.closing(sqlite3.connect(catalog, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        (pages,) = connection.execute("PRAGMA wal_autocheckpoint").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for _ in range(pages):
            connection.execute(f"PRAGMA user_version = {version}")


@contextlib.contextmanager
def _in_memory(directory: Path) -> Iterator[Path]:
    """A place for the run directory that is a tmpfs on any host, as /run is where there is systemd."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "serac-bench", directory], check=True)
    try:
        yield directory / "serac"
    finally:
        with interrupts.put_off():
            subprocess.run(["umount", directory], check=True)


class Subject:
    """A job that is measured."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        base: str = BASE,
        megabytes: int = 5,
        processes: int = 1,
        reads: tuple[str, int] | None = None,
    ) -> None:
        self.engine = engine
        self.name = name
        self._reads = reads is not None
        argv = hold(megabytes=megabytes, processes=processes, woke=WOKE, reads=reads)
        spec = JobSpec(base=base, name=name, argv=argv, userns="private")
        self.ms, job = timed(lambda: engine.run(spec))
        """how long that took"""
        self.id = job.id
        self.io = engine.config.root / "jobs" / self.id / "io"
        self.born = self._lives()
        """what it said when it began"""

    @property
    def snapshot(self) -> str:
        """The id of the snapshot that it is paused to."""
        return self.engine.job(self.id).snapshot or ""

    def inside(self, *words: str) -> None:
        """Run a command in it to its end."""
        with self.engine.exec(self.id, SessionSpec(argv=words)) as connection:
            for _ in connection.events():
                pass

    def write(self, megabytes: int) -> None:
        self.inside(JOB, "write", f"/big-{time.monotonic_ns()}", str(megabytes << 20))

    def write_files(self, count: int) -> None:
        self.inside(JOB, "files", "/many", str(count))

    def pause(self, mode: Mode) -> Mapping[str, Sample]:
        """By verb; the flush to disk, which the floor has not, counts in one of the two only."""
        ms, result = timed(lambda: self.engine.pause(self.id, mode=mode))
        unflushed = ms - result.timings["flush"]
        return {"pause": Sample(ms, result.timings), "pause without flush": Sample(unflushed)}

    def resume(self, memory: Memory = "auto") -> Mapping[str, Sample]:
        """By verb; until the call returns, until the job's first instruction, until it has read all its memory, and
        until it has read its files."""
        self.forget()
        began = time.time_ns()
        ms, result = timed(lambda: self.engine.resume(self.id, memory=memory))
        return {"resume": Sample(ms, result.timings), **self.lived(began)}

    def lived(self, began: int) -> Mapping[str, Sample]:
        """What the job says of a resume that began at that time; waits until all of its memory is in."""
        word = self._lives()
        self._pages_in()
        return {
            "first instruction": Sample((word.first - began) / 1e6),
            "last page": Sample((word.last - began) / 1e6),
        } | ({"last file": Sample((word.files - began) / 1e6)} if self._reads else {})

    def have_read(self, cache: str) -> None:
        """Before a cold restore: the image was just read. The host of a guest keeps in its own memory what was, and who
        comes second would be ahead for that."""
        if cache == "cold":
            image = self.engine.config.root / "layers" / self.engine.snapshot(self.snapshot).layers[-1] / "image"
            for path in image.iterdir() if image.exists() else ():
                if path.is_file():
                    with path.open("rb", buffering=0) as file:
                        while file.read(1 << 20):
                            pass

    def forget(self) -> None:
        (self.io / "woke").unlink(missing_ok=True)

    def _lives(self) -> Awake:
        word = awake(self.io / "woke")
        if not word.same:
            raise AssertionError(f"job {self.name}: memory isn't what it was")
        return word

    def _pages_in(self) -> None:
        """A lazy resume's pages file is locked until all are in."""
        with (
            contextlib.suppress(FileNotFoundError),
            (self.engine.config.run / "jobs" / self.id / "pages").open() as file,
        ):
            fcntl.flock(file, fcntl.LOCK_SH)

    def remove(self) -> None:
        self.engine.remove(self.id, force=True)
