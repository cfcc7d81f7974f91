"""Programs that each hold one thing (tests/programs/kinds.h), and jobs that run them.

with standing(engine, "traced") as stood:
    stood.seen, stood.pid
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from roots import configure, empty, output, until, wait_for

from engine import Engine, JobSpec, SessionSpec, session
from engine.base import DirSource
from engine.checkpoint import Seen, look

PROGRAMS = Path(__file__).resolve().parent / "programs"
FAMILIES = ("unsupported", "harmless")


def compile_family(family: str, target: Path) -> None:
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    sources = [*sorted((PROGRAMS / family).glob("*.c")), PROGRAMS / "main.c"]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(target)], check=True)


def kinds(family: str) -> list[str]:
    """All that a family has, from its sources."""
    text = "".join(source.read_text() for source in sorted((PROGRAMS / family).glob("*.c")))
    return re.findall(r'^    \{"([a-z0-9-]+)", \w+\},$', text, re.MULTILINE)


@pytest.fixture(scope="module")
def armed(small_tree: Path) -> Iterator[Engine]:
    """An engine whose base ``kinds`` has the programs of both families in /bin."""
    place = Path(tempfile.mkdtemp(prefix="serac-test-kinds-", dir="/var/tmp"))
    try:
        tree = shutil.copytree(small_tree, place / "tree", symlinks=True)
        for family in FAMILIES:
            compile_family(family, tree / "bin" / family)
        configure(place / "root")
        with Engine(place / "root", timeout=30) as engine:
            try:
                engine.base_build("kinds", DirSource(path=tree))
                engine.run(JobSpec(base="kinds", name="first"))  # now the base is mounted, and stays so
                engine.pause("first", mode="process")  # and criu knows this kernel
                engine.remove("first", force=True)
                yield engine
            finally:
                empty(engine)
    finally:
        shutil.rmtree(place)


@dataclass
class Stood:
    """A job in which something stands."""

    engine: Engine
    job: str
    pid: int = 0
    """in the job, of the process that holds it"""

    def seen(self) -> Seen:
        """What the preflight sees of it, frozen for as long."""
        with session.connect(self.engine.config.root / "jobs" / self.job / "io", timeout=30) as connection:
            connection.quiesce()  # as a pause does: init lets its clients go
        self.engine.freeze(self.job)
        try:
            return look(self.pids())
        finally:
            self.engine.thaw(self.job)

    def pids(self) -> list[int]:
        """The host's numbers of its processes."""
        (group,) = Path(self.engine._root.host.unified, "serac", self.engine.config.name).glob(
            f"{self.job}/cgroup.kill"
        )
        return [int(pid) for pid in (group.parent / "cgroup.procs").read_text().split()]

    def start(self, family: str, kind: str) -> int:
        """Another program that stands; its pid in the job."""
        number = self.engine.start(self.job, SessionSpec(argv=(f"/bin/{family}", kind))).id
        assert number is not None
        return self.ready(number)

    def ready(self, number: int = 0) -> int:
        until(self.engine, self.job, b"\n", number)
        said = output(self.engine, self.job, number, live=False)
        assert said.startswith("READY "), said
        return int(said.split()[1])


@contextlib.contextmanager
def standing(
    engine: Engine,
    kind: str | None,
    *,
    allow: Sequence[str] = (),
    userns: str = "private",
    visit: Callable[[Stood], None] = lambda stood: None,
) -> Iterator[Stood]:
    """A job with one of the unsupported kinds, or with none; ``visit`` is called before it is ready."""
    argv = ("/bin/unsupported", kind) if kind else ()
    job = engine.run(JobSpec(base="kinds", argv=argv, allow=tuple(allow), userns=userns))  # type: ignore[arg-type]
    stood = Stood(engine, job.id)
    try:
        visit(stood)
        if kind:
            stood.pid = stood.ready()
        yield stood
    finally:
        engine.remove(job.id, force=True)


def connected(stood: Stood, stack: contextlib.ExitStack) -> socket.socket:
    """A connection from outside to a program's /tmp/socket."""
    client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))

    def connects() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            client.connect(f"/proc/{stood.pids()[0]}/root/tmp/socket")
            return True
        return False

    wait_for(connects)
    return client
