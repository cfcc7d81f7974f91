"""``serac events``: what was done in a root, tried, mended and decided."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from engine.cli import text, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Verbs

if TYPE_CHECKING:
    from engine.model import Event


def add(verbs: Verbs) -> None:
    parser = verbs.add(
        "events", events, "say what was done, and how it ended",
        more="Oldest first: what commands and programs did in this root, or tried, which jobs ended, what was mended "
        "after a crash. With --json one object a line.",
        examples="serac events\nserac events --since 10m\nserac events -f --json",
    )  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--since", metavar="TIME", type=values.duration, help="only the last TIME: 10m, 2h, 7d")


def events(args: Namespace, out: Output) -> int:
    since = None if args.since is None else time.time() - args.since
    with open_engine(args) as engine:
        for event in engine.events(follow=args.follow, since=since):
            if out.json:
                out.record(event)
            else:
                out.write(text.printable(_line(event)))
                if args.follow:
                    out.flush()
    return 0


def _line(event: Event) -> str:
    """Time, kind, outcome, then what there is of: whom it is about, how long it took, why."""
    who = event.name or event.job or event.snapshot or ""
    snapshot = f"snapshot {event.snapshot}" if event.snapshot not in (None, who) else ""
    took = f"{event.ms:.1f} ms" if event.ms is not None else ""
    what = f"{text.moment(event.time)}  {event.kind:<16}  {event.outcome:<11}"
    return "  ".join([what, *(fact for fact in (who, snapshot, took, event.reason or "") if fact)]).rstrip()
