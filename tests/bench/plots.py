"""Plots of a report, as SVG. What a run has not measured has no plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.measure import Outcome, Series, figure
from bench.report import Report, breakdown

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib import ticker

NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""metadata that would differ with each run, and names hosts"""
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "serac", "font.size": 9, "axes.axisbelow": True}
WHO = {
    "serac": "#1f5fa8",
    "serac, the command": "#8fb8de",
    "floor": "#555555",
    "podman": "#c0392b",
    "runc": "#e59866",
    "tar+lz4": "#7d8c3a",
}
"""Who is which colour, in the order in which they stand beside each other"""
KINDS = {
    "criu, or serac's talk with it": ("#c9a227", ("criu", "dump", "restore")),
    "mounts, namespaces, processes": (
        "#4f9d8f",
        ("begin", "mount", "launch", "start", "go", "cgroup", "mounts", "network", "inside", "sandbox", "answer"),
    ),
    "freeze, kill, take apart": ("#b5651d", ("freeze", "kill", "release")),
    "flush to the disk": ("#a05a9c", ("flush",)),
    "the engine's own": ("#1f5fa8", ()),
}
"""What a step is: a colour, and the steps of that kind; all others are the engine's own"""


def draw(report: Report, directory: Path) -> list[Path]:
    """Write the plots; their files."""
    mpl.rcParams.update(STYLE)
    outcomes = {outcome.name: outcome for outcome in report.outcomes}
    written = []
    for name, (plot, needs) in PLOTS.items():
        if all(need in outcomes for need in needs):
            written.append(_save(plot, outcomes, directory / f"{name}.svg"))
    return written


def _save(plot: Callable[[Any, dict[str, Outcome]], None], outcomes: dict[str, Outcome], file: Path) -> Path:
    drawing = plt.figure(figsize=(8, 4.2), layout="constrained")
    plot(drawing, outcomes)
    drawing.savefig(file, metadata=NOTHING)
    plt.close(drawing)
    return file


def _of(outcome: Outcome, who: str, verb: str, **case: str) -> list[Series]:
    return [
        series
        for series in outcome.series
        if (series.who, series.verb) == (who, verb) and case.items() <= series.case.items()
    ]


def _line(axes: Any, series: Iterable[Series], key: str, label: str, color: str, style: str = "-") -> None:
    points = sorted((int(one.case[key]), one.p50, one.p95) for one in series)
    if points:
        values, medians, highs = zip(*points, strict=True)
        axes.plot(values, medians, style, marker="o", markersize=3.5, label=label, color=color)
        axes.fill_between(values, medians, highs, alpha=0.12, color=color, linewidth=0)


def _logarithmic(axes: Any, title: str, across: str, values: Iterable[int]) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel="milliseconds, p50 (shade: up to p95)", title=title)
    axes.set_xticks(sorted(set(values)))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _size(drawing: Any, outcomes: dict[str, Outcome]) -> None:
    axes = drawing.subplots()
    for mode, color in (("process", WHO["serac"]), ("filesystem", KINDS["mounts, namespaces, processes"][0])):
        for cache, style in (("warm", "-"), ("cold", "--")):
            found = _of(outcomes["size"], "serac", "resume", mode=mode, cache=cache)
            _line(axes, found, "megabytes", f"serac, {mode},\n{cache} cache", color, style)
    for who in ("podman", "tar+lz4") if "peers" in outcomes else ():
        found = [one for one in _of(outcomes["peers"], who, "resume") if one.case["megabytes"]]
        _line(axes, found, "megabytes", f"{who},\nwarm cache", WHO[who])
    sizes = [int(one.case["megabytes"]) for one in _of(outcomes["size"], "serac", "resume")]
    _logarithmic(axes, "Resume, by how much the job has written", "megabytes in the upper", sizes)


def _memory(drawing: Any, outcomes: dict[str, Outcome]) -> None:
    axes, found = drawing.subplots(), outcomes["memory"]
    lines = (
        ("serac", "first instruction", "lazy", "serac, lazy,\nto the first instruction", WHO["serac"], "-"),
        ("serac", "last page", "lazy", "serac, lazy,\nto the last page", WHO["serac"], "--"),
        (
            "serac",
            "first instruction",
            "eager",
            "serac, eager,\nto the first instruction",
            KINDS["mounts, namespaces, processes"][0],
            "-",
        ),
        ("floor", "first instruction", "eager", "floor, eager,\nto the first instruction", WHO["floor"], ":"),
    )
    for who, verb, way, label, color, style in lines:
        _line(axes, _of(found, who, verb, way=way, cache="warm"), "memory", label, color, style)
    sizes = [int(one.case["memory"]) for one in _of(found, "floor", "resume")]
    _logarithmic(axes, "Resume, by the job's memory, warm cache", "megabytes of memory", sizes)


def _steps(drawing: Any, outcomes: dict[str, Outcome]) -> None:
    rows = drawing.subplots(2, 1)
    for axes, mode in zip(rows, ("process", "filesystem"), strict=True):
        bars = [
            series
            for verb in ("pause", "resume")
            for who in ("serac", "floor")
            for series in _of(outcomes["floor"], who, verb, mode=mode, cache="warm")
        ]
        for place, series in enumerate(reversed(bars)):
            _bar(axes, place, breakdown(series), widest=max(one.p50 for one in bars))
        axes.set_yticks(range(len(bars)), [f"{one.verb}: {one.who}" for one in reversed(bars)])
        axes.set_title(f"A small job by step, mode {mode}, warm cache", fontsize=9)
        axes.grid(visible=True, axis="x", alpha=0.3)
    rows[1].set_xlabel("milliseconds, p50 of each step")
    handles = [mpl.patches.Patch(color=color, label=kind) for kind, (color, _) in KINDS.items()]
    drawing.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=3, frameon=False)


def _bar(axes: Any, place: int, steps: dict[str, float], *, widest: float) -> None:
    """The steps side by side, with their names where there is room for one."""
    left = 0.0
    for name, ms in steps.items():
        color = next((color for color, names in KINDS.values() if name in names), KINDS["the engine's own"][0])
        axes.barh(place, ms, left=left, color=color, height=0.75, edgecolor="white", linewidth=0.4)
        if ms > widest * 0.013 * len(name):
            axes.text(left + ms / 2, place, name, ha="center", va="center", fontsize=6.5, color="white")
        left += ms
    axes.text(left, place, f" {figure(left)}", va="center", fontsize=7)


def _peers(drawing: Any, outcomes: dict[str, Outcome]) -> None:
    rows = drawing.subplots(1, 2, sharey=True)
    for axes, verb in zip(rows, ("pause", "resume"), strict=True):
        series = [one for one in outcomes["peers"].series if one.verb == verb]
        names = [who for who in WHO if any(one.who == who for one in series)]
        sizes = sorted({int(one.case["megabytes"]) for one in series})
        for number, who in enumerate(names):
            own = {int(one.case["megabytes"]): one.p50 for one in series if one.who == who}
            places = [place + (number - (len(names) - 1) / 2) * 0.16 for place, size in enumerate(sizes) if size in own]
            bars = axes.bar(places, [own[size] for size in sizes if size in own], 0.15, label=who, color=WHO[who])
            axes.bar_label(bars, fmt=_short, fontsize=6, rotation=90, padding=2)
        axes.set(yscale="log", title=verb, xlabel="megabytes that the job has written")
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.margins(y=0.15)
    rows[0].set_ylabel("milliseconds, p50")
    rows[0].yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    rows[0].yaxis.set_minor_formatter(ticker.NullFormatter())
    drawing.legend(*rows[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value / 1000:.3g} s"


PLOTS: dict[str, tuple[Callable[[Any, dict[str, Outcome]], None], tuple[str, ...]]] = {
    "size": (_size, ("size",)),
    "memory": (_memory, ("memory",)),
    "steps": (_steps, ("floor",)),
    "peers": (_peers, ("peers",)),
}
"""file name -> plot, and the scenarios that it needs"""
