"""serac beside what else can be had on a host: the same job, the same root filesystem, the same bytes written."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from bench.measure import Outcome, Sample, timed
from bench.peers import Podman, Runc, Tar, missing, podman, runc
from bench.place import Place
from bench.serac import Subject
from bench.verbs import COMMAND

SMALL = 5.0
LARGE = 100.0
HUGE = 3000
"""megabytes of diff from which on LARGE is wanted"""


def peers(place: Place) -> Outcome:
    """Podman, runc, tar + lz4."""
    outcome = Outcome(name="peers", title="serac beside its peers, by megabytes that the job has written")
    outcome.notes.append("podman: checkpoint --export --compress none, restore --import, network none, runtime runc")
    outcome.notes.append("runc keeps processes only, tar + lz4 files only; serac's pause includes its flush to disk")
    outcome.notes += [f"{name}: not installed; `scripts/setup --bench`" for name in missing("podman", "runc", "lz4")]
    if not missing("runc"):
        with runc(place.directory, place.tree) as peer:
            _processes_alone(outcome, place, peer)
    for megabytes in place.plan.diffs:
        if place.has_room(4 * megabytes):
            _with_diff(outcome, place, megabytes)
        else:
            outcome.notes.append(f"{megabytes} MB: left out, the disk has no room for it")
    _judge(outcome, place.plan.diffs)
    return outcome


def _processes_alone(outcome: Outcome, place: Place, peer: Runc) -> None:
    for _ in range(place.plan.rounds):
        outcome.add_all("runc", peer.pause(), megabytes=0)
        outcome.add_all("runc", peer.resume(), megabytes=0)


def _with_diff(outcome: Outcome, place: Place, megabytes: int) -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(place.engine())
        subject = Subject(engine, "beside")
        subject.write(megabytes)
        subject.pause("process")
        rival = None if missing("podman") else stack.enter_context(podman(place.directory, place.tree))
        if rival is not None:
            rival.start(megabytes=megabytes)
        packer = None if missing("lz4") or not megabytes else Tar(place.directory)
        for _ in range(place.plan.rounds if megabytes < 100 else place.plan.few):
            _turn(outcome, subject, rival, packer, megabytes)


def _turn(outcome: Outcome, subject: Subject, rival: Podman | None, packer: Tar | None, megabytes: int) -> None:
    outcome.add_all("serac", subject.resume(), megabytes=megabytes)
    outcome.add_all("serac", subject.pause("process"), megabytes=megabytes)
    ms, _ = timed(lambda: _command(subject, "resume"))
    outcome.add("serac, the command", "resume", Sample(ms), megabytes=megabytes)
    ms, _ = timed(lambda: _command(subject, "pause", "--mode", "process"))
    outcome.add("serac, the command", "pause", Sample(ms), megabytes=megabytes)
    if rival is not None:
        outcome.add_all("podman", rival.pause(), megabytes=megabytes)
        outcome.add_all("podman", rival.resume(), megabytes=megabytes)
    if packer is not None:
        outcome.add_all("tar+lz4", packer.pause(_upper(subject)), megabytes=megabytes)
        outcome.add_all("tar+lz4", packer.resume(), megabytes=megabytes)


def _command(subject: Subject, verb: str, *words: str) -> None:
    root = os.fspath(subject.engine.config.root)
    command = [os.fspath(COMMAND), "--root", root, verb, *words, subject.name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _upper(subject: Subject) -> Path:
    layer = subject.engine.snapshot(subject.snapshot).layers[-1]
    return subject.engine.config.root / "layers" / layer / "upper"


def _judge(outcome: Outcome, diffs: tuple[int, ...]) -> None:
    for megabytes in diffs:
        with contextlib.suppress(KeyError):  # not measured, as the notes say
            rival, own = (outcome.p50(who, "resume", megabytes=megabytes) for who in ("podman", "serac"))
            wanted = LARGE if megabytes >= HUGE else SMALL
            text = f"podman's resume against serac's, {megabytes} MB written"
            outcome.budget(text, rival / own, wanted, least=True)
