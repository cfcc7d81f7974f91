"""A pager that is short of something itself: its job must not read zeros for what it can't bring."""

from __future__ import annotations

import os
import resource
import signal

import pytest
from test_lazy import armed, armed_tree, brings, held_pager, lazily, paused, wrong

from engine import Engine, JobState

__all__ = ["armed", "armed_tree", "held_pager"]  # fixtures

pytestmark = pytest.mark.root


@pytest.mark.usefixtures("held_pager")
def test_of_descriptors(armed: Engine) -> None:
    """Each process that is forked meanwhile takes two."""
    paused(armed, "fork")
    lazily(armed)
    pager = brings(armed, armed.job("job"))["serac-pager"]
    resource.prlimit(pager, resource.RLIMIT_NOFILE, (3, 3))
    os.kill(pager, signal.SIGCONT)
    ended = armed.wait("job", timeout=30)
    assert ended.state is JobState.FAILED
    assert (ended.failure or "").startswith("its memory could not be brought back: ")
    assert not wrong(armed, ended)
    assert armed.resume("job", memory="eager").memory == "eager"
