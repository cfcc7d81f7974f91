"""scripts/soak, short: what it does is written there and in `soaking`; here, that it comes through, leaves nothing, and
says how to repeat what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from soaking import run
from soaking.run import WAYS, Soak, finish, staged
from soaking.stage import Stage
from soaking.world import Op

from engine import Engine

pytestmark = pytest.mark.root

TESTS = Path(__file__).resolve().parent
OPERATIONS = 40


def test_forty_mixed_operations(root_directory: Path) -> None:
    """Every way of killing is met, whatever else chance brings."""
    with staged(root_directory.parent / "soak") as stage:
        soak = Soak(stage, seed=1)
        for number in range(OPERATIONS):
            soak.operation()
            if number % 10 == 0:
                stage.look(stage.state.jobs)
        assert set(soak.counts) == set(WAYS)
        finish(stage)


def test_it_leaves_no_directory(tmp_path: Path) -> None:
    done = soaked("--operations", "5", "--seed", "7", "--root", os.fspath(tmp_path / "soak"))
    assert done.returncode == 0, done.stderr
    assert "5 operations, seed 7: nothing lost, nothing left" in done.stdout
    assert not (tmp_path / "soak").exists()


def test_it_says_how_to_repeat_what_went_wrong(
    root_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that the model doesn't know stands for an engine that has lost its own."""
    directory = root_directory.parent / "soak"
    operation = Soak.operation

    def one_more(soak: Soak) -> None:
        operation(soak)
        soak.stage.act(Op("run", name="known"))
        with Engine(soak.stage.root, timeout=30) as engine:
            engine.remove("known", force=True)
        soak.stage.look(())

    monkeypatch.setattr(Soak, "operation", one_more)
    with pytest.raises(SystemExit):
        run.soak(directory, seed=3, operations=5)
    said = capsys.readouterr().err
    assert "job known: ('running', None) <> None" in said
    assert "again: scripts/soak --seed 3 --operations 5" in said
    assert '{"verb":"run","name":"known"} here: ok' in said
    stage = Stage(directory / "root", directory)
    stage.empty()
    stage.engine.base_remove("soak")
    stage.engine.close()


def soaked(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "soaking.run", *words]
    environment = {**os.environ, "PYTHONPATH": os.fspath(TESTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
