"""Where a child goes that isn't to wait for its parent's CPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.kernel import cpu


@pytest.fixture
def here() -> Iterator[int]:
    """The CPU that this thread stays on."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield min(allowed)
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def child(here: int) -> Iterator[int]:
    """A process that is never idle, on the same CPU."""
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as process:
        yield process.pid
        process.kill()


def runs_on(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[36])


def test_a_child_goes_on_elsewhere_and_may_run_where_it_might_before(here: int, child: int) -> None:
    allowed = set(range(os.cpu_count() or 1))
    if len(allowed) == 1:
        pytest.skip("one CPU is nowhere to go from")

    def goes() -> bool:
        os.sched_setaffinity(child, {here})
        assert runs_on(child) == here
        os.sched_setaffinity(child, allowed)
        may = os.sched_getaffinity(child)
        cpu.part_with(child)
        gone = runs_on(child) != here
        assert os.sched_getaffinity(child) == may
        return gone

    assert any(goes() for _ in range(3))  # the kernel may have put it back by the time that it is looked at


def test_one_that_may_run_on_one_cpu_only_stays_there(here: int, child: int) -> None:
    cpu.part_with(child)
    assert os.sched_getaffinity(child) == {here}


def test_one_that_is_gone_goes_nowhere(here: int) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        cpu.part_with(process.pid)
