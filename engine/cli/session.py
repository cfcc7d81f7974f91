"""``serac exec``, ``attach`` and ``logs``: start a session in a job, look at one, read what it wrote."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from engine.cli import files, terminal, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.cli.relay import Detached, Lost, Wishes, relay
from engine.cli.streams import View, status
from engine.errors import InvalidInput, NotFound, SeracError, WrongState
from engine.model import LIVE, JobState, SessionSpec

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.model import Job
    from engine.session import Connection


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
    add_detach_keys(parser)


def _add_attach(verbs: Verbs) -> None:
    parser = verbs.add(
        "attach", attach, "look at a running session, and type if it has a terminal",
        more="Begins with the last of what it wrote. Several can be attached at once; ctrl-p ctrl-q leaves.",
        examples="serac attach build\nserac attach build 2",
    )  # fmt: skip
    _add_session(parser)
    add_detach_keys(parser)


def _add_logs(verbs: Verbs) -> None:
    parser = verbs.add(
        "logs", logs, "print what a session wrote",
        more="With --json one record a line: session, stream, time, and data (base64 where it isn't text).",
        examples="serac logs build\nserac logs -f build\nserac logs --json build 2",
    )  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the session ends")
    _add_session(parser)


def _add_session(parser: Parser) -> None:
    parser.add_argument("job", metavar="JOB", help="its name or id")
    parser.add_argument(
        "session", metavar="SESSION", nargs="?", type=values.session, default=0,
        help="its number; 0, the default, is the job's command",
    )  # fmt: skip


def add_detach_keys(parser: Parser) -> None:
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
        connection = engine.attach(job.id, args.session)
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
    return 0


def stay(engine: Engine, job: Job, args: Namespace, out: Output) -> int:
    """Stay with a job's own command from the first byte of its output; one that has ended by now is read from disk."""
    try:
        connection = engine.attach(job.id, offset=0)
    except (WrongState, NotFound):
        return _finish(engine, job, View(out, 0))
    return watch(engine, job, connection, args, out, raw=job.spec.tty, feed=job.spec.tty)


def watch(
    engine: Engine, job: Job, connection: Connection, args: Namespace, out: Output, *, raw: bool, feed: bool
) -> int:
    """Stay with a session to its end; the exit status is the session's. Raises what is the matter if it has none."""
    wishes = Wishes(raw=raw, input=feed, keys=args.detach_keys, remark=out.note)
    view = View(out, connection.session)
    with connection:
        ending = relay(connection, view.show, wishes)
    if isinstance(ending, Detached):
        return _left(job, view.session, ending, out)
    if isinstance(ending, Lost):
        return _finish(engine, job, view)
    view.show(ending)
    return status(ending)


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
    raise _unfinished(engine.job(job.id))


def _unfinished(job: Job) -> SeracError:
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return WrongState(f"job {job.name} was paused before the command ended", hint=f"serac resume {job.name}")
    if job.state in LIVE:
        return WrongState(f"the connection to job {job.name} was lost, it goes on", hint=f"serac attach {job.name}")
    hint = f"serac show {job.name}"
    return WrongState(f"job {job.name} has {job.state}, the command was killed with it", hint=hint)
