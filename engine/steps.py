"""The steps of a verb: each is logged, timed and a place where a test can kill the engine.

    with steps.record() as timings:          # one verb
        with steps.step("pause.freeze"):
            ...
    timings == {"freeze": 1.2}               # milliseconds

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

log = logging.getLogger("serac")

_timings: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("serac_timings", default=None)


@contextlib.contextmanager
def record() -> Iterator[dict[str, float]]:
    """Collect the timings of every step that runs inside, by the last part of its name; milliseconds."""
    timings: dict[str, float] = {}
    token = _timings.set(timings)
    started = time.perf_counter()
    try:
        yield timings
    finally:
        timings["total"] = _since(started)
        _timings.reset(token)


@contextlib.contextmanager
def step(name: str, *, job: str = "") -> Iterator[None]:
    """Run one step of a verb, ``verb.step``."""
    _fault(name, "before")
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        log.info("step=%s job=%s ms=%.3f outcome=%s", name, job, _since(started), type(error).__name__)
        raise
    add(name, _since(started))
    log.debug("step=%s job=%s ms=%.3f outcome=ok", name, job, _since(started))
    _fault(name, "after")


def add(name: str, milliseconds: float) -> None:
    """Add a time that was measured elsewhere (serac-launch reports its own) to the verb's timings."""
    timings = _timings.get()
    if timings is not None:
        key = name.rpartition(".")[2]
        timings[key] = round(timings.get(key, 0.0) + milliseconds, 3)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


_passed: Counter[str] = Counter()


def _fault(name: str, place: str) -> None:
    wanted, _, times = os.environ.get("SERAC_FAULT", "").partition("*")
    if wanted == f"{name}:{place}":
        _passed[wanted] += 1
        if _passed[wanted] >= int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)
