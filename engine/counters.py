"""Counters of this process: its verbs and their steps by how they ended, with the time that they took.

    counters.add("verb", "pause", "ok", 0.042)
    counters.read().verbs["pause"]["ok"]         # Tally(count=1, seconds=0.042)
    counters.prometheus(counters.read())         # for whoever exports them, in Prometheus' text format

They begin at 0 with the process, all engines of it have them in common, and any thread may count.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Literal

from engine.model import Value

Kind = Literal["verb", "step"]


class Tally(Value, frozen=True, kw_only=True, omit_defaults=False):
    count: int
    seconds: float
    """all together"""


class Counters(Value, frozen=True, kw_only=True, omit_defaults=False):
    """By name, then by outcome: ``ok``, or the code of the error that it ended with."""

    verbs: dict[str, dict[str, Tally]]
    steps: dict[str, dict[str, Tally]]
    events_dropped: int = 0
    """events that could not be written into a journal"""


_guard = threading.Lock()
_tallies: dict[Kind, dict[tuple[str, str], tuple[int, float]]] = {"verb": {}, "step": {}}
_dropped = 0


def add(kind: Kind, name: str, outcome: str, seconds: float) -> None:
    with _guard:
        count, sum_ = _tallies[kind].get((name, outcome), (0, 0.0))
        _tallies[kind][name, outcome] = count + 1, sum_ + seconds


def drop_event() -> None:
    global _dropped  # noqa: PLW0603 - a process has one such number
    with _guard:
        _dropped += 1


def read() -> Counters:
    """All as they are at one moment."""
    with _guard:
        return Counters(verbs=_by_name("verb"), steps=_by_name("step"), events_dropped=_dropped)


def _by_name(kind: Kind) -> dict[str, dict[str, Tally]]:
    found: dict[str, dict[str, Tally]] = {}
    for (name, outcome), (count, seconds) in sorted(_tallies[kind].items()):
        found.setdefault(name, {})[outcome] = Tally(count=count, seconds=round(seconds, 6))
    return found


def prometheus(counters: Counters) -> str:
    """The text that a ``/metrics`` page has: two summaries and a counter. Names and outcomes are serac's own words."""
    lines = [
        *_summary("verb", "Verbs by how they ended, and how long they took.", counters.verbs),
        *_summary("step", "Steps of verbs by how they ended, and how long they took.", counters.steps),
        "# HELP serac_events_dropped_total Events that could not be written into a journal.",
        "# TYPE serac_events_dropped_total counter",
        f"serac_events_dropped_total {counters.events_dropped}",
    ]
    return "\n".join(lines) + "\n"


def _summary(kind: Kind, about: str, tallies: dict[str, dict[str, Tally]]) -> Iterator[str]:
    metric = f"serac_{kind}_seconds"
    yield f"# HELP {metric} {about}"
    yield f"# TYPE {metric} summary"
    for name, outcomes in tallies.items():
        for outcome, tally in outcomes.items():
            labels = f'{{{kind}="{name}",outcome="{outcome}"}}'
            yield f"{metric}_sum{labels} {tally.seconds}"
            yield f"{metric}_count{labels} {tally.count}"
