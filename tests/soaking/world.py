"""A model of a root: its jobs and snapshots, and what each operation may make of them. Nothing here does anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from soaking.files import Change, Files, of_the_base

RUNNING, FROZEN, PAUSED, EXITED, FAILED = "running", "frozen", "paused", "exited", "failed"
LIVE = (RUNNING, FROZEN)
MAIN = "main"
"""the agent that is a job's command"""


class Op(msgspec.Struct, frozen=True, omit_defaults=True):
    """An operation. ``job`` is a name; ``snap`` the id of a snapshot, or of one that was exported."""

    verb: str
    job: str = ""
    snap: str = ""
    name: str = ""
    """of a new job, or of a new session"""
    mode: str = "auto"
    memory: str = "auto"
    change: Change | None = None
    mark: str = ""
    """what is written in /dev/shm"""

    def __str__(self) -> str:
        return msgspec.json.encode(self).decode()


@dataclass
class Agent:
    """A process that counts what it is asked, in its memory."""

    life: str | None = None
    """what tells it from any other that was started; None until it was asked"""
    count: int = 0


@dataclass
class Life:
    """What a job has, running or paused, and what a snapshot keeps."""

    files: Files
    agents: dict[str, Agent]
    shm: str = ""

    def anew(self) -> Life:
        """Started again from the files."""
        return Life(self.files, {name: Agent() for name in self.agents})

    def stacked(self) -> Life:
        return replace(self, files=self.files.lowered())


@dataclass
class Job:
    name: str
    state: str
    life: Life
    snap: str | None = None
    """what it is paused to"""


@dataclass
class Snap:
    """``id`` begins with a question mark until an engine has told it."""

    id: str
    job: str
    mode: str
    life: Life
    pinned: bool = False


@dataclass
class State:
    jobs: dict[str, Job] = field(default_factory=dict)
    snaps: dict[str, Snap] = field(default_factory=dict)
    exports: dict[str, Snap] = field(default_factory=dict)
    """by id; the file of each is named by it"""
    made: int = 0
    """snapshots that got no id yet"""

    def names(self, *states: str) -> list[str]:
        """Of jobs in these states."""
        return [job.name for job in self.jobs.values() if job.state in states]

    def new_snap(self, job: Job, mode: str) -> Snap:
        self.made += 1
        snap = Snap(f"?{self.made}", job.name, mode, copy.deepcopy(job.life))
        self.snaps[snap.id] = snap
        return snap

    def rename_snap(self, old: str, new: str) -> None:
        snap = self.snaps.pop(old)
        snap.id = new
        self.snaps[new] = snap
        for job in self.jobs.values():
            job.snap = new if job.snap == old else job.snap


class Outcome(NamedTuple):
    """``error``: the code of the error with which it ends; None = none. ``partly``: only of an engine that was killed
    in the middle, or of tools that were."""

    state: State
    error: str | None = None
    partly: bool = False


def outcomes(state: State, op: Op) -> list[Outcome]:
    """All that may come of an operation. The state that is given stays as it is."""
    error = refusal(state, op)
    if error is not None:
        return [Outcome(state, error)]
    return [
        outcome if isinstance(outcome, Outcome) else Outcome(outcome)
        for outcome in _TRANSITIONS[op.verb](copy.deepcopy(state), op)
    ]


NEEDS = {
    "session": (RUNNING,),
    "write": (RUNNING,),
    "shm": (RUNNING,),
    "pause": LIVE,
    "resume": (PAUSED,),
    "take": (RUNNING,),
    "freeze": LIVE,
    "thaw": LIVE,
    "stop": (*LIVE, EXITED, FAILED),
    "rm": (PAUSED, EXITED, FAILED),
    "kill-init": LIVE,
}
"""states of the job that a verb goes with; in others it is refused"""


def refusal(state: State, op: Op) -> str | None:
    """The code of the error that the rows alone decide."""
    if op.job and op.job not in state.jobs:
        return "not-found"
    if op.job and state.jobs[op.job].state not in NEEDS.get(op.verb, (state.jobs[op.job].state,)):
        return "wrong-state"
    if op.verb == "import":
        return None
    if op.snap and op.snap not in state.snaps:
        return "not-found"
    if op.verb in ("run", "fork") and op.name in state.jobs:
        return "name-taken"
    if op.verb == "snapshot-rm" and any(job.snap == op.snap for job in state.jobs.values()):
        return "in-use"
    if op.verb in ("resume", "fork"):
        back = state.snaps[op.snap or state.jobs[op.job].snap or ""]
        return "cannot-restore" if op.mode == "process" != back.mode else None
    return None


def _run(state: State, op: Op) -> Iterator[State]:
    state.jobs[op.name] = Job(op.name, RUNNING, Life(of_the_base(), {MAIN: Agent()}))
    yield state


def _session(state: State, op: Op) -> Iterator[State]:
    state.jobs[op.job].life.agents[op.name] = Agent()
    yield state


def _write(state: State, op: Op) -> Iterator[State]:
    assert op.change is not None
    state.jobs[op.job].life.files.apply(op.change)
    yield state


def _shm(state: State, op: Op) -> Iterator[State]:
    state.jobs[op.job].life.shm = op.mark
    yield state


def _pause(state: State, op: Op) -> Iterator[Outcome]:
    yield Outcome(_paused(state, op.job, "filesystem" if op.mode == "filesystem" else "process"))
    if op.mode == "auto":  # where criu was killed
        yield Outcome(_paused(state, op.job, "filesystem"), partly=True)


def _paused(state: State, name: str, mode: str) -> State:
    state = copy.deepcopy(state)
    job = state.jobs[name]
    job.state, job.snap = PAUSED, state.new_snap(job, mode).id
    return state


def _resume(state: State, op: Op) -> Iterator[State]:
    job = state.jobs[op.job]
    snap = state.snaps[job.snap or ""]
    lazily = op.memory == "lazy"
    job.life = _back(snap, op.mode)
    job.state, job.snap = RUNNING, None
    if not lazily:
        reused = copy.deepcopy(state)
        if not _wanted(state, snap):
            del reused.snaps[snap.id]
            yield reused
    job.life = job.life.stacked()
    yield state
    if lazily and not _wanted(state, snap):
        state = copy.deepcopy(state)
        del state.snaps[snap.id]
        yield state


def _wanted(state: State, snap: Snap) -> bool:
    """Whether a snapshot can't be used up."""
    return snap.pinned


def _back(snap: Snap, mode: str) -> Life:
    life = copy.deepcopy(snap.life)
    return life if snap.mode == "process" and mode != "filesystem" else life.anew()


def _fork(state: State, op: Op) -> Iterator[State]:
    state.jobs[op.name] = Job(op.name, RUNNING, _back(state.snaps[op.snap], op.mode).stacked())
    yield state


def _take(state: State, op: Op) -> Iterator[Outcome]:
    between = _paused(state, op.job, "process")
    yield Outcome(between, partly=True)
    state = copy.deepcopy(between)
    job = state.jobs[op.job]
    job.state, job.snap = RUNNING, None
    job.life = job.life.stacked()
    yield Outcome(state)


def _pin(state: State, op: Op) -> Iterator[State]:
    state.snaps[op.snap].pinned = op.verb == "pin"
    yield state


def _snapshot_rm(state: State, op: Op) -> Iterator[State]:
    del state.snaps[op.snap]
    yield state


def _unseen(state: State, op: Op) -> Iterator[State]:
    """What changes nothing that a job or its user could tell."""
    yield state


def _export(state: State, op: Op) -> Iterator[State]:
    state.exports[op.snap] = replace(copy.deepcopy(state.snaps[op.snap]), pinned=True)
    yield state


def _import(state: State, op: Op) -> Iterator[Outcome]:
    if op.snap in state.snaps:
        yield Outcome(state)
        yield Outcome(state, "name-taken")  # its chain was flattened since
        return
    state.snaps[op.snap] = copy.deepcopy(state.exports[op.snap])
    yield Outcome(state)


def _freeze(state: State, op: Op) -> Iterator[State]:
    state.jobs[op.job].state = FROZEN if op.verb == "freeze" else RUNNING
    yield state


def _stop(state: State, op: Op) -> Iterator[Outcome]:
    if state.jobs[op.job].state in LIVE:
        yield Outcome(ended(state, op.job, FAILED), partly=True)
        state = ended(state, op.job, EXITED)
    yield Outcome(state)


def ended(state: State, name: str, how: str) -> State:
    state = copy.deepcopy(state)
    job = state.jobs[name]
    job.state, job.life = how, replace(job.life, agents={}, shm="")
    return state


def _kill_init(state: State, op: Op) -> Iterator[State]:
    yield ended(state, op.job, FAILED)


def _rm(state: State, op: Op) -> Iterator[State]:
    job = state.jobs.pop(op.job)
    if job.snap is not None and not state.snaps[job.snap].pinned:
        del state.snaps[job.snap]
    yield state


def _reboot(state: State, op: Op) -> Iterator[State]:
    for name in state.names(*LIVE):
        state = ended(state, name, FAILED)
    yield state


_TRANSITIONS = {
    "run": _run,
    "session": _session,
    "write": _write,
    "shm": _shm,
    "pause": _pause,
    "resume": _resume,
    "fork": _fork,
    "take": _take,
    "pin": _pin,
    "unpin": _pin,
    "snapshot-rm": _snapshot_rm,
    "archive": _unseen,
    "flatten": _unseen,
    "gc": _unseen,
    "export": _export,
    "import": _import,
    "freeze": _freeze,
    "thaw": _freeze,
    "stop": _stop,
    "rm": _rm,
    "rm-force": _rm,
    "kill-init": _kill_init,
    "reboot": _reboot,
}
VERBS = tuple(_TRANSITIONS)
