"""Jobs whose memory comes in while they run: what they read, what becomes of them when it can't, and what is left."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from roots import output, until, wait_for

from engine import Engine, Job, JobSpec, JobState, cgroup, launch
from engine.base import DirSource
from engine.errors import Busy, CannotRestore, Damaged, HostLacks, InvalidInput, WrongState
from engine.kernel import userfaultfd
from engine.lifecycle import lazy, restore
from engine.lifecycle.root import Root
from engine.model import Limits, ResumeResult, UserNs

pytestmark = pytest.mark.root

SOURCE = Path(__file__).parent / "programs" / "memory.c"
LARGE = 300
"""MiB: more than is in by the time that a pause has asked for it"""
DEEDS = ("look", "fork", "threads", "move", "calls", "wiped")


@pytest.fixture(scope="session")
def armed_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small` with the program in it."""
    tree = tmp_path_factory.mktemp("memory") / "tree"
    shutil.copytree(small_tree, tree, symlinks=True)
    flags = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(tree / "bin/memory")], check=True)
    return tree


@pytest.fixture
def armed(engine: Engine, armed_tree: Path) -> Engine:
    engine.base_build("armed", DirSource(path=armed_tree))
    return engine


def paused(engine: Engine, deed: str, size: int = LARGE, *, userns: UserNs = "private") -> str:
    """A job that will do the deed as soon as it is resumed; the snapshot that it is paused to."""
    engine.run(JobSpec(base="armed", name="job", argv=("/bin/memory", str(size), deed), userns=userns))
    until(engine, "job", b"READY\n")
    return engine.pause("job", mode="process").snapshot


@pytest.fixture
def held_pager(armed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pager stands still from before the job runs, so that there is something to come still."""
    ready = lazy.Pages.ready

    def held(pages: lazy.Pages) -> None:
        ready(pages)
        os.kill(brings(armed, pages._job)["serac-pager"], signal.SIGSTOP)

    monkeypatch.setattr(lazy.Pages, "ready", held)


def lazily(engine: Engine) -> ResumeResult:
    result = engine.resume("job", memory="lazy")
    assert (result.memory, result.strategy, result.eager_because) == ("lazy", "stack", None)
    return result


def wrong(engine: Engine, job: Job) -> str:
    """What the job found in its memory that shouldn't be there."""
    assert job.upper is not None
    found = engine.config.root / "layers" / job.upper / "upper" / "wrong"
    return found.read_text() if found.exists() else ""


def brings(engine: Engine, job: Job) -> dict[str, int]:
    """The two that bring a job's memory in: name -> pid."""
    group = cgroup.locate(cgroup.hierarchies(), f"{engine.config.name}.pages", job.id, Limits())
    found = {}
    for pid in cgroup.pids(group):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    return found


def holds(engine: Engine, job: Job) -> bool:
    """Whether anything of the host is held for the job."""
    groups = Path(cgroup.hierarchies().unified, "serac").glob(f"*/{job.id}")
    return (engine.config.run / "jobs" / job.id).exists() or any(groups)


def settled(engine: Engine) -> Job:
    """The job once its memory is in, or never will be."""
    wait_for(lambda: engine.job("job").loading is None or engine.job("job").state is not JobState.RUNNING)
    return engine.job("job")


def is_whole(engine: Engine) -> None:
    """The job has done its deed and found all as it was; nothing of the way there is left."""
    until(engine, "job", b"OK\n")
    job = settled(engine)
    assert job.state is JobState.RUNNING
    assert not wrong(engine, job)
    wait_for(lambda: not brings(engine, job))  # their lock is gone a moment before they are


@pytest.mark.parametrize("deed", DEEDS)
def test_memory_is_as_it_was(armed: Engine, deed: str) -> None:
    snapshot = paused(armed, deed)
    lazily(armed)
    is_whole(armed)
    assert snapshot not in {entry.id for entry in armed.snapshots()}, "an eager resume would have used it up"
    assert not list(armed.config.root.glob("layers/*/image"))


@pytest.mark.parametrize("deed", ["fork", "move"])
def test_memory_is_as_it_was_by_sanitized_programs(
    armed: Engine, sanitized: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    paused(armed, deed, 100)
    monkeypatch.setattr(launch, "program", lambda name: sanitized / name)
    lazily(armed)
    is_whole(armed)


def test_in_the_host_user_namespace(armed: Engine) -> None:
    paused(armed, "fork", 100, userns="host")
    lazily(armed)
    is_whole(armed)


def test_again_and_again(armed: Engine) -> None:
    """Lazy and eager by turns; what came lazily is dumped whole."""
    paused(armed, "look", 100)
    for memory in ("lazy", "lazy", "eager", "lazy", "eager"):
        assert armed.resume("job", memory=memory).memory == memory
        until(armed, "job", b"OK\n")
        armed.pause("job", mode="process")
    assert len(armed.snapshots()) == 1
    armed.resume("job")
    assert not wrong(armed, armed.job("job"))


def test_a_pause_waits_for_the_memory(armed: Engine) -> None:
    paused(armed, "look")
    lazily(armed)
    again = armed.pause("job", mode="process")
    assert again.sizes["memory"] >= LARGE << 20
    assert [entry.id for entry in armed.snapshots()] == [again.snapshot]
    armed.resume("job", memory="eager")
    is_whole(armed)


@pytest.mark.usefixtures("held_pager")
def test_a_pause_does_not_wait_for_ever(armed: Engine) -> None:
    paused(armed, "watch")
    lazily(armed)
    with Engine(armed.config.root, timeout=0.2) as other, pytest.raises(Busy):
        other.pause("job")
    assert armed.job("job").state is JobState.RUNNING
    os.kill(brings(armed, armed.job("job"))["serac-pager"], signal.SIGCONT)
    assert armed.pause("job").mode == "process"


def test_a_frozen_job_gets_its_memory(armed: Engine) -> None:
    paused(armed, "watch")
    lazily(armed)
    armed.freeze("job")
    wait_for(lambda: not brings(armed, armed.job("job")))
    armed.thaw("job")
    assert not wrong(armed, settled(armed))


@pytest.mark.usefixtures("held_pager")
@pytest.mark.parametrize("victim", ["serac-pager", "serac-guard"])
def test_whoever_of_the_two_is_killed_the_job_reads_no_zeros(armed: Engine, victim: str) -> None:
    snapshot = paused(armed, "watch")
    lazily(armed)
    pids = brings(armed, armed.job("job"))
    assert set(pids) == {"serac-pager", "serac-guard"}
    os.kill(pids[victim], signal.SIGKILL)
    if victim != "serac-pager":
        os.kill(pids["serac-pager"], signal.SIGCONT)
    ended = armed.wait("job", timeout=30)
    assert ended.state is JobState.FAILED
    assert (ended.failure or "").startswith("its memory could not be brought back: ")
    assert not wrong(armed, ended)
    assert not brings(armed, ended)
    assert armed.snapshot(snapshot).image is not None
    with pytest.raises(WrongState):
        armed.pause("job")
    assert armed.resume("job", memory="eager").memory == "eager"
    assert (armed.job("job").state, armed.job("job").failure) == (JobState.RUNNING, None)


@pytest.mark.usefixtures("held_pager")
def test_a_job_that_lost_both_is_killed_when_it_is_looked_at(armed: Engine) -> None:
    paused(armed, "watch")
    lazily(armed)
    pids = brings(armed, armed.job("job")).values()
    for number, pid in itertools.product((signal.SIGSTOP, signal.SIGKILL), pids):
        os.kill(pid, number)
    ended = armed.wait("job", timeout=30)
    assert ended.state is JobState.FAILED
    assert ended.failure == "its memory could not be brought back: what brought it back was killed"
    assert armed.resume("job", memory="eager").memory == "eager"


@pytest.mark.usefixtures("held_pager")
def test_a_failed_job_takes_its_snapshot_along(armed: Engine) -> None:
    paused(armed, "watch")
    lazily(armed)
    os.kill(brings(armed, armed.job("job"))["serac-pager"], signal.SIGKILL)
    assert armed.wait("job", timeout=30).state is JobState.FAILED
    armed.remove("job")
    assert not armed.snapshots()
    assert not list((armed.config.root / "layers").iterdir())


def test_an_end_while_memory_comes_leaves_nothing(armed: Engine) -> None:
    paused(armed, "exit")
    lazily(armed)
    ended = armed.wait("job", timeout=30)
    assert (ended.state, ended.status) == (JobState.EXITED, 7)
    assert not brings(armed, ended)
    assert not armed.snapshots()


@pytest.mark.parametrize("verb", ["remove", "stop"])
def test_a_job_can_be_ended_while_memory_comes(armed: Engine, verb: str) -> None:
    paused(armed, "watch")
    lazily(armed)
    job = armed.job("job")
    if verb == "remove":
        armed.remove("job", force=True)
    else:
        armed.stop("job", grace=0)
    assert not brings(armed, job)
    assert not armed.snapshots()


def test_forks_of_one_snapshot(armed: Engine) -> None:
    snapshot = paused(armed, "fork", 200)
    forks = [armed.fork(snapshot, name=f"fork{number}", memory="lazy") for number in range(4)]
    for fork in forks:
        until(armed, fork.job, b"OK\n")
        wait_for(lambda fork=fork: armed.job(fork.job).loading is None)
        assert not wrong(armed, armed.job(fork.job))
    assert armed.snapshot(snapshot).image is not None
    lazily(armed)
    is_whole(armed)
    assert armed.snapshot(snapshot), "the forks stand on its layer"


def test_a_pinned_snapshot_stays(armed: Engine) -> None:
    snapshot = paused(armed, "look", 100)
    armed.snapshot_pin(snapshot)
    lazily(armed)
    is_whole(armed)
    assert armed.snapshot(snapshot).image is not None


def test_the_engine_may_go_at_once(armed: Engine) -> None:
    paused(armed, "look")
    script = "import os, sys; from engine import Engine; Engine(sys.argv[1]).resume('job', memory='lazy'); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", script, armed.config.root], check=False, timeout=60)
    assert done.returncode == 9
    is_whole(armed)


@pytest.mark.parametrize("place", ["restore:before", "restore:after", "commit:after", "go:after"])
def test_a_killed_engine_loses_nothing(armed: Engine, place: str) -> None:
    paused(armed, "look", 100)
    script = "import sys; from engine import Engine; Engine(sys.argv[1]).resume('job', memory='lazy')"
    done = subprocess.run(
        [sys.executable, "-c", script, armed.config.root],
        env={**os.environ, "SERAC_FAULT": f"resume.{place}"},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    with Engine(armed.config.root, timeout=30) as other:
        if other.job("job").state is JobState.PAUSED:
            assert not brings(other, other.job("job"))
            lazily(other)
        is_whole(other)


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_a_damaged_image_is_refused_before_anything_runs(armed: Engine, damage: str) -> None:
    snapshot = paused(armed, "look", 100)
    job = armed.job("job")
    pages = max(armed.config.root.glob("layers/*/image/pages-*.img"), key=lambda path: path.stat().st_size)
    pagemap = next(armed.config.root.glob("layers/*/image/pagemap-*.img"))
    kept = {path: path.read_bytes() for path in (pages, pagemap)}
    if damage == "garbage":
        pagemap.write_bytes(kept[pagemap][:8] + b"\xff" * 64)
    else:
        pages.unlink()
    with pytest.raises((CannotRestore, Damaged)):
        armed.resume("job", memory="lazy")
    assert not holds(armed, job)
    assert armed.job("job").snapshot == snapshot
    for path, content in kept.items():
        path.write_bytes(content)
    lazily(armed)
    is_whole(armed)


def test_a_pager_that_dies_before_anything_runs(armed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(armed, "look")
    job = armed.job("job")
    check = restore._check_owners  # when all is back and stands still

    def kill(*given: Any, **named: Any) -> None:
        os.kill(brings(armed, job)["serac-pager"], signal.SIGKILL)
        wait_for(lambda: not brings(armed, job))
        check(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(restore, "_check_owners", kill)
        with pytest.raises(CannotRestore) as caught:
            armed.resume("job", memory="lazy")
    assert caught.value.reason in ("pager", "criu-killed")
    assert not holds(armed, job)
    assert armed.job("job").snapshot == snapshot
    lazily(armed)
    is_whole(armed)


def test_the_choice_is_by_size(armed: Engine) -> None:
    paused(armed, "look", 10)
    small = armed.resume("job")
    assert (small.memory, small.strategy) == ("eager", "reuse")
    assert small.eager_because == "less than 256 MiB of memory"
    armed.remove("job", force=True)
    paused(armed, "look", 300)
    assert armed.resume("job").memory == "lazy"
    is_whole(armed)
    files = armed.pause("job", mode="filesystem")
    assert armed.snapshot(files.snapshot).image is None
    with pytest.raises(InvalidInput):
        armed.resume("job", memory="lazy")
    assert armed.resume("job").memory is None
    assert output(armed, "job", live=False).count("READY") >= 1


def test_a_host_without_userfaultfd(armed: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused(armed, "look", LARGE)
    monkeypatch.setattr(userfaultfd, "_DEVICE", tmp_path / "userfaultfd")
    with pytest.raises(HostLacks) as caught:
        armed.resume("job", memory="lazy")
    assert "vm.unprivileged_userfaultfd" in (caught.value.hint or "")
    result = armed.resume("job")
    assert (result.memory, result.eager_because) == ("eager", f"there is no {tmp_path / 'userfaultfd'}")
    is_whole(armed)


def test_one_snapshot_serves_until_its_pages_are_in(armed: Engine) -> None:
    """Its removal takes nothing away from a job that is still being served."""
    snapshot = paused(armed, "look")
    fork = armed.fork(snapshot, name="fork", memory="lazy")
    armed.remove("job")
    if any(entry.id == snapshot for entry in armed.snapshots()):
        armed.snapshot_remove(snapshot)
    until(armed, fork.job, b"OK\n")
    assert not wrong(armed, armed.job("fork"))


@pytest.mark.slow
def test_the_first_step_takes_as_long_with_much_memory_as_with_little(armed: Engine) -> None:
    """Measured, and printed; judged only by what no noise explains."""
    took = {}
    for size in (50, 2000):
        paused(armed, "look", size)
        began = time.monotonic()
        lazily(armed)
        took[size] = time.monotonic() - began
        is_whole(armed)
        armed.remove("job", force=True)
    print({f"{size} MB": f"{seconds * 1000:.0f} ms" for size, seconds in took.items()})
    assert took[2000] < 5 * took[50]


def test_the_group_of_the_two_is_swept(armed: Engine) -> None:
    """Left by a job that nobody knows any more, as when its root was put back to an older state."""
    root = Root(armed.config, timeout=5)
    group = root.pages_group("0123456789ab")
    cgroup.create(root.host, group, Limits())
    (armed.config.root / "tmp" / "marker").mkdir()
    root.catalog.close()
    Engine(armed.config.root).close()
    assert not Path(group.path).exists()
