"""Whether what runs in a job survives a pause in mode process: many things together, one pause for all.

Setting things up gives back what checks them: in the same job after a resume, or in a fork. `taken_through` says what
became of each; when they can't be paused or resumed together it tries halves, so that the one that can't is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import leftovers
import pytest
from roots import inside
from screens import Screen
from survival import Stood

from engine import Engine, JobSpec, SessionSpec
from engine.checkpoint import REASONS
from engine.errors import CannotCheckpoint, CannotRestore, SeracError

NOT_AT_ALL = Stood(0.0, 0.0)


class Place:
    """A job that runs, and for how long it did not since things were set up in it."""

    def __init__(self, engine: Engine, job: str, stood: Stood = NOT_AT_ALL) -> None:
        self.engine = engine
        self.job = job
        self.stood = stood

    def later(self, job: str, *, still: float = 0.0, freezing: float = 0.0) -> Place:
        """The same, in this job, after so many seconds more."""
        return Place(self.engine, job, Stood(self.stood.still + still, self.stood.freezing + freezing))

    def inside(self, script: str) -> str:
        return inside(self.engine, self.job, script)

    def start(self, *argv: str, tty: bool = False, user: int = 0, workdir: str = "/root") -> int:
        """A session that stays; its number."""
        spec = SessionSpec(argv=argv, tty=(24, 80) if tty else None, uid=user, gid=user, workdir=workdir)
        number = self.engine.start(self.job, spec).id
        assert number is not None
        return number

    def screen(self, number: int) -> Screen:
        return Screen(self.engine, self.job, number)


PASSING = {name for name, reason in REASONS.items() if reason.passing}

Outcomes = dict[str, str]
"""name -> OK, or what is wrong"""

Check = Callable[[Place], Outcomes]
SetUp = Callable[[Place, Sequence[str]], Check]
"""sets up the things of these names"""


class Group:
    """Things that are set up in one job, on their way."""

    def __init__(self, engine: Engine, set_up: SetUp, names: Sequence[str]) -> None:
        self.engine = engine
        self.outcomes = dict.fromkeys(names, "OK")
        self.job = engine.run(JobSpec(base="debian")).id
        self.place = Place(engine, self.job)
        self._jobs = [self.job]
        self._paused = 0.0
        self._set_up, self._names = set_up, names

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        """Its jobs and their snapshots go."""
        for job in self._jobs:
            self.engine.remove(job, force=True)
        for snapshot in self.engine.snapshots():
            if snapshot.job in self._jobs:
                self.engine.snapshot_remove(snapshot.id)

    def set_up(self) -> None:
        self._check = self._set_up(self.place, self._names)

    def pause(self, tries: int = 5) -> str:
        """The snapshot's id. What may have been refused for the moment alone is asked for again."""
        begun = time.monotonic()
        try:
            snapshot = self.engine.pause(self.job, mode="process").snapshot
        except CannotCheckpoint as error:
            if error.reason not in PASSING or tries == 1:
                raise
            return self.pause(tries - 1)
        self._paused = time.monotonic()
        self.place = self.place.later(self.job, freezing=self._paused - begun)
        return snapshot

    def resume(self) -> str:
        """The strategy."""
        begun = time.monotonic()
        result = self.engine.resume(self.job, mode="process", memory="eager")  # a lazy one stacks
        assert result.mode == "process"
        self.place = self.place.later(self.job, still=begun - self._paused, freezing=time.monotonic() - begun)
        return result.strategy

    def fork(self, snapshot: str) -> Place:
        begun = time.monotonic()
        result = self.engine.fork(snapshot, mode="process")
        self._jobs.append(result.job)
        assert result.mode == "process"
        return self.place.later(result.job, still=begun - self._paused, freezing=time.monotonic() - begun)

    def check(self, place: Place, what: str) -> None:
        """The first thing that is wrong with each is kept, with when it was seen."""
        for name, said in self._check(place).items():
            if said != "OK" and self.outcomes[name] == "OK":
                self.outcomes[name] = f"{what}: {said}"


def resumed(group: Group) -> None:
    """Pause, resume."""
    group.pause()
    group.resume()
    group.check(group.place, "resumed")


def forked_and_stacked(group: Group) -> None:
    """Pause, fork, and then two rounds more of the first one: on top of its pinned snapshot, and from that."""
    snapshot = group.pause()
    group.engine.snapshot_pin(snapshot)
    group.check(group.fork(snapshot), "forked")
    assert group.resume() == "stack"
    for _ in range(2):
        group.pause()
        group.resume()
    group.check(group.place, "after three rounds")


Route = Callable[[Group], None]

TOGETHER = "refused together"
REFUSALS = (TOGETHER, CannotCheckpoint.__name__, CannotRestore.__name__)


def taken_through(engine: Engine, route: Route, set_up: SetUp, names: Sequence[str]) -> Outcomes:
    """What became of each of them on a route. Nothing of it is left on the host."""
    before = leftovers.count()
    outcomes = together(engine, route, set_up, names)
    engine._root.await_removals()
    found = leftovers.difference(before, leftovers.settled(before))
    assert not found, "\n".join(found)
    return outcomes


def together(engine: Engine, route: Route, set_up: SetUp, names: Sequence[str]) -> Outcomes:
    with Group(engine, set_up, names) as group:
        group.set_up()
        try:
            route(group)
            return group.outcomes
        except (CannotCheckpoint, CannotRestore) as error:
            refusal = f"{type(error).__name__}: {error.reason}: {error}"
    return {names[0]: refusal} if len(names) == 1 else apart(engine, route, set_up, names, refusal)


def apart(engine: Engine, route: Route, set_up: SetUp, names: Sequence[str], refusal: str) -> Outcomes:
    """By halves. When nothing in either is refused, it is the whole that is."""
    outcomes: Outcomes = {}
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        outcomes |= together(engine, route, set_up, half)
    refused = any(said.startswith(REFUSALS) for said in outcomes.values())
    return outcomes if refused else dict.fromkeys(names, f"{TOGETHER}: {refusal}")


Thing = Callable[[Place], Callable[[Place], None]]


def one_by_one(things: Mapping[str, Thing]) -> SetUp:
    """Things that set themselves up and give back what checks them; whatever either raises is what is wrong."""

    def set_up(place: Place, names: Sequence[str]) -> Check:
        checks = {name: things[name](place) for name in names}
        return lambda place: {name: outcome(check, place) for name, check in checks.items()}

    return set_up


def outcome(check: Callable[[Place], None], place: Place) -> str:
    try:
        check(place)
    except (SeracError, AssertionError, pytest.fail.Exception) as error:
        return f"{type(error).__name__}: {error}"
    return "OK"
