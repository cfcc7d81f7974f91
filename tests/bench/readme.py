"""What README.md says of the benchmark between two marks: the scenarios, and what was measured last.

PYTHONPATH=tests .venv/bin/python -m bench.readme    writes it; a full run does so at its end
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import report
from bench.measure import Budget, figure
from bench.report import Report
from bench.scenarios import SCENARIOS

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- bench.readme: begin -->", "<!-- bench.readme: end -->"
PLOTS = {
    "steps": "Pause and resume of a small job by step, serac and the floor",
    "size": "Resume, by how much the job has written: serac, Podman, tar + lz4",
    "memory": "Resume, by the job's memory: lazy, eager, the floor",
    "peers": "serac beside its peers",
}
"""files that `bench.plots` writes, and what they show"""
FACTS = ("date", "serac", "processor", "memory", "kernel", "filesystem", "criu", "podman")


def main() -> None:
    before, _, after = _parts(README.read_text())
    README.write_text(f"{before}{BEGIN}\n{section(RESULTS)}\n{END}{after}")


def section(results: Path) -> str:
    """What has to be between the marks, for what lies in that directory."""
    lines = [*_scenarios(), ""]
    file = results / "results.json"
    lines += _measured(report.load(file), results) if file.exists() else ["No full run is kept here yet."]
    return "\n".join(lines)


def present(text: str) -> str:
    """What is between the marks of a README."""
    return _parts(text)[1].strip("\n")


def _parts(text: str) -> tuple[str, str, str]:
    """Before, between and after the marks. Raises ValueError when there aren't two."""
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, between, after


def _scenarios() -> Iterator[str]:
    yield from report.table(
        ["scenario", "what it says"], [[f"`{name}`", str(made.__doc__)] for name, made in SCENARIOS.items()]
    )


def _measured(found: Report, results: Path) -> Iterator[str]:
    yield f"Measured: {', '.join(f'{name} {found.host[name]}' for name in FACTS if name in found.host)}."
    yield ""
    yield from budgets(found)
    for name, caption in PLOTS.items():
        plot = results / f"{name}.svg"
        if plot.exists():
            yield ""
            yield f"![{caption}]({plot.relative_to(REPO) if plot.is_relative_to(REPO) else plot.name})"


def budgets(found: Report) -> Iterator[str]:
    """A line for all budgets of a scenario that are about the same: the range of what was measured."""
    rows = []
    for outcome in found.outcomes:
        for about, wanted in dict.fromkeys((budget.about, budget.wanted) for budget in outcome.budgets):
            alike = [budget for budget in outcome.budgets if (budget.about, budget.wanted) == (about, wanted)]
            rows.append([outcome.name, about, wanted, _range(alike), _verdict(alike)])
    yield from report.table(["scenario", "what has to hold", "wanted", "measured", ""], rows)


def _range(alike: Sequence[Budget]) -> str:
    values = sorted(budget.value for budget in alike)
    texts = list(dict.fromkeys(map(figure, (values[0], values[-1]))))
    return f"{' to '.join(texts)} {alike[0].unit}".strip()


def _verdict(alike: Sequence[Budget]) -> str:
    missed = [budget.text.removeprefix(f"{budget.about}: ") for budget in alike if not budget.held]
    if not missed:
        return "held"
    return f"**missed**: {'; '.join(missed)}" if len(alike) > 1 else "**missed**"


if __name__ == "__main__":
    main()
