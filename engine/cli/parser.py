"""The shape of the command line: a parser whose errors are serac's own, and how a family adds its verbs.

A verb's handler is ``(args, out) -> exit status``. What follows the first ``--`` never reaches argparse: it is the
command of ``run`` and ``exec``, as it was typed, in ``args.command``.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from engine.cli import values
from engine.errors import InvalidInput

if TYPE_CHECKING:
    from engine.cli.output import Output

Handler = Callable[[argparse.Namespace, "Output"], int]

DESCRIPTION = "Run jobs on an overlay over a prewarmed base; pause, resume and fork them in milliseconds."
WIDTH = 78
EXAMPLES = """\
serac base build debian --debian bookworm --include git,gcc,make
serac run --base debian --name build --workdir /src -- make -j2
serac pause build
serac resume build
serac logs -f build"""


class Parser(argparse.ArgumentParser):
    """Wrong usage is an InvalidInput, abbreviated options aren't guessed."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        command = message.startswith("unrecognized") and "-- CMD" in (self.usage or "")
        raise InvalidInput(message, hint=f"{'a command comes after `--`; ' * command}see `{self.prog} --help`")


class Verbs:
    """The verbs of one parser; a family of verbs is a verb that has verbs."""

    def __init__(self, parser: Parser) -> None:
        self._actions = parser.add_subparsers(title="verbs", metavar="VERB", dest="_verb", required=True)

    def add(self, name: str, run: Handler, about: str, *, more: str = "", examples: str, usage: str = "") -> Parser:
        """One verb: ``about`` is its line in the list, ``more`` the rest of its description."""
        parser = self._parser(name, about, more, examples, usage)
        parser.set_defaults(run=run, takes_command="-- CMD" in usage, parser=parser)
        return parser

    def family(self, name: str, about: str, *, examples: str) -> Verbs:
        return Verbs(self._parser(name, about, "", examples, ""))

    def _parser(self, name: str, about: str, more: str, examples: str, usage: str) -> Parser:
        parser: Parser = self._actions.add_parser(
            name,
            help=about,
            description=textwrap.fill(f"{about[0].upper()}{about[1:]}. {more}", WIDTH),
            epilog=_epilog(examples),
            usage=usage or None,
        )
        _add_globals(parser, suppress=True)
        return parser


def build() -> Parser:
    """The whole command line of serac."""
    from engine.cli import base, bench, events, host, job, session, snapshot, supervise

    parser = Parser(prog="serac", description=DESCRIPTION, epilog=_epilog(EXAMPLES))
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_globals(parser, suppress=False)
    verbs = Verbs(parser)
    for family in (base, job, session, snapshot, events, supervise, bench, host):
        family.add(verbs)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises InvalidInput. ``command`` is None when there was no ``--`` at all."""
    head, command = split(arguments)
    args, extra = build().parse_known_args(head)
    if extra:
        args.parser.error(f"unrecognized arguments: {' '.join(extra)}")
    if command is not None and not args.takes_command:
        args.parser.error("this verb takes no command after `--`")
    args.command = command
    return args


def split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Serac's own arguments, and the command after the first ``--``."""
    words = list(arguments)
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _add_globals(parser: Parser, *, suppress: bool) -> None:
    """The same options before and after the verb; after it they override only when they are given."""

    def default(value: object) -> Any:
        return argparse.SUPPRESS if suppress else value

    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--root", metavar="DIR", default=default(None), help="serac's directory (SERAC_ROOT; default /var/lib/serac)"
    )
    group.add_argument("--json", action="store_true", default=default(False), help="print JSON, for programs")
    group.add_argument(
        "--timeout", metavar="TIME", type=values.duration, default=default(60.0), help="give up after it (default 60s)"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="log each step and its time to stderr"
    )


def _epilog(examples: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines())


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"serac {version('serac')}")
        parser.exit()
