"""Operations chosen at random, of those that go with a state."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from soaking.files import KINDS, NAMES, Change
from soaking.world import EXITED, FAILED, LIVE, PAUSED, RUNNING, Op, State

JOBS_MAX, SNAPS_MAX, AGENTS_MAX = 5, 8, 4

WEIGHTS = {
    "run": 6, "session": 3, "write": 14, "shm": 2, "pause": 12, "resume": 12, "fork": 6, "take": 5, "pin": 3,
    "unpin": 2, "snapshot-rm": 5, "archive": 4, "flatten": 4, "gc": 5, "export": 3, "import": 4, "freeze": 3,
    "thaw": 3, "stop": 2, "rm": 4, "rm-force": 2, "reboot": 1, "kill-init": 1,
}  # fmt: skip
"""how often each verb is tried, to each other"""


def change(chance: Random, value: int) -> Change:
    return Change(chance.choice(KINDS), chance.choice(NAMES), chance.choice(NAMES), value)


def operation(state: State, chance: Random, fresh: Callable[[str], str]) -> Op:
    """One that makes sense now; rarely one that is refused."""
    while True:
        (verb,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if len(state.snaps) > SNAPS_MAX and chance.random() < 0.3:
            verb = "snapshot-rm"
        found = of_verb(verb, state, chance, fresh)
        if found is not None:
            return found


JOBS = {
    "session": (RUNNING,), "write": (RUNNING,), "shm": (RUNNING,), "pause": LIVE, "resume": (PAUSED,),
    "take": (RUNNING,), "freeze": (RUNNING,), "thaw": LIVE, "stop": LIVE, "rm": (PAUSED, EXITED, FAILED),
    "rm-force": (*LIVE, PAUSED, EXITED, FAILED), "kill-init": LIVE,
}  # fmt: skip
REFUSABLE = ("pause", "resume", "take", "freeze", "thaw", "rm")


def of_verb(verb: str, state: State, chance: Random, fresh: Callable[[str], str]) -> Op | None:
    if verb in JOBS:
        names = state.names(*JOBS[verb])
        if verb in REFUSABLE and chance.random() < 0.05:
            names = list(state.jobs)
        return _of_job(verb, chance.choice(names), state, chance, fresh) if names else None
    if verb == "run":
        return Op("run", name=fresh("j")) if len(state.jobs) < JOBS_MAX else None
    if verb in ("gc", "reboot"):
        return Op(verb)
    snaps = list(state.exports if verb == "import" else state.snaps)
    if not snaps:
        return None
    snap = chance.choice(snaps)
    if verb == "fork":
        mode, memory = _way(state, snap, chance)
        return Op("fork", snap=snap, name=fresh("j"), mode=mode, memory=memory) if len(state.jobs) < JOBS_MAX else None
    return Op(verb, snap=snap)


def _of_job(verb: str, job: str, state: State, chance: Random, fresh: Callable[[str], str]) -> Op | None:
    there = state.jobs[job]
    if verb == "session":
        return Op(verb, job=job, name=fresh("s")) if len(there.life.agents) < AGENTS_MAX else None
    if verb == "write":
        return Op(verb, job=job, change=change(chance, int(fresh(""))))
    if verb == "shm":
        return Op(verb, job=job, mark=fresh("m"))
    if verb == "pause":
        return Op(verb, job=job, mode=chance.choice(("process", "process", "filesystem", "auto")))
    if verb == "resume" and there.snap is not None:
        mode, memory = _way(state, there.snap, chance)
        return Op(verb, job=job, mode=mode, memory=memory)
    return Op(verb, job=job)


def _way(state: State, snap: str, chance: Random) -> tuple[str, str]:
    """Mode and memory for a resume."""
    mode = chance.choice(("auto", "auto", "auto", "filesystem", "process"))
    comes_back = state.snaps[snap].mode == "process" and mode != "filesystem"
    return mode, chance.choice(("auto", "eager", "lazy")) if comes_back else "auto"
