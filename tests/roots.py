"""Roots for tests: one small base, built once a run, and an engine on a root of its own for each test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import Engine, JobSpec, SessionSpec, Step
from engine.base import DirSource
from engine.session import Output

BUSYBOX = "/bin/busybox"
"""of Debian's busybox-static: a whole userland in one file that needs no libraries"""


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of two megabytes."""
    tree = tmp_path_factory.mktemp("small")
    tree.chmod(0o755)
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "tmp", "src"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (tree / "src/lower").write_text("of the base\n")
    (tree / "tmp").chmod(0o1777)
    return tree


@pytest.fixture
def root_directory() -> Iterator[Path]:
    """A new directory for a root, on the filesystem of /var/tmp; all of it is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    configure(path / "root")
    yield path / "root"
    shutil.rmtree(path)


def configure(root: Path, **settings: str) -> None:
    """Nothing goes on in the background of a root, unless a test wants it."""
    root.mkdir(mode=0o700)
    (root / "config.json").write_text(json.dumps({"archive": "never", **settings}))


@pytest.fixture
def engine(root_directory: Path, small_tree: Path) -> Iterator[Engine]:
    """An engine with the base ``small``; whatever the test leaves in it is removed."""
    with Engine(root_directory, timeout=30) as engine:
        try:
            _build(engine, small_tree)
            yield engine
        finally:
            empty(engine)


def _build(engine: Engine, tree: Path) -> None:
    engine.base_build("small", DirSource(path=tree))
    engine.run(JobSpec(base="small", name="first"))  # now the base is mounted, and stays so
    engine.remove("first", force=True)


@contextlib.contextmanager
def another_root(tree: Path | None) -> Iterator[Engine]:
    """An engine on one more root, as if on another host; with the base ``small`` of a tree, or with none."""
    path = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    try:
        configure(path / "root")
        with Engine(path / "root", timeout=30) as engine:
            try:
                if tree is not None:
                    _build(engine, tree)
                yield engine
            finally:
                empty(engine)
    finally:
        shutil.rmtree(path)


def empty(engine: Engine) -> None:
    """Remove everything that a root holds, through the engine's own verbs."""
    for job in engine.jobs(ended=True):
        engine.remove(job.id, force=True)
    for snapshot in engine.snapshots():
        engine.snapshot_remove(snapshot.id)
    for base in engine.bases():
        for ref in base.names or (base.digest,):
            engine.base_remove(ref)
    engine.close()
    assert not engine.config.run.exists()


def shell(script: str, **fields: object) -> JobSpec:
    """A job that runs a shell script."""
    return JobSpec(base="small", argv=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]


def steps(**scripts: str) -> tuple[Step, ...]:
    return tuple(Step(name=name, script=script) for name, script in scripts.items())


def output(engine: Engine, ref: str, number: int = 0, *, live: bool = True) -> str:
    """What a session printed on both streams, to its end."""
    events = engine.follow(ref, number, live=live)
    return b"".join(event.data for event in events if isinstance(event, Output)).decode()


def inside(engine: Engine, ref: str, script: str) -> str:
    """Run a script in a job and give what it printed on standard output."""
    with engine.exec(ref, SessionSpec(argv=("/bin/sh", "-c", script))) as connection:
        return b"".join(
            event.data for event in connection.events() if isinstance(event, Output) and event.stream == 1
        ).decode()


def count(engine: Engine, ref: str) -> int:
    """What a job has counted to in its /count, once it has: it empties the file before it writes it."""
    return int(inside(engine, ref, "until grep . /count 2> /dev/null; do sleep 0.01; done"))


def until(engine: Engine, ref: str, text: bytes, number: int = 0) -> None:
    """Read a session's output until it has all of ``text``."""
    seen = b""
    for event in engine.follow(ref, number):
        seen += event.data if isinstance(event, Output) else b""
        if text in seen:
            return
    pytest.fail(f"ended with {seen!r}")


def wait_for(probe: Callable[[], object], patience: float = 30.0) -> None:
    """Wait until ``probe`` gives something true, at most ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if probe():
            return
        time.sleep(0.02)
    pytest.fail(f"not in {patience} s")


def on_disk(root: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a root with its type, mode and owner, of files links, size and time too; of the catalog only
    that it is there, and nothing of the journal, which has what was tried too."""
    found = {}
    for path in root.rglob("*"):
        if path.name.startswith("events."):
            continue
        info = path.lstat()
        facts: tuple[int, ...] = (info.st_mode, info.st_uid, info.st_gid)
        if stat.S_ISREG(info.st_mode) and not path.name.startswith("catalog.sqlite"):
            facts += (info.st_nlink, info.st_size, info.st_mtime_ns)
        found[os.fspath(path)] = facts
    return found
