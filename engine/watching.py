"""The verbs that watch, a part of `engine.engine.Engine`: wait for a job, read the root's events, count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from engine import counters
from engine.counters import Counters
from engine.errors import Busy, InvalidInput, Timeout, WrongState
from engine.journal import POLL
from engine.lifecycle import processes, recover
from engine.lifecycle.root import Root
from engine.model import ENDED, LIVE, PASSING, Event, Job, JobState

LOOK = 0.5
"""seconds between two looks at a job, where nothing tells when it changes"""


class Watching:
    """What needs an opened root and no more."""

    _root: Root

    def wait(
        self,
        ref: str,
        state: JobState | Iterable[JobState] | None = None,
        *,
        timeout: float | None = None,
        poll_interval: float = LOOK,
    ) -> Job:
        """Wait until a job is in a state, or in one of several; by default until it has ended or is paused. The job.

        Its end and its pause are noticed at once, all else within ``poll_interval`` seconds. Raises Timeout after
        ``timeout`` seconds (None = wait for ever), WrongState when it has ended and will never be in such a state,
        NotFound when it is removed."""
        wanted, deadline = states(state), None if timeout is None else time.monotonic() + timeout
        job = recover.seen(self._root, ref)
        while not arrived(job, wanted):
            left = poll_interval if deadline is None else min(poll_interval, deadline - time.monotonic())
            if left <= 0:
                raise Timeout(f"job {job.name} is still {job.state}")
            self._pass(job, left)
            job = recover.seen(self._root, job.id)
        return job

    def events(
        self, *, follow: bool = False, since: float | None = None, poll_interval: float = POLL
    ) -> Iterator[Event]:
        """The root's journal, oldest first: what verbs of any engine did or tried, what was mended and decided.

        ``since``: from that time on, seconds since the epoch; ``follow``: and what comes, until the caller ends it.
        Two files of 8 MiB are kept. Events of one moment may have changed places; none is there twice."""
        return self._root.journal.read(follow=follow, since=since, poll_interval=poll_interval)

    @staticmethod
    def counters() -> Counters:
        """What this process' engines have done so far; `engine.counters.prometheus` makes text of it."""
        return counters.read()

    def _pass(self, job: Job, seconds: float) -> None:
        """Return when a job may have changed, after so many seconds at the latest."""
        if job.state in LIVE and not processes.wait_init(self._root, job, timeout=seconds):
            return  # not at the end of a longer wait, for the engine that had frozen it may have died
        if job.state in LIVE | PASSING:
            with contextlib.suppress(Busy), recover.taken(self._root, job.id, timeout=seconds):
                pass  # whoever works on it holds the lock until it is done
        else:
            time.sleep(seconds)


def states(state: JobState | Iterable[JobState] | None) -> frozenset[JobState]:
    """Raises InvalidInput."""
    if state is None:
        return ENDED | {JobState.PAUSED}
    try:
        return frozenset(map(JobState, [state] if isinstance(state, str) else state))
    except ValueError as error:
        raise InvalidInput(f"no state of a job: {state!r}", hint=f"one of {', '.join(JobState)}") from error


def arrived(job: Job, wanted: frozenset[JobState]) -> bool:
    """Whether the job is in such a state. Raises WrongState when it can't come there any more."""
    if job.state in wanted:
        return True
    if job.state in ENDED and job.loading is None:
        raise WrongState(f"job {job.name} is {job.state} and won't be {' or '.join(sorted(wanted))}")
    return False
