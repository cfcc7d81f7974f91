"""Jobs that end while their memory comes, or before anybody has seen that it came; who looks first is killed."""

from __future__ import annotations

import pytest
from remains import killed
from scenes import job, pages_came_and_over, paused
from test_lazy import armed, armed_tree, held_pager, lazily
from test_lazy import paused as armed_and_paused

from engine import Engine, JobState

__all__ = ["armed", "armed_tree", "held_pager"]  # fixtures

pytestmark = pytest.mark.root


@pytest.mark.parametrize("place", ["settle.release:after", "settle.commit:after"])
def test_a_job_that_ended_well_has_not_failed(engine: Engine, place: str) -> None:
    job(engine)
    paused("process")(engine)
    pages_came_and_over(engine)
    killed(engine, "engine.job('a')", place)
    ended = engine.job("a")
    assert (ended.state, ended.status, ended.loading) == (JobState.EXITED, 0, None)
    assert engine.snapshots() == []


@pytest.mark.usefixtures("held_pager")
@pytest.mark.parametrize("place", ["stop.kill:after", "stop.commit:after"])
def test_a_job_that_was_stopped_needs_its_snapshot_no_more(armed: Engine, place: str) -> None:
    armed_and_paused(armed, "watch")
    lazily(armed)
    killed(armed, "engine.stop('job', grace=0)", place)
    ended = armed.job("job")
    assert (ended.state is JobState.RUNNING, ended.loading) == (False, None)
    assert armed.snapshots() == []
