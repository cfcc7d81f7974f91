"""Random trees: every deed gets done, a seed does the same again, and layers of an overlay show what they were left as.

Of three rounds on a base, each writes an upper of its own over those before it. At the beginning of the next all that
the last one left must be there, that is through an overlay which has them all as lower layers. No rule excuses
anything: the top's own attributes are there too, for the engine copies them; and hard links of a lower layer split when
a job writes to one of them, so that they have split before the layer is left.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import census
import forest
import overlays
import pytest

from engine import layers
from engine.tree import open_directory

ROUNDS = 3
SEEDS = int(os.environ.get("SERAC_TEST_SEEDS", "10"))
"""more are for a longer search"""

look = partial(census.take, overlaid=True)


@pytest.fixture
def ground() -> Iterator[Path]:
    """An empty directory on the file system of /var/tmp, for trees that pytest itself couldn't remove."""
    top = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    yield top
    forest.fell(top)


def layer(ground: Path, number: int, lowers: list[Path]) -> overlays.Overlay:
    """An overlay with a new upper, made as the engine makes one."""
    directory = ground / f"layer-{number}"
    with open_directory(lowers[0]) as below:
        layers.create(directory, like=below)
    return overlays.Overlay(lowers=tuple(lowers), upper=directory / "upper", work=directory / "work")


def planted(ground: Path, seed: int) -> Path:
    base = ground / "base"
    base.mkdir()
    forest.grow(base, seed + 1000, devices=True, trusted=True)
    return base


@pytest.mark.root
@pytest.mark.parametrize("seed", range(SEEDS))
def test_layers_show_what_they_were_left_as(ground: Path, seed: int) -> None:
    lowers, left = [planted(ground, seed)], census.Census()
    for number in range(ROUNDS):
        overlay = layer(ground, number, lowers)
        grow = partial(forest.grow, seed=ROUNDS * seed + number, devices=True, trusted=True, overlaid=True)
        found, _, grown = overlays.inside(overlay, look, grow, look)
        assert not census.differences(left or found, found)
        lowers.insert(0, overlay.upper)
        left = grown
    (found,) = overlays.inside(layer(ground, ROUNDS, lowers), look)
    assert not census.differences(left, found)


@pytest.mark.root
def test_every_deed_is_done(ground: Path) -> None:
    done: Counter[str] = Counter()
    for seed in range(12):
        top = ground / f"{seed}"
        top.mkdir()
        done += forest.grow(top, seed, devices=True, trusted=True, flags=seed % 4 == 3)
    assert forest.DEEDS.keys() - done.keys() == {"set xattr of overlays"}


@pytest.mark.root
def test_every_deed_is_done_on_an_overlay(ground: Path) -> None:
    grow = [partial(forest.grow, seed=seed, devices=True, trusted=True, overlaid=True) for seed in range(12)]
    done = overlays.inside(layer(ground, 0, [planted(ground, 0)]), *grow)
    assert forest.DEEDS.keys() - sum(done, Counter()).keys() == {"make immutable"}


@pytest.mark.root
def test_deeds_that_are_not_allowed_are_not_done(ground: Path) -> None:
    done = sum((forest.grow(ground, seed, id_max=65_535, deep=False) for seed in range(4)), Counter[str]())
    assert {name for name in done if forest.DEEDS[name].needs} == set()
    taken = census.take(ground)
    assert max(max(entry.uid, entry.gid) for entry in taken.values()) <= 65_535
    assert not [path for path, entry in taken.items() if entry.kind.endswith("device") or len(path) > 4096]


@pytest.mark.root
def test_a_seed_does_the_same_again(ground: Path) -> None:
    started, taken = time.time_ns(), []
    for name in ("one", "two"):
        (ground / name).mkdir()
        for seed in range(4):
            forest.grow(ground / name, seed, devices=True, trusted=True)
        taken.append(census.take(ground / name))
    assert not census.differences(*taken, ignore={"mtime"})
    assert given_times(taken[0], started) == given_times(taken[1], started)


def given_times(taken: census.Census, started: int) -> dict[bytes, int]:
    """Times that the kernel didn't give: those before the beginning, and those yet to come."""
    coarse = started - 1_000_000_000
    return {path: entry.mtime for path, entry in taken.items() if not coarse <= entry.mtime <= time.time_ns()}


@pytest.mark.root
def test_trees_have_what_gives_trouble(ground: Path) -> None:
    """Of what is there to be compared at all: each kind, odd names and sizes, links, paths beyond PATH_MAX."""
    for seed in range(12):
        forest.grow(ground, seed, devices=True, trusted=True)
    taken = census.take(ground)
    assert {entry.kind for entry in taken.values()} == set(census.KINDS.values())
    assert {oddity for path, entry in taken.items() for oddity in oddities(path, entry)} == ODDITIES


ODDITIES = {
    *("beyond PATH_MAX", "not UTF-8", "name of 255 bytes", "like a whiteout", "hard links", "links of no file"),
    *("2 GiB", "hole", "negative time", "nanoseconds", "far future", "large id", "mode of 12 bits"),
    *("user", "trusted", "security", "system", "large attribute", "empty attribute", "target of 4095 bytes"),
}


def oddities(path: bytes, entry: census.Record) -> set[str]:
    name = os.path.basename(path)
    found = {
        "beyond PATH_MAX": len(path) > 4096,
        "not UTF-8": b"\xff" in name,
        "name of 255 bytes": len(name) == 255,
        "like a whiteout": name.startswith(b".wh."),
        "hard links": entry.first != path,
        "links of no file": entry.links > 1 and entry.kind != "file",
        "2 GiB": entry.size >= (2 << 30) - 1,
        "hole": entry.kind == "file" and entry.allocated < entry.size,
        "negative time": entry.mtime < 0,
        "nanoseconds": entry.mtime % 1000 > 0,
        "far future": entry.mtime > 1 << 61,
        "large id": entry.uid > 65_535,
        "mode of 12 bits": entry.mode & 0o7000 == 0o7000,
        "large attribute": any(len(value) >= 3000 for value in entry.xattrs.values()),
        "empty attribute": b"" in entry.xattrs.values(),
        "target of 4095 bytes": len(entry.target) == 4095,
    }
    return {oddity for oddity, there in found.items() if there} | {key.split(".")[0] for key in entry.xattrs}


@pytest.mark.root
def test_an_overlay_that_forgets_is_found_out(ground: Path) -> None:
    """Directories that were moved are not followed: the comparison sees that."""
    lowers = [planted(ground, 0)]
    overlay = layer(ground, 0, lowers)
    _, grown = overlays.inside(overlay, partial(forest.grow, seed=1, operations=300), look)
    forgetful = layer(ground, 1, [overlay.upper, *lowers])
    options = tuple(option.replace("redirect_dir=on", "redirect_dir=nofollow") for option in layers.OPTIONS)
    (found,) = overlays.inside(dataclasses.replace(forgetful, options=options), look)
    assert any(line.endswith(": gone") for line in census.differences(grown, found))
