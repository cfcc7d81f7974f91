"""An image is under its digest whole or not at all: whoever comes to the same bytes takes what lies there for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from remains import killed
from roots import output, shell

from engine import Engine, archive, store
from engine.base import DirSource

pytestmark = pytest.mark.root


@contextlib.contextmanager
def killed_in_a_removal() -> Iterator[None]:
    """When of the next image that is removed one file is gone."""
    real = store.remove_tree

    def half(path: Path) -> None:
        for blob in (path / archive.BLOB, *path.glob(f"*/{archive.BLOB}")):
            if blob.exists():
                blob.unlink()
                raise KeyboardInterrupt
        real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "remove_tree", half)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("swept", [False, True], ids=["removed", "swept"])
def test_a_base_is_built_again_after_half_a_removal(engine: Engine, small_tree: Path, swept: bool) -> None:
    if swept:
        killed(engine, "engine.base_remove('small')", "base.forget:after")
        with killed_in_a_removal(), Engine(engine.config.root):
            pass
    else:
        with killed_in_a_removal():
            engine.base_remove("small")
    engine.base_build("small", DirSource(path=small_tree))
    engine.run(shell("cat /src/lower", name="a"))
    engine.wait("a", timeout=30)
    assert output(engine, "a") == "of the base\n"


def test_an_image_that_is_half_collected_is_not_there(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem", archive="wait")
    engine.remove("a")
    for snapshot in engine.snapshots():
        engine.snapshot_remove(snapshot.id)
    assert list((engine.config.root / "images").iterdir())
    with killed_in_a_removal():
        engine.collect()
    assert not list((engine.config.root / "images").iterdir())
