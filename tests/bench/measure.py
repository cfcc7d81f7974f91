"""Samples, and what is said of them: percentiles, ratios, budgets. No I/O but `cold`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from engine.benching import percentile

Case = dict[str, str | int]
"""what distinguishes one series from another: mode, cache, megabytes ..."""

Result = TypeVar("Result")


FLOOR = 1.5
"""what serac may take, of what the kernel and criu must"""


class Sample(NamedTuple):
    """One run, in milliseconds, and how long its steps took."""

    ms: float
    steps: Mapping[str, float] = {}


class Series(msgspec.Struct, kw_only=True):
    """What one of them took for one verb in one case."""

    who: str
    verb: str
    case: Case = {}
    samples: list[float] = []
    """milliseconds, in the order in which they were measured"""
    steps: dict[str, list[float]] = {}
    """milliseconds; a step that a run didn't have is no sample of it"""

    @property
    def p50(self) -> float:
        return percentile(self.samples, 50)

    @property
    def p95(self) -> float:
        return percentile(self.samples, 95)

    @property
    def p99(self) -> float:
        return percentile(self.samples, 99)

    def add(self, sample: Sample) -> None:
        self.samples.append(round(sample.ms, 3))
        for name, ms in sample.steps.items():
            self.steps.setdefault(name, []).append(round(ms, 3))


class Budget(msgspec.Struct, kw_only=True):
    """A figure that has to hold."""

    text: str
    about: str = ""
    """what it has in common with others of its scenario; empty: nothing"""
    value: float | int
    limit: float | int
    unit: str = "x"
    least: bool = False
    """the limit is the lowest that will do, not the highest"""

    @property
    def held(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def measured(self) -> str:
        return f"{figure(self.value)} {self.unit}".strip()

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.least else '<='} {figure(self.limit)} {self.unit}".strip()

    @property
    def verdict(self) -> str:
        return f"{'held' if self.held else 'MISSED'}: {self.text}: {self.measured} (wanted {self.wanted})"


def said(case: Mapping[str, str | int]) -> str:
    """``process, cold cache, memory 50``: a case in words."""
    plain = {"mode": "{}", "way": "{}", "cache": "{} cache"}
    return ", ".join(plain.get(name, f"{name} {{}}").format(value) for name, value in case.items())


def figure(value: float) -> str:
    """Three digits are what such a measurement is good for; a count is a whole number."""
    if isinstance(value, int):
        return str(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


class Outcome(msgspec.Struct, kw_only=True):
    """What a scenario has measured."""

    name: str
    title: str
    series: list[Series] = []
    budgets: list[Budget] = []
    notes: list[str] = []
    """what was left out, and why; what was counted and is no time"""

    def add(self, who: str, verb: str, sample: Sample, **case: str | int) -> None:
        self._series(who, verb, case).add(sample)

    def add_all(self, who: str, samples: Mapping[str, Sample], **case: str | int) -> None:
        """By verb."""
        for verb, sample in samples.items():
            self.add(who, verb, sample, **case)

    def find(self, who: str, verb: str, **case: str | int) -> Series:
        """Raises KeyError when that was not measured."""
        for series in self.series:
            if (series.who, series.verb, series.case) == (who, verb, case):
                return series
        raise KeyError((who, verb, case))

    def p50(self, who: str, verb: str, **case: str | int) -> float:
        return self.find(who, verb, **case).p50

    def budget(
        self, about: str, value: float, limit: float, *, of: str = "", unit: str = "x", least: bool = False
    ) -> None:
        """``of``: what tells it from others that are about the same."""
        text = f"{about}: {of}" if of else about
        self.budgets.append(Budget(text=text, about=about, value=value, limit=limit, unit=unit, least=least))

    def flat(self, about: str, verb: str, limit: float, low: Case, high: Case, **case: str | int) -> None:
        """A budget for serac's ``verb`` in the case ``high`` against the case ``low``."""
        slow, quick = (self.p50("serac", verb, **{**case, **one}) for one in (high, low))
        self.budget(about, slow / quick, limit, of=said(case))

    def against_floor(
        self, about: str, verb: str, *, floor: str | None = None, of: str | None = None, **case: str | int
    ) -> None:
        """A budget for serac's ``verb`` against the floor's, by default the same, in the same case."""
        ratio = self.p50("serac", verb, **case) / self.p50("floor", floor or verb, **case)
        self.budget(f"{about}, against the floor", ratio, FLOOR, of=of or said(case))

    def _series(self, who: str, verb: str, case: Case) -> Series:
        try:
            return self.find(who, verb, **case)
        except KeyError:
            self.series.append(Series(who=who, verb=verb, case=case, samples=[], steps={}))
            return self.series[-1]


def timed(action: Callable[[], Result]) -> tuple[float, Result]:
    """Milliseconds, and what the action returned."""
    began = time.perf_counter()
    result = action()
    return (time.perf_counter() - began) * 1000, result


def cold() -> None:
    """Let the kernel forget every page, name and inode that it can read again."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


REST = 0.05
"""seconds in which the kernel ends what the last run has left it to do: namespaces and mounts are taken apart after a
grace period, and the next freeze would wait for that"""


def settle(cache: str = "warm") -> None:
    """Before each run: the host at rest, and the cache as it has to be."""
    if cache == "cold":
        cold()
    time.sleep(REST)


def at_rest(cache: str = "warm") -> None:
    """As `settle`, where the runs before it wrote much: no writing back to the disk meets the next one."""
    os.sync()
    settle(cache)
