"""The command ``serac``: text, JSON and exit statuses over the library. Only here anything is printed.

Exit statuses: 0, the status of the command that ``run``, ``exec`` or ``attach`` passed on, the one of an error
(``engine.errors``, 200 and above), 130 after Ctrl-C, 141 when nobody reads the output any more.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence

from engine.cli.output import Output
from engine.cli.parser import parse, split
from engine.errors import SeracError

INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    _open_standard()
    words = sys.argv[1:] if arguments is None else list(arguments)
    out = Output(json="--json" in split(words)[0])
    try:
        return _run(words, out)
    except SeracError as error:
        out.error(error)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return UNREAD


def _run(words: Sequence[str], out: Output) -> int:
    try:
        args = parse(words)
    except SystemExit:  # --help and --version have printed what they have to say
        out.flush()
        return 0
    _log(args)
    status: int = args.run(args, out)
    out.flush()
    return status


def _open_standard() -> None:
    """A standard descriptor that the caller closed would be the next file's: the catalog must not be our output. And
    with PYTHONUNBUFFERED standard output would lose what a write doesn't take."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
        elif isinstance(stream.buffer, io.RawIOBase):
            how = {"encoding": stream.encoding, "errors": stream.errors}
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False, **how))


def _log(args: Namespace) -> None:
    if args.verbose:
        import logging

        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("serac").setLevel(logging.DEBUG)
