"""A small job beside the floor: the same job, paused and resumed in turns by one and the other."""

from __future__ import annotations

from bench.floor import Floor
from bench.measure import Outcome, settle
from bench.place import Place
from bench.serac import Subject
from engine.model import Mode

LIMIT = 1.5
SPREAD = 3.0
MODES: tuple[Mode, ...] = ("process", "filesystem")


def small_job(place: Place) -> Outcome:
    """A small job, by step."""
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
    settle(cache)
    outcome.add_all("floor", floor.restore() if mode == "process" else floor.run(), mode=mode, cache=cache)
    settle(cache)
    outcome.add_all("floor", floor.stop(dump=mode == "process"), mode=mode, cache=cache)
    settle(cache)
    outcome.add_all("serac", subject.resume(), mode=mode, cache=cache)
    settle(cache)
    outcome.add_all("serac", subject.pause(mode), mode=mode, cache=cache)


def _judge(outcome: Outcome, caches: tuple[str, ...]) -> None:
    for cache in caches:
        for mode in MODES:
            floor = outcome.p50("floor", "resume", mode=mode, cache=cache)
            ratio = outcome.p50("serac", "resume", mode=mode, cache=cache) / floor
            outcome.budget(f"resume, {mode}, {cache} cache, against the floor", ratio, LIMIT)
            floor = outcome.p50("floor", "pause", mode=mode, cache=cache)
            ratio = outcome.p50("serac", "pause without flush", mode=mode, cache=cache) / floor
            outcome.budget(f"pause without flush, {mode}, {cache} cache, against the floor", ratio, LIMIT)
    for mode in MODES:
        for verb in ("pause", "resume"):
            series = outcome.find("serac", verb, mode=mode, cache="warm")
            text = f"p99 of {len(series.samples)} against p50, {verb}, {mode}, warm cache"
            outcome.budget(text, series.p99 / series.p50, SPREAD)
