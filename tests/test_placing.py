"""Processors and I/O priorities of threads, which criu forgets, are noted and set again."""

from __future__ import annotations

import os

import pytest
from kinds import armed, standing

from engine import Engine
from engine.checkpoint.placing import Placement, place, placements
from engine.kernel.ioprio import ioprio_get, ioprio_set
from engine.kernel.procfs import number_in_job, threads

__all__ = ["armed"]

IDLE = 3 << 13
"""the I/O class of who waits for all others"""


@pytest.mark.root
def test_what_was_placed_is_placed_again(armed: Engine) -> None:
    with standing(armed, None) as stood:
        number = stood.start("harmless", "threads")
        init, pid = sorted(stood.pids())
        usual, (first, last) = os.sched_getaffinity(init), (threads(pid)[0], threads(pid)[-1])
        assert placements([init, pid]) == ()
        chosen = {min(usual)}
        os.sched_setaffinity(last, chosen)
        ioprio_set(first, IDLE)
        noted = placements([init, pid])
        place_of = tuple(chosen) if chosen != usual else ()
        inside = number_in_job(pid, last)
        assert noted == tuple(
            placement
            for placement in (Placement(thread=number, ioprio=IDLE), Placement(thread=inside, cpus=place_of))
            if placement.ioprio or placement.cpus
        )
        assert stood.seen().placements == noted
        os.sched_setaffinity(last, usual)
        ioprio_set(first, 0)
        place([init, pid], noted)
        assert os.sched_getaffinity(last) == chosen
        assert ioprio_get(first) == IDLE
        assert placements([init, pid]) == noted


@pytest.mark.root
def test_processors_that_are_not_here(armed: Engine) -> None:
    with standing(armed, None) as stood:
        number = stood.start("harmless", "children")
        pids = sorted(stood.pids())
        before = os.sched_getaffinity(pids[1])
        place(pids, [Placement(thread=number, cpus=(900, 901)), Placement(thread=4711, cpus=(0,))])
        assert os.sched_getaffinity(pids[1]) == before
