"""What should not grow with a job, or as little as it can: files, memory, processes, layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from bench.floor import Floor
from bench.measure import Outcome, at_rest, settle
from bench.place import Place
from bench.plan import Plan
from bench.serac import Subject
from engine import Engine
from engine.model import Memory, Mode

MODES: tuple[Mode, ...] = ("process", "filesystem")
FLAT = 1.2
LAZY = 1.5
CHAIN = 1.5
LARGE = 100
"""megabytes of memory from which on a round takes seconds"""


def size(place: Place) -> Outcome:
    """Against the megabytes in the upper: a pause and a resume don't grow with what the job has written."""
    outcome = Outcome(name="size", title="Pause and resume against the upper's size")
    sizes = [size for size in place.plan.sizes if place.has_room(size)]
    for left in set(place.plan.sizes) - set(sizes):
        outcome.notes.append(f"{left} MB: left out, the disk has no room for it")
    _uppers(outcome, place, "megabytes", sizes, Subject.write)
    return outcome


def files(place: Place) -> Outcome:
    """Against the number of files in the upper: nor with how many files that is."""
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
            about = f"resume, {values[-1]} {what} against {values[0]}"
            outcome.flat(about, "resume", FLAT, {what: values[0]}, {what: values[-1]}, mode=mode, cache=cache)


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
    """Against memory, eager and lazy: a lazy resume is at its first instruction before its memory is there."""
    outcome = Outcome(name="memory", title="Pause and resume against memory, mode process, eager and lazy")
    outcome.notes.append(f"from {LARGE} MB on: a lazy resume every second round, an eager one every sixth")
    outcome.notes.append("a lazy resume adds a layer: as many in all cases alike; the floor is eager")
    with place.engine() as engine:
        subjects = {value: _copies(engine, value) for value in place.plan.memory}
        for cache in place.plan.caches:
            for number in range(place.plan.rounds if cache == "warm" else 2 * place.plan.few):
                for value, copies in subjects.items():
                    subject = copies[number % len(copies)]
                    if value < LARGE or number % 6 == 0:
                        _eager_turn(outcome, place, value, cache, subject)
                    if value < LARGE or number % 2 == 0:
                        _memory_turn(outcome, value, cache, subject, "lazy")
    _judge_memory(outcome, place.plan)
    return outcome


def _copies(engine: Engine, value: int) -> list[Subject]:
    """Paused ones that take turns, so that small and large ones come to the same number of layers."""
    copies = [
        Subject(engine, f"memory-{value}-{number}", megabytes=value) for number in range(2 if value < LARGE else 1)
    ]
    for subject in copies:
        subject.pause("process")
    return copies


def _eager_turn(outcome: Outcome, place: Place, value: int, cache: str, subject: Subject) -> None:
    with Floor(place.floor, place.directory, subject) as floor:
        subject.have_read(cache)
        at_rest(cache)
        outcome.add_all("floor", floor.restore(), memory=value, cache=cache, way="eager")
        at_rest(cache)
        outcome.add_all("floor", floor.stop(dump=True), memory=value, cache=cache)
    _memory_turn(outcome, value, cache, subject, "eager")


def _memory_turn(outcome: Outcome, value: int, cache: str, subject: Subject, way: Memory) -> None:
    subject.have_read(cache)
    at_rest(cache)
    outcome.add_all("serac", subject.resume(way), memory=value, cache=cache, way=way)
    at_rest(cache)
    outcome.add_all("serac", subject.pause("process"), memory=value, cache=cache)


def _judge_memory(outcome: Outcome, plan: Plan) -> None:
    low, high = plan.memory[1], plan.memory[-1]
    for cache in plan.caches:
        about = f"first instruction, {high} MB of memory against {low}"
        case = {"cache": cache, "way": "lazy"}
        outcome.flat(about, "first instruction", LAZY, {"memory": low}, {"memory": high}, **case)
    for value in plan.memory:
        for cache in plan.caches:
            outcome.against_floor("resume", "resume", memory=value, cache=cache, way="eager")


def processes(place: Place) -> Outcome:
    """Against the number of processes, beside the floor."""
    outcome = Outcome(name="processes", title="Pause and resume against the number of processes, mode process")
    with place.engine() as engine:
        subjects = {count: Subject(engine, f"processes-{count}", processes=count) for count in place.plan.processes}
        for subject in subjects.values():
            subject.pause("process")
        for cache in place.plan.caches:
            for _ in range(place.plan.rounds):
                for count, subject in subjects.items():
                    _processes_turn(outcome, place, subject, processes=count, cache=cache)
    for cache in place.plan.caches:
        for count in place.plan.processes:
            outcome.against_floor("resume", "resume", processes=count, cache=cache)
    return outcome


def _processes_turn(outcome: Outcome, place: Place, subject: Subject, *, processes: int, cache: str) -> None:
    with Floor(place.floor, place.directory, subject) as floor:
        subject.have_read(cache)
        settle(cache)
        outcome.add_all("floor", floor.restore(), processes=processes, cache=cache)
        settle(cache)
        outcome.add_all("floor", floor.stop(dump=True), processes=processes, cache=cache)
    subject.have_read(cache)
    settle(cache)
    outcome.add_all("serac", subject.resume(), processes=processes, cache=cache)
    settle(cache)
    outcome.add_all("serac", subject.pause("process"), processes=processes, cache=cache)


def chain(place: Place) -> Outcome:
    """Against the length of the chain: layers under the upper cost next to nothing."""
    outcome = Outcome(name="chain", title="Pause and resume against the length of the chain")
    with place.engine() as engine:
        subjects = {depth: _deep(engine, depth) for depth in place.plan.chain}
        _both_modes(outcome, place, "layers", subjects)
    low, high = place.plan.chain[0], place.plan.chain[-1]
    for cache in place.plan.caches:
        for mode in MODES:
            about = f"resume, a chain of {high} layers against {low}"
            outcome.flat(about, "resume", CHAIN, {"layers": low}, {"layers": high}, mode=mode, cache=cache)
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
