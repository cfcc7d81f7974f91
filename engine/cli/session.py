"""``serac exec``, ``attach`` and ``logs``: start a session in a job, look at one, read what it wrote."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.cli import files, terminal, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.cli.relay import Asks, Detached, Relay, Wishes
from engine.cli.streams import View, status
from engine.errors import InvalidInput, NotFound, Paused, SeracError, WrongState
from engine.model import LIVE, JobState, SessionSpec
from engine.session import TAIL, Exit

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.model import Job
    from engine.session import Connection


LOSSES_MAX = 1000
"""connections in a row that init may end without having said anything"""


def add(verbs: Verbs) -> None:
    _add_exec(verbs)
    _add_attach(verbs)
    _add_logs(verbs)
    files.add(verbs)


def _add_exec(verbs: Verbs) -> None:
    parser = verbs.add(
        "exec", execute, "run one more command in a running job",
        more="Standard input goes to it, its output comes back on both streams, and serac exits with its status "
        "(128 + N when signal N ended it).",
        usage="serac exec [OPTIONS] JOB -- CMD [ARG ...]",
        examples="serac exec build -- ls -l /src\n"
        "serac exec -t build -- bash\n"
        "serac exec -d -e PORT=8080 -w /srv build -- ./server\n"
        "tar c src | serac exec build -- tar x -C /work",
    )  # fmt: skip
    parser.add_argument("job", metavar="JOB", help="its name or id")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument(
        "-d", "--detach", action="store_true", help="print the session's number, don't wait; it comes back on resume"
    )
    parser.add_argument("-e", "--env", metavar="K=V", type=values.variable, action="append", help="set a variable")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="run it there (default: the job's own directory)")
    add_staying(parser)


def _add_attach(verbs: Verbs) -> None:
    parser = verbs.add(
        "attach", attach, "look at a running session, and type if it has a terminal",
        more="Begins with the last of what it wrote. Several can be attached at once; ctrl-p ctrl-q leaves.",
        examples="serac attach build\nserac attach build 2\nserac attach --wait build",
    )  # fmt: skip
    _add_session(parser)
    add_staying(parser)


def _add_logs(verbs: Verbs) -> None:
    parser = verbs.add(
        "logs", logs, "print what a session wrote",
        more="With --json one record a line: session, stream, time, and data (base64 where it isn't text).",
        examples="serac logs build\nserac logs -f build\nserac logs --json build 2",
    )  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the session ends")
    _add_wait(parser)
    _add_session(parser)


def _add_session(parser: Parser) -> None:
    parser.add_argument("job", metavar="JOB", help="its name or id")
    parser.add_argument(
        "session", metavar="SESSION", nargs="?", type=values.session, default=0,
        help="its number; 0, the default, is the job's command",
    )  # fmt: skip


def _add_wait(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="when the job is paused, wait for its resume and go on")


def add_staying(parser: Parser) -> None:
    """The options of who stays with a session."""
    _add_wait(parser)
    parser.add_argument(
        "--detach-keys", metavar="KEYS", type=values.detach_keys, default=terminal.DETACH_KEYS,
        help="leave a terminal with these (default ctrl-p,ctrl-q)",
    )  # fmt: skip


def check_terminal(out: Output) -> None:
    """Raises InvalidInput where a session's terminal can't be shown."""
    if out.json:
        raise InvalidInput("a terminal's output is no JSON", hint="leave out --tty or --json, or add --detach")
    if not os.isatty(0):
        raise InvalidInput("--tty needs a terminal on standard input", hint="leave it out, or add --detach")


def execute(args: Namespace, out: Output) -> int:
    if not args.command:
        raise InvalidInput("no command to run", hint="serac exec JOB -- CMD [ARG ...]")
    if args.tty and not args.detach:
        check_terminal(out)
    with open_engine(args) as engine:
        job = engine.job(args.job)
        spec = _spec(args)
        if args.detach:
            status = engine.start(job.id, spec)
            out.value(status, str(status.id))
            return 0
        connection = engine.exec(job.id, spec, stdin=not args.tty)
        return watch(engine, job, connection, args, out, raw=args.tty, feed=True)


def _spec(args: Namespace) -> SessionSpec:
    return SessionSpec(
        argv=tuple(args.command),
        env=dict(args.env or ()),
        workdir=args.workdir or "",
        tty=terminal.size(0) if args.tty else None,
        keep=args.detach or args.tty,
    )


def attach(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.job(args.job)
        connection = _attached(engine, job, View(out, args.session, end=TAIL), args, out)
        raw = connection.tty and os.isatty(0) and not out.json
        return watch(engine, job, connection, args, out, raw=raw, feed=raw)


def logs(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.job(args.job)
        if all(session.id != args.session for session in engine.sessions(job.id)):
            raise NotFound(f"job {job.name} has no session {args.session}", hint=f"serac show {job.name}")
        view = View(out, args.session)
        for event in engine.follow(job.id, args.session, live=args.follow):
            view.show(event)
        if args.follow:
            _follow_on(engine, job, view, args, out)
    return 0


def _follow_on(engine: Engine, job: Job, view: View, args: Namespace, out: Output) -> None:
    """The log's end wasn't the session's: a pause, whether it failed or not, or the job's end."""
    losses = _Losses(view)
    while view.ending is None and (connection := _again(engine, job, view, args, out)):
        with connection:
            for event in connection.events():
                view.show(event)
        losses.check()
    for event in engine.follow(job.id, view.session, offset=view.end, live=False):
        view.show(event)


def stay(engine: Engine, job: Job, args: Namespace, out: Output) -> int:
    """Stay with a job's own command from the first byte of its output; one that has ended by now is read from disk."""
    view = View(out, 0)
    connection = _again(engine, job, view, args, out)
    if connection is None:
        return _finish(engine, job, view)
    return watch(engine, job, connection, args, out, raw=job.spec.tty, feed=job.spec.tty)


def watch(
    engine: Engine, job: Job, connection: Connection, args: Namespace, out: Output, *, raw: bool, feed: bool
) -> int:
    """Stay with a session to its end; the exit status is the session's. Raises what is the matter if it has none."""
    view = View(out, connection.session, end=connection.offset)
    relay = Relay(view.show, Wishes(raw=raw, input=feed, keys=args.detach_keys, remark=out.note))
    losses = _Losses(view)
    again: Connection | None = connection
    while again is not None:
        with again, _questions(engine, job, args) as questions:
            ending = relay.run(again, questions)
        if isinstance(ending, Detached):
            return _left(job, view.session, ending, out)
        if isinstance(ending, Exit):
            view.show(ending)
            return status(ending)
        if isinstance(ending, Asks):
            _pause(engine, job, out)
        losses.check()
        again = _again(engine, job, view, args, out)
    return _finish(engine, job, view)


@contextlib.contextmanager
def _questions(engine: Engine, job: Job, args: Namespace) -> Iterator[Connection | None]:
    """What hears of questions, for who wants the job paused when it asks; None too where it has ended by now."""
    if getattr(args, "on_ask", "wait") != "pause":
        yield None
        return
    try:
        questions = engine.listen(job.id)
    except (WrongState, Paused):
        yield None
        return
    with questions:
        yield questions


def _pause(engine: Engine, job: Job, out: Output) -> None:
    """Somebody else may have answered, paused or stopped it meanwhile."""
    asked = engine.asked(job.id)
    if asked is not None:
        out.note(
            f"job {job.name} asks: {asked.reason or '(without a reason)'}; `serac resume {job.name} --answer JSON`"
        )
        with contextlib.suppress(WrongState):
            engine.pause(job.id)


class _Losses:
    """Counts the connections that were lost without a word, so that an init that hangs up at once is given up."""

    def __init__(self, view: View) -> None:
        self._view, self._end, self._count = view, view.end, 0

    def check(self) -> None:
        self._count = self._count + 1 if self._view.end == self._end else 0
        self._end = self._view.end
        if self._count > LOSSES_MAX:
            raise WrongState("the job's init hangs up again and again")


def _again(engine: Engine, job: Job, view: View, args: Namespace, out: Output) -> Connection | None:
    """Attached to what goes on behind the view, in a frozen job when it is thawed; None when the session has ended.
    Raises Paused."""
    while True:
        try:
            engine.wait(job.id, set(JobState) - {JobState.FROZEN})
            return _attached(engine, job, view, args, out)
        except Paused:
            raise
        except (NotFound, WrongState):
            if engine.job(job.id).state is not JobState.FROZEN:
                return None


def _attached(engine: Engine, job: Job, view: View, args: Namespace, out: Output) -> Connection:
    """Attached at what was shown last, after a resume if that is to be waited for."""
    try:
        return engine.attach(job.id, view.session, offset=view.end)
    except Paused as paused:
        if not args.wait:
            raise
        out.note(f"{paused}; waiting for its resume, ctrl-c leaves")
    return engine.attach(job.id, view.session, offset=view.end, wait=True)


def _left(job: Job, session: int, ending: Detached, out: Output) -> int:
    again = f"serac attach {job.name}" + (f" {session}" if session else "")
    out.note(f"detached, it goes on: `{again}` shows it again, `serac stop {job.name}` ends the job")
    return 128 + ending.signal if ending.signal else 0


def _finish(engine: Engine, job: Job, view: View) -> int:
    """The connection ended before the session did: show what is on disk of the rest."""
    for event in engine.follow(job.id, view.session, offset=view.end, live=False):
        view.show(event)
    if view.ending is not None:
        return status(view.ending)
    known = {session.id: session.status for session in engine.sessions(job.id)}
    ended = known.get(view.session)
    if ended is not None:
        return ended
    raise _unfinished(engine.job(job.id), view.session)


def _unfinished(job: Job, session: int) -> SeracError:
    hint = f"serac show {job.name}"
    if job.state in (JobState.PAUSED, *LIVE):
        return WrongState(f"session {session} of job {job.name} ended with a pause, it didn't come back", hint=hint)
    return WrongState(f"job {job.name} has {job.state}, the command was killed with it", hint=hint)
