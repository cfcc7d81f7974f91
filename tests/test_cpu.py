"""Where a thread goes that leaves its CPU to a child."""

from __future__ import annotations

import ctypes
import os

import pytest

from engine.kernel import cpu


def test_a_thread_goes_on_elsewhere_and_may_run_where_it_might_before() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        pytest.skip("one CPU is nowhere to go from")
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    os.sched_setaffinity(0, allowed)
    cpu.leave_to_child()
    assert ctypes.CDLL(None).sched_getcpu() != here
    assert os.sched_getaffinity(0) == allowed


def test_one_that_may_run_on_one_cpu_only_stays_there() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})
        cpu.leave_to_child()
        assert os.sched_getaffinity(0) == {max(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
