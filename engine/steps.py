"""The steps of a verb: each is logged, timed and a place where a test can kill the engine.

    with steps.record() as timings:          # one verb
        with steps.step("pause.freeze"):
            ...
    timings == {"freeze": 1.2}               # milliseconds

The log records of the logger ``serac`` are lines for people; what a line says its record has as fields too, for a
handler that exports them: ``step``, ``job`` (id, or empty), ``ms`` and ``outcome`` (``ok`` or an error's code). A step
that is done is logged as DEBUG, one that failed as INFO. `engine.journal` does the same for whole verbs.

``SERAC_FAULT=pause.seal:before`` (or ``:after``) kills the process with SIGKILL at that place: the crash tests' hook.
``archive.write:before*2`` is the second time that it comes there.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

from engine import counters
from engine.errors import outcome

log = logging.getLogger("serac")

_timings: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("serac_timings", default=None)


@contextlib.contextmanager
def record() -> Iterator[dict[str, float]]:
    """Collect the timings of every step that runs inside, by the last part of its name; milliseconds. Within another
    `record` that gets them too."""
    outer = _timings.get()
    timings: dict[str, float] = {}
    token = _timings.set(timings)
    started = time.perf_counter()
    try:
        yield timings
    finally:
        _timings.reset(token)
        for name, spent in timings.items() if outer is not None else ():
            add(name, spent)
        timings["total"] = _since(started)


@contextlib.contextmanager
def step(name: str, *, job: str = "") -> Iterator[None]:
    """Run one step of a verb, ``verb.step``."""
    _fault(name, "before")
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        _ended(name, job, _since(started), outcome(error))
        raise
    spent = _since(started)
    add(name, spent)
    _ended(name, job, spent, "ok")
    _fault(name, "after")


def add(name: str, milliseconds: float) -> None:
    """Add a time that was measured elsewhere (serac-launch reports its own) to the verb's timings."""
    timings = _timings.get()
    if timings is not None:
        key = name.rpartition(".")[2]
        timings[key] = round(timings.get(key, 0.0) + milliseconds, 3)


def _ended(name: str, job: str, ms: float, how: str) -> None:
    counters.add("step", name, how, ms / 1000)
    fields = {"step": name, "job": job, "ms": ms, "outcome": how}
    level = logging.DEBUG if how == "ok" else logging.INFO
    log.log(level, "step=%s job=%s ms=%.3f outcome=%s", name, job, ms, how, extra=fields)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


_passed: Counter[str] = Counter()


def _fault(name: str, place: str) -> None:
    wanted, _, times = os.environ.get("SERAC_FAULT", "").partition("*")
    if wanted == f"{name}:{place}":
        _passed[wanted] += 1
        if _passed[wanted] >= int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)
