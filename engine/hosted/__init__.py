"""Sessions as hosted sandboxes have them, for programs and people who come from there.

    from engine.hosted import Sandboxes

    with Sandboxes("/var/lib/serac") as sandboxes:
        session = sandboxes.create("debian", {"team": "a"}, request_id="run-17").session
        print(session.command.execute_command("make test").output)
        sandboxes.pause(session)            # no process, mount or control group of it is left
        sandboxes.resume(session)
        sandboxes.delete(session)

A session is a serac job that stays up for commands; its id is the job's, and an image is a base's name. (What serac
itself calls a session is here a command that runs in one.) Everything that the engine does with jobs can be done with
it: ``sandboxes.engine``, ``serac show ID``.

**Answers.** Whatever goes wrong in a call is in its result: ``success``, ``error_code`` (those of `engine.errors`),
``error_message``, ``hint``. Two things are raised: TypeError for arguments that can't be meant, and what opening a root
raises, because there is nobody yet who could answer.

**Request ids.** Every call that changes something has one, its caller's or a new one, and says it in its result. The
same request, called again from any process, whoever was killed in between, has the same outcome and is done once; two
at the same time wait for each other. What that needs is where the engine keeps its things anyway:

| call | its id is in | it is known |
| --- | --- | --- |
| create | the job's name, which no two jobs can have, and a label | while the session is there |
| pause, resume | the job's row, by the transaction that commits them | until 64 later ones of the session |
| execute_command | the environment in the spec that init keeps of a command | until 64 later ones have ended |
| delete | nowhere: what is gone is gone, and that is success | |

An id that comes with other arguments is refused (``invalid-input``). A call without an id asks for a state: pausing
what is paused is success. With an id it asks for this pause: when another request has made it, ``wrong-state`` says so.

**Async.** `Sandboxes.pause_async` and `resume_async` return when the request is accepted, some milliseconds later: the
session is PAUSING or RESUMING, for every process that looks. They may be awaited too, and then give the outcome, so
that both kinds of SDK are at home: those whose async calls are fire-and-forget, and those whose async calls are
coroutines. The work is done by a thread of the calling process, which doesn't end before it is done. When the process
is killed meanwhile, the next look of anybody puts the session right, as the crash tables in `engine.lifecycle` say: it
is as it was, or it is done. The same request, called again, goes on from there.

**Waiting.** A call that isn't done after ``timeout`` seconds is answered with the code ``timeout``; the work goes on,
and the same call waits for it again. ``poll_interval`` seconds is how often a call looks that waits for another
process; what this process does itself is seen at once.
"""

from engine.hosted.results import (
    Accepted,
    ChangeResult,
    CommandResult,
    DeleteResult,
    ListResult,
    Result,
    SessionResult,
    Status,
)
from engine.hosted.sandboxes import Sandboxes
from engine.hosted.session import Session

__all__ = [
    "Accepted",
    "ChangeResult",
    "CommandResult",
    "DeleteResult",
    "ListResult",
    "Result",
    "Sandboxes",
    "Session",
    "SessionResult",
    "Status",
]
