"""The command on top of the library, and a job that is frozen in memory."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from bench.measure import Outcome, Sample, settle, timed
from bench.place import Place
from bench.serac import Subject
from engine import Engine

COMMAND = Path(sys.executable).parent / "serac"
ADDED = 120.0
HOT = 5.0


def ordered(engine: Engine, *words: str) -> None:
    """Run the command, with its modules compiled as those of an installed one are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = (os.fspath(COMMAND), "--root", os.fspath(engine.config.root), "--json", *words)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)


def command(place: Place) -> Outcome:
    """`serac resume` beside `Engine.resume`: what the command adds to the library."""
    outcome = Outcome(name="command", title="The command on top of the library: resume of a small job, mode process")
    with place.engine() as engine:
        subject = Subject(engine, "commanded")
        subject.pause("process")
        ordered(engine, "ps")  # compiles what has not been compiled yet
        for _ in range(place.plan.rounds):
            settle()
            outcome.add_all("serac", subject.resume(), face="library")
            subject.pause("process")
            settle()
            ms, _ = timed(lambda: ordered(engine, "resume", subject.name))
            outcome.add("serac", "resume", Sample(ms), face="command")
            subject.pause("process")
    added = outcome.p50("serac", "resume", face="command") - outcome.p50("serac", "resume", face="library")
    outcome.budget("what `serac resume` adds to the library", added, ADDED, unit="ms")
    return outcome


def thaw(place: Place) -> Outcome:
    """A hot job: freeze and thaw."""
    outcome = Outcome(name="thaw", title="A hot job: freeze and thaw")
    with place.engine() as engine:
        subject = Subject(engine, "hot")
        for _ in range(place.plan.rounds):
            for verb, action in (("freeze", engine.freeze), ("thaw", engine.thaw)):
                settle()
                ms, _ = timed(functools.partial(action, subject.id))
                outcome.add("serac", verb, Sample(ms))
    outcome.budget("thaw of a hot job", outcome.p50("serac", "thaw"), HOT, unit="ms")
    return outcome
