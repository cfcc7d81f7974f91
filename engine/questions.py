"""The verbs for what a job asks, a part of `engine.engine.Engine`: see it, answer it, refuse it."""

from __future__ import annotations

from functools import partial
from typing import Any

from engine.errors import InvalidInput
from engine.lifecycle import asking, processes, recover
from engine.lifecycle.root import Root, require
from engine.model import Job, JobState, Question
from engine.session import Connection
from engine.verbs import verb


class Questions:
    """What needs an opened root and no more."""

    _root: Root

    def asked(self, ref: str) -> Question | None:
        """What a process of a job asks and waits for, None when none does; of a paused job what its resume answers.

        Pause the job to give its compute back meanwhile: the question goes along. `resume` and `fork` answer it."""
        return asking.asked(self._root, recover.seen(self._root, ref))

    def listen(self, ref: str) -> Connection:
        """A connection to a running job on which `Connection.asked` gives the number of the question that is open, and
        of each that is opened later. A pause ends it; one that is under way, or a resume, is waited for. Raises
        WrongState, ProtocolError, Busy."""
        connection, _ = processes.heard(self._root, partial(self._heard, ref), lambda init, _: init.watch())
        return connection

    def _heard(self, ref: str) -> Job:
        job = recover.settled(self._root, ref)
        require(job, JobState.RUNNING, verb="listen to")
        return job

    @verb("answer")
    def answer(self, ref: str, value: Any = None) -> Question:
        """Answer what a running job asks with a JSON value, without a pause; what it had asked. Raises NotFound when
        nobody asks, WrongState when the job is paused (`resume` answers then), InvalidInput."""
        with recover.taken(self._root, ref) as job:
            return asking.reply(self._root, job, "answered", value)

    @verb("refuse")
    def refuse(self, ref: str, reason: str) -> Question:
        """Tell who asks in a running job why it gets no answer; it goes on. As `answer`."""
        if not isinstance(reason, str) or "\0" in reason:
            raise InvalidInput("a reason is a text without NUL")
        with recover.taken(self._root, ref) as job:
            return asking.reply(self._root, job, "refused", reason)
