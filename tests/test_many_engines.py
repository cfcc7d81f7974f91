"""Engines, in threads and in processes, work on one root and one job at once, each with verbs that contradict the
others': every call ends well or with an error that says why not, and what is there in the end is whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import invariants
import pytest
from roots import inside
from scenes import SNAPSHOT, job

from engine import Engine, JobState
from engine.errors import Busy, InUse, InvalidInput, NameTaken, NotFound, Paused, WrongState

pytestmark = pytest.mark.root

REFUSALS = (Busy, InUse, InvalidInput, NameTaken, NotFound, Paused, WrongState)
"""what one engine may be told because of another; no memory comes lazily back from files"""
CALLS = (
    "engine.pause('a', mode='filesystem')",
    "engine.pause('a', mode='process')",
    "engine.resume('a')",
    "engine.resume('a', memory='lazy')",
    "engine.resume('a', mode='filesystem')",
    "engine.snapshot_take('a')",
    "engine.freeze('a')",
    "engine.thaw('a')",
    f"engine.snapshot_pin({SNAPSHOT} or 'none')",
    f"engine.snapshot_pin({SNAPSHOT} or 'none', pinned=False)",
    f"engine.snapshot_archive({SNAPSHOT} or 'none')",
    f"engine.snapshot_flatten({SNAPSHOT} or 'none')",
    f"engine.snapshot_remove({SNAPSHOT} or 'none')",
    f"engine.fork({SNAPSHOT} or 'none', name='b')",
    "engine.remove('b', force=True)",
    "engine.run(JobSpec(base='small', name='b'))",
    "engine.collect()",
    "engine.jobs(ended=True)",
    "engine.exec('a', SessionSpec(argv=('/bin/true',))).close()",
)
ROUNDS = 12
SCRIPT = """
import json, random, sys
sys.path.insert(0, sys.argv[3])
from test_many_engines import hammer
print(json.dumps(hammer(sys.argv[1], int(sys.argv[2]))))
"""


def hammer(root: str, seed: int) -> list[str]:
    """Call verbs at random; what went wrong that shouldn't."""
    import engine as package

    dice, wrong = random.Random(seed), []
    for _ in range(ROUNDS):
        call = dice.choice(CALLS)
        with Engine(root, timeout=30) as engine:
            try:
                eval(call, {**vars(package), "engine": engine})
            except REFUSALS:
                pass
            except Exception as error:
                wrong.append(f"{call}: {type(error).__name__}: {error}")
    return wrong


@pytest.mark.parametrize("seed", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in range(2, 12))])
def test_engines_that_contradict_each_other(engine: Engine, seed: int) -> None:
    job(engine)
    root, here = os.fspath(engine.config.root), os.fspath(Path(__file__).parent)
    others = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, root, str(100 * seed + number), here], stdout=subprocess.PIPE)
        for number in range(2)
    ]
    wrong: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: wrong.extend(hammer(root, 100 * seed + number)))
        for number in range(10, 12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        said, _ = other.communicate(timeout=120)
        assert other.returncode == 0
        wrong += json.loads(said)
    assert not wrong, "\n".join(wrong)
    found = {entry.name: entry.state for entry in engine.jobs(ended=True)}
    invariants.hold(engine)
    if found["a"] is JobState.PAUSED:
        engine.resume("a")
    if found["a"] is JobState.FROZEN:
        engine.thaw("a")
    assert inside(engine, "a", "md5sum -c /sum") == "/kept: OK\n"
    engine.collect()
    invariants.hold(engine)
