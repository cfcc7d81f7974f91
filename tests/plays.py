"""How a scene (tests/scenes.py) is played on a disk of its own, cut short, and looked at afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import invariants
import leftovers
import pytest
from roots import configure, empty, inside
from scenes import PREAMBLE, Scene

from engine import Engine, JobState, launch, store
from engine.base import DirSource
from engine.errors import SeracError
from engine.model import ENDED, LIVE

CALLED = f"""{PREAMBLE}
from engine.errors import SeracError
if len(sys.argv) > 2:
    logging.basicConfig(level=logging.DEBUG, filename=sys.argv[2])
try:
    with Engine(sys.argv[1], timeout=30) as engine:
        CALL
except SeracError as error:
    print(type(error).__name__, error)
    sys.exit({SeracError.status})
"""

DOWN = "the host went down"
Cut = Callable[[Engine, Scene], str | None]
"""Calls the verb in an engine of its own and cuts it short; gives `DOWN`, or what the verb said of an error"""


# disks


@contextlib.contextmanager
def disk_of_its_own(tree: Path) -> Iterator[Engine]:
    """An engine on a root on a small ext4, two directories below its disk; with the base ``small``."""
    path = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    (path / "disk").touch()
    os.truncate(path / "disk", 96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-m", "0", path / "disk"], check=True)
    (path / "mount").mkdir()
    mount(path)
    try:
        configure(path / "mount/root")
        with Engine(path / "mount/root", timeout=30) as engine:
            try:
                engine.base_build("small", DirSource(path=tree))
                yield engine
                empty(engine)
            except BaseException:
                reboot(engine)
                raise
    finally:
        subprocess.run(["umount", path / "mount"], check=True)
        shutil.rmtree(path)


def mount(path: Path) -> None:
    subprocess.run(["mount", "-o", "loop", path / "disk", path / "mount"], check=True)


def disk_of(engine: Engine) -> Path:
    return engine.config.root.parent.parent


def reboot(engine: Engine) -> str:
    """The run directory and every process are gone; the catalog and the bytes are there."""
    groups = [Path(path) for path in leftovers.cgroups() if f"/serac/{engine.config.name}" in path]
    for group in groups:
        if (group / "cgroup.kill").exists() and group.parent.parent.name == "serac":
            (group / "cgroup.kill").write_text("1")
            while "populated 1" in (group / "cgroup.events").read_text():
                pass
    for group in reversed(groups):
        if group.parent.parent.name == "serac":
            group.rmdir()
            for above in (group.parent, group.parent.parent):
                with contextlib.suppress(OSError):  # others are in it
                    above.rmdir()
    _no_criu(engine)
    for target in engine.config.run.glob("mounts/*"):
        while os.path.ismount(target):
            launch.unmount(target, timeout=30)
    shutil.rmtree(engine.config.run, ignore_errors=True)
    return DOWN


def _no_criu(engine: Engine) -> None:
    """One that outlives its engine doesn't outlive its host."""
    for file in engine.config.run.glob("jobs/*/criu.pid"):
        with open(file, "rb") as held:
            if words := held.read().split():  # else it dies with its launcher
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(words[0]), signal.SIGKILL)
            store.flock(held.fileno(), fcntl.LOCK_EX, file, patience=30.0)  # which it has as long as it lives


# calls in an engine of their own


def called(
    engine: Engine, scene: Scene, *, around: Iterable[str] = (), fault: str = "", log: str = ""
) -> subprocess.CompletedProcess[str]:
    """``around``: the words of a program that runs it; ``fault``: where it is killed; ``log``: for its steps. What it
    ends with is success, an error that is documented, or the kill."""
    script = CALLED.replace("CALL", scene.call)
    words = [*around, sys.executable, "-c", script, os.fspath(engine.config.root), *([log] if log else [])]
    environment = {**os.environ, "SERAC_FAULT": fault}
    done = subprocess.run(words, env=environment, timeout=120, check=False, capture_output=True, text=True)
    ends = (0, SeracError.status, *((-signal.SIGKILL,) if fault else ()))
    assert done.returncode in ends, done.stderr
    return done


def steps_of(engine: Engine, scene: Scene, work: Path) -> list[str]:
    """Play a prepared scene to its end; the places where it can be cut, ``verb.step:before`` and ``:after``, with the
    time that it comes there."""
    done = called(engine, scene, log=os.fspath(work / "log"))
    assert done.returncode == 0, done.stdout
    seen: Counter[str] = Counter()
    places = []
    for name, outcome in re.findall(r"step=(\S+) .*outcome=(\S+)", (work / "log").read_text()):
        seen[name] += 1
        places += [f"{name}:{when}*{seen[name]}" for when in ("before", "after") if when == "before" or outcome == "ok"]
    return places


# plays


def play(tree: Path, work: Path, scene: Scene, cut: Cut, *, mortal: bool = False) -> str | None:
    """One scene, cut short; then another engine looks what there is, and calls the verb again. What was cut.
    ``mortal``: a job may have ended with it."""
    with disk_of_its_own(tree) as engine:
        prepare(engine, scene, work)
        sealed = invariants.sealed(engine)
        lives = lives_of(engine)
        engine.close()  # SQLite keeps a closed connection's descriptor while the process has another one to the file
        os.sync()
        said = cut(engine, scene)
        with Engine(engine.config.root, timeout=30) as after:
            look(after, scene, down=said == DOWN, lives=lives)
            again(after, scene, mortal=mortal or said == DOWN)
            whole(after, sealed)
    return said


def discover(tree: Path, work: Path, scene: Scene) -> list[str]:
    """The places of a scene."""
    with disk_of_its_own(tree) as engine:
        prepare(engine, scene, work)
        engine.close()
        return steps_of(engine, scene, work)


def prepare(engine: Engine, scene: Scene, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for act in scene.prepare:
        act(engine)


def lives_of(engine: Engine) -> str | None:
    """What the lives of a job ``a`` that runs, or stands still, have left."""
    job = next((job for job in engine._root.catalog.jobs() if job.name == "a" and job.state in LIVE), None)
    if job is None or job.pending:  # another one is about to begin
        return None
    layers = (engine.config.root / "layers" / str(layer) for layer in (job.upper, *reversed(job.layers)))
    return next((layer / "upper/lives").read_text() for layer in layers if (layer / "upper/lives").exists())


def look(engine: Engine, scene: Scene, *, down: bool, lives: str | None) -> None:
    """What the crash tables allow; who was running when the host went down has failed, else it is the same life."""
    found = {job.name: job.state for job in engine.jobs(ended=True)}
    invariants.hold(engine)
    allowed = scene.states - LIVE | {JobState.FAILED} if down else scene.states
    if scene.states:
        assert found["a"] in allowed, found["a"]
    assert found.keys() <= {"a", "b"}
    if lives is not None and not down and found.get("a") in LIVE:
        assert lives_of(engine) == lives


def again(engine: Engine, scene: Scene, *, mortal: bool) -> None:
    """The verb that is called again succeeds, or says that it is done; what needs a job that runs can't be, when that
    has ended."""
    ended = mortal and any(job.state in ENDED for job in engine.jobs(ended=True))
    with contextlib.suppress(*((SeracError,) if ended else ())):
        call(engine, scene)
    if not ended:
        scene.then(engine)
    invariants.hold(engine)


def call_once(engine: Engine, verb: str) -> None:
    names: dict[str, object] = {}
    exec(PREAMBLE, names)
    exec(verb, {**names, "engine": engine})


def call(engine: Engine, scene: Scene) -> None:
    try:
        call_once(engine, scene.call)
    except SeracError as error:
        if scene.done is None or not isinstance(error, scene.done):
            raise


def whole(engine: Engine, sealed: dict[str, str]) -> None:
    """What the job had written is there, and a layer that was sealed and still is has not changed."""
    now = invariants.sealed(engine)
    assert {name: digest for name, digest in sealed.items() if now.get(name, digest) != digest} == {}
    job = next((job for job in engine.jobs(ended=True) if job.name == "a"), None)
    if job is None:
        return
    if job.state in ENDED:
        kept_by_an_ended(engine)
        return
    if job.state is JobState.PAUSED:
        engine.resume("a")
    if job.state is JobState.FROZEN:
        engine.thaw("a")
    assert inside(engine, "a", "md5sum -c /sum; cmp /kept /d/link; ls /src | wc -l") == "/kept: OK\n0\n"
    invariants.hold(engine)


def kept_by_an_ended(engine: Engine) -> None:
    work = os.environ["WORK"]
    for name in ("kept", "sum"):
        engine.copy_out("a", f"/{name}", f"{work}/{name}-of-a")
    found = subprocess.run(["md5sum", f"{work}/kept-of-a"], check=True, capture_output=True, text=True).stdout
    assert found.split()[0] == Path(work, "sum-of-a").read_text().split()[0]


# sweeps


def chosen(name: str, places: list[str], *, one_in: int) -> list[str]:
    """A part of the places, another one with each name and with each value of SERAC_SWEEP."""
    turn = zlib.crc32(name.encode()) + int(os.environ.get("SERAC_SWEEP", "0"))
    return places[turn % one_in :: one_in]


def sweep(places: Iterable[str], act: Callable[[str], object]) -> None:
    """All of them, whatever goes wrong at one."""
    failures = []
    for place in places:
        try:
            act(place)
        except Exception as error:
            failures.append(f"{place}: {''.join(traceback.format_exception(error, limit=-4))}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


@pytest.fixture
def stage(tmp_path: Path, small_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of a scene lie."""
    monkeypatch.setenv("WORK", os.fspath(tmp_path / "work"))
    monkeypatch.setenv("TREE", os.fspath(small_tree))
    return tmp_path / "work"
