"""Hypothesis drives a root through operations in any order, some in an engine that is killed in the middle; after each,
rows, files, memory and what the host holds must be as the model in `soaking` has them.

``SERAC_EXAMPLES`` is how many runs there are, of ``SERAC_STEPS`` operations each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from soaking import acts, chance
from soaking.files import KINDS, NAMES, Change
from soaking.run import finish, staged, steps_of
from soaking.stage import Stage, Wrong
from soaking.world import EXITED, FAILED, FROZEN, LIVE, NEEDS, PAUSED, RUNNING, Op

pytestmark = pytest.mark.root

EXAMPLES, STEPS = 12, 30
SLOW_EXAMPLES, SLOW_STEPS = 60, 50

pick = st.integers(0, 9)
"""which of those that there are, counted round and round"""
modes = st.sampled_from(("auto", "process", "filesystem"))
memories = st.sampled_from(("auto", "lazy"))
changes = st.builds(Change, st.sampled_from(KINDS), st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 99))


def places(verb: str) -> st.SearchStrategy[str | None]:
    """Where an engine is killed in a verb; nowhere, as often as not."""
    steps = st.sampled_from(steps_of(verb))
    return st.none() | st.builds("{}:{}".format, steps, st.sampled_from(("before", "after")))


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One root for all; each run empties it."""
    directory = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    try:
        with staged(directory) as stage:
            yield stage
            finish(stage)
    finally:
        shutil.rmtree(directory)


def jobs(*states: str) -> object:
    return precondition(lambda machine: machine.stage.state.names(*states))


room = precondition(lambda machine: len(machine.stage.state.jobs) < chance.JOBS_MAX)
snapshots = precondition(lambda machine: machine.stage.state.snaps)


class Machine(RuleBasedStateMachine):
    stage: Stage

    def do(self, op: Op, place: str | None = None) -> None:
        if place is None:
            self.stage.act(op)
        else:
            self.stage.killed(op, place)
        self.stage.look(self.stage.state.jobs)

    def job(self, number: int, *states: str) -> str:
        names = self.stage.state.names(*states)
        return names[number % len(names)]

    def snap(self, number: int) -> str:
        ids = list(self.stage.state.snaps)
        return ids[number % len(ids)]

    def teardown(self) -> None:
        self.stage.reopen()
        self.stage.empty()

    @room
    @rule(place=places("run"))
    def run(self, place: str | None) -> None:
        self.do(Op("run", name=self.stage.fresh("j")), place)

    @jobs(RUNNING)
    @rule(number=pick)
    def session(self, number: int) -> None:
        self.do(Op("session", job=self.job(number, RUNNING), name=self.stage.fresh("s")))

    @jobs(RUNNING)
    @rule(number=pick, some=st.lists(changes, min_size=1, max_size=6))
    def write(self, number: int, some: list[Change]) -> None:
        for change in some:
            self.stage.act(Op("write", job=self.job(number, RUNNING), change=change))

    @jobs(RUNNING)
    @rule(number=pick)
    def write_in_shared_memory(self, number: int) -> None:
        self.do(Op("shm", job=self.job(number, RUNNING), mark=self.stage.fresh("m")))

    @jobs(*LIVE)
    @rule(number=pick, mode=modes, place=places("pause"))
    def pause(self, number: int, mode: str, place: str | None) -> None:
        self.do(Op("pause", job=self.job(number, *LIVE), mode=mode), place)

    @jobs(PAUSED)
    @rule(number=pick, mode=modes, memory=memories, place=places("resume"))
    def resume(self, number: int, mode: str, memory: str, place: str | None) -> None:
        job = self.job(number, PAUSED)
        snap = self.stage.state.jobs[job].snap
        assert snap is not None
        self.do(Op("resume", job=job, mode=mode, memory=self.possible(snap, mode, memory)), place)

    @room
    @snapshots
    @rule(number=pick, mode=modes, memory=memories, place=places("fork"))
    def fork(self, number: int, mode: str, memory: str, place: str | None) -> None:
        snap, name = self.snap(number), self.stage.fresh("j")
        self.do(Op("fork", snap=snap, name=name, mode=mode, memory=self.possible(snap, mode, memory)), place)

    def possible(self, snap: str, mode: str, memory: str) -> str:
        comes_back = self.stage.state.snaps[snap].mode == "process" and mode != "filesystem"
        return memory if comes_back else "auto"

    @jobs(RUNNING)
    @rule(number=pick, place=places("take"))
    def take_snapshot(self, number: int, place: str | None) -> None:
        self.do(Op("take", job=self.job(number, RUNNING)), place)

    @snapshots
    @rule(number=pick, verb=st.sampled_from(("pin", "unpin", "snapshot-rm")))
    def change_snapshot(self, number: int, verb: str) -> None:
        self.do(Op(verb, snap=self.snap(number)))

    @snapshots
    @rule(number=pick, place=places("archive"))
    def archive(self, number: int, place: str | None) -> None:
        self.do(Op("archive", snap=self.snap(number)), place)

    @snapshots
    @rule(number=pick, place=places("flatten"))
    def flatten(self, number: int, place: str | None) -> None:
        self.do(Op("flatten", snap=self.snap(number)), place)

    @snapshots
    @rule(number=pick)
    def export(self, number: int) -> None:
        self.do(Op("export", snap=self.snap(number)))

    @precondition(lambda machine: machine.stage.state.exports)
    @rule(number=pick, place=places("import"))
    def take_in(self, number: int, place: str | None) -> None:
        ids = list(self.stage.state.exports)
        self.do(Op("import", snap=ids[number % len(ids)]), place)

    @jobs(RUNNING)
    @rule(number=pick, place=places("freeze"))
    def freeze(self, number: int, place: str | None) -> None:
        self.do(Op("freeze", job=self.job(number, RUNNING)), place)

    @jobs(FROZEN)
    @rule(number=pick, place=places("thaw"))
    def thaw(self, number: int, place: str | None) -> None:
        self.do(Op("thaw", job=self.job(number, FROZEN)), place)

    @jobs(*LIVE)
    @rule(number=pick, place=places("stop"))
    def stop(self, number: int, place: str | None) -> None:
        self.do(Op("stop", job=self.job(number, *LIVE)), place)

    @jobs(PAUSED, EXITED, FAILED)
    @rule(number=pick, place=places("rm"))
    def remove(self, number: int, place: str | None) -> None:
        self.do(Op("rm", job=self.job(number, PAUSED, EXITED, FAILED)), place)

    @jobs(*LIVE, PAUSED)
    @rule(number=pick, place=places("rm"))
    def remove_by_force(self, number: int, place: str | None) -> None:
        self.do(Op("rm-force", job=self.job(number, *LIVE, PAUSED)), place)

    @rule(place=places("gc"))
    def collect(self, place: str | None) -> None:
        self.do(Op("gc"), place)

    @jobs(*LIVE)
    @rule()
    def reboot(self) -> None:
        self.do(Op("reboot"))

    @jobs(RUNNING, FROZEN, PAUSED, EXITED, FAILED)
    @rule(number=pick, verb=st.sampled_from(chance.REFUSABLE))
    def refused(self, number: int, verb: str) -> None:
        """In a state that the verb doesn't go with."""
        states = {RUNNING, FROZEN, PAUSED, EXITED, FAILED}.difference(NEEDS[verb])
        if self.stage.state.names(*states):
            self.do(Op(verb, job=self.job(number, *states)))


def driven(stage: Stage, examples: int, steps: int) -> None:
    """The failing run that is reported is the shortest; whatever runs is chosen by the code alone."""
    how = settings(
        max_examples=int(os.environ.get("SERAC_EXAMPLES", examples)),
        stateful_step_count=int(os.environ.get("SERAC_STEPS", steps)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("OfOneRoot", (Machine,), {"stage": stage}), settings=how)


def test_nothing_is_lost_in_any_order(stage: Stage) -> None:
    driven(stage, EXAMPLES, STEPS)


@pytest.mark.slow
def test_nothing_is_lost_in_many_orders(stage: Stage) -> None:
    driven(stage, SLOW_EXAMPLES, SLOW_STEPS)


# the model sees what isn't as it should be


@pytest.fixture
def up(stage: Stage) -> Iterator[Stage]:
    """A job j, with a file of its own, and one more that is paused."""
    for name in ("j", "other"):
        stage.act(Op("run", name=name))
    stage.act(Op("write", job="j", change=Change("write", "c", value=1)))
    stage.act(Op("pause", job="other"))
    yield stage
    stage.empty()


@pytest.mark.parametrize(
    "script",
    ["echo 2 > c", "rm c", "chmod 600 c", "touch new", "mv c d/c", "rm -r d/e", "echo x > /dev/shm/mark"],
)
def test_another_file_is_seen(up: Stage, script: str) -> None:
    acts.script(up.engine, "j", f"cd /w; {script}")
    with pytest.raises(Wrong, match="job j shows something else"):
        up.look(["j"])


def test_a_process_that_began_again_is_seen(up: Stage) -> None:
    up.engine.pause("j", mode="filesystem")
    up.engine.resume("j")
    with pytest.raises(Wrong, match="agent main"):
        up.look(["j"])


def test_a_count_that_was_taken_back_is_seen(up: Stage) -> None:
    up.act(Op("take", job="j"))
    agent = up.state.jobs["j"].life.agents["main"]
    up.state.jobs["j"].life.agents["main"] = replace(agent, count=agent.count + 1)
    with pytest.raises(Wrong, match="agent main"):
        up.look(["j"])


def test_rows_that_are_others_are_seen(up: Stage) -> None:
    up.engine.resume("other")
    with pytest.raises(Wrong, match="job other"):
        up.look(())


@pytest.mark.parametrize("place", ["layers", "jobs"])
def test_a_directory_that_nobody_knows_is_seen(up: Stage, place: str) -> None:
    (up.root / place / "strange").mkdir()
    with pytest.raises(Wrong, match="strange"):
        up.look(())
    (up.root / place / "strange").rmdir()
