"""Plots of a report, as SVG. What a run has not measured has no plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.measure import Outcome, Series
from bench.report import Report, breakdown

mpl.use("svg")
from matplotlib import pyplot as plt

NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""metadata that would differ with each run, and names hosts"""


def draw(report: Report, directory: Path) -> list[Path]:
    """Write the plots; their files."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "serac", "font.size": 9, "axes.axisbelow": True})
    outcomes = {outcome.name: outcome for outcome in report.outcomes}
    written = []
    for name, (plot, needs) in PLOTS.items():
        if all(need in outcomes for need in needs):
            written.append(_save(plot, outcomes, directory / f"{name}.svg"))
    return written


def _save(plot: Callable[[Any, dict[str, Outcome]], None], outcomes: dict[str, Outcome], file: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    plot(axes, outcomes)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, metadata=NOTHING)
    plt.close(figure)
    return file


def _line(axes: Any, series: Iterable[Series], key: str, label: str) -> None:
    points = sorted((int(one.case[key]), one.p50, one.p95) for one in series)
    if points:
        values, medians, highs = zip(*points, strict=True)
        axes.plot(values, medians, marker="o", markersize=3, label=label)
        axes.fill_between(values, medians, highs, alpha=0.15)


def _of(outcome: Outcome, who: str, verb: str, **case: str) -> list[Series]:
    return [
        series
        for series in outcome.series
        if (series.who, series.verb) == (who, verb) and case.items() <= series.case.items()
    ]


def _logarithmic(axes: Any, title: str, across: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel="milliseconds, p50 (shade: to p95)", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=6)
    axes.legend(fontsize=8)


def _size(axes: Any, outcomes: dict[str, Outcome]) -> None:
    for mode in ("process", "filesystem"):
        for cache in ("warm", "cold"):
            found = _of(outcomes["size"], "serac", "resume", mode=mode, cache=cache)
            _line(axes, found, "megabytes", f"serac, {mode}, {cache} cache")
    for who in ("podman", "tar+lz4") if "peers" in outcomes else ():
        found = [one for one in _of(outcomes["peers"], who, "resume") if one.case["megabytes"]]
        _line(axes, found, "megabytes", f"{who}, warm cache")
    _logarithmic(axes, "Resume against what the job has written", "megabytes in the upper")


def _memory(axes: Any, outcomes: dict[str, Outcome]) -> None:
    for way in ("eager", "lazy"):
        for verb in ("first instruction", "last page"):
            found = _of(outcomes["memory"], "serac", verb, way=way, cache="warm")
            _line(axes, found, "memory", f"serac, {way}, to the {verb}")
    _line(
        axes,
        _of(outcomes["memory"], "floor", "first instruction", cache="warm"),
        "memory",
        "floor (eager), to the first instruction",
    )
    _logarithmic(axes, "Resume against memory", "megabytes of memory")


def _steps(axes: Any, outcomes: dict[str, Outcome]) -> None:
    wanted = [
        series
        for verb in ("pause", "resume")
        for mode in ("process", "filesystem")
        for who in ("serac", "floor")
        for series in _of(outcomes["floor"], who, verb, mode=mode, cache="warm")
    ]
    names = list(dict.fromkeys(name for series in wanted for name in breakdown(series)))
    colors = plt.get_cmap("tab20")
    for place, series in enumerate(reversed(wanted)):
        left = 0.0
        for name, ms in breakdown(series).items():
            axes.barh(place, ms, left=left, color=colors(names.index(name) % 20), height=0.7)
            left += ms
    axes.set(title="Pause and resume of a small job by step, warm cache", xlabel="milliseconds, p50")
    axes.set_yticks(range(len(wanted)), [f"{one.verb}, {one.case['mode']}: {one.who}" for one in reversed(wanted)])
    handles = [mpl.patches.Patch(color=colors(place % 20), label=name) for place, name in enumerate(names)]
    axes.legend(handles=handles, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _peers(axes: Any, outcomes: dict[str, Outcome]) -> None:
    series = [one for one in outcomes["peers"].series if one.verb in ("pause", "resume")]
    names = list(dict.fromkeys(one.who for one in series))
    cases = list(dict.fromkeys((one.verb, one.case["megabytes"]) for one in sorted(series, key=lambda one: one.verb)))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = {(one.verb, one.case["megabytes"]): one.p50 for one in series if one.who == name}
        places = [place + number * width for place, case in enumerate(cases) if case in own]
        axes.bar(places, [own[case] for case in cases if case in own], width, label=name)
    labels = [f"{verb}\n{megabytes} MB" for verb, megabytes in cases]
    axes.set(yscale="log", ylabel="milliseconds, p50", title="serac beside its peers, by what the job has written")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(cases))], labels)
    axes.legend(fontsize=8)


PLOTS: dict[str, tuple[Callable[[Any, dict[str, Outcome]], None], tuple[str, ...]]] = {
    "size": (_size, ("size",)),
    "memory": (_memory, ("memory",)),
    "steps": (_steps, ("floor",)),
    "peers": (_peers, ("peers",)),
}
"""file name -> plot, and the scenarios that it needs"""
