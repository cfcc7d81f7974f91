"""What an engine has begun for jobs before anybody asked for it, by the job's id; see `engine.lifecycle.ahead`.

All of it is made by one thread that lives as long as the shelf: what serac-launch starts dies with the thread that
started it.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar


class Kept(Protocol):
    @property
    def what(self) -> Hashable:
        """A job takes it that wants just this."""

    def close(self) -> None: ...


Result = TypeVar("Result")


class Shelf:
    """For all threads of an engine."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self._spoken_for: set[str] = set()
        self._guard = threading.Lock()
        self._keeper: ThreadPoolExecutor | None = None

    def keep(self, work: Callable[[], Result]) -> Future[Result]:
        """Do ``work`` in the shelf's thread."""
        with self._guard:
            if self._keeper is None:
                self._keeper = ThreadPoolExecutor(1, thread_name_prefix="serac-ahead")
            return self._keeper.submit(contextvars.copy_context().run, work)

    def put(self, job_id: str, kept: Kept, *, spoken_for: bool = False) -> None:
        """``spoken_for``: it is for the job of that id alone, not for a new one."""
        with self._guard:
            self._kept[job_id] = kept
            if spoken_for:
                self._spoken_for.add(job_id)

    def holds(self, job_id: str) -> bool:
        return job_id in self._kept

    def count(self, what: Hashable) -> int:
        """How many are there that a new job could take."""
        with self._guard:
            return sum(1 for job_id, kept in self._kept.items() if self._free(job_id, kept, what))

    def claim(self, what: Hashable) -> str | None:
        """The id for a new job that wants this, if there is one; nobody else gets it."""
        with self._guard:
            for job_id, kept in self._kept.items():
                if self._free(job_id, kept, what):
                    self._spoken_for.add(job_id)
                    return job_id
        return None

    def _free(self, job_id: str, kept: Kept, what: Hashable) -> bool:
        return kept.what == what and job_id not in self._spoken_for

    def take(self, job_id: str) -> Kept | None:
        """The caller closes it."""
        with self._guard:
            self._spoken_for.discard(job_id)
            return self._kept.pop(job_id, None)

    def drop(self, job_id: str, only: Kept | None = None) -> bool:
        """Close what is there for a job, or ``only`` that; whether it was there."""
        with self._guard:
            kept = self._kept.get(job_id)
            if kept is None or only not in (None, kept):
                return False
            del self._kept[job_id]
            self._spoken_for.discard(job_id)
        kept.close()
        return True

    def ids(self) -> list[str]:
        with self._guard:
            return list(self._kept)

    def close(self) -> None:
        """Its thread ends, and with it what serac-launch started; the caller takes away what is left."""
        with self._guard:
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.shutdown(cancel_futures=True)
