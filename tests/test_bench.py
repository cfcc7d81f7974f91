"""The benchmark's arithmetic and its words, with samples that were made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import building, floor, readme, report
from bench.measure import Budget, Outcome, Sample, figure, percentile, said
from bench.scenarios import SCENARIOS

HUNDRED = [float(value) for value in range(100, 0, -1)]


def outcome() -> Outcome:
    """serac three times as slow as the floor, and as slow with 10 GB as with 10 MB."""
    made = Outcome(name="made", title="Made up")
    for ms in (30.0, 33.0, 36.0):
        for size in (10, 10_000):
            steps = {"plan": 1.0, "restore": ms - 4, "criu-restore": ms - 8, "total": ms}
            made.add("serac", "resume", Sample(ms, steps), mode="process", megabytes=size)
        made.add("floor", "resume", Sample(ms / 3, {"mounts": 1.0, "criu": ms / 3 - 1}), mode="process")
    return made


@pytest.mark.parametrize(
    ("samples", "percent", "value"),
    [
        (HUNDRED, 50, 50),
        (HUNDRED, 95, 95),
        (HUNDRED, 99, 99),
        ([3.0], 50, 3),
        ([3.0, 1.0], 50, 1),
        (HUNDRED[:30], 99, 100),
    ],
)
def test_percentile_is_a_value_that_was_measured(samples: list[float], percent: float, value: float) -> None:
    assert percentile(samples, percent) == value


def test_nothing_measured_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_samples_are_kept_by_who_verb_and_case() -> None:
    made = outcome()
    assert made.p50("serac", "resume", mode="process", megabytes=10) == 33
    assert made.p50("floor", "resume", mode="process") == 11
    assert len(made.series) == 3
    with pytest.raises(KeyError):
        made.p50("podman", "resume", mode="process")


def test_two_outcomes_share_nothing() -> None:
    outcome()
    assert Outcome(name="other", title="").series == []


def test_a_budget_that_holds_is_held_and_a_missed_one_is_said() -> None:
    made = outcome()
    made.flat("flat", "resume", 1.2, {"megabytes": 10}, {"megabytes": 10_000}, mode="process")
    made.budget("against the floor", 3.0, 1.5)
    made.budget("against podman", 6.0, 5.0, least=True)
    made.budget("against podman, 3 GB", 60.0, 100.0, least=True)
    made.budget("wrong ones", 0, 0, unit="")
    assert [budget.held for budget in made.budgets] == [True, False, True, False, True]
    assert made.budgets[1].verdict == "MISSED: against the floor: 3.00 x (wanted <= 1.50 x)"
    assert made.budgets[4].verdict == "held: wrong ones: 0 (wanted <= 0)"
    text = "\n".join(report.budgets([made]))
    assert "| made | against the floor | 3.00 x | <= 1.50 x | **missed** |" in text
    assert "| made | against podman, 3 GB | 60.0 x | >= 100 x | **missed** |" in text
    assert text.count("held") == 3


def test_a_budget_is_held_at_its_limit() -> None:
    assert Budget(text="", value=1.5, limit=1.5).held
    assert Budget(text="", value=5.0, limit=5.0, least=True).held


def test_a_breakdown_has_what_is_between_the_steps() -> None:
    made = outcome()
    assert report.breakdown(made.find("serac", "resume", mode="process", megabytes=10)) == {
        "plan": 1,
        "restore": 29,
        "else": 3,
    }
    assert report.breakdown(made.find("floor", "resume", mode="process")) == {"mounts": 1, "criu": 10, "else": 0}


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = outcome()
    made.budget("against the floor", 3.0, 1.5)
    made.notes.append("podman: not installed")
    written = report.Report(host={"kernel": "Linux 6.18"}, outcomes=[made])
    report.write(written, tmp_path / "new")
    assert report.load(tmp_path / "new/results.json") == written
    text = (tmp_path / "new/results.md").read_text()
    assert "| kernel | Linux 6.18 |" in text
    assert "| process | 10 | resume | serac | 33.0 | 36.0 | 36.0 | 3 |" in text
    assert "- podman: not installed" in text
    assert "- serac, resume, mode process, megabytes 10: plan 1.00, restore 29.0, else 3.00" in text


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234"), (7, "7")])
def test_figures_are_short(value: float, text: str) -> None:
    assert figure(value) == text


def test_budgets_that_are_about_the_same_share_a_line_in_the_readme() -> None:
    made = outcome()
    for size, value in ((10, 1.25), (100, 2.0), (10_000, 1.0)):
        made.budget("resume", value, 1.5, of=said({"mode": "process", "cache": "cold", "megabytes": size}))
    made.budget("resume", 120.0, 100.0, of="3000 MB", least=True)
    made.budget("wrong ones", 1, 0, unit="")
    text = "\n".join(readme.budgets(report.Report(host={}, outcomes=[made])))
    missed = "**missed**: process, cold cache, megabytes 100"
    assert f"| made | resume | <= 1.50 x | 1.00 to 2.00 x | {missed} |" in text
    assert "| made | resume | >= 100 x | 120 x | held |" in text
    assert "| made | wrong ones | <= 0 | 1 | **missed** |" in text
    assert len(text.splitlines()) == 5


def test_the_readme_says_what_was_measured(tmp_path: Path) -> None:
    assert readme.present(readme.README.read_text()) == readme.section(readme.RESULTS)
    made = outcome()
    made.budget("against the floor", 3.0, 1.5)
    report.write(report.Report(host={"kernel": "Linux 6.18", "load before": "0.1"}, outcomes=[made]), tmp_path)
    (tmp_path / "size.svg").touch()
    text = readme.section(tmp_path)
    assert "Measured: kernel Linux 6.18." in text
    assert "| made | against the floor | <= 1.50 x | 3.00 x | **missed** |" in text
    assert f"![{readme.PLOTS['size']}](size.svg)" in text
    assert text != readme.section(tmp_path / "none")
    assert all(f"| `{name}` | {scenario.__doc__} |" in text for name, scenario in SCENARIOS.items())


def test_criu_is_asked_for_the_same_on_its_command_line() -> None:
    from engine.checkpoint import dump_options, restore_options

    dump = floor.criu_flags(dump_options(images=3, work=4, pid=7, cgroup="/group", timeout=60), restore=False)
    assert " ".join(dump).startswith("--tcp-established --file-locks --link-remap --ghost-limit 536870912")
    for words in ("--tree 7", "--network-lock skip", "--external mnt[/dev/shm]:shm", "--freeze-cgroup /group", "-v2"):
        assert words in " ".join(dump)
    restore = floor.criu_flags(restore_options(images=3, work=4), restore=True)
    assert "--lazy-pages" not in restore
    assert "--network-lock" not in restore


def test_what_a_build_says_is_understood() -> None:
    said = "1500000000\n0m0.010000s 0m0.020000s\n1m2.500000s 0m0.500000s\n"
    found = building.said(said)
    assert found["build"].ms == 1500
    assert found["build, processor time"].ms == 63_000
