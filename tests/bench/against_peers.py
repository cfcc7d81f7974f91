"""serac beside what else can be had on a host: the same job, the same root filesystem, the same bytes written."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bench.measure import Outcome, Sample, at_rest, timed
from bench.peers import PeerFailed, Podman, Runc, Tar, missing, podman, runc
from bench.place import Place
from bench.serac import Subject
from bench.verbs import ordered

SMALL = 5.0
LARGE = 100.0
HUGE = 3000
"""megabytes of diff from which on LARGE is wanted"""


def peers(place: Place) -> Outcome:
    """Beside Podman, runc and tar + lz4, by what the job has written."""
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
    try:
        for _ in range(place.plan.rounds):
            at_rest()
            outcome.add_all("runc", peer.pause(), megabytes=0)
            at_rest()
            outcome.add_all("runc", peer.resume(), megabytes=0)
    except PeerFailed as error:
        outcome.notes.append(f"runc has failed, and was measured no further: {error}")


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
            _own_turn(outcome, subject, megabytes)
            if packer is not None:
                at_rest()
                outcome.add_all("tar+lz4", packer.pause(_upper(subject)), megabytes=megabytes)
                at_rest()
                outcome.add_all("tar+lz4", packer.resume(), megabytes=megabytes)
            if rival is not None and not _rivals_turn(outcome, rival, megabytes):
                rival = None


def _own_turn(outcome: Outcome, subject: Subject, megabytes: int) -> None:
    at_rest()
    outcome.add_all("serac", subject.resume(), megabytes=megabytes)
    at_rest()
    outcome.add_all("serac", subject.pause("process"), megabytes=megabytes)
    at_rest()
    ms, _ = timed(lambda: ordered(subject.engine, "resume", subject.name))
    outcome.add("serac, the command", "resume", Sample(ms), megabytes=megabytes)
    at_rest()
    ms, _ = timed(lambda: ordered(subject.engine, "pause", "--mode", "process", subject.name))
    outcome.add("serac, the command", "pause", Sample(ms), megabytes=megabytes)


def _rivals_turn(outcome: Outcome, rival: Podman, megabytes: int) -> bool:
    """Whether another one can follow."""
    try:
        at_rest()
        outcome.add_all("podman", rival.pause(), megabytes=megabytes)
        at_rest()
        outcome.add_all("podman", rival.resume(), megabytes=megabytes)
    except PeerFailed as error:
        outcome.notes.append(f"podman, {megabytes} MB: has failed, and was measured no further: {error}")
        return False
    return True


def _upper(subject: Subject) -> Path:
    layer = subject.engine.snapshot(subject.snapshot).layers[-1]
    return subject.engine.config.root / "layers" / layer / "upper"


def _judge(outcome: Outcome, diffs: tuple[int, ...]) -> None:
    for megabytes in diffs:
        with contextlib.suppress(KeyError):  # not measured, as the notes say
            rival, own = (outcome.p50(who, "resume", megabytes=megabytes) for who in ("podman", "serac"))
            wanted = LARGE if megabytes >= HUGE else SMALL
            of = f"{megabytes} MB written"
            outcome.budget("podman's resume against serac's", rival / own, wanted, of=of, least=True)
