"""The verbs of a job's life: run, ps, show, pause, resume, freeze, thaw, stop, rm."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from msgspec import UNSET

from engine.cli import archive, run, text, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.cli.progress import Progress
from engine.errors import InvalidInput, NotFound, WrongState
from engine.model import ForkResult, JobState

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.model import Job, Question, ResumeResult, SessionStatus


def add(verbs: Verbs) -> None:
    run.add(verbs)
    _add_looks(verbs)
    _add_pauses(verbs)
    _add_ends(verbs)


def _add_looks(verbs: Verbs) -> None:
    listed = verbs.add(
        "ps", ps, "list the jobs",
        more="Those that have ended only with --all.", examples="serac ps\nserac ps --all --json",
    )  # fmt: skip
    listed.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    listed.add_argument("-q", "--quiet", action="store_true", help="print names only")
    _add_job(verbs.add("show", show, "show one job in detail, with its sessions", examples="serac show build"))


def _add_pauses(verbs: Verbs) -> None:
    parser = verbs.add(
        "pause", pause, "make a snapshot of a job and give all its compute back",
        more="With mode process the snapshot has the job's processes, and `resume` goes on in the middle of whatever "
        "they do. With mode filesystem they end, and `resume` starts anew: the sessions' commands, the steps not done.",
        examples="serac pause build\nserac pause build --mode process --json\nserac pause build --label mr=42",
    )  # fmt: skip
    _add_job(parser)
    parser.add_argument(
        "--mode", choices=("auto", "process", "filesystem"), default="auto",
        help="keep the processes or fail, keep the files alone, or keep what can be kept (auto, the default)",
    )  # fmt: skip
    parser.add_argument("--label", metavar="K=V", type=values.variable, action="append", help="label the snapshot")
    parser.add_argument("--state", metavar="JSON", type=values.json_value, help="a value of your own to keep with it")
    archive.add_options(parser)
    _add_job(verbs.add("freeze", freeze, "stop a job in memory, for a while", examples="serac freeze build"))
    _add_job(verbs.add("thaw", thaw, "let a frozen job go on", examples="serac thaw build"))
    ahead = verbs.add(
        "prefetch", prefetch, "have the kernel read what the resume of a paused job will",
        more="What an engine makes ahead besides goes with it: in a program, `Engine.prefetch`.",
        examples="serac prefetch build",
    )  # fmt: skip
    _add_job(ahead)
    _add_resume(verbs)
    _add_answer(verbs)


def _add_answer(verbs: Verbs) -> None:
    parser = verbs.add(
        "answer", answer, "answer what a process of a running job asks",
        more="`ps` and `show` say what is asked. A job that was paused meanwhile is answered by `resume --answer`.",
        examples="serac answer build '{\"approve\": true}'\nserac answer build --refuse 'not on a Friday'",
    )  # fmt: skip
    _add_job(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("value", metavar="JSON", nargs="?", type=values.json_value, help="the answer (default null)")
    what.add_argument("--refuse", metavar="REASON", help="say why there is none; the job runs on")


def _add_resume(verbs: Verbs) -> None:
    parser = verbs.add(
        "resume", resume, "start a paused job again, or fork a snapshot as a new job",
        more="With a job: it goes on. With a snapshot, or with --as: a new job begins there and the snapshot stays.",
        examples="serac resume build\nserac resume 4f0c2a91 --as second-try\nserac resume build --as variant -e SEED=2"
        "\nserac resume build --answer '{\"approve\": true}'",
    )  # fmt: skip
    parser.add_argument("what", metavar="JOB|SNAP", help="a paused job's name or id, or a snapshot's id")
    parser.add_argument("--as", dest="name", metavar="NAME", help="fork, under this name")
    parser.add_argument(
        "--mode", choices=("auto", "process", "filesystem"), default="auto",
        help="with the snapshot's processes, anew from its files, or with what there is (auto, the default)",
    )  # fmt: skip
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--lazy", dest="memory", action="store_const", const="lazy", default="auto",
        help="go on before all memory is there: it comes in when it is touched (default: by size)",
    )  # fmt: skip
    memory.add_argument(
        "--eager", dest="memory", action="store_const", const="eager", help="bring in all memory before going on"
    )
    parser.add_argument(
        "--tcp", choices=("close", "keep"), default="close",
        help="what becomes of connections to outside of the job (default close)",
    )  # fmt: skip
    parser.add_argument(
        "-e", "--env", metavar="K=V", type=values.variable, action="append",
        help="with a fork: set a variable for the sessions that are started in it",
    )  # fmt: skip
    parser.add_argument("--workdir", "-w", metavar="DIR", help="where the job's command starts, if its own is gone")
    parser.add_argument(
        "--idle", action="store_true",
        help="from the files, and start nothing: for `exec`. The command starts when it is paused and resumed again",
    )  # fmt: skip
    parser.add_argument(
        "--answer", metavar="JSON", type=values.json_value, default=UNSET, help="to what a process of the job asks"
    )


def _add_ends(verbs: Verbs) -> None:
    stopped = verbs.add(
        "stop", stop, "end a job: SIGTERM, then SIGKILL when its time is over",
        examples="serac stop build\nserac stop --grace 30 build",
    )  # fmt: skip
    stopped.add_argument(
        "--grace", metavar="TIME", type=values.duration, help="time between the two signals (default 10s)"
    )
    _add_job(stopped)
    removed = verbs.add(
        "rm", rm, "remove jobs and what only they need",
        more="A job that is running is removed with --force only; one that is paused goes with its snapshot.",
        examples="serac rm build\nserac rm --force build",
    )  # fmt: skip
    removed.add_argument("-f", "--force", action="store_true", help="stop it first, drop what it was paused to")
    removed.add_argument("jobs", metavar="JOB", nargs="+", help="its name or id")


def _add_job(parser: Parser) -> None:
    parser.add_argument("job", metavar="JOB", help="its name or id")


def ps(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        jobs = engine.jobs(ended=args.all)
        archives = archive.states(engine, jobs)
        asked = {job.id: _asked(engine, job) for job in jobs}
    if args.quiet:
        out.names([job.name for job in jobs])
        return 0
    columns = ("NAME", "STATE", "BASE", "COMMAND", "CREATED", "PAUSES", "SNAPSHOT", "ARCHIVE")
    documents = [_document(job, archives.get(job.id), asked[job.id]) for job in jobs]
    out.table(documents, columns, (_row(job, archives.get(job.id), asked[job.id]) for job in jobs))
    return 0


def _asked(engine: Engine, job: Job) -> Question | None:
    try:
        return engine.asked(job.id)
    except NotFound:  # it was removed meanwhile
        return None


def _document(job: Job, archived: dict[str, object] | None, asked: Question | None) -> dict[str, object]:
    facts = {field: getattr(job, field) for field in job.__struct_fields__}
    return {**facts, "archive": archived, "asks": asked}


def _row(job: Job, archived: dict[str, object] | None, asked: Question | None) -> tuple[str, ...]:
    command, snapshot = text.short(_command(job), 40), job.snapshot or ""
    state = _state(job) if asked is None else f"{_state(job)}, asks: {text.short(asked.reason, 40)}"
    facts = job.name, state, job.spec.base, command, text.age(job.created), str(job.pauses), snapshot
    return *facts, archive.state_text(archived)


def _state(job: Job) -> str:
    return f"{job.state} ({job.status})" if job.status else str(job.state)


def _command(job: Job) -> str:
    if job.spec.steps:
        return "steps " + ", ".join(step.name for step in job.spec.steps)
    return text.shell(job.spec.argv)


def show(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.job(args.job)
        sessions = engine.sessions(job.id)
        archived = archive.states(engine, [job]).get(job.id)
        asked = _asked(engine, job)
    facts = {
        **_facts(job),
        "asks": "" if asked is None else asked.reason or "(without a reason)",
        "archive": archive.state_text(archived),
        "sessions": "\n".join(map(_session, sessions)),
    }
    out.listing({**_document(job, archived, asked), "sessions": sessions}, facts)
    return 0


def _facts(job: Job) -> dict[str, str]:
    spec = job.spec
    return {
        "job": job.name if job.name == job.id else f"{job.name} ({job.id})",
        "state": _state(job),
        "failure": job.failure or "",
        "base": f"{spec.base} ({job.base[:12]})",
        "command": _command(job) or "none, it stays up for exec",
        "workdir": spec.workdir,
        "environment": "\n".join(f"{key}={value}" for key, value in spec.env.items()),
        "network": spec.net + (f" {job.address.job}" if job.address else ""),
        "userns": spec.userns,
        "limits": _limits(job),
        "labels": text.pairs(spec.labels),
        "layers": "\n".join(job.layers),
        "snapshot": job.snapshot or "",
        "forked from": job.forked_from or "",
        "pauses": str(job.pauses),
        "created": text.moment(job.created),
        "started": text.moment(job.started),
        "ended": text.moment(job.ended),
    }


def _limits(job: Job) -> str:
    limits = job.spec.limits
    known = {
        "memory": text.size(limits.memory) if limits.memory else None,
        "cpus": limits.cpus,
        "pids": limits.pids,
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


def _session(session: SessionStatus) -> str:
    state = f"running, pid {session.pid}" if session.running else f"ended, status {session.status}"
    steps = [*(f"{name} done" for name in session.done), *([f"{session.step} now"] if session.step else [])]
    return f"{session.id}: {state}" + (f" ({', '.join(steps)})" if steps else "")


def pause(args: Namespace, out: Output) -> int:
    state = {} if args.state is None else {"state": args.state}
    with open_engine(args) as engine, Progress(out) as progress:
        result = engine.pause(
            args.job, mode=args.mode, labels=dict(args.label or ()), archive=args.archive, ttl=args.ttl,
            durability=args.durability, progress=partial(progress, "archive"), **state,
        )  # fmt: skip
    mode = f"{result.mode}: {result.reason}" if result.reason else result.mode
    out.value(result, f"paused {args.job} to snapshot {result.snapshot} ({mode}){_took(result.timings)}")
    if result.durability == "fast":
        out.note("it is not flushed: a host that goes down in the next seconds loses it")
    return 0


def freeze(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.freeze(args.job)
    out.value(job, f"froze {job.name}")
    return 0


def thaw(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.thaw(args.job)
    out.value(job, f"thawed {job.name}")
    return 0


def prefetch(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        result = engine.prefetch(args.job)
    out.value(result, f"read {text.size(result.read)} ahead for {args.job}")
    return 0


def resume(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        result = _resume(engine, args)
        name = engine.job(result.job).name
    what = f"forked {result.snapshot} as {name}" if isinstance(result, ForkResult) else f"resumed {name}"
    out.value(result, f"{what} ({result.mode}, {result.strategy}){_took(result.timings)}")
    for number, reason in result.missing.items():
        out.note(f"session {number} could not be started again: {reason}")
    if result.untold:
        out.note(f"the job was not told that it was resumed: {result.untold}")
    return 0


def _resume(engine: Engine, args: Namespace) -> ResumeResult:
    """A job's name comes before a snapshot's id."""
    job = _job(engine, args.what)
    how = {
        "mode": args.mode, "keep_tcp": args.tcp == "keep", "memory": args.memory, "answer": args.answer,
        "idle": args.idle,
    }  # fmt: skip
    if job is not None and args.name is None:
        if args.env:
            raise InvalidInput("--env goes with a fork, not with a job that is resumed", hint="add --as NAME")
        return engine.resume(job.id, workdir=args.workdir, **how)
    if args.workdir is not None:
        raise InvalidInput("--workdir goes with a job that is resumed, not with a fork")
    if job is not None and job.snapshot is None:
        raise WrongState(f"job {job.name} isn't paused", hint="pause it, or name a snapshot: `serac snapshot ls`")
    snapshot = args.what if job is None or job.snapshot is None else job.snapshot
    return engine.fork(snapshot, name=args.name, env=dict(args.env or ()), **how)


def answer(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        asked = engine.answer(args.job, args.value) if args.refuse is None else engine.refuse(args.job, args.refuse)
    verb = "answered" if args.refuse is None else "refused"
    out.value(asked, f"{verb} {args.job}, which asked: {asked.reason or '(without a reason)'}")
    return 0


def _job(engine: Engine, what: str) -> Job | None:
    try:
        return engine.job(what)
    except NotFound:
        return None


def stop(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        job = engine.stop(args.job, grace=args.grace)
    ended = f" with status {job.status}" if job.status is not None and job.state is JobState.EXITED else ""
    out.value(job, f"stopped {job.name}, it {job.state}{ended}")
    return 0


def rm(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        out.removed(args.jobs, lambda job: engine.remove(job, force=args.force))
    return 0


def _took(timings: dict[str, float]) -> str:
    total = f" in {timings['total']:.1f} ms" if "total" in timings else ""
    steps = text.milliseconds(timings)
    return f"{total}: {steps}" if steps else total
