"""prefetch and the pool, from outside: what a resume and a new job find, and what is left of what nobody took."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import leftovers
import pytest
from remains import killed
from roots import count, inside, shell, wait_for
from worlds import checked, whole

from engine import Engine, JobSpec, JobState, Limits, Pool
from engine.errors import InvalidInput, WrongState
from engine.model import Mode

pytestmark = pytest.mark.root

COUNTS = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"


def paused(engine: Engine, mode: Mode) -> str:
    engine.run(shell(COUNTS, name="a"))
    count(engine, "a")
    return engine.pause("a", mode=mode).snapshot


def goes_on(engine: Engine, name: str = "a") -> None:
    first = count(engine, name)
    wait_for(lambda: count(engine, name) > first)


OURS = ("serac-ahead_0", "catalog.sqlite")
"""the thread of an engine with slots; SQLite closes a file when the last of its connections in the process goes"""


def left(idle: leftovers.Counts) -> list[str]:
    """What the host has more than before."""
    lines = leftovers.difference(idle, leftovers.count())
    return [line for line in lines if line.startswith("left behind") and not line.endswith(OURS)]


def group(engine: Engine, job_id: str) -> Path:
    return Path(engine._root.host.unified, "serac", engine.config.name, job_id)


def waiting(engine: Engine, job_id: str) -> list[int]:
    """The processes of a slot."""
    return [int(line) for line in (group(engine, job_id) / "cgroup.procs").read_text().split()]


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_a_resume_takes_what_was_announced(engine: Engine, mode: Mode) -> None:
    paused(engine, mode)
    before = engine.job("a")
    announced = engine.prefetch("a")
    slot = waiting(engine, before.id)
    assert slot
    assert engine.job("a") == before
    assert announced.mode == mode
    resumed = engine.resume("a")
    assert "begin" not in resumed.timings
    assert set(slot) & set(waiting(engine, before.id)) or mode == "process"  # criu has ended, what it restored is new
    goes_on(engine)
    engine.pause("a", mode=mode)
    assert "begin" in engine.resume("a").timings


def test_what_was_announced_goes_by_itself(engine: Engine) -> None:
    paused(engine, "process")
    idle = leftovers.count()
    engine.prefetch("a", seconds=0.3)
    wait_for(lambda: not left(idle))
    engine.resume("a")


def test_announced_again_is_once(engine: Engine) -> None:
    paused(engine, "process")
    engine.prefetch("a", seconds=0.3)
    engine.prefetch("a", seconds=3600)
    first = waiting(engine, engine.job("a").id)
    threading.Event().wait(0.6)  # the first one's time is over, and that is no concern of the second
    assert waiting(engine, engine.job("a").id) == first
    assert "begin" not in engine.resume("a").timings


def test_one_mode_is_announced_and_another_comes(engine: Engine) -> None:
    paused(engine, "process")
    engine.prefetch("a", mode="process")
    assert engine.resume("a", mode="filesystem").mode == "filesystem"
    engine.pause("a", mode="process")
    engine.prefetch("a", mode="filesystem")
    assert engine.resume("a", memory="lazy").mode == "process"
    goes_on(engine)


def test_a_slot_that_has_died_is_none(engine: Engine) -> None:
    paused(engine, "process")
    engine.prefetch("a")
    for pid in waiting(engine, engine.job("a").id):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not waiting(engine, engine.job("a").id))
    assert "begin" in engine.resume("a").timings
    goes_on(engine)


def test_another_engine_takes_the_job_away(engine: Engine) -> None:
    paused(engine, "process")
    engine.prefetch("a", seconds=1)
    with Engine(engine.config.root) as other:
        other.resume("a")
    with pytest.raises(WrongState):
        engine.resume("a")
    threading.Event().wait(1.2)  # what was announced here is over
    assert engine.job("a").state is JobState.RUNNING
    goes_on(engine)


def test_another_engine_removes_the_job(engine: Engine) -> None:
    paused(engine, "process")
    idle = leftovers.count()
    engine.prefetch("a", seconds=0.5)
    with Engine(engine.config.root) as other:
        other.remove("a")
    wait_for(lambda: not left(idle))


def test_a_job_that_was_announced_is_removed(engine: Engine) -> None:
    paused(engine, "filesystem")
    idle = leftovers.count()
    engine.prefetch("a")
    engine.remove("a")
    wait_for(lambda: not left(idle))


def test_a_check_beside_it_finds_nothing(engine: Engine) -> None:
    paused(engine, "process")
    with Engine(engine.config.root, pool=Pool(jobs=1, forks=1)) as other:
        filled(other, 2)
        other.prefetch("a")
        whole(engine)
        with Engine(engine.config.root) as third:
            assert third.job("a").state is JobState.PAUSED
        assert "begin" not in other.resume("a").timings


def test_only_what_can_be_resumed_is_announced(engine: Engine) -> None:
    engine.run(shell(COUNTS, name="a"))
    with pytest.raises(WrongState):
        engine.prefetch("a")
    engine.pause("a", mode="filesystem")
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidInput):
            engine.prefetch("a", seconds=seconds)
    with pytest.raises(InvalidInput):
        engine.prefetch("a", memory="lazy")
    assert not group(engine, engine.job("a").id).exists()


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_an_archived_chain_is_mounted_ahead_and_let_go(engine: Engine, mode: Mode) -> None:
    snapshot = paused(engine, mode)
    engine.snapshot_archive(snapshot)
    engine.demote("a")
    idle = leftovers.count()
    engine.prefetch("a", seconds=0.5)
    wait_for(lambda: not left(idle))
    engine.prefetch("a")
    assert "begin" not in engine.resume("a").timings
    goes_on(engine)


# the pool


def filled(engine: Engine, wanted: int) -> set[str]:
    """The ids of the slots, once there are so many."""
    wait_for(lambda: len(engine._root.shelf.ids()) == wanted)
    return set(engine._root.shelf.ids())


def test_new_jobs_take_slots_and_the_pool_is_filled_again(engine: Engine) -> None:
    with Engine(engine.config.root, pool=Pool(jobs=2)) as pooled:
        ready = filled(pooled, 2)
        first, second = (pooled.run(shell(COUNTS, name=name)).id for name in ("a", "b"))
        assert {first, second} & ready
        again = filled(pooled, 2)
        assert not {first, second} & again
        assert count(pooled, "a") > 0
        assert inside(pooled, "b", "hostname; cat /etc/hostname; ls /sys/class/net").split() == ["b", "b", "lo"]
        pooled.pause("a", mode="process")
        pooled.resume("a")
        pooled.remove("a", force=True)
        pooled.remove("b", force=True)


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_forks_take_slots(engine: Engine, mode: Mode) -> None:
    snapshot = paused(engine, mode)
    with Engine(engine.config.root, pool=Pool(jobs=1, forks=1)) as pooled:
        ready = filled(pooled, 2)
        fork = pooled.fork(snapshot, name="b")
        assert fork.job in ready
        assert "begin" not in fork.timings
        assert count(pooled, "b") > 0


@pytest.mark.parametrize(
    "fields", [{"limits": Limits(pids=50)}, {"net": "host"}, {"net": "bridge"}, {"userns": "host"}, {"allow": ("bpf",)}]
)
def test_a_job_of_another_kind_begins_without(engine: Engine, fields: dict[str, object]) -> None:
    with Engine(engine.config.root, pool=Pool(jobs=1)) as pooled:
        ready = filled(pooled, 1)
        assert pooled.run(shell(COUNTS, name="a", **fields)).id not in ready
        assert filled(pooled, 1) == ready
        assert count(pooled, "a") > 0


def test_slots_have_the_limits_of_their_pool(engine: Engine) -> None:
    limits = Limits(pids=50, memory=64 << 20)
    with Engine(engine.config.root, pool=Pool(jobs=1, limits=limits)) as pooled:
        ready = filled(pooled, 1)
        assert pooled.run(shell(COUNTS, name="a", limits=limits)).id in ready
        forks = "i=0; while test $i -lt 60; do sleep 9 & i=$((i+1)); done; wait"
        assert "fork" in inside(pooled, "a", f"({forks}) 2>&1 | head -1; killall sleep; true")


def test_a_run_that_fails_uses_its_slot_up_and_leaves_nothing(engine: Engine) -> None:
    idle = leftovers.count()
    with Engine(engine.config.root, pool=Pool(jobs=1)) as pooled:
        filled(pooled, 1)
        with pytest.raises(Exception, match="nowhere"):
            pooled.run(JobSpec(base="small", name="a", argv=("/nowhere",)))
        assert pooled.jobs(ended=True) == []
    wait_for(lambda: not left(idle))


def test_a_slot_that_was_taken_down_from_outside_is_none(engine: Engine) -> None:
    with Engine(engine.config.root, pool=Pool(jobs=1)) as pooled:
        (job_id,) = filled(pooled, 1)
        (group(pooled, job_id) / "cgroup.kill").write_text("1")
        wait_for(lambda: not waiting(pooled, job_id))
        pooled.run(shell(COUNTS, name="a"))
        assert count(pooled, "a") > 0


def test_an_engine_that_is_closed_leaves_nothing_of_it(engine: Engine) -> None:
    paused(engine, "process")
    idle = leftovers.count()
    pooled = Engine(engine.config.root, pool=Pool(jobs=3, forks=2))
    pooled.prefetch("a")
    pooled.close()
    wait_for(lambda: not left(idle))


def test_an_engine_that_is_closed_at_once_leaves_nothing_of_it(engine: Engine) -> None:
    idle = leftovers.count()
    for _ in range(5):
        Engine(engine.config.root, pool=Pool(jobs=2, forks=2)).close()
    wait_for(lambda: not left(idle))


DIES = """
import os, signal, sys
from engine import Engine, Pool
engine = Engine(sys.argv[1], pool=Pool(jobs=2, forks=1))
engine.prefetch("a")
while len(engine._root.shelf.ids()) < 4: pass
print(*engine._root.shelf.ids(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_engine_leaves_no_process_and_the_next_take_cleans(engine: Engine) -> None:
    paused(engine, "process")
    idle = leftovers.count()
    dead = subprocess.run(
        [sys.executable, "-c", DIES, engine.config.root], stdout=subprocess.PIPE, text=True, check=False
    )
    slots = dead.stdout.split()
    assert len(slots) == 4
    wait_for(lambda: not any(waiting(engine, slot) for slot in slots))
    engine.close()
    with Engine(engine.config.root) as after:
        assert after.resume("a").mode == "process"
        goes_on(after)
        after.pause("a", mode="process")
        checked(after, repair=True)
        wait_for(lambda: not left(idle))


def test_any_thread_may_take_a_slot(engine: Engine) -> None:
    """What serac-launch starts dies with the thread that started it, which is none of the callers'."""
    paused(engine, "process")

    def elsewhere(call: Callable[[], object]) -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    elsewhere(lambda: engine.prefetch("a"))
    elsewhere(lambda: engine.resume("a"))
    goes_on(engine)


def test_a_prefetch_that_is_killed_leaves_the_job_paused(engine: Engine) -> None:
    paused(engine, "process")
    for place in ("prefetch.mount:after", "prefetch.begin:before", "prefetch.begin:after"):
        killed(engine, "engine.prefetch('a')", place)
        assert engine.job("a").state is JobState.PAUSED
    engine.resume("a")
    goes_on(engine)
