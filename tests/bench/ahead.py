"""What is made before it is asked for: an announced resume (`Engine.prefetch`), and slots for new jobs (`Pool`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import psutil

from bench.growth import MODES
from bench.measure import Outcome, Sample, settle, timed
from bench.place import Place
from bench.serac import Subject
from bench.workloads import awake
from engine import Engine
from engine.model import Mode, Pool

NOTICE = 0.2
"""seconds between the announcement of a resume and the resume"""
SLOTS = 10
"""that are kept at once, to see what one costs"""


def ahead(place: Place) -> Outcome:
    """What is made before it is asked for: an announced resume, a pool for runs and forks; what both cost."""
    outcome = Outcome(
        name="ahead",
        title="A resume that is announced, and a pool of slots for runs and forks: against none, and its cost",
    )
    outcome.notes.append(f"prefetch: {NOTICE:g} s before the resume; pool: one slot of each kind, full before each run")
    with place.engine() as engine:
        subject = Subject(engine, "announced")
        origin = Subject(engine, "origin")
        origin.pause("process")
        with _pooled(engine, Pool(jobs=1, forks=1)) as pooled:
            for cache in place.plan.caches:
                for _ in range(place.plan.rounds if cache == "warm" else 2 * place.plan.few):
                    for mode in MODES:
                        _resumes(outcome, subject, mode, cache)
                    _births(outcome, engine, origin.snapshot, cache, "nothing")
                    _births(outcome, pooled, origin.snapshot, cache, "pool")
        subject.pause("filesystem")
        _cost_of_a_slot(outcome, engine, "jobs")
        _cost_of_a_slot(outcome, engine, "forks")
    _compare(outcome, place.plan.caches)
    return outcome


@contextlib.contextmanager
def _pooled(engine: Engine, pool: Pool) -> Iterator[Engine]:
    """Another engine on the same root; its pool is full."""
    with Engine(engine.config.root, timeout=120, pool=pool) as other:
        _await_full(other)
        yield other


def _await_full(engine: Engine) -> None:
    """One thread fills the pool, in turn with this."""
    engine._root.shelf.keep(lambda: None).result()


def _resumes(outcome: Outcome, subject: Subject, mode: Mode, cache: str) -> None:
    for made in ("nothing", "prefetch"):
        subject.pause(mode)
        settle(cache)
        if made == "prefetch":
            ms, announced = timed(lambda: subject.engine.prefetch(subject.id, mode=mode))
            outcome.add("serac", "prefetch", Sample(ms, announced.timings), mode=mode, cache=cache, ahead=made)
        time.sleep(NOTICE)  # without one, too: a processor that has rested longer is slower to begin
        outcome.add_all("serac", _until(subject.resume()), mode=mode, cache=cache, ahead=made)


def _until(samples: Mapping[str, Sample]) -> Mapping[str, Sample]:
    return {verb: samples[verb] for verb in ("resume", "first instruction")}


def _settle(engine: Engine, cache: str) -> None:
    """Which of the two engines has changed the catalog last is no matter of the pool's."""
    settle(cache)
    engine.jobs()


def _births(outcome: Outcome, engine: Engine, snapshot: str, cache: str, made: str) -> None:
    _settle(engine, cache)
    began = time.time_ns()
    job = Subject(engine, "begun")
    samples = {"run": Sample(job.ms), "first instruction": Sample((job.born.first - began) / 1e6)}
    outcome.add_all("serac", samples, mode="run", cache=cache, ahead=made)
    job.remove()
    _await_full(engine)
    _settle(engine, cache)
    began = time.time_ns()
    ms, fork = timed(lambda: engine.fork(snapshot, mode="process"))
    word = awake(engine.config.root / "jobs" / fork.job / "io" / "woke")
    samples = {"fork": Sample(ms, fork.timings), "first instruction": Sample((word.first - began) / 1e6)}
    outcome.add_all("serac", samples, mode="fork", cache=cache, ahead=made)
    engine.remove(fork.job, force=True)
    _await_full(engine)


def _cost_of_a_slot(outcome: Outcome, engine: Engine, kind: Literal["jobs", "forks"]) -> None:
    """What waits is a child of this process; what the kernel keeps for its namespaces isn't in the figures."""
    pool = Pool(jobs=SLOTS) if kind == "jobs" else Pool(forks=SLOTS)
    began = time.monotonic()
    with _pooled(engine, pool):
        seconds = time.monotonic() - began
        waiting = psutil.Process().children(recursive=True)
        pss = sum(process.memory_full_info().pss for process in waiting)
    outcome.notes.append(
        f"a slot of Pool.{kind}: {len(waiting) / SLOTS:g} processes, {pss / SLOTS / 1024:.0f} KB (PSS), "
        f"{seconds * 1000 / SLOTS:.1f} ms to make"
    )


def _compare(outcome: Outcome, caches: tuple[str, ...]) -> None:
    for mode, verb, made in (
        *((mode, "resume", "prefetch") for mode in MODES),
        ("run", "run", "pool"),
        ("fork", "fork", "pool"),
    ):
        for cache in caches:
            with_it, without = (
                outcome.p50("serac", verb, mode=mode, cache=cache, ahead=one) for one in (made, "nothing")
            )
            outcome.notes.append(f"{verb}, {mode}, {cache} cache: {without / with_it:.2f} x as fast with {made}")
