"""What was measured, written down: JSON with every sample, and Markdown for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.hostfacts import Facts
from bench.measure import Outcome, Series, figure
from engine.benching import IN_TURN, percentile


class Report(msgspec.Struct, kw_only=True):
    """results.json"""

    format: str = "serac-bench/1"
    host: Facts
    outcomes: list[Outcome]


def load(file: Path) -> Report:
    return msgspec.json.decode(file.read_bytes(), type=Report)


def write(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    series_apart = msgspec.json.encode(report).replace(b'{"who":', b'\n{"who":')
    (directory / "results.json").write_bytes(series_apart + b"\n")
    (directory / "results.md").write_text("\n".join(markdown(report)) + "\n")


def markdown(report: Report) -> Iterator[str]:
    yield "# serac, measured"
    yield ""
    yield from table(["host", ""], [[name, value] for name, value in report.host.items()])
    yield from ["", "## What has to hold", ""]
    yield from budgets(report.outcomes)
    for outcome in report.outcomes:
        yield from ["", f"## {outcome.title}", ""]
        yield from figures(outcome)
        for note in outcome.notes:
            yield f"- {note}"
        yield from breakdowns(outcome)


def budgets(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Every budget, and whether it was held."""
    rows = [
        [
            outcome.name,
            budget.text,
            budget.measured,
            budget.wanted,
            "held" if budget.held else "**missed**",
        ]
        for outcome in outcomes
        for budget in outcome.budgets
    ]
    yield from table(["scenario", "what", "measured", "wanted", ""], rows)


def figures(outcome: Outcome) -> Iterator[str]:
    """Milliseconds, a line for each series."""
    cases = list(dict.fromkeys(name for series in outcome.series for name in series.case))
    rows = [
        [
            *(str(series.case.get(name, "")) for name in cases),
            series.verb,
            series.who,
            *map(figure, (series.p50, series.p95, series.p99)),
            str(len(series.samples)),
        ]
        for series in outcome.series
    ]
    yield from table([*cases, "until", "who", "p50 ms", "p95 ms", "p99 ms", "runs"], rows)
    yield ""


def breakdowns(outcome: Outcome) -> Iterator[str]:
    """Medians by step, of pauses and resumes."""
    for series in outcome.series:
        if series.steps and series.verb in IN_TURN:
            case = ", ".join(f"{name} {value}" for name, value in series.case.items())
            yield f"- {series.who}, {series.verb}, {case}: {_steps(series)}"


def breakdown(series: Series) -> dict[str, float]:
    """Median milliseconds of the steps that follow each other; ``else`` is what is between them."""
    names = IN_TURN[series.verb] if "total" in series.steps else tuple(series.steps)
    medians = {name: percentile(series.steps[name], 50) for name in names if name in series.steps}
    return {**medians, "else": max(0.0, series.p50 - sum(medians.values()))}


def _steps(series: Series) -> str:
    steps = breakdown(series)
    within = {name: percentile(values, 50) for name, values in series.steps.items() if name not in {*steps, "total"}}
    text = ", ".join(f"{name} {figure(ms)}" for name, ms in steps.items())
    inner = ", ".join(f"{name} {figure(ms)}" for name, ms in within.items())
    return f"{text} (within these: {inner})" if inner else text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
