"""A small job beside the floor: the same job, paused and resumed in turns by one and the other."""

from __future__ import annotations

from bench.floor import Floor
from bench.measure import Outcome, settle
from bench.place import Place
from bench.serac import Subject
from engine.model import Mode

SPREAD = 3.0
MODES: tuple[Mode, ...] = ("process", "filesystem")


def small_job(place: Place) -> Outcome:
    """A small job by step, beside the floor: how much of its pause and its resume is the engine's own."""
    outcome = Outcome(name="floor", title="A small job, 5 MB of memory, one process: serac beside the floor")
    with place.engine() as engine:
        subject = Subject(engine, "small")
        with Floor(place.floor, place.directory, subject) as floor:
            for mode in MODES:
                subject.pause(mode)
                for cache in place.plan.caches:
                    for _ in range(place.plan.rounds):
                        _turn(outcome, subject, floor, mode=mode, cache=cache)
                subject.resume()
    _judge(outcome, place.plan.caches)
    return outcome


def _turn(outcome: Outcome, subject: Subject, floor: Floor, *, mode: Mode, cache: str) -> None:
    subject.have_read(cache)
    settle(cache)
    outcome.add_all("floor", floor.restore() if mode == "process" else floor.run(), mode=mode, cache=cache)
    settle(cache)
    outcome.add_all("floor", floor.stop(dump=mode == "process"), mode=mode, cache=cache)
    subject.have_read(cache)
    settle(cache)
    outcome.add_all("serac", subject.resume(), mode=mode, cache=cache)
    settle(cache)
    outcome.add_all("serac", subject.pause(mode), mode=mode, cache=cache)


def _judge(outcome: Outcome, caches: tuple[str, ...]) -> None:
    for mode in MODES:
        for cache in caches:
            outcome.against_floor(f"resume, {mode}", "resume", of=f"{cache} cache", mode=mode, cache=cache)
        for cache in caches:
            verb, of = "pause without flush", f"{cache} cache"
            outcome.against_floor(f"{verb}, {mode}", verb, floor="pause", of=of, mode=mode, cache=cache)
    for mode in MODES:
        for verb in ("pause", "resume"):
            series = outcome.find("serac", verb, mode=mode, cache="warm")
            about = f"p99 of {len(series.samples)} against p50, warm cache"
            outcome.budget(about, series.p99 / series.p50, SPREAD, of=f"{verb}, {mode}")
