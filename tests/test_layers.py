"""Decisions on chains are pure: tables of what goes in and what comes out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import layers
from engine.errors import InvalidInput
from engine.model import Context, Job, JobSpec, JobState, Layer, Snapshot

JOB = Job(
    id="j1", name="a", spec=JobSpec(base="b"), state=JobState.PAUSED, base="d", layers=("l1", "l2"), snapshot="s1"
)
SNAPSHOT = Snapshot(
    id="s1", job="j1", name="a", spec=JobSpec(base="b"), base="d", layers=("l1", "l2"), context=Context()
)


def other(**fields: object) -> Job:
    return msgspec.structs.replace(JOB, id="j2", name="b", snapshot=None, **fields)


@pytest.mark.parametrize(
    ("job", "snapshot", "snapshots", "jobs", "strategy"),
    [
        (JOB, SNAPSHOT, [], [], "reuse"),
        (JOB, SNAPSHOT, [SNAPSHOT], [JOB], "reuse"),
        (JOB, msgspec.structs.replace(SNAPSHOT, pinned=True), [], [], "stack"),
        (msgspec.structs.replace(JOB, snapshot="s0"), SNAPSHOT, [], [], "stack"),
        (JOB, msgspec.structs.replace(SNAPSHOT, job="j9"), [], [], "stack"),
        (JOB, SNAPSHOT, [msgspec.structs.replace(SNAPSHOT, id="s2")], [], "stack"),
        (JOB, SNAPSHOT, [msgspec.structs.replace(SNAPSHOT, id="s2", layers=("l1",))], [], "reuse"),
        (JOB, SNAPSHOT, [], [other(layers=("l1", "l2"))], "stack"),
        (JOB, SNAPSHOT, [], [other(layers=("l1",), upper="l2")], "stack"),
        (JOB, SNAPSHOT, [], [other(layers=("l1",), upper="l3")], "reuse"),
    ],
)
def test_a_layer_is_written_again_when_nobody_else_wants_it(
    job: Job, snapshot: Snapshot, snapshots: list[Snapshot], jobs: list[Job], strategy: str
) -> None:
    assert layers.choose_strategy(job, snapshot, snapshots=snapshots, jobs=jobs) == strategy


def test_a_layer_is_needed_by_snapshots_chains_and_uppers() -> None:
    every = [Layer(id=name) for name in ("l1", "l2", "l3", "l4", "l5")]
    jobs = [other(layers=("l3",), upper="l4")]
    assert layers.unreferenced(every, snapshots=[SNAPSHOT], jobs=jobs) == ["l5"]
    assert layers.unreferenced(every, snapshots=[], jobs=[]) == ["l1", "l2", "l3", "l4", "l5"]


def test_an_overlay_is_described_topmost_first() -> None:
    shown = layers.overlay(Path("/r/layers"), Path("/m/base"), ("old", "new"), "top")
    assert shown.lowers == ("layers/new/upper", "layers/old/upper", "base")
    assert (shown.upper, shown.work) == ("layers/top/upper", "layers/top/work")
    assert dict(shown.trees) == {"layers": "/r/layers", "base": "/m/base"}
    assert "index=off" in shown.options
    assert layers.overlay(Path("/r"), Path("/m"), (), None).upper is None


def test_a_chain_has_an_end() -> None:
    layers.check_depth(SNAPSHOT)
    with pytest.raises(InvalidInput, match="deep"):
        layers.check_depth(msgspec.structs.replace(SNAPSHOT, layers=("l",) * layers.DEPTH_MAX))
