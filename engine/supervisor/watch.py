"""What a supervisor has seen of a job over time: one pure function from what it knew and sees now to what it knows.

Times are of the monotonic clock, so that no change of the wall clock makes a job older. A lease's end is a time of the
wall clock: it is turned into the other when the lease is first seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine import store
from engine.kernel import process
from engine.lifecycle.activity import Activity
from engine.model import LIVE, Job, JobState, Value
from engine.session import Trace

LEAST = 1.0
"""seconds between two looks, for the CPU time in between to say something"""


class Held(Value, frozen=True, kw_only=True):
    """A lease."""

    until_ns: int
    end: float | None
    """when it is over, None = never"""
    reason: str = ""


class Watch(Value, frozen=True, kw_only=True):
    """What is known of a job."""

    life: str
    """another one after each resume and after each pause"""
    state: JobState
    since: float
    """when it last did something; of a job that is paused, when it was first seen so"""
    last: str
    """what it did then"""
    looked: float = 0.0
    """when ``cpu`` was so"""
    cpu: float = 0.0
    trace: Trace | None = None
    asked: tuple[int, int] | None = None
    """the question that it was paused for: what is answered later is still there after its resume"""
    lease: Held | None = None
    failures: int = 0
    """how often what was decided for it failed, one after the other"""
    retry: float = 0.0
    """when it is tried again"""


def life_of(job: Job) -> str:
    return f"runs {job.started}" if job.state in LIVE else f"rests {job.snapshot}"


def observe(before: Watch | None, job: Job, seen: Activity | None, *, now: float, wall: float, cpu: float) -> Watch:
    """``seen``: None for a job that doesn't live. ``wall``: seconds since the epoch; ``cpu``: per cent of a processor
    that is activity. Pure."""
    if before is None or before.life != life_of(job):
        before = _begun(before, job, now=now)
        if seen is not None:
            before = msgspec.structs.replace(before, looked=now, cpu=seen.cpu, trace=seen.trace)
    if seen is None:
        return msgspec.structs.replace(before, state=job.state)
    lease = _held(before.lease, seen, now=now, wall=wall)
    did = _did(before, job, seen, lease, now=now, cpu=cpu)
    return msgspec.structs.replace(
        rebased(before, seen, now=now),
        state=job.state,
        lease=lease,
        **({"since": now, "last": did} if did is not None else {}),
    )


def _begun(before: Watch | None, job: Job, *, now: float) -> Watch:
    """A new life."""
    asked = before.asked if before is not None else None
    return Watch(life=life_of(job), state=job.state, since=now, last="it began", asked=asked)


def rebased(before: Watch, seen: Activity, *, now: float) -> Watch:
    """What comes from now on is compared with what is seen now."""
    watch = msgspec.structs.replace(before, trace=seen.trace)
    if now - before.looked < LEAST:
        return watch
    return msgspec.structs.replace(watch, looked=now, cpu=seen.cpu)


def _did(before: Watch, job: Job, seen: Activity, lease: Held | None, *, now: float, cpu: float) -> str | None:
    """What the job has done since it was looked at before, the first of these that holds."""
    if before.state is JobState.FROZEN and job.state is JobState.RUNNING:
        return "it was thawed"
    if lease is not None:
        return "it held a lease"
    if seen.clients and job.state is JobState.RUNNING:
        return "a client was attached"
    if seen.trace != before.trace:
        return "its sessions printed something, began or ended"
    passed = now - before.looked
    if passed >= LEAST and 100 * (used := (seen.cpu - before.cpu) / passed) > cpu:
        return f"it used {100 * used:.0f} % of a processor"
    return None


def _held(before: Held | None, seen: Activity, *, now: float, wall: float) -> Held | None:
    """The lease, unless it is over."""
    if seen.lease is None:
        return None
    until_ns = seen.lease.until_ns
    if before is not None and before.until_ns == until_ns:
        end = before.end
    else:
        end = now + until_ns / 1e9 - wall if until_ns else None
    over = end is not None and end <= now
    return None if over else Held(until_ns=until_ns, end=end, reason=seen.lease.reason)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of watch.json."""

    boot: str
    saved: float
    jobs: dict[str, Watch]


def save(directory: Path, watches: Mapping[str, Watch], *, now: float) -> None:
    """For the next supervisor. Raises OSError."""
    kept = _Kept(boot=process.boot_id(), saved=now, jobs=dict(watches))
    store.write_aside(directory / "watch.json", msgspec.json.encode(kept))


def load(directory: Path, *, now: float) -> dict[str, Watch]:
    """What the last supervisor knew. After a reboot only how long jobs were paused still holds; its clock starts anew.
    Nothing when it can't be read: what is idle then is so from now on."""
    try:
        kept = msgspec.json.decode((directory / "watch.json").read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return {}
    if kept.boot == process.boot_id() and kept.saved <= now:
        return kept.jobs
    resting = {job: watch for job, watch in kept.jobs.items() if watch.state is JobState.PAUSED}
    return {
        job: msgspec.structs.replace(watch, since=now - (kept.saved - watch.since), retry=0.0)
        for job, watch in resting.items()
    }
