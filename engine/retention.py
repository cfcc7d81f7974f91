"""Retention: which snapshots stay and which go, and why. Pure: rows, policies and sizes in, verdicts out.

In this order:

1 what is pinned stays, and so does what a verb is at work on: a resume, a fork, a copy, memory that comes in;
2 what was given an end of its own (``Snapshot.expires``) goes when that has come, and has no policy before;
3 the first policy whose labels a snapshot bears says the rest: the newest ``keep_last`` stay, the others go once they
  are older than ``ttl``, or at once where it has none; what no policy speaks of stays;
4 of what is left the quota takes the oldest until it is met: first what no job is paused to, then paused jobs.

A snapshot that a job is paused to goes with its job. A layer isn't judged: it stays while a chain needs it, and only
bytes that really become free count for the quota.

Ages are told by the wall clock. One that was set back makes nothing older than it is; and when it was set forward, as
`ticked` finds out, ages don't count for a day: for long enough that somebody sees it, and sets it right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from engine.model import PASSING, Job, JobState, Policy, Quota, Snapshot, Value, Verdict

JUMP, PUT_OFF = 3600.0, 86400.0
"""seconds: by how much a clock is set that counts as set, and for how long ages don't count then"""


class Clock(Value, frozen=True, kw_only=True):
    """The clocks at one moment."""

    wall: float
    """seconds since the epoch"""
    up: float
    """seconds since the boot, CLOCK_BOOTTIME"""
    boot: str
    trusted: float = 0.0
    """the wall time from which on ages count"""


def ticked(before: Clock | None, now: Clock) -> Clock:
    """``now``, with what is known of it from a moment ``before``. Pure."""
    if before is None:
        return now
    trusted = before.trusted
    if before.boot == now.boot:
        jump = (now.wall - before.wall) - (now.up - before.up)
        trusted = now.wall + PUT_OFF if jump > JUMP else 0.0 if jump < -JUMP else trusted
    return msgspec.structs.replace(now, trusted=trusted)


class Rules(NamedTuple):
    policies: Sequence[Policy]
    quota: Quota


def judge(
    snapshots: Iterable[Snapshot], jobs: Iterable[Job], rules: Rules, *, sizes: Mapping[str, int], now: float | None
) -> list[Verdict]:
    """A verdict for each snapshot, oldest first. ``sizes``: bytes of each layer with what lies beside it, for the
    quota; ``now``: seconds since the epoch, None where ages don't count."""
    jobs, ordered = list(jobs), sorted(snapshots, key=lambda entry: (entry.created, entry.id))
    at_work = _at_work(jobs)
    holders = {job.snapshot: job.id for job in jobs if job.state is JobState.PAUSED and job.snapshot is not None}
    ranks = _ranks(ordered, rules.policies)
    verdicts = {}
    for snapshot in ordered:
        held = _held(snapshot, at_work)
        keep, reason = (True, held) if held else _aged(snapshot, rules.policies, ranks, now)
        verdicts[snapshot.id] = Verdict(
            snapshot=snapshot.id, job=holders.get(snapshot.id), keep=keep, held=bool(held), reason=reason
        )
    kept = (snapshot for snapshot in ordered if verdicts[snapshot.id].keep)
    left = _Left(kept, jobs, sizes, lambda snapshot: verdicts[snapshot.id].held)
    for snapshot, reason in _over(left, verdicts, rules.quota):
        before = verdicts[snapshot.id]
        verdicts[snapshot.id] = Verdict(snapshot=snapshot.id, job=before.job, keep=False, reason=reason)
    return list(verdicts.values())


def _at_work(jobs: Iterable[Job]) -> set[str]:
    """Snapshots, and layers, that a verb reads or is about to write."""
    found = {job.loading.snapshot for job in jobs if job.loading is not None}
    for job in jobs:
        if job.state in PASSING:
            found.update(job.layers, filter(None, (job.upper, job.snapshot, job.forked_from)))
    return found


def _held(snapshot: Snapshot, at_work: set[str]) -> str | None:
    if snapshot.pinned:
        return "it is pinned"
    return "it is in use" if at_work.intersection((snapshot.id, snapshot.layers[-1])) else None


def _policy(snapshot: Snapshot, policies: Sequence[Policy]) -> int | None:
    """The number of the policy that speaks of it."""
    bears = snapshot.labels.items()
    return next((number for number, policy in enumerate(policies) if policy.labels.items() <= bears), None)


def _ranks(ordered: Sequence[Snapshot], policies: Sequence[Policy]) -> dict[str, int]:
    """How many newer ones there are that are counted together with each; those with an end of their own aren't."""
    ranks, counts = dict[str, int](), dict[tuple[int, str | None], int]()
    for snapshot in reversed(ordered):
        number = _policy(snapshot, policies)
        if number is not None and snapshot.expires is None:
            group = (number, snapshot.job if policies[number].per == "job" else None)
            ranks[snapshot.id] = counts.get(group, 0)
            counts[group] = ranks[snapshot.id] + 1
    return ranks


def _aged(
    snapshot: Snapshot, policies: Sequence[Policy], ranks: Mapping[str, int], now: float | None
) -> tuple[bool, str]:
    if now is None:
        return True, "the clock was set forward: ages don't count for a day"
    if snapshot.expires is not None:
        left = snapshot.expires - now
        return left > 0, f"its time ends in {span(left)}" if left > 0 else f"its time ended {span(-left)} ago"
    number = _policy(snapshot, policies)
    if number is None:
        return True, "no policy speaks of it"
    policy, age = policies[number], max(now - snapshot.created, 0.0)
    name = f"policy {number + 1}"
    if policy.keep_last is not None and ranks[snapshot.id] < policy.keep_last:
        return True, f"one of the last {policy.keep_last}, {name}"
    if policy.ttl is None:
        return policy.keep_last is None, f"not one of the last {policy.keep_last}, {name}"
    if age <= policy.ttl:
        return True, f"{span(age)} old, {span(policy.ttl)} are allowed, {name}"
    return False, f"{span(age)} old, more than {span(policy.ttl)}, {name}"


def _over(left: _Left, verdicts: Mapping[str, Verdict], quota: Quota) -> Iterator[tuple[Snapshot, str]]:
    """What the quota takes."""
    candidates = [snapshot for snapshot in left.snapshots.values() if not verdicts[snapshot.id].held]
    loose = [snapshot for snapshot in candidates if verdicts[snapshot.id].job is None]
    paused = [snapshot for snapshot in candidates if verdicts[snapshot.id].job is not None]
    if quota.paused is not None:
        holding = sum(verdicts[snapshot].job is not None for snapshot in left.snapshots)
        for snapshot in paused[: max(holding - quota.paused, 0)]:
            left.drop(snapshot)
            yield snapshot, f"one of more than {quota.paused} paused jobs"
    ordered = [snapshot for snapshot in (*loose, *paused) if snapshot.id in left.snapshots]
    if quota.snapshots is not None:
        for snapshot in ordered[: max(len(left.snapshots) - quota.snapshots, 0)]:
            left.drop(snapshot)
            yield snapshot, f"one of more than {quota.snapshots} snapshots"
    while quota.bytes is not None and left.bytes > quota.bytes:
        there = [snapshot for snapshot in ordered if snapshot.id in left.snapshots]
        # The oldest may free nothing before others on its layers are gone.
        freeing = next(filter(left.frees, there), None) or next(filter(left.may_free, there), None)
        if freeing is None:
            return
        left.drop(freeing)
        yield freeing, f"one of more than {quota.bytes} bytes"


class _Left:
    """Snapshots that stay, and what they take, while the quota takes from them."""

    def __init__(
        self,
        snapshots: Iterable[Snapshot],
        jobs: Iterable[Job],
        sizes: Mapping[str, int],
        held: Callable[[Snapshot], bool],
    ) -> None:
        self.snapshots = {snapshot.id: snapshot for snapshot in snapshots}
        self._sizes = sizes
        self._users = Counter(layer for snapshot in self.snapshots.values() for layer in snapshot.layers)
        self.bytes = sum(sizes.get(layer, 0) for layer in self._users)
        # A paused job goes with its snapshot; any other needs its chain for itself.
        self._staying = {layer for job in jobs if job.state is not JobState.PAUSED for layer in _chain(job)}
        self._staying.update(
            layer for snapshot in self.snapshots.values() if held(snapshot) for layer in snapshot.layers
        )
        self._users.update(self._staying)

    def frees(self, snapshot: Snapshot) -> int:
        """Bytes that nothing would need without it."""
        return sum(self._sizes.get(layer, 0) for layer in snapshot.layers if self._users[layer] == 1)

    def may_free(self, snapshot: Snapshot) -> bool:
        """Whether something would be free without it and the others that can go."""
        return any(self._sizes.get(layer) and layer not in self._staying for layer in snapshot.layers)

    def drop(self, snapshot: Snapshot) -> None:
        self.bytes -= self.frees(snapshot)
        self._users.subtract(snapshot.layers)
        del self.snapshots[snapshot.id]


def _chain(job: Job) -> set[str]:
    return {*job.layers, *job.mounted, *filter(None, [job.upper])}


_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


def span(seconds: float) -> str:
    """``3 d``, ``2 h``, ``5 min``, ``12 s``."""
    for unit, name in _SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
