"""A supervisor and real jobs. Its clock is the test's own, so that a day is over at once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from roots import inside, shell, until, wait_for
from test_background import ended, idle

from engine import Engine, JobState, SessionSpec, cgroup
from engine.config import Supervise
from engine.errors import Busy
from engine.lifecycle import activity, processes
from engine.model import Event
from engine.store import locked
from engine.supervisor import Done, Pressure, Supervisor

__all__ = ["idle"]  # a fixture

pytestmark = pytest.mark.root

SETTINGS = Supervise(freeze_after=60, pause_after=300, cold_after=3600, cpu=0)
"""any CPU time is activity, for the clock of the test says nothing about how much there could have been"""
WAITS = "mkfifo /fifo; x=41; echo ready; read line < /fifo; x=$((x+1)); echo got $x; exec sleep 1000"
"""remembers something, and does nothing until it is told to go on"""
ASK = "/.serac/ask --reason 'which way?' --state '{\"n\": 1}'; echo answered; sleep 1000"


class Clock:
    """Seconds since anything."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Watcher = Callable[..., Supervisor]


@pytest.fixture
def supervise(engine: Engine, clock: Clock) -> Iterator[Watcher]:
    """Supervisors on that clock; a host with all the memory in the world."""
    with contextlib.ExitStack() as stack:

        def make(settings: Supervise = SETTINGS, **fields: object) -> Supervisor:
            options = {"clock": clock, "pressure": Pressure, **fields}
            return stack.enter_context(Supervisor(engine, settings=settings, **options))  # type: ignore[arg-type]

        yield make


def waiting(engine: Engine, name: str, **fields: object) -> None:
    """A job that has come to where it does nothing any more."""
    engine.run(shell(WAITS, name=name, **fields))
    until(engine, name, b"ready\n")
    quiet(engine, name)


def quiet(engine: Engine, name: str) -> None:
    """No client that is leaving, no CPU time from one look to the other, and nobody who waits for a CPU."""

    def still() -> bool:
        first = activity.look(engine._root, engine.job(name))
        time.sleep(0.05)
        asleep = all(
            ") S " in Path(f"/proc/{pid}/stat").read_text()
            for pid in cgroup.pids(engine._root.group_of(engine.job(name)))
        )
        return not first.clients and asleep and activity.look(engine._root, engine.job(name)) == first

    wait_for(still)


def goes_on(engine: Engine, name: str) -> None:
    """It has what it remembered."""
    inside(engine, name, "echo > /fifo")
    until(engine, name, b"got 42\n")


def said(done: list[Done]) -> list[tuple[str, str, str]]:
    return [(entry.action.verb, entry.action.name, entry.outcome) for entry in done]


def states(engine: Engine) -> dict[str, str]:
    return {job.name: str(job.state) for job in engine.jobs(ended=True)}


def journal(engine: Engine, prefix: str = "supervise.") -> list[Event]:
    return [event for event in engine._root.journal.read() if event.kind.startswith(prefix)]


@pytest.mark.usefixtures("idle")
def test_all_the_way_down_and_back(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    """Frozen, paused with its processes, archived, demoted; and it goes on in the middle of what it did."""
    waiting(engine, "a")
    inside(engine, "a", "echo mine > /file; rm /src/lower")
    quiet(engine, "a")
    supervisor = supervise()
    way = []
    for seconds in (0, 59, 2, 200, 60, 3500, 200):
        clock.now += seconds
        way += said(supervisor.tick())
    assert way == [("freeze", "a", "ok"), ("pause", "a", "ok"), ("archive", "a", "ok")]
    snapshot = engine.snapshot(engine.job("a").snapshot or "")
    assert snapshot.mode == "process"
    wait_for(lambda: engine.snapshot(snapshot.id).archive, patience=120)
    ended(engine)
    assert said(supervisor.tick()) == [("demote", "a", "ok")]
    assert supervisor.tick() == []
    assert list((engine.config.root / "layers").glob("*/upper")) == []
    assert engine.snapshot_verify(snapshot.id) == []
    assert engine.resume("a").mode == "process"
    assert inside(engine, "a", "cat /file; ls /src") == "mine\n"
    goes_on(engine, "a")
    kinds = [(event.kind, event.name, event.outcome) for event in journal(engine)]
    assert kinds == [(f"supervise.{verb}", "a", "ok") for verb in ("freeze", "pause", "archive", "demote")]
    reasons = [event.reason or "" for event in journal(engine)]
    assert reasons[0].startswith("idle for 1 min 1 s: no CPU beyond 0 %")
    assert reasons[1].startswith("idle for 5 min 21 s")
    assert reasons[2].startswith("paused for 1 h 1 min")
    assert journal(engine)[1].facts["state"] == "frozen"


def test_only_the_idle_rest(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    for name in ("idle", "printing", "watched", "awake", "late"):
        waiting(engine, name)
    waiting(engine, "never", pause_after=0.0)
    waiting(engine, "soon", pause_after=30.0)
    engine.run(shell("while :; do :; done", name="busy"))
    lease = r"printf 'until=%s\0reason=builds\0' {} > /run/serac/awake"
    inside(engine, "awake", lease.format(0))
    inside(engine, "late", lease.format(1))
    for name in ("awake", "late"):
        quiet(engine, name)
    supervisor = supervise()
    with engine.attach("watched"):
        assert supervisor.tick() == []
        used = cpu(engine, "busy")
        wait_for(lambda: cpu(engine, "busy") > used)
        engine.start("printing", SessionSpec(argv=("/bin/echo", "word")))
        quiet(engine, "printing")
        clock.now += 400
        found = said(supervisor.tick())
    assert sorted(found) == [("pause", name, "ok") for name in ("idle", "late", "soon")]
    paused = {name for name, state in states(engine).items() if state == "paused"}
    assert paused == {"idle", "late", "soon"}
    last = {engine.job(ref).name: watch.last for ref, watch in supervisor._watches.items()}
    assert last["printing"] == "its sessions printed something, began or ended"
    assert (last["watched"], last["awake"]) == ("a client was attached", "it held a lease")
    assert "of a processor" in last["busy"]
    engine.resume("idle")
    goes_on(engine, "idle")


def cpu(engine: Engine, name: str) -> float:
    return activity.look(engine._root, engine.job(name)).cpu


def test_a_job_that_asks_is_paused_once(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    engine.run(shell(ASK, name="a", pause_after=0.0))
    wait_for(lambda: activity.look(engine._root, engine.job("a")).question)
    supervisor = supervise()
    assert said(supervisor.tick()) == [("pause", "a", "ok")]
    (event,) = journal(engine)
    assert event.reason == "it asks for it: which way?"
    snapshot = engine.snapshot(engine.job("a").snapshot or "")
    assert (snapshot.mode, snapshot.context.state) == ("process", {"n": 1})
    engine.resume("a")
    for _ in range(2):  # who asked is still waiting, and was paused for that
        clock.now += 100
        assert supervisor.tick() == []
    with processes.connected(engine._root, engine.job("a").id) as connection:
        (waiter,) = connection.sessions()
        connection.signal(9, waiter.id)


def test_when_memory_is_short_the_longest_idle_go(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    short = Pressure(stall=0.0)
    supervisor = supervise(pressure=lambda: short)
    for name in ("a", "b"):
        waiting(engine, name)
        engine.freeze(name)
        assert supervisor.tick() == []
        clock.now += 10
    waiting(engine, "c")
    short = Pressure(stall=50.0)
    assert said(supervisor.tick()) == [("pause", "a", "ok")]
    short = Pressure(stall=0.0)
    assert supervisor.tick() == []
    short = Pressure(stall=50.0)
    clock.now += 1
    assert said(supervisor.tick()) == [("pause", "b", "ok")]
    assert (journal(engine)[0].reason or "").startswith("memory is short")
    assert engine.snapshot(engine.job("a").snapshot or "").mode == "process"
    assert supervisor.tick() == []
    assert states(engine)["c"] == "running"


def test_what_fails_or_is_busy_keeps_nobody_from_the_others(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    """One can't be paused with its processes, one is somebody else's just now, one has become a broken mess."""
    waiting(engine, "fails", net="host")
    for name in ("busy", "broken", "good"):
        waiting(engine, name)
    supervisor = supervise(Supervise(freeze_after=0, pause_after=300, cpu=0.1, mode="process"))
    assert supervisor.tick() == []
    inside(engine, "broken", "mkdir -p /run/serac/ask; mkfifo /run/serac/awake; ln -s /dev/zero /run/serac/7.log")
    address = engine.config.run / "jobs" / engine.job("broken").id / "init.json"
    address.rename(address.with_name("aside"))
    clock.now += 300
    with locked(engine.config.root / "jobs" / engine.job("busy").id, timeout=0):
        found = said(supervisor.tick())
    assert sorted(found) == [
        ("pause", "busy", "busy"),
        ("pause", "fails", "cannot-checkpoint"),
        ("pause", "good", "ok"),
    ]
    assert states(engine)["fails"] == "running"
    assert said(supervisor.tick()) == [("pause", "busy", "ok")]  # what failed waits longer
    clock.now += 5
    assert said(supervisor.tick()) == [("pause", "fails", "cannot-checkpoint")]
    clock.now += 9
    assert supervisor.tick() == []
    clock.now += 1
    assert said(supervisor.tick()) == [("pause", "fails", "cannot-checkpoint")]
    outcomes = [event.outcome for event in journal(engine) if event.name == "fails"]
    assert outcomes == ["cannot-checkpoint"] * 3
    assert all("network" in (event.reason or "") for event in journal(engine) if event.name == "fails")
    address.with_name("aside").rename(address)
    goes_on(engine, "fails")


@contextlib.contextmanager
def attached(engine: Engine, name: str) -> Iterator[None]:
    with engine.attach(name):
        yield


@contextlib.contextmanager
def holding_a_lease(engine: Engine, name: str) -> Iterator[None]:
    """As init writes one down."""
    (engine._root.io(engine.job(name).id) / "awake").write_bytes(b"until=0\0reason=deploys\0")
    yield


@pytest.mark.parametrize("deed", [attached, holding_a_lease])
def test_who_does_something_in_the_last_moment_is_left(
    engine: Engine,
    supervise: Watcher,
    clock: Clock,
    deed: Callable[[Engine, str], contextlib.AbstractContextManager[None]],
) -> None:
    """Between the look and the deed."""
    waiting(engine, "a")
    waiting(engine, "b")
    with contextlib.ExitStack() as stack:

        def wake_the_other(done: Done) -> None:
            if done.outcome == "ok":
                stack.enter_context(deed(engine, {"a": "b", "b": "a"}[done.action.name]))

        supervisor = supervise(report=wake_the_other)
        supervisor.tick()
        clock.now += 300
        first, second = said(supervisor.tick())
        assert (first[2], second[2]) == ("ok", "busy")
        assert states(engine)[second[1]] == "running"
        assert [event.name for event in journal(engine)] == [first[1]]


def test_who_has_its_answer_in_the_last_moment_is_left(engine: Engine, supervise: Watcher) -> None:
    for name in ("a", "b"):
        engine.run(shell(ASK, name=name))
        wait_for(lambda name=name: activity.look(engine._root, engine.job(name)).question)

    def answer_the_other(done: Done) -> None:
        if done.outcome == "ok":
            engine.answer({"a": "b", "b": "a"}[done.action.name], 1)

    first, second = said(supervise(report=answer_the_other).tick())
    assert (first[2], second[2]) == ("ok", "busy")
    assert states(engine)[second[1]] == "running"


def test_what_is_frozen_by_hand_and_thawed_counts_as_used(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    waiting(engine, "a")
    supervisor = supervise()
    supervisor.tick()
    clock.now += 60
    assert said(supervisor.tick()) == [("freeze", "a", "ok")]
    assert engine.job("a").state is JobState.FROZEN
    engine.thaw("a")
    quiet(engine, "a")
    clock.now += 290
    assert supervisor.tick() == []
    clock.now += 60
    assert said(supervisor.tick()) == [("freeze", "a", "ok")]


def test_a_dry_run_does_nothing(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    waiting(engine, "a")
    first = supervise()
    first.tick()
    dry = supervise(dry_run=True)  # beside one that works
    clock.now += 300
    assert said(dry.tick()) == [("pause", "a", "planned")]
    assert said(dry.tick()) == [("pause", "a", "planned")]
    assert engine.job("a").state is JobState.RUNNING
    assert journal(engine) == []


def test_two_supervisors_are_one_too_many(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    waiting(engine, "a")
    with Supervisor(engine, settings=SETTINGS, clock=clock, pressure=Pressure) as first:
        with pytest.raises(Busy, match="a supervisor works in"):
            supervise()
        first.tick()
    clock.now += 60
    assert said(supervise().tick()) == [("freeze", "a", "ok")]  # the next one knows what the first has seen


def test_it_runs_in_a_thread_until_it_is_stopped(engine: Engine, clock: Clock) -> None:
    waiting(engine, "a")
    looked = threading.Event()

    def pressure() -> Pressure:
        looked.set()
        return Pressure()

    settings = Supervise(interval=1000)
    with Supervisor(engine, settings=settings, clock=clock, pressure=pressure) as supervisor:
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        assert looked.wait(60)
        supervisor.stop()
        thread.join(60)
        assert not thread.is_alive()
    supervisor.stop()  # nobody listens any more


def test_it_sweeps_and_collects(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    supervisor = supervise(Supervise(sweep=600))
    supervisor.tick()
    stray = engine.config.root / "layers" / "stray"
    stray.mkdir()
    (engine.config.root / "tmp" / "crashed.1234").mkdir()
    waiting(engine, "a")
    snapshot = engine.pause("a", mode="filesystem", archive="wait").snapshot
    engine.snapshot_pin(snapshot)
    engine.resume("a")
    clock.now += 599
    supervisor.tick()
    assert stray.exists()
    engine.stop("a", grace=0)
    clock.now += 1
    supervisor.tick()
    assert not stray.exists()
    assert list((engine.config.root / "tmp").iterdir()) == []
    (event,) = journal(engine)
    assert (event.kind, event.facts) == ("supervise.collect", {"directory": 1})


@pytest.mark.usefixtures("idle")
def test_it_sees_to_it_that_what_is_due_is_archived(engine: Engine, supervise: Watcher) -> None:
    from engine.lifecycle import archiving

    waiting(engine, "a")
    snapshot = engine.pause("a", archive="never").snapshot
    archiving.make_due(engine._root, snapshot)
    supervise().tick()
    wait_for(lambda: engine.snapshot(snapshot).archive, patience=120)
    ended(engine)


def test_it_keeps_what_it_has_seen_of_jobs_that_are_there(engine: Engine, supervise: Watcher, clock: Clock) -> None:
    kept = engine.config.root / "supervisor" / "watch.json"
    waiting(engine, "a")
    supervisor = supervise()
    supervisor.tick()
    job = engine.job("a").id
    assert job.encode() in kept.read_bytes()
    assert os.stat(kept).st_mode & 0o077 == 0
    engine.remove("a", force=True)
    clock.now += 1
    supervisor.tick()
    assert job.encode() not in kept.read_bytes()
    assert sorted(path.name for path in Path(kept.parent).iterdir()) == ["watch.json"]
