"""What pausing and resuming costs on this host: one job, paused and resumed in turns.

`measure` does it with an engine, for the command ``serac bench`` and for whoever embeds serac. All that is said of the
samples is pure functions: `percentile`, `breakdown`, `within`, `remarks`. Times are milliseconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from engine import store, tools
from engine.errors import InvalidInput, NotFound, SeracError, WrongState, from_os
from engine.kernel.mountinfo import Mount, mounts
from engine.model import ENDED, Durability, JobSpec, PauseResult, ResumeResult, Value

if TYPE_CHECKING:
    from engine.engine import Engine

Cache = Literal["warm", "cold"]
Kept = Literal["process", "filesystem"]
Verb = Literal["pause", "resume"]

IN_TURN = {
    "pause": ("begin", "freeze", "look", "preflight", "dump", "seal", "flush", "commit", "kill", "release"),
    "resume": ("begin", "plan", "mount", "launch", "restore", "commit", "start", "go", "finish"),
    "fork": ("begin", "prepare", "mount", "launch", "restore", "commit", "start", "go"),
}
"""The steps of a verb that follow each other; whatever else is timed lies within one of them."""

ROUNDS_MAX = 10_000
REST = 0.05
"""seconds before each run, in which the kernel ends what the last one has left it to do: namespaces and mounts are
taken apart after a grace period, and the next freeze would wait for that"""
SPREAD = 3.0
"""times the median from which on a 95th percentile is remarkable"""
SPREAD_SAMPLES = 10
"""as few say nothing of a spread"""
COLD = 2.0
"""times the warm median from which on cold caches are"""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class HostSeen(Value, frozen=True, kw_only=True, omit_defaults=False):
    """On what it was measured."""

    kernel: str
    machine: str
    processor: str
    cpus: int
    memory: int
    """bytes"""
    filesystem: str
    """type of the root's"""
    device: str
    """that it is mounted from"""
    criu: str | None
    """version, None = there is none that will do"""
    load: tuple[float, float]
    """processes that wanted to run in the minute before and the minute that ended with the measurement"""


class Series(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What one verb took with one mode, in milliseconds."""

    mode: Kept
    cache: Cache
    verb: Verb
    p50: float
    p95: float
    p99: float
    breakdown: dict[str, float]
    """medians of the steps that follow each other; ``else`` is what is between them"""
    within: dict[str, float]
    """medians of what lies within those"""
    samples: tuple[float, ...]
    """in the order in which they were measured"""
    steps: dict[str, tuple[float, ...]]
    """samples of each step; a run that didn't have it is none"""


class Remark(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What stands out in what was measured."""

    code: Literal["flush", "spread", "cold"]
    what: str
    remedy: str


class Measured(Value, frozen=True, kw_only=True, omit_defaults=False):
    """Fields are added to this, and none is removed or means something else as long as ``format`` is the same."""

    format: str = "serac-measured/1"
    base: str
    """digest"""
    argv: tuple[str, ...]
    """the command, empty = init alone"""
    rounds: int
    durability: Durability
    host: HostSeen
    series: tuple[Series, ...]
    remarks: tuple[Remark, ...]


class Run(NamedTuple):
    """One call of a verb."""

    mode: Kept
    cache: Cache
    verb: Verb
    ms: float
    steps: Mapping[str, float]


Progress = Callable[[int, int], None]
"""is told before each run how many are done, of how many; what it raises ends the measurement"""


def measure(
    engine: Engine,
    spec: JobSpec,
    *,
    modes: Sequence[Kept] = ("process", "filesystem"),
    rounds: int = 30,
    cold: bool = False,
    durability: Durability = "full",
    progress: Progress | None = None,
) -> Measured:
    """Start a job, pause and resume it ``rounds`` times with each mode, and remove it, whatever happens.

    The first round of each mode isn't counted: what it brings into memory the others find there. ``cold`` does each
    round a second time with nothing in the page cache, which makes the whole host slow for a while. Memory is back
    when a resume ends, never after it; nothing is archived. ``spec``'s name is not used.

    Raises InvalidInput, NotFound (base), CannotCheckpoint, WrongState when the command ends meanwhile, and what `run`,
    `pause` and `resume` raise."""
    if not 1 <= rounds <= ROUNDS_MAX:
        raise InvalidInput(f"{rounds} rounds can't be measured", hint=f"1 to {ROUNDS_MAX}")
    if not modes:
        raise InvalidInput("no mode to measure", hint="process, filesystem or both")
    base = engine.base(spec.base)
    caches: tuple[Cache, ...] = ("warm", "cold") if cold else ("warm",)
    turns = _turns(modes, caches, rounds)
    before, runs = os.getloadavg()[0], list[Run]()
    with _subject(engine, spec) as job:
        for place, turn in enumerate(turns):
            if progress is not None:
                progress(place, len(turns))
            round_runs = [*_round(engine, job, turn, durability)]
            runs += round_runs if turn.counts else ()
    series = summarised(runs)
    return Measured(
        base=base.digest,
        argv=spec.argv,
        rounds=rounds,
        durability=durability,
        host=_host(engine.config.root, before),
        series=series,
        remarks=remarks(series, base=base.names[0] if base.names else base.digest, durability=durability),
    )


class Turn(NamedTuple):
    mode: Kept
    cache: Cache
    counts: bool


def _turns(modes: Sequence[Kept], caches: Sequence[Cache], rounds: int) -> list[Turn]:
    """One mode after the other, for a resume with one of them is a new beginning for the other's processes; warm and
    cold in turns."""
    turns = []
    for mode in modes:
        turns.append(Turn(mode, "warm", False))
        turns += [Turn(mode, cache, True) for _ in range(rounds) for cache in caches]
    return turns


@contextlib.contextmanager
def _subject(engine: Engine, spec: JobSpec) -> Iterator[str]:
    """A job under a name that is known before it is there, so that it goes wherever an interrupt comes."""
    name = f"bench-{store.new_id()}"
    try:
        yield engine.run(msgspec.structs.replace(spec, name=name)).id
    finally:
        with contextlib.suppress(NotFound):
            engine.remove(name, force=True)


def _round(engine: Engine, job: str, turn: Turn, durability: Durability) -> Iterator[Run]:
    def pause() -> PauseResult:
        return engine.pause(job, mode=turn.mode, archive="never", durability=durability)

    def resume() -> ResumeResult:
        return engine.resume(job, memory="eager")

    _settle(turn.cache)
    _require_live(engine, job)
    try:
        paused = _timed(turn, "pause", pause)
    except SeracError:
        _require_live(engine, job)  # it may have ended since
        raise
    yield paused
    _settle(turn.cache)
    yield _timed(turn, "resume", resume)


def _timed(turn: Turn, verb: Verb, action: Callable[[], PauseResult] | Callable[[], ResumeResult]) -> Run:
    began = time.perf_counter()
    result = action()
    return Run(turn.mode, turn.cache, verb, round((time.perf_counter() - began) * 1000, 3), result.timings)


def _require_live(engine: Engine, ref: str) -> None:
    job = engine.job(ref)
    if job.state in ENDED:
        how = job.failure or f"with status {job.status}"
        raise WrongState(
            f"the command ended in the middle of the measurement: {how}",
            hint="measure one that goes on, such as `-- sleep infinity`, or init alone, without a command",
        )


def _settle(cache: Cache) -> None:
    if cache == "cold":
        try:
            os.sync()
            DROP_CACHES.write_text("3\n")
        except OSError as error:
            raise from_os(error, "drop the page cache") from error
    time.sleep(REST)


# what is said of it


def percentile(samples: Sequence[float], percent: float) -> float:
    """By nearest rank: a value that was measured. Of 30 samples the 99th percentile is the highest."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


def breakdown(verb: str, samples: Sequence[float], steps: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians of the steps that follow each other. ``else``: the median of all less theirs, the time between them."""
    medians = {name: percentile(steps[name], 50) for name in IN_TURN[verb] if name in steps}
    return {**medians, "else": round(max(0.0, percentile(samples, 50) - sum(medians.values())), 3)}


def within(verb: str, steps: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians of what else was timed."""
    return {name: percentile(spent, 50) for name, spent in steps.items() if name not in {*IN_TURN[verb], "total"}}


def summarised(runs: Sequence[Run]) -> tuple[Series, ...]:
    """A series for each mode, cache and verb, in the order in which they come first."""
    keys = dict.fromkeys((run.mode, run.cache, run.verb) for run in runs)
    return tuple(_series([run for run in runs if (run.mode, run.cache, run.verb) == key]) for key in keys)


def _series(runs: Sequence[Run]) -> Series:
    samples = tuple(run.ms for run in runs)
    names = dict.fromkeys(name for run in runs for name in run.steps)
    steps = {name: tuple(run.steps[name] for run in runs if name in run.steps) for name in names}
    return Series(
        mode=runs[0].mode,
        cache=runs[0].cache,
        verb=runs[0].verb,
        p50=percentile(samples, 50),
        p95=percentile(samples, 95),
        p99=percentile(samples, 99),
        breakdown=breakdown(runs[0].verb, samples, steps),
        within=within(runs[0].verb, steps),
        samples=samples,
        steps=steps,
    )


def remarks(series: Sequence[Series], *, base: str, durability: Durability) -> tuple[Remark, ...]:
    """What the measurements themselves show, with what can be done about it; often nothing."""
    found: list[Remark] = []
    for one in series:
        found += _of_flush(one, durability)
        found += _of_spread(one)
    warm = {(one.mode, one.verb): one for one in series if one.cache == "warm"}
    for one in series:
        if one.cache == "cold" and (one.mode, one.verb) in warm:
            found += _of_cold(one, warm[one.mode, one.verb], base)
    return tuple(found)


def _of_flush(one: Series, durability: Durability) -> Iterator[Remark]:
    spent = one.steps.get("flush", ())
    if durability == "full" and len(spent) == len(one.samples):
        share = statistics.median(flush / ms for flush, ms in zip(spent, one.samples, strict=True))
        if share > 0.5:
            yield Remark(
                code="flush",
                what=f"{_called(one)}: {share:.0%} of it is the flush, the wait for the disk",
                remedy="a faster disk for the root; `serac pause --durability fast` doesn't wait, "
                "and a host that goes down within seconds loses the snapshot",
            )


def _of_spread(one: Series) -> Iterator[Remark]:
    if len(one.samples) >= SPREAD_SAMPLES and one.p95 > SPREAD * one.p50:
        steps = {name: percentile(spent, 95) - percentile(spent, 50) for name, spent in one.steps.items()}
        most = max((name for name in IN_TURN[one.verb] if name in steps), key=steps.__getitem__, default=None)
        blame = f", most of all in the step {most}" if most else ""
        yield Remark(
            code="spread",
            what=f"{_called(one)}: the 95th percentile is {one.p95 / one.p50:.1f} times the median{blame}",
            remedy="measure again with nothing else at work on the host; if it stays, the step is where to look",
        )


def _of_cold(cold: Series, warm: Series, base: str) -> Iterator[Remark]:
    if cold.verb == "resume" and cold.p50 > COLD * warm.p50:
        yield Remark(
            code="cold",
            what=f"{_called(cold)}: {cold.p50 / warm.p50:.1f} times what it takes with what it reads in memory",
            remedy=f"after a boot `serac base warm {base}` brings the base into memory",
        )


def _called(one: Series) -> str:
    return f"{one.verb}, mode {one.mode}{', cold' if one.cache == 'cold' else ''}"


# the host


def _host(root: Path, load_before: float) -> HostSeen:
    holding = _mount_of(root.resolve(), list(mounts()))
    try:
        criu: str | None = tools.find("criu").version
    except SeracError:
        criu = None
    return HostSeen(
        kernel=platform.release(),
        machine=platform.machine(),
        processor=_after(Path("/proc/cpuinfo"), "model name"),
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        filesystem=holding.type,
        device=holding.source,
        criu=criu,
        load=(load_before, os.getloadavg()[0]),
    )


def _mount_of(path: Path, table: Sequence[Mount]) -> Mount:
    """The mount that holds a path; of several at one place the last, which is the one that is seen."""
    above = [mount for mount in table if path.is_relative_to(mount.target)]
    return max(reversed(above), key=lambda mount: len(mount.target))


def _after(file: Path, name: str) -> str:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
