"""Many jobs: forks at once, and jobs that are paused at the same time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import leftovers

from bench.measure import Outcome, Sample, cold, settle, timed
from bench.place import Place
from bench.serac import Subject
from bench.workloads import awake
from engine import Engine
from engine.model import JobState

MEGABYTES = 5
LOOKS = 5
BETWEEN = 0.3
"""seconds"""
TAKEN = ("AnonPages", "Shmem", "SUnreclaim", "KernelStack", "PageTables", "Percpu")
"""of /proc/meminfo"""


class Fork(NamedTuple):
    job: str
    generation: str | None
    sample: Sample


def forks(place: Place) -> Outcome:
    """Forks of one snapshot at once: each is right, and how many a second."""
    outcome = Outcome(name="forks", title="Forks of one snapshot at once, mode process")
    with place.engine() as engine:
        subject = Subject(engine, "origin", megabytes=MEGABYTES)
        subject.write(10)
        subject.pause("process")
        for at_once in place.plan.forks:
            wrong = total = 0
            for _ in range(max(3, place.plan.rounds // at_once)):
                wrong += _burst(outcome, engine, subject.snapshot, at_once)
                total += at_once
            outcome.budget(
                "forks that aren't what they must be", wrong, 0, of=f"{at_once} at once, of {total}", unit=""
            )
            _throughput(outcome, at_once)
    return outcome


def _throughput(outcome: Outcome, at_once: int) -> None:
    seconds = outcome.p50("serac", "all forks run", at_once=at_once) / 1000
    outcome.notes.append(f"{at_once} at once: {at_once / seconds:.1f} forks a second")


def _burst(outcome: Outcome, engine: Engine, snapshot: str, at_once: int) -> int:
    """Fork that many times; how many of them aren't what they must be."""
    settle()
    began = time.time_ns()
    with ThreadPoolExecutor(at_once) as pool:
        ms, made = timed(lambda: list(pool.map(lambda _: _fork(engine, snapshot), range(at_once))))
    try:
        outcome.add("serac", "all forks run", Sample(ms), at_once=at_once)
        for fork in made:
            outcome.add("serac", "fork", fork.sample, at_once=at_once)
        return _wrong(outcome, engine, made, began)
    finally:
        for fork in made:
            engine.remove(fork.job, force=True)


def _fork(engine: Engine, snapshot: str) -> Fork:
    ms, result = timed(lambda: engine.fork(snapshot, mode="process"))
    return Fork(result.job, result.generation, Sample(ms, result.timings))


def _wrong(outcome: Outcome, engine: Engine, made: list[Fork], began: int) -> int:
    wrong = len(made) - len({fork.generation for fork in made})
    for fork in made:
        word = awake(engine.config.root / "jobs" / fork.job / "io" / "woke")
        sample = Sample((word.first - began) / 1e6)
        outcome.add("serac", "first instruction, since the first fork began", sample, at_once=len(made))
        wrong += not word.same or engine.job(fork.job).state is not JobState.RUNNING
    return wrong


def paused(place: Place) -> Outcome:
    """Many jobs that are paused: the host holds nothing of them, and the next resume is no slower."""
    count = place.plan.paused
    outcome = Outcome(name="paused", title=f"{count} paused jobs of {MEGABYTES} MB: what the host holds of them")
    with place.engine() as engine:
        first = Subject(engine, "among", megabytes=MEGABYTES)
        first.pause("process")
        _rounds(outcome, place, first, others=0)
        before = leftovers.count()
        crowd = [Subject(engine, f"paused-{number}", megabytes=MEGABYTES) for number in range(count)]
        for number, subject in enumerate(crowd):
            settle()
            outcome.add_all("serac", subject.pause("process"), others=number // 25 * 25)
        difference = leftovers.difference(before, leftovers.settled(before))
        while_paused = _taken()
        _rounds(outcome, place, first, others=count)
        for subject in crowd:
            subject.remove()
        leftovers.settled(before)
        _held(outcome, difference, while_paused - _taken(), count)
    grown = outcome.p50("serac", "resume", others=count) / outcome.p50("serac", "resume", others=0)
    outcome.budget(f"resume with {count} other paused jobs against none", grown, 1.2)
    return outcome


def _rounds(outcome: Outcome, place: Place, subject: Subject, *, others: int) -> None:
    for _ in range(place.plan.rounds):
        settle()
        outcome.add_all("serac", subject.resume(), others=others)
        subject.pause("process")


def _held(outcome: Outcome, difference: list[str], kilobytes: int, count: int) -> None:
    """Counted from outside, by /proc, /sys and the kernel's own tools."""
    outcome.budget(f"processes, control groups, mounts, namespaces, .. of {count} jobs", len(difference), 0, unit="")
    outcome.notes += difference
    megabytes = kilobytes / 1024
    text = f"memory that {count} paused jobs hold, beside {count * MEGABYTES} MB while they ran"
    outcome.budget(text, megabytes, max(MEGABYTES, count * MEGABYTES * 0.02), unit="MB")


def _taken() -> int:
    """Kilobytes of memory that the kernel couldn't take back if it had to: the least of several looks, for it takes
    apart in the background, and others want memory too."""
    return min(_look() for _ in range(LOOKS))


def _look() -> int:
    cold()
    time.sleep(BETWEEN)
    lines: Mapping[str, str] = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in TAKEN)
