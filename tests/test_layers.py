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
        (JOB, SNAPSHOT, [], [other(layers=("l3",), upper="l4", mounted=("l1", "l2"))], "stack"),
    ],
)
def test_a_layer_is_written_again_when_nobody_else_wants_it(
    job: Job, snapshot: Snapshot, snapshots: list[Snapshot], jobs: list[Job], strategy: str
) -> None:
    assert layers.choose_strategy(job, snapshot, Layer(id="l2"), snapshots=snapshots, jobs=jobs) == strategy


def test_what_is_an_image_alone_is_never_written() -> None:
    top = Layer(id="l2", image="i", directory=False)
    assert layers.choose_strategy(JOB, SNAPSHOT, top, snapshots=[], jobs=[]) == "stack"


def test_a_layer_is_needed_by_snapshots_chains_and_uppers() -> None:
    every = [Layer(id=name) for name in ("l1", "l2", "l3", "l4", "l5")]
    jobs = [other(layers=("l3",), upper="l4")]
    assert layers.unreferenced(every, snapshots=[SNAPSHOT], jobs=jobs) == ["l5"]
    assert layers.unreferenced(every, snapshots=[], jobs=[]) == ["l1", "l2", "l3", "l4", "l5"]


def test_an_overlay_is_described_topmost_first() -> None:
    chain = (Layer(id="old"), Layer(id="moved", image="i", directory=False), Layer(id="new", image="n"))
    shown = layers.overlay(Path("/r/layers"), Path("/m"), "b", chain, "top")
    assert shown.lowers == ("layers/new/upper", "image1", "layers/old/upper", "base")
    assert (shown.upper, shown.work) == ("layers/top/upper", "layers/top/work")
    assert dict(shown.trees) == {"layers": "/r/layers", "base": "/m/b", "image1": "/m/i"}
    assert "index=off" in shown.options
    assert layers.overlay(Path("/r"), Path("/m"), "b", (), None).upper is None


def test_an_image_that_is_twice_in_a_chain_is_mounted_twice() -> None:
    """As that of an empty layer may be; overlayfs says ELOOP to a directory that comes twice."""
    chain = [Layer(id=name, image="i", directory=False) for name in ("a", "b", "c")]
    assert layers.mount_names([*chain, Layer(id="d", image="i")]) == {"a": "i", "b": "i.1", "c": "i.2"}


def test_a_chain_has_an_end() -> None:
    layers.check_depth(SNAPSHOT)
    with pytest.raises(InvalidInput, match="deep"):
        layers.check_depth(msgspec.structs.replace(SNAPSHOT, layers=("l",) * layers.DEPTH_MAX))
