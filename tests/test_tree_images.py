"""Random chains of layers as images: the kernel shows them as it showed the directories that they were made of, trees
that are read show the same, and so does one image in the stead of several."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import census
import forest
import nodes
import pytest
import stacks

from engine import archive
from engine.tree import Node, flattened, merged, open_directory, sound
from engine.tree.node import portable

SEEDS = int(os.environ.get("SERAC_TEST_SEEDS", "8"))
"""more are for a longer search"""
ROUNDS = 3
BOUNDS = ((0, 3), (1, 3), (0, 2), (1, 2))
"""of what is flattened in a chain"""
FSCK = Path("/usr/local/lib/serac/bin/fsck.erofs")

look = partial(census.take, overlaid=True)
pytestmark = pytest.mark.root


@pytest.fixture
def ground() -> Iterator[Path]:
    """An empty directory on the file system of /var/tmp, for trees that pytest itself couldn't remove."""
    top = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    yield top
    forest.fell(top)


def image_of(directory: Path) -> Path:
    """The image of a directory, next to it."""
    with open_directory(directory) as root:
        return stacks.build(root, directory.parent / f"{directory.name}.image")


def grown(ground: Path, seed: int) -> tuple[list[Path], census.Census]:
    """A chain of images, topmost first, and what was seen when the last of them was left. Each shows what it did."""
    base = ground / "base"
    base.mkdir()
    forest.grow(base, seed + 1000, devices=True, trusted=True)
    chain, left = [image_of(base)], census.Census()
    for number in range(ROUNDS):
        top = ground / f"{number}"
        grow = partial(forest.grow, seed=ROUNDS * seed + number, devices=True, trusted=True, overlaid=True)
        found, _, taken = stacks.Stack(tuple(chain), top).inside(look, grow, look)
        assert not census.differences(left or found, found, image=True)
        chain.insert(0, image_of(top / "upper"))
        left = taken
    return chain, left


def shown(chain: Sequence[Path], top: Path) -> census.Census:
    (found,) = stacks.Stack(tuple(chain), top).inside(look)
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_chains_of_images(ground: Path, seed: int) -> None:
    chain, left = grown(ground, seed)
    seen = shown(chain, ground / "chain")
    assert not census.differences(left, seen, image=True)
    with stacks.opened(chain) as roots:
        assert not census.differences(seen, nodes.take(merged(roots), xattrs=nodes.jobs_own))
        for root in roots:
            sound(root, devices=lambda _: True)
        flat = {bounds: flat_image(roots, ground, *bounds) for bounds in (BOUNDS[seed % 4], BOUNDS[(seed + 1) % 4])}
    for (first, last), image in flat.items():
        found = shown([*chain[:first], image, *chain[last:]], ground / f"over-{image.name}")
        # An inode has as many links as there are names, but for those that a layer above hides: these are gone.
        assert not census.differences(seen, found, ignore={"links"}, image=True), image.name
        assert all(found[path].links <= entry.links for path, entry in seen.items())


def flat_image(roots: Sequence[Node], ground: Path, first: int, last: int) -> Path:
    """Some layers of a chain as one."""
    return stacks.build(flattened(roots[first:last]), ground / f"flat-{first}-{last}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_image_is_the_tree_that_it_is_made_of(ground: Path, seed: int) -> None:
    tree = ground / "tree"
    tree.mkdir()
    # Paths that are too long for fsck.erofs are in every other tree.
    for number in range(3):
        forest.grow(tree, 3 * seed + number, devices=True, trusted=True, deep=seed % 2 == 1)
    with open_directory(tree) as root:
        images = [stacks.build(root, ground / name) for name in ("one", "two")]
        kept = partial(nodes.take, xattrs=lambda node: portable(node, node.xattrs()))
        with stacks.opened(images[:1]) as (read,):
            assert not census.differences(kept(root), kept(read), image=True)
    assert archive.image_digest(images[0]) == archive.image_digest(images[1])
    if seed % 2 == 0:
        check(images[0])


def check(image: Path) -> None:
    command = [FSCK, "--extract", f"--device={image / archive.BLOB}", image / archive.META]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
