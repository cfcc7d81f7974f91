"""What may remain in a root after a crash, and must not: small things that no verb would have stumbled over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from remains import killed
from roots import shell, wait_for

from engine import Engine, store
from engine.lifecycle.root import Root
from engine.model import Mode

pytestmark = pytest.mark.root


@pytest.mark.parametrize("mode", ["process", "filesystem"])
@pytest.mark.parametrize("place", ["commit:after", "release:before"])
def test_a_sealed_layer_has_no_work_directory(engine: Engine, mode: Mode, place: str) -> None:
    engine.run(shell("sleep 1000", name="a"))
    killed(engine, f"engine.pause('a', mode='{mode}')", f"pause.{place}")
    with Engine(engine.config.root, timeout=30) as after:
        (layer,) = after.job("a").layers
        assert "work" not in os.listdir(engine.config.root / "layers" / layer)


def test_a_layer_that_is_written_again_has_no_manifest(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem", archive="wait")
    assert engine.resume("a").strategy == "reuse"
    layer = engine.config.root / "layers" / (engine.job("a").upper or "")
    assert sorted(os.listdir(layer)) == ["upper", "work"]
    engine.pause("a", mode="filesystem")
    assert sorted(os.listdir(layer)) == ["snapshot.json", "upper"]


def test_a_sweep_waits_for_what_mending_throws_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy resume that an engine didn't live to complete uses its snapshot up: the image of that goes."""
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="process")
    killed(engine, "engine.resume('a', memory='lazy')", "resume.commit:after")
    job = engine._root.catalog.job("a")
    pages = engine.config.run / "jobs" / job.id / "pages"
    wait_for(lambda: pages.read_text() == "done\n")
    assert os.listdir(engine.config.root / "tmp") != []

    remove = Root._remove
    never = threading.Event()

    def slowly(root: Root, discarded: Path) -> None:
        with store.locked(root.tmp, timeout=30, shared=True):
            never.wait(0.5)
        remove(root, discarded)

    monkeypatch.setattr(Root, "_remove", slowly)
    with Engine(engine.config.root, timeout=30):
        pass
    assert os.listdir(engine.config.root / "tmp") == []


def test_a_record_that_was_not_written_to_its_end_goes_with_the_next_opening(engine: Engine) -> None:
    """An engine is killed while it pins a snapshot, as it puts the record into its place."""
    job = engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.pause(job.id).snapshot
    layer = engine.config.root / "layers" / engine.snapshot(snapshot).layers[-1]
    before = sorted(os.listdir(layer))
    dying = (
        "import os, pathlib, signal, sys; from engine import Engine; engine = Engine(sys.argv[1]);"
        "pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL); engine.snapshot_pin(sys.argv[2])"
    )
    died = subprocess.run([sys.executable, "-c", dying, engine.config.root, snapshot], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(os.listdir(layer)) == len(before) + 1
    with Engine(engine.config.root) as other:
        assert sorted(os.listdir(layer)) == before
        assert os.listdir(engine.config.root / "tmp") == []
        assert not other.snapshot(snapshot).pinned


def test_an_image_is_unmounted_with_the_last_job_on_it(engine: Engine, tmp_path: Path) -> None:
    """Though its row goes before the job is taken down, for no snapshot has it any more."""
    file = os.fspath(tmp_path / "a.serac")
    engine.run(shell("sleep 1000", name="a"))
    engine.snapshot_export(engine.pause("a", mode="filesystem").snapshot, file)
    engine.remove("a")
    mounted = sorted(os.listdir(engine.config.run / "mounts"))
    engine.collect()
    snapshot = engine.snapshot_import(file).id
    engine.fork(snapshot, name="b")
    engine.snapshot_remove(snapshot)
    assert len(os.listdir(engine.config.run / "mounts")) == len(mounted) + 1
    engine.remove("b", force=True)
    assert sorted(os.listdir(engine.config.run / "mounts")) == mounted
