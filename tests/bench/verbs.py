"""The command on top of the library, and a job that is frozen in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.measure import Outcome, Sample, timed
from bench.place import Place
from bench.serac import Subject

COMMAND = Path(sys.executable).parent / "serac"
ADDED = 120.0
HOT = 5.0


def command(place: Place) -> Outcome:
    """`serac resume` beside `Engine.resume`."""
    outcome = Outcome(name="command", title="The command on top of the library: resume of a small job, mode process")
    with place.engine() as engine:
        subject = Subject(engine, "commanded")
        words = [os.fspath(COMMAND), "--root", os.fspath(engine.config.root), "--json", "resume", subject.name]
        subject.pause("process")
        for _ in range(place.plan.rounds):
            outcome.add_all("serac", subject.resume(), face="library")
            subject.pause("process")
            ms, _ = timed(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))
            outcome.add("serac", "resume", Sample(ms), face="command")
            subject.pause("process")
    added = outcome.p50("serac", "resume", face="command") - outcome.p50("serac", "resume", face="library")
    outcome.budget("what `serac resume` adds to the library", added, ADDED, unit="ms")
    return outcome


def thaw(place: Place) -> Outcome:
    """A hot job."""
    outcome = Outcome(name="thaw", title="A hot job: freeze and thaw")
    with place.engine() as engine:
        subject = Subject(engine, "hot")
        for _ in range(place.plan.rounds):
            for verb, action in (("freeze", engine.freeze), ("thaw", engine.thaw)):
                ms, _ = timed(lambda action=action: action(subject.id))
                outcome.add("serac", verb, Sample(ms))
    outcome.budget("thaw of a hot job", outcome.p50("serac", "thaw"), HOT, unit="ms")
    return outcome
