"""``serac cp``: files into a job and out of it."""

from __future__ import annotations

import contextlib
import re
import sys
from argparse import Namespace

from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Verbs
from engine.errors import BadPath, InvalidInput

INSIDE = re.compile(r"([^/:.][^/:]*):(.*)", re.DOTALL)
"""JOB:PATH; a local path with a colon in its first part is written ./like:this"""


def add(verbs: Verbs) -> None:
    parser = verbs.add(
        "cp", cp, "copy files and directories into a job or out of it",
        more="One side is JOB:/absolute/path, the other a local path or - for a tar stream. "
        "Links in the job are never followed out of its root. The job must run; files come out of one that is paused "
        "or has ended too.",
        examples="serac cp ./src build:/src\n"
        "serac cp build:/src/out.tar.gz .\n"
        "tar c src | serac cp - build:/work\n"
        "serac cp build:/var/log - | tar t",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="JOB:/path, a local path, or -")
    parser.add_argument("target", metavar="DST", help="JOB:/path, a local path, or -")


def cp(args: Namespace, out: Output) -> int:
    source, target = _inside(args.source), _inside(args.target)
    if (source is None) == (target is None):
        raise InvalidInput("one side must be in a job, the other one here", hint="serac cp SRC JOB:/path")
    if source is not None and args.target == "-":
        check_stream(out, "pipe it: serac cp JOB:/path - | tar t")
    with open_engine(args) as engine, contextlib.ExitStack() as stack:
        if target is not None:
            engine.copy_in(target[0], sys.stdin.buffer if args.source == "-" else args.source, target[1])
        elif source is not None:
            to = stack.enter_context(out.stream()) if args.target == "-" else args.target
            engine.copy_out(source[0], source[1], to)
    if out.json:
        out.document({"source": args.source, "target": args.target})
    return 0


def _inside(text: str) -> tuple[str, str] | None:
    """Job and path, None for a local path."""
    match = INSIDE.fullmatch(text)
    if not match:
        return None
    if not match[2].startswith("/"):
        raise BadPath(f"{text}: the path in the job must be absolute")
    return match[1], match[2]


def check_stream(out: Output, hint: str) -> None:
    """Whether standard output can take a tar stream. Raises InvalidInput."""
    if out.json:
        raise InvalidInput("--json and a tar stream can't share standard output", hint="leave out --json")
    if out.terminal:
        raise InvalidInput("a tar stream is nothing for a terminal", hint=hint)


def check_input(hint: str) -> None:
    """Whether standard input can be a tar stream. Raises InvalidInput."""
    if sys.stdin.isatty():
        raise InvalidInput("a tar stream is nothing from a terminal", hint=hint)
