"""The main job, as a user has it: ``scripts/demo`` on a Debian base and a real project's source from the registries."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import leftovers
import pytest

pytestmark = pytest.mark.root

DEMO = Path(__file__).resolve().parents[1] / "scripts" / "demo"
PATIENCE = 900.0
"""seconds; a mirror may be slow"""
STEPS = {
    "pause": ("freeze", "preflight", "dump", "seal", "flush", "commit", "kill", "release", "total"),
    "resume": ("mount", "restore", "commit", "go", "total"),
}


def test_the_main_job(tmp_path: Path) -> None:
    idle = leftovers.count()
    environment = {**os.environ, "TMPDIR": os.fspath(tmp_path)}
    environment.pop("SERAC_ROOT", None)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # in one, so that the steps' marks have a place
    done = subprocess.run([DEMO], env=environment, text=True, check=False, timeout=PATIENCE, **streams)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-4000:]
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    assert list(tmp_path.iterdir()) == []
    check_pause(done.stdout)
    check_end(done.stdout)
    for verb, steps in STEPS.items():
        check_timings(done.stdout, verb, steps)


def check_pause(said: str) -> None:
    """It ran, and when it was paused nothing of it was left, with the build begun and not completed."""
    ran = counts(said, "while it runs")
    assert min(ran.values()) > 0, ran
    left = counts(said, "after the pause")
    assert left.keys() == ran.keys() == {"processes", "cgroups", "mounts", "network namespace"}
    assert set(left.values()) == {0}
    assert "(done: configure)" in said


def counts(said: str, when: str) -> dict[str, int]:
    (line,) = re.findall(rf"^{when}: (.*)$", said, re.MULTILINE)
    return {name: int(number) for name, number in re.findall(r"([a-z ]+?) (\d+)(?:, |$)", line)}


def check_end(said: str) -> None:
    """It went on to the end: the project's own tests passed, nothing was built twice, git sees no change."""
    went_on = said.partition("== resume")[2]
    for step in ("build", "check", "load", "list"):
        assert f"--- step {step} completed" in went_on
    assert "OK ***" in went_on
    assert "git status: as before" in went_on
    match = re.search(r"built before the pause: (\d+), built again: (\d+), in all: (\d+)", went_on)
    assert match
    before, again, all_of_them = map(int, match.groups())
    assert 0 < before < all_of_them
    assert again == 0


def check_timings(said: str, verb: str, steps: tuple[str, ...]) -> None:
    (line,) = re.findall(rf"^{verb}: +(.*)$", said, re.MULTILINE)
    timings = {name: float(ms) for name, ms in re.findall(r"(\w+) ([\d.]+) ms", line)}
    assert set(steps) <= timings.keys()
    assert max(timings.values()) == timings["total"] > 0
