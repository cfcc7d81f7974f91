"""``serac run``: start a job, and stay with it or not."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from engine.cli import session, terminal, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.errors import InvalidInput
from engine.model import JobSpec, JobState, Limits

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.model import Job


def add(verbs: Verbs) -> None:
    parser = verbs.add(
        "run", run, "start a job over a base",
        more="Its output comes back live and serac exits with its status (128 + N when signal N ended it); the first "
        "Ctrl-C goes to the job, the second one leaves it running. Without a command or steps it stays up for exec.",
        usage="serac run [OPTIONS] [-- CMD [ARG ...]]",
        examples="serac run --base debian -- make -j2\n"
        "serac run --name build --workdir /src --detach --step configure=./configure --step build='make -j2'\n"
        "serac run --memory 2G --cpus 1.5 --pids 500 -- ./test\n"
        "serac run --net bridge --tty -- bash",
    )  # fmt: skip
    _add_what(parser)
    _add_where(parser)
    _add_how(parser)


def _add_what(parser: Parser) -> None:
    group = parser.add_argument_group("what to run")
    group.add_argument("-b", "--base", metavar="B", help="a base's name or digest (default: the only one there is)")
    group.add_argument("--name", metavar="J", help="the job's name (default: its id)")
    group.add_argument(
        "--step", metavar="NAME=SCRIPT", type=values.step, action="append",
        help="a shell script; a resumed job goes on at the first step not done (repeat it)",
    )  # fmt: skip
    group.add_argument("-e", "--env", metavar="K=V", type=values.variable, action="append", help="set a variable")
    group.add_argument("-w", "--workdir", metavar="D", default="/", help="run it there (default /)")
    group.add_argument("--label", metavar="K=V", type=values.variable, action="append", help="label the job")
    group.add_argument(
        "--on-resume", metavar="SCRIPT", help="a shell script for when the job's processes were brought back or forked"
    )
    group.add_argument("--resume-signal", metavar="SIG", help="a signal for its sessions at that moment: USR1, HUP ...")
    group.add_argument(
        "--pause-after",
        metavar="TIME",
        type=values.duration,
        help="let `serac supervise` pause it when idle for so long (0: never)",
    )
    group.add_argument("--state", metavar="JSON", type=values.json_value, help="a value of your own to keep with it")
    group.add_argument(
        "--snapshot-on", choices=("failure",), help="when the command or a step fails, keep all of it as a snapshot"
    )


def _add_where(parser: Parser) -> None:
    group = parser.add_argument_group("in what")
    group.add_argument(
        "--net", choices=("none", "host", "bridge"), default="none",
        help="no network but loopback (the default), the host's own, or an address of its own behind the host",
    )  # fmt: skip
    group.add_argument(
        "--userns", choices=("private", "host"), default="private",
        help="root in the job is nobody here (the default), or root",
    )  # fmt: skip
    group.add_argument("--memory", metavar="SIZE", type=values.memory, help="at most this much: 512M, 2G")
    group.add_argument("--cpus", metavar="N", type=values.cpus, help="at most so many processors: 0.5, 2")
    group.add_argument("--pids", metavar="N", type=values.pids, help="at most so many processes and threads")
    group.add_argument(
        "--allow", metavar="GROUP", action="append", help="lift a denial: io_uring, landlock, userfaultfd, perf ..."
    )


def _add_how(parser: Parser) -> None:
    group = parser.add_argument_group("how to stay with it")
    group.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    group.add_argument("-d", "--detach", action="store_true", help="print the job's name, don't wait")
    group.add_argument(
        "--on-ask", choices=("wait", "pause"), default="wait",
        help="when a process of it asks something: leave it waiting (the default), or pause the job (exit status 220)",
    )  # fmt: skip
    session.add_staying(parser)


def run(args: Namespace, out: Output) -> int:
    if args.tty and not args.detach:
        session.check_terminal(out)
    if args.step and args.command:
        raise InvalidInput("a job has steps or a command, not both", hint="make the command the last step")
    if args.detach and args.on_ask == "pause":
        raise InvalidInput("nobody stays who could pause it", hint="leave out --detach or --on-ask")
    with open_engine(args) as engine:
        job = engine.run(_spec(args, engine), terminal=terminal.size(0) if args.tty else None)
        if args.detach:
            out.value(job, job.name)
            return 0
        if not job.spec.argv and not job.spec.steps:
            out.value(job, job.name)
            out.note(f"it stays up: use `serac exec {job.name} -- CMD`; `serac stop {job.name}` ends it")
            return 0
        status = session.stay(engine, job, args, out)
        if args.snapshot_on is not None and any(not entry.running for entry in engine.sessions(job.id) if not entry.id):
            _tell_kept(engine.wait(job.id), out)
        return status


def _tell_kept(job: Job, out: Output) -> None:
    if job.state is JobState.EXITED and job.status and job.snapshot is not None:
        out.note(f"it failed and is kept: `serac resume {job.snapshot} --as NAME --idle` brings it up for `serac exec`")


def _spec(args: Namespace, engine: Engine) -> JobSpec:
    return JobSpec(
        base=args.base or _only_base(engine),
        argv=tuple(args.command or ()),
        steps=tuple(args.step or ()),
        name=args.name,
        env=dict(args.env or ()),
        workdir=args.workdir,
        net=args.net,
        userns=args.userns,
        tty=args.tty,
        limits=Limits(memory=args.memory, cpus=args.cpus, pids=args.pids),
        labels=dict(args.label or ()),
        allow=tuple(args.allow or ()),
        on_resume=("/bin/sh", "-c", args.on_resume) if args.on_resume else (),
        resume_signal=args.resume_signal,
        pause_after=args.pause_after,
        state=args.state,
        snapshot_on=args.snapshot_on,
    )


def _only_base(engine: Engine) -> str:
    bases = engine.bases()
    if len(bases) == 1:
        return bases[0].digest if not bases[0].names else bases[0].names[0]
    if not bases:
        raise InvalidInput("there is no base yet", hint="serac base build debian --debian bookworm")
    raise InvalidInput(f"there are {len(bases)} bases, say which", hint="`serac base ls` lists them")
