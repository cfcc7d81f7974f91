"""Any tree that a job can make is the same, to the job, after all that serac does with it.

A random tree grows in a job, on one that its base has. What the job sees is compared before a pause and after a resume
by ``reuse``; after rounds of growing, archiving and ``stack``; from images alone, when the directories are gone; in
forks; on another root, after an export and an import; when the chain has been flattened.

Left out of the comparison is what serac itself gives each job (`is_own`): its init below /.serac, the job's name in
/etc/hostname and /etc/hosts, and the time of /etc with it; and what is mounted.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import census
import forest
import jobroots
import pytest
from ground import Ground
from roots import configure, empty

from engine import Engine, JobSpec
from engine.base import DirSource

pytestmark = pytest.mark.root

ROUNDS = 3
SEEDS = int(os.environ.get("SERAC_TEST_SEEDS", "6"))
"""more are for a longer search"""

POWERS: dict[str, dict[str, int]] = {
    "host": {"devices": True, "trusted": True, "overlaid": True},
    "private": {"id_max": 65_535},
}
"""what a job in such a user namespace can do"""

MOUNTED = {b"proc", b"sys", b"dev", b"run"}


def look(engine: Engine, ref: str) -> census.Census:
    (taken,) = jobroots.inside(engine, ref, partial(census.take, overlaid=True))
    kept = {path: entry for path, entry in taken.items() if not is_own(path)}
    return {**kept, b"etc": dataclasses.replace(kept[b"etc"], mtime=0)}


def is_own(path: bytes) -> bool:
    return path.split(b"/")[0] in {b".serac", *MOUNTED} or path in {b"etc/hostname", b"etc/hosts"}


def grow(engine: Engine, ref: str, seed: int) -> census.Census:
    """What the job sees when it is done."""
    userns = engine.job(ref).spec.userns
    jobroots.inside(engine, ref, partial(plant, seed=seed, powers=POWERS[userns]))
    return look(engine, ref)


def plant(root: int, *, seed: int, powers: dict[str, int]) -> None:
    """Let the tree grow, and change the job's root directory itself."""
    top = os.open("tree", census.DIRECTORY, dir_fd=root)
    forest.grow(top, seed, **powers)
    os.close(top)
    ground = Ground(root, random.Random(seed), id_max=powers.get("id_max", forest.ID_MAX))
    forest.succeeds(forest.DEEDS["change the top"], ground, set(), f"root directory: {seed=}")


@pytest.fixture
def ground(small_tree: Path) -> Iterator[Path]:
    """A directory with a copy of the small tree, for bases that pytest itself couldn't remove."""
    top = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    shutil.copytree(small_tree, top / "base", symlinks=True)
    yield top
    forest.fell(top)


@pytest.fixture
def other(root_directory: Path) -> Iterator[Engine]:
    """An engine on another root, without a base."""
    directory = root_directory.parent / "other"
    configure(directory)
    with Engine(directory, timeout=30) as engine:
        try:
            yield engine
        finally:
            empty(engine)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_tree_is_the_same(engine: Engine, other: Engine, ground: Path, seed: int) -> None:
    userns: Literal["private", "host"] = "private" if seed % 2 else "host"
    (ground / "base/tree").mkdir()
    ids = POWERS[userns].get("id_max", forest.ID_MAX)
    forest.grow(ground / "base/tree", seed + 1000, devices=True, trusted=True, deep=False, id_max=ids)
    engine.base_build("forest", DirSource(path=ground / "base"))
    engine.run(JobSpec(base="forest", name="a", userns=userns))
    reused(engine, seed)
    left = [in_a_round(engine, ROUNDS * seed + number) for number in range(ROUNDS)]
    taken = grow(engine, "a", seed + 2000)
    last = engine.pause("a", mode="filesystem", archive="wait").snapshot
    same_from_images(engine, last, taken, left)
    same_elsewhere(engine, other, last, taken, ground / "export")


def reused(engine: Engine, seed: int) -> None:
    before = grow(engine, "a", seed + 3000)
    engine.pause("a", mode="filesystem")
    assert engine.resume("a").strategy == "reuse"
    assert not census.differences(before, look(engine, "a"))


def in_a_round(engine: Engine, seed: int) -> tuple[str, census.Census]:
    """The tree grows, and the job goes on in a layer above it; the layers below are images. The snapshot is kept."""
    before = grow(engine, "a", seed)
    snapshot = engine.pause("a", mode="filesystem", archive="wait").snapshot
    engine.snapshot_pin(snapshot)
    engine.collect()
    assert engine.resume("a").strategy == "stack"
    assert not census.differences(before, look(engine, "a"))
    return snapshot, before


def same_from_images(engine: Engine, last: str, taken: census.Census, left: list[tuple[str, census.Census]]) -> None:
    """In forks, when the job is gone and of every layer there is an image alone; then when they are one layer."""
    engine.snapshot_pin(last)
    engine.remove("a")
    engine.collect()
    for layer in engine._root.catalog.layers():
        assert (layer.directory, layer.image is not None) == (False, True)
        assert not (engine.config.root / "layers" / layer.id / "upper").exists()
    for snapshot, before in [*left, (last, taken)]:
        assert not census.differences(before, forked(engine, snapshot))
    assert engine.snapshot_verify(last) == []


def same_elsewhere(engine: Engine, other: Engine, last: str, taken: census.Census, export: Path) -> None:
    engine.snapshot_export(last, str(export), with_base=True)
    other.snapshot_import(str(export), trust=True)
    assert not census.differences(taken, forked(other, last))
    for each in (other, engine):
        assert len(each.snapshot_flatten(last).layers) == 1
        found = forked(each, last)
        assert not census.differences(taken, found, ignore={"links"})
        assert recounted(taken, found) == []


def recounted(before: census.Census, after: census.Census) -> list[bytes]:
    """What has another count of links, and it isn't the right one. Over a lower layer overlayfs counts names that are
    gone from above it; in one layer they are gone."""
    names = Counter(entry.first for entry in after.values())
    changed = (path for path, entry in after.items() if entry.links != before[path].links)
    return [path for path in changed if after[path].links != names[after[path].first]]


def forked(engine: Engine, snapshot: str) -> census.Census:
    """What a fork sees. It goes again."""
    job = engine.fork(snapshot).job
    try:
        return look(engine, job)
    finally:
        engine.remove(job, force=True)
