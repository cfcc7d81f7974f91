"""What should not grow with a job, or as little as it can: files, memory, processes, layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from bench.floor import Floor
from bench.measure import Outcome, settle
from bench.place import Place
from bench.serac import Subject
from engine import Engine
from engine.model import Memory, Mode

MODES: tuple[Mode, ...] = ("process", "filesystem")
FLAT = 1.2
LAZY = 1.5
CHAIN = 1.5


def size(place: Place) -> Outcome:
    """Megabytes in the upper."""
    outcome = Outcome(name="size", title="Pause and resume against the upper's size")
    sizes = [size for size in place.plan.sizes if place.has_room(size)]
    for left in set(place.plan.sizes) - set(sizes):
        outcome.notes.append(f"{left} MB: left out, the disk has no room for it")
    _uppers(outcome, place, "megabytes", sizes, Subject.write)
    return outcome


def files(place: Place) -> Outcome:
    """Files in the upper."""
    outcome = Outcome(name="files", title="Pause and resume against the number of files in the upper")
    _uppers(outcome, place, "files", place.plan.files, Subject.write_files)
    return outcome


def _uppers(
    outcome: Outcome, place: Place, what: str, values: list[int] | tuple[int, ...], fill: Callable[[Subject, int], None]
) -> None:
    subjects = {}
    with place.engine() as engine:
        for value in values:
            subjects[value] = subject = Subject(engine, f"{what}-{value}")
            fill(subject, value)
            first = subject.pause("process")["pause"]
            outcome.add("serac", "first pause after writing", first, **{what: value})
        _both_modes(outcome, place, what, subjects)
    for cache in place.plan.caches:
        for mode in MODES:
            text = f"resume, {mode}, {cache} cache, {values[-1]} {what} against {values[0]}"
            outcome.flat(text, "resume", FLAT, {what: values[0]}, {what: values[-1]}, mode=mode, cache=cache)


def _both_modes(outcome: Outcome, place: Place, what: str, subjects: Mapping[int, Subject]) -> None:
    """In turns; all are paused in mode ``process``."""
    for cache in place.plan.caches:
        for _ in range(place.plan.rounds):
            for value, subject in subjects.items():
                for mode, following in zip(MODES, reversed(MODES), strict=True):
                    settle(cache)
                    outcome.add_all("serac", subject.resume(), mode=mode, cache=cache, **{what: value})
                    settle(cache)
                    outcome.add_all("serac", subject.pause(following), mode=following, cache=cache, **{what: value})


def memory(place: Place) -> Outcome:
    """Megabytes of memory, brought back at once or as they are touched."""
    outcome = Outcome(name="memory", title="Pause and resume against memory, mode process, eager and lazy")
    outcome.notes.append("a lazy resume adds a layer: round N has N of them, in all cases alike; the floor is eager")
    with place.engine() as engine:
        subjects = {value: Subject(engine, f"memory-{value}", megabytes=value) for value in place.plan.memory}
        for subject in subjects.values():
            subject.pause("process")
        for _ in range(place.plan.few * 2):
            for value, subject in subjects.items():
                _memory_turn(outcome, place, value, subject)
    low, high = place.plan.memory[1], place.plan.memory[-1]
    text = f"first instruction, lazy, {high} MB of memory against {low}"
    outcome.flat(text, "first instruction", LAZY, {"memory": low}, {"memory": high}, way="lazy")
    for value in place.plan.memory:
        floor = outcome.p50("floor", "resume", memory=value, way="eager")
        text = f"resume, eager, {value} MB of memory, against the floor"
        outcome.budget(text, outcome.p50("serac", "resume", memory=value, way="eager") / floor, 1.5)
    return outcome


def _memory_turn(outcome: Outcome, place: Place, value: int, subject: Subject) -> None:
    with Floor(place.floor, place.directory, subject) as floor:
        settle()
        outcome.add_all("floor", floor.restore(), memory=value, way="eager")
        settle()
        outcome.add_all("floor", floor.stop(dump=True), memory=value)
    ways: tuple[Memory, ...] = ("eager", "lazy")
    for way in ways:
        settle()
        outcome.add_all("serac", subject.resume(way), memory=value, way=way)
        settle()
        outcome.add_all("serac", subject.pause("process"), memory=value)


def processes(place: Place) -> Outcome:
    """Processes in the job."""
    outcome = Outcome(name="processes", title="Pause and resume against the number of processes, mode process")
    with place.engine() as engine:
        subjects = {count: Subject(engine, f"processes-{count}", processes=count) for count in place.plan.processes}
        for subject in subjects.values():
            subject.pause("process")
        for _ in range(place.plan.rounds):
            for count, subject in subjects.items():
                _processes_turn(outcome, place, count, subject)
    for count in place.plan.processes:
        ratio = outcome.p50("serac", "resume", processes=count) / outcome.p50("floor", "resume", processes=count)
        outcome.budget(f"resume, {count} processes, against the floor", ratio, 1.5)
    return outcome


def _processes_turn(outcome: Outcome, place: Place, count: int, subject: Subject) -> None:
    with Floor(place.floor, place.directory, subject) as floor:
        settle()
        outcome.add_all("floor", floor.restore(), processes=count)
        settle()
        outcome.add_all("floor", floor.stop(dump=True), processes=count)
    settle()
    outcome.add_all("serac", subject.resume(), processes=count)
    settle()
    outcome.add_all("serac", subject.pause("process"), processes=count)


def chain(place: Place) -> Outcome:
    """Layers under the upper."""
    outcome = Outcome(name="chain", title="Pause and resume against the length of the chain")
    with place.engine() as engine:
        subjects = {depth: _deep(engine, depth) for depth in place.plan.chain}
        _both_modes(outcome, place, "layers", subjects)
    low, high = place.plan.chain[0], place.plan.chain[-1]
    for cache in place.plan.caches:
        for mode in MODES:
            text = f"resume, {mode}, {cache} cache, a chain of {high} layers against {low}"
            outcome.flat(text, "resume", CHAIN, {"layers": low}, {"layers": high}, mode=mode, cache=cache)
    return outcome


def _deep(engine: Engine, depth: int) -> Subject:
    """A job that is paused with so many layers; the snapshots that made them are gone."""
    subject = Subject(engine, f"chain-{depth}")
    with _pinned(engine) as pin:
        for _ in range(depth - 1):
            subject.write(1)
            subject.pause("filesystem")
            pin(subject.snapshot)
            subject.resume()
    subject.pause("process")
    layers = len(engine.snapshot(subject.snapshot).layers)
    if layers != depth:
        raise AssertionError(f"the chain has {layers} layers, not {depth}")
    return subject


@contextlib.contextmanager
def _pinned(engine: Engine) -> Iterator[Callable[[str], None]]:
    """Snapshots that are pinned, until the block ends."""
    names: list[str] = []

    def pin(name: str) -> None:
        engine.snapshot_pin(name)
        names.append(name)

    yield pin
    for name in names:
        engine.snapshot_remove(name)
