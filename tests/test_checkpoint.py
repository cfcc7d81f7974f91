"""The verbs with processes: pause, resume, fork and snapshots in mode ``process``, and what they tell."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import leftovers
import pytest
from counters import COUNTER, counter, counts, counts_on
from roots import inside, on_disk, output, until, wait_for
from witness import small_tree, witness

from engine import Engine, JobSpec, JobState, Limits, SessionSpec, tools
from engine.errors import (
    Busy,
    CannotCheckpoint,
    CannotRestore,
    InUse,
    InvalidInput,
    SeracError,
    ToolMissing,
    WrongState,
)
from engine.kernel import procfs

__all__ = ["small_tree"]  # a fixture

pytestmark = pytest.mark.root

# pause and resume


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_processes_go_on_where_they_were(engine: Engine, pinned: bool) -> None:
    one = witness(engine)
    inside(engine, "a", "echo kept > /kept")
    for number in range(3):
        paused = engine.pause("a")
        assert (paused.mode, paused.reason) == ("process", None)
        assert engine.job("a").state is JobState.PAUSED
        engine.snapshot_pin(paused.snapshot, pinned=pinned)
        resumed = engine.resume("a")
        assert (resumed.mode, resumed.strategy) == ("process", "stack" if pinned else "reuse")
        assert (resumed.snapshot, resumed.missing) == (paused.snapshot, {})
        one.goes_on()
        assert inside(engine, "a", "cat /kept") == "kept\n"
        assert len(engine.job("a").layers) == (number + 1 if pinned else 0)
    assert engine.job("a").pauses == 3


def test_a_pause_tells_what_it_took(engine: Engine) -> None:
    one = witness(engine, children=3, kib=4000)
    paused = engine.pause("a", mode="process")
    steps = {"freeze", "look", "preflight", "dump", "seal", "flush", "commit", "kill", "release", "total"}
    assert steps | {"criu-frozen", "criu-memdump", "criu-memwrite"} <= paused.timings.keys()
    assert max(paused.timings.values()) == paused.timings["total"] > 0
    assert paused.sizes["layers"] == 1
    assert 12 << 20 < paused.sizes["memory"] < 24 << 20
    resumed = engine.resume("a", mode="process")
    assert {"plan", "mount", "restore", "commit", "go", "criu-restore", "total"} <= resumed.timings.keys()
    assert max(resumed.timings.values()) == resumed.timings["total"] > 0
    one.goes_on()


def test_a_paused_job_holds_nothing_of_the_host(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="warm"))
    engine.pause("warm", mode="process")  # criu's knowledge of the kernel is kept from here on
    engine.remove("warm")
    idle = leftovers.count()
    counter(engine)
    engine.pause("a", mode="process")
    assert leftovers.difference(idle, leftovers.settled(idle)) == []


def test_the_image_is_for_nobody_else(engine: Engine) -> None:
    counter(engine)
    snapshot = engine.snapshot(engine.pause("a", mode="process").snapshot)
    assert snapshot.mode == "process"
    assert snapshot.image is not None
    layer = engine.config.root / "layers" / snapshot.layers[-1]
    reader = engine.config.settings.id_first
    for path in (layer / "image", *(layer / "image").glob("*.img")):
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o027) == (0, 0), path
        assert status.st_gid == reader, path
    assert (engine.config.root / "layers").stat().st_mode & 0o077 == 0


def test_nothing_of_the_image_stays_after_a_resume(engine: Engine) -> None:
    counter(engine)
    engine.pause("a", mode="process")
    engine.resume("a")
    upper = engine.job("a").upper
    assert upper is not None
    assert sorted(os.listdir(engine.config.root / "layers" / upper)) == ["upper", "work"]
    assert engine.snapshots() == []


def test_auto_and_files_alone(engine: Engine) -> None:
    """A snapshot of files alone has no processes to come back; one with processes can do without them."""
    counter(engine)
    paused = engine.pause("a", mode="filesystem")
    assert (paused.mode, paused.reason, "memory" in paused.sizes) == ("filesystem", None, False)
    with pytest.raises(CannotRestore) as caught:
        engine.resume("a", mode="process")
    assert caught.value.reason == "no-image"
    assert engine.job("a").state is JobState.PAUSED
    assert engine.resume("a").mode == "filesystem"
    until(engine, "a", b"1\n2\n")
    engine.pause("a")
    assert engine.resume("a").mode == "process"


def test_a_host_without_criu_keeps_the_files(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    find = tools.find

    def without(name: str) -> tools.Tool:
        if name == "criu":
            raise ToolMissing("criu: it is not installed", hint="run scripts/setup")
        return find(name)

    counter(engine)
    with monkeypatch.context() as patched:
        patched.setattr(tools, "find", without)
        with pytest.raises(CannotCheckpoint) as caught:
            engine.pause("a", mode="process")
        assert (caught.value.reason, caught.value.hint) == ("host", "run scripts/setup")
        counts_on(engine, "a")
        result = engine.pause("a")
        assert (result.mode, result.reason) == ("filesystem", "host")
    assert list((engine.config.root / "layers").glob("*/image")) == []


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_processes_can_be_left_aside(engine: Engine, pinned: bool) -> None:
    """The command starts again, from the files as they were at the cut; nothing of criu's is among them."""
    one = witness(engine)
    snapshot = engine.snapshot_pin(engine.pause("a", mode="process").snapshot, pinned=pinned)
    assert snapshot.image is not None
    assert snapshot.image.remaps
    result = engine.resume("a", mode="filesystem")
    assert result.mode == "filesystem"
    one.begins_again("a")
    assert inside(engine, "a", "cat /run/serac/generation") == f"{result.generation}\n"
    assert inside(engine, "a", "ls / | grep -c link_remap") == "0\n"
    if pinned:
        engine.fork(snapshot.id, name="b", mode="filesystem")
        one.begins_again("b")
        assert inside(engine, "b", "ls / | grep -c link_remap") == "0\n"
        engine.fork(snapshot.id, name="c", mode="process")
        one.copied("c").goes_on()
    engine.pause("a", mode="process")
    assert engine.resume("a").mode == "process"


def test_a_frozen_job_is_paused_as_it_is_and_runs_when_it_is_resumed(engine: Engine) -> None:
    one = witness(engine)
    engine.freeze("a")
    told = one.says()
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    assert engine.job("a").state is JobState.RUNNING
    assert one.says()[0] < told[0] + 10_000
    one.goes_on()


def test_a_command_that_ends_after_its_pauses_ends_with_its_status(engine: Engine) -> None:
    counter(engine)
    for _ in range(2):
        engine.pause("a", mode="process")
        engine.resume("a", mode="process")
    counts_on(engine, "a")
    inside(engine, "a", "touch /stop")
    ended = engine.wait("a", timeout=30)
    assert (ended.state, ended.status) == (JobState.EXITED, 7)


def test_sessions_are_there_with_their_output(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    number = engine.start("a", SessionSpec(argv=("/bin/sh", "-c", COUNTER))).id
    assert number is not None
    until(engine, "a", b"5\n", number)
    done = engine.start("a", SessionSpec(argv=("/bin/sh", "-c", "echo said; exit 3"))).id
    assert done is not None
    wait_for(lambda: not engine.sessions("a")[done - 1].running)
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    before = len(counts(engine, "a", number))
    wait_for(lambda: len(counts(engine, "a", number)) > before + 3)
    assert output(engine, "a", done) == "said\n"
    assert [(status.running, status.exit) for status in engine.sessions("a")] == [(True, None), (False, 3)]
    assert engine.start("a", SessionSpec(argv=("/bin/true",))).id == done + 1


def test_limits_are_the_same_after_a_resume(engine: Engine) -> None:
    counter(engine, limits=Limits(memory=100 << 20, pids=30, cpus=0.7))
    group = engine._root.group_of(engine.job("a"))
    files = [
        path
        for place in (group.path, *group.legacy)
        for path in Path(place).glob("*")
        if path.name in ("memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us", "memory.max", "cpu.max")
    ]
    before = {path: path.read_text() for path in files}
    assert before
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    assert {path: path.read_text() for path in files} == before
    for place in (group.path, *group.legacy):
        assert len(Path(place, "cgroup.procs").read_text().split()) >= 2
    counts_on(engine, "a")


# snapshots


def test_what_a_removed_snapshot_leaves(engine: Engine) -> None:
    counter(engine)
    snapshot = engine.pause("a", mode="process").snapshot
    with pytest.raises(InUse):
        engine.snapshot_remove(snapshot)
    engine.snapshot_pin(snapshot)
    engine.resume("a", mode="process")
    counts_on(engine, "a")
    engine.snapshot_remove(snapshot)
    layers = engine.config.root / "layers"
    assert list(layers.glob("*/image")) == []
    counts_on(engine, "a")
    engine.remove("a", force=True)
    assert list(layers.iterdir()) == []


def test_a_removed_job_takes_its_processes_along(engine: Engine) -> None:
    counter(engine)
    engine.pause("a", mode="process")
    engine.remove("a")
    assert engine.snapshots() == []
    for place in ("layers", "jobs", "tmp"):
        assert list((engine.config.root / place).iterdir()) == []


def test_a_snapshot_that_was_taken_outlives_its_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lifecycle.lazy.WORTH", 0)
    counter(engine)
    taken = engine.snapshot_take("a").snapshot
    engine.remove("a", force=True)
    engine.fork(taken, name="b")
    counts_on(engine, "b")


def test_a_pinned_snapshot_outlives_its_job_with_its_processes(engine: Engine) -> None:
    one = witness(engine)
    snapshot = engine.pause("a", mode="process").snapshot
    engine.snapshot_pin(snapshot)
    engine.remove("a")
    for name in ("b", "c"):
        engine.fork(snapshot, name=name, mode="process")
        one.copied(name).goes_on()
        engine.remove(name, force=True)
    engine.snapshot_remove(snapshot)
    assert list((engine.config.root / "layers").iterdir()) == []


# errors


def test_mistakes_change_nothing(engine: Engine) -> None:
    counter(engine)
    with pytest.raises(InvalidInput):
        engine.pause("a", mode="processes")  # type: ignore[arg-type]
    snapshot = engine.pause("a", mode="process").snapshot
    before = engine.job("a"), engine.snapshots()
    with pytest.raises(WrongState):
        engine.pause("a", mode="process")
    with pytest.raises(InvalidInput):
        engine.resume("a", mode="processes")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        engine.resume("a", workdir="/src")
    with pytest.raises(InvalidInput):
        engine.fork(snapshot, name="No Name")
    assert (engine.job("a"), engine.snapshots()) == before
    assert engine.resume("a", mode="filesystem", workdir="/src").mode == "filesystem"


def test_what_can_not_be_carried_has_a_reason(engine: Engine) -> None:
    counter(engine, net="host")
    with pytest.raises(CannotCheckpoint) as caught:
        engine.pause("a", mode="process")
    assert caught.value.reason == "host-network"
    counts_on(engine, "a")
    paused = engine.pause("a")
    assert (paused.mode, paused.reason) == ("filesystem", "host-network")
    assert engine.snapshot(paused.snapshot).reason == "host-network"


# two engines


def test_two_engines_pause_one_job(engine: Engine) -> None:
    one = witness(engine)
    outcomes: list[str] = []

    def pause() -> None:
        with Engine(engine.config.root, timeout=60) as other:
            try:
                outcomes.append(other.pause("a", mode="process").mode)
            except (WrongState, Busy) as error:
                outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=pause) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["WrongState"] * 3 + ["process"]
    engine.resume("a", mode="process")
    one.goes_on()


def test_one_engine_pauses_while_another_asks(engine: Engine) -> None:
    """Clients are sent away, and what they asked for is done or is refused; the job is whole either way."""
    one = witness(engine)
    stop = threading.Event()
    refused: list[SeracError] = []
    answered: list[str] = []

    def ask() -> None:
        with Engine(engine.config.root, timeout=60) as other:
            while not stop.is_set():
                try:
                    answered.append(inside(other, "a", "echo here"))
                except SeracError as error:
                    refused.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(5):
            engine.pause("a", mode="process")
            engine.resume("a", mode="process")
            one.goes_on()
    finally:
        stop.set()
        asking.join()
    assert "here\n" in answered
    assert set(answered) <= {"here\n", ""}


# many rounds


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_rounds_of_a_tree_of_fifty(engine: Engine, rounds: int) -> None:
    one = witness(engine, children=48, kib=256)
    for _ in range(2):  # and then it is as it stays
        engine.pause("a", mode="process")
        engine.resume("a", mode="process")
    one.goes_on()
    engine._root.await_removals()
    processes, host, files, memory = members(engine), leftovers.count(), on_disk(engine.config.root), resident()
    assert len(processes) == 51
    sizes = []
    for _ in range(rounds):
        paused = engine.pause("a", mode="process")
        sizes.append(paused.sizes["memory"])
        assert engine.resume("a", mode="process").strategy == "reuse"
        one.goes_on()
    assert members(engine) == processes
    job = engine.job("a")
    assert (job.layers, engine.snapshots()) == ((), [])
    engine._root.await_removals()
    assert without_pids(leftovers.difference(host, leftovers.settled(host))) == []
    engine._root.await_removals()
    assert on_disk(engine.config.root).keys() == files.keys()
    assert max(sizes) < min(sizes) * 1.2
    assert resident() < memory + (20 << 20)


def members(engine: Engine) -> dict[int, tuple[str, list[str]]]:
    """Pid in the job -> its name, and what it has open."""
    found = {}
    for pid in Path(engine._root.group_of(engine.job("a")).path, "cgroup.procs").read_text().split():
        status = procfs.status(int(pid))
        links = sorted(link.partition(":")[0] for link in procfs.descriptors(int(pid)).values())
        found[int(status["NSpid"].split()[-1])] = (status["Name"], links)
    return found


def without_pids(lines: list[str]) -> list[str]:
    """Without the job's own processes, which have new numbers outside."""
    return [line for line in lines if "witness" not in line and "init-" not in line]


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
