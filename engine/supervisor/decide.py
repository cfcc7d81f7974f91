"""What is to be done with the jobs of a root, and why: a pure function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from engine.config import Supervise
from engine.lifecycle.demote import Rest
from engine.model import LIVE, JobState, Value
from engine.supervisor.watch import Watch

REASON_MAX = 200
"""characters that are kept of what a job gives as its reason"""

Verb = Literal["freeze", "pause", "archive", "demote"]


class Facts(Value, frozen=True, kw_only=True):
    """A job, as far as it matters here."""

    job: str
    """id"""
    name: str
    state: JobState
    watch: Watch
    pause_after: float | None = None
    """its own age to be paused at, see `JobSpec`"""
    question: str | None = None
    """why it asks to be paused, when it does so for the first time"""
    rest: Rest = "local"
    """of a paused job"""


class Pressure(Value, frozen=True, kw_only=True):
    """How short the host is of memory, in per cent."""

    stall: float | None = None
    """of the last ten seconds, see `engine.kernel.pressure`; None = the kernel doesn't tell"""
    available: float = 100.0


class Action(Value, frozen=True, kw_only=True):
    verb: Verb
    job: str
    """id"""
    name: str
    reason: str
    """for people"""
    asked: bool = False
    """the job itself asks for it"""
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


def decide(jobs: Iterable[Facts], settings: Supervise, pressure: Pressure, now: float) -> list[Action]:
    """First what jobs ask for, then one job that is paused because memory is short, then what is due by age, the
    longest idle first."""
    due = sorted((job for job in jobs if job.watch.retry <= now), key=lambda job: (job.watch.since, job.job))
    asking = [_action("pause", job, _asked(job), now, asked=True) for job in due if _asks(job)]
    done = {action.job for action in asking}
    pressed = _pressed([job for job in due if job.job not in done], settings, pressure, now)
    done |= {action.job for action in pressed}
    aged = [action for job in due if job.job not in done for action in _aged(job, settings, now)]
    return [*asking, *pressed, *aged]


def short(settings: Supervise, pressure: Pressure) -> str | None:
    """Why memory is taken for short, if it is."""
    if not settings.stall:
        return None
    if pressure.stall is None:
        few = pressure.available < settings.available
        return f"memory is short: {pressure.available:.0f} % of it are available" if few else None
    if pressure.stall < settings.stall:
        return None
    return f"memory is short: processes waited for it {pressure.stall:.0f} % of the last ten seconds"


def _asks(job: Facts) -> bool:
    return job.state in LIVE and job.question is not None


def _asked(job: Facts) -> str:
    said = _plain(job.question or "")
    return f"it asks for it: {said}" if said else "it asks for it"


def _pressed(jobs: list[Facts], settings: Supervise, pressure: Pressure, now: float) -> list[Action]:
    """Frozen jobs before those that are about to be: one at a time, for then memory is looked at again."""
    why = short(settings, pressure)
    if why is None:
        return []
    idle = [job for job in jobs if job.state in LIVE and _may_rest(job) and age(job, now) > 0]
    for found in (
        [job for job in idle if job.state is JobState.FROZEN],
        [job for job in idle if _reached(age(job, now), settings.freeze_after)],
    ):
        if found:
            return [_action("pause", found[0], f"{why}; {_idle(found[0], settings, now)}", now)]
    return []


def _aged(job: Facts, settings: Supervise, now: float) -> list[Action]:
    """At most one."""
    rested = age(job, now)
    if job.state is JobState.PAUSED and _reached(rested, settings.cold_after):
        if job.rest in ("local", "archived"):
            verb: Verb = "archive" if job.rest == "local" else "demote"
            return [_action(verb, job, f"paused for {duration(rested)}", now)]
    elif job.state in LIVE and _may_rest(job):
        why = _idle(job, settings, now)
        if _reached(rested, settings.pause_after if job.pause_after is None else job.pause_after):
            return [_action("pause", job, why, now)]
        if job.state is JobState.RUNNING and _reached(rested, settings.freeze_after):
            return [_action("freeze", job, why, now)]
    return []


def age(job: Facts, now: float) -> float:
    """Seconds for which a job is known to have been idle, that is, up to when its CPU time was last looked at; or for
    which it has been paused."""
    return max(0.0, (job.watch.looked if job.state in LIVE else now) - job.watch.since)


def _may_rest(job: Facts) -> bool:
    """Whether it may be frozen and paused for being idle."""
    return job.pause_after != 0 and job.watch.lease is None


def _reached(age: float, limit: float) -> bool:
    return 0 < limit <= age


def _idle(job: Facts, settings: Supervise, now: float) -> str:
    rested = duration(age(job, now))
    return f"idle for {rested}: no CPU beyond {settings.cpu:g} %, no output, no client, no lease since {job.watch.last}"


def _action(verb: Verb, job: Facts, reason: str, now: float, *, asked: bool = False) -> Action:
    facts = {"state": str(job.state), "seconds": round(age(job, now), 1), "last": job.watch.last}
    return Action(verb=verb, job=job.job, name=job.name, reason=reason, asked=asked, facts=facts)


def _plain(text: str) -> str:
    """What a job says, for a line of the journal."""
    cut = text if len(text) <= REASON_MAX else f"{text[: REASON_MAX - 1]}\u2026"
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def duration(seconds: float) -> str:
    """In its two largest units: ``15 min``, ``1 h 30 min``."""
    left = int(seconds)
    said: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (said and unit != "s"):
            said.append(f"{count} {unit}")
    return " ".join(part for part in said[:2] if not part.startswith("0 ")) or "0 s"
