"""Which sessions a job begins with, and which come back after a pause: pure decisions on specs and contexts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec

from engine.errors import InvalidInput
from engine.model import Context, Job, JobSpec, Mode, SessionSpec, SessionStatus
from engine.session import SESSION_ID_MAX

DEPTH_MAX = 100
"""levels of a state; Python's limit counts those of whoever reads it too"""
ID_MAX = (1 << 32) - 2
"""of users and groups"""
SIDE_MAX = 0xFFFF
"""rows or columns of a terminal"""
ENDED_KEPT = 64
"""ended sessions whose files a job keeps, as init does"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(job: str, base: Mapping[str, str], own: Mapping[str, str], *, terminal: bool) -> dict[str, str]:
    """A session's whole environment: defaults, then what the base brings along, then the job's or session's own.

    Shells on a terminal write each command to their history at once, so that a pause without a checkpoint keeps it."""
    values = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "container": "serac", "SERAC_JOB": job}
    if terminal:
        values |= {"TERM": "xterm-256color", "HISTFILE": "/root/.bash_history", "PROMPT_COMMAND": "history -a"}
    return {**values, **base, **own}


def check_texts(texts: Iterable[str], env: Mapping[str, str]) -> None:
    """Raises InvalidInput for what no process can be given, or no catalog can hold."""
    for text in (*texts, *env, *env.values()):
        if "\0" in text:
            raise InvalidInput("a NUL byte can't be in a command, a path, a step or the environment")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InvalidInput(f"not UTF-8: {text!r}", hint="commands, steps and environments are text")
    if any(not key or "=" in key for key in env):
        raise InvalidInput("an environment variable needs a name without '='")


def check_workdir(workdir: str) -> None:
    """Raises InvalidInput."""
    if not workdir.startswith("/"):
        raise InvalidInput(f"workdir must be absolute: {workdir!r}")
    check_texts((workdir,), {})


def check_mode(mode: str) -> None:
    """Raises InvalidInput."""
    if mode not in get_args(Mode):
        raise InvalidInput(f"no mode {mode!r}", hint="auto, process or filesystem")


def check_annotations(labels: Mapping[str, str], state: Any) -> None:
    """What the caller wants to be kept. Raises InvalidInput for what no catalog can hold."""
    check_texts((*labels, *labels.values()), {})
    if _is_deep(state):
        raise InvalidInput(f"the state is no JSON value: more than {DEPTH_MAX} levels deep")
    try:
        msgspec.json.encode(state)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the state is no JSON value: {error}", hint="objects, arrays, text, numbers") from error


def _is_deep(state: Any) -> bool:
    level = [state]
    for _ in range(DEPTH_MAX):
        level = [below for value in level for below in _within(value)]
        if not level:
            return False
    return True


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def check_context(context: Context) -> None:
    """One that comes from elsewhere. Raises InvalidInput for what no pause would have kept."""
    check_annotations(context.labels, context.state)
    for asked in (context.question, *(answer.question for answer in context.answers)):
        if asked is not None:
            check_texts((asked.reason,), {})
            check_annotations({}, asked.state)
    for answer in context.answers:
        check_annotations({}, answer.value)
        check_texts((answer.step or "",), {})
    if context.failure is not None:
        check_texts((context.failure.step or "", context.failure.workdir), {})
    numbers = [session.id for session in context.sessions]
    if len(set(numbers)) != len(numbers) or not all(_within_range(number, SESSION_ID_MAX) for number in numbers):
        raise InvalidInput("two sessions have the same number, or one has none")
    for session in context.sessions:
        scripts = (text for entry in session.steps for text in (entry.name, entry.script))
        check_texts((*session.argv, session.workdir, *session.done, *scripts), session.env)
        if not all(_within_range(number, ID_MAX) for number in (session.uid, session.gid)):
            raise InvalidInput("a session's owner is none")
        if not all(_within_range(number, SIDE_MAX) for number in session.tty or ()):
            raise InvalidInput("a session's terminal has no size")


def _within_range(number: int | None, highest: int) -> bool:
    return number is not None and 0 <= number <= highest


def main_session(
    name: str, spec: JobSpec, base_env: Mapping[str, str], terminal: tuple[int, int] | None
) -> SessionSpec | None:
    """Session 0, or None for a job that only serves ``exec``."""
    if not spec.argv and not spec.steps:
        return None
    return SessionSpec(
        id=0,
        argv=spec.argv,
        steps=spec.steps,
        env=environment(name, base_env, spec.env, terminal=spec.tty),
        workdir=spec.workdir,
        tty=(terminal or (24, 80)) if spec.tty else None,
        keep=True,
    )


def exec_session(job: Job, base_env: Mapping[str, str], spec: SessionSpec) -> SessionSpec:
    """An ``exec``: the job's environment under the session's own, the job's directory unless it names one."""
    check_texts((*spec.argv, *(entry.script for entry in spec.steps), spec.workdir), spec.env)
    own = {**job.spec.env, **spec.env}
    return msgspec.structs.replace(
        spec,
        env=environment(job.name, base_env, own, terminal=spec.tty is not None),
        workdir=spec.workdir or job.spec.workdir,
        keep=spec.keep or spec.tty is not None,
    )


def context_of(
    job: Job,
    main: SessionSpec | None,
    others: Mapping[int, SessionSpec],
    statuses: Mapping[int, SessionStatus],
    directories: Mapping[int, str],
    *,
    labels: Mapping[str, str],
) -> Context:
    """What a filesystem resume will start again: session 0 and every kept session that lived at the cut.

    ``directories`` has the current directory of terminal sessions, whose shells have moved since they began; a command
    starts again where it was started, because its arguments are meant from there. A directory whose name is no text,
    which no catalog can hold, is left for the one where the session began; and a job can write anything for a spec or
    status of its own: what no session can be given is passed over."""
    specs = {number: spec for number, spec in others.items() if number and spec.keep}
    if main is not None:
        specs[0] = main
    again = []
    for number, spec in sorted(specs.items()):
        status = statuses.get(number)
        if number and (status is None or not status.running):
            continue
        names = {step.name for step in spec.steps}
        done = tuple(name for name in status.done if name in names) if status is not None else spec.done
        workdir = directories.get(number, spec.workdir)
        workdir = workdir if _fits(spec, workdir) else spec.workdir
        if not number or _fits(spec, workdir):
            again.append(msgspec.structs.replace(spec, id=number, done=done, workdir=workdir))
    return Context(
        sessions=tuple(again),
        ended=ended(statuses, again),
        state=job.spec.state,
        labels={**job.spec.labels, **labels},
    )


def ended(statuses: Mapping[int, SessionStatus], again: Iterable[SessionSpec]) -> tuple[int, ...]:
    """The last `ENDED_KEPT` sessions that have ended and aren't started again."""
    over = {number for number, status in statuses.items() if not status.running}
    return tuple(sorted(over - {spec.id for spec in again})[-ENDED_KEPT:])


def next_step(context: Context) -> str | None:
    """At which session 0 begins when it is started from the context."""
    for spec in context.sessions:
        if spec.id == 0:
            return next((entry.name for entry in spec.steps if entry.name not in spec.done), None)
    return None


def held_back(context: Context) -> tuple[SessionSpec | None, dict[int, str]]:
    """Session 0 of a job that begins idle, and why the others aren't there."""
    main = next((spec for spec in context.sessions if spec.id == 0), None)
    return main, {spec.id: "the job was brought back idle" for spec in context.sessions if spec.id}


def _fits(spec: SessionSpec, workdir: str) -> bool:
    try:
        check_texts(
            (*spec.argv, workdir, *(text for step in spec.steps for text in (step.name, step.script))), spec.env
        )
    except InvalidInput:
        return False
    return True


def renamed(context: Context, name: str, env: Mapping[str, str]) -> Context:
    """The context for a fork, whose sessions are told their new job's name and what ``env`` adds."""
    told = {**env, "SERAC_JOB": name}
    sessions = tuple(msgspec.structs.replace(spec, env={**spec.env, **told}) for spec in context.sessions)
    return msgspec.structs.replace(context, sessions=sessions)
