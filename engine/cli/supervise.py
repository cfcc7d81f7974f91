"""``serac supervise``: the supervisor as a program, and its systemd unit."""

from __future__ import annotations

import contextlib
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Verbs

if TYPE_CHECKING:
    from engine.supervisor import Done, Supervisor

DONE = {"freeze": "froze", "pause": "paused", "archive": "archiving", "demote": "demoted"}


def add(verbs: Verbs) -> None:
    parser = verbs.add(
        "supervise", supervise, "pause what is idle, demote what rests, collect what nothing needs, until SIGTERM",
        more="Jobs that do nothing are frozen, later paused, and in the end only images of them are left; when memory "
        "is short the longest idle go first. Ages and thresholds are in config.json, under supervise; `serac run "
        "--pause-after` is a job's own. What it does is told, and is in the journal with its reason.",
        examples="serac supervise\nserac supervise --once --dry-run\n"
        "serac supervise --unit > /etc/systemd/system/serac.service",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="look once and do what is due, for a timer or cron")
    parser.add_argument("--interval", metavar="TIME", type=values.duration, help="look so often (default 5s)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and why")
    parser.add_argument("--unit", action="store_true", help="print a systemd unit for this root, and do nothing")


def supervise(args: Namespace, out: Output) -> int:
    if args.unit:
        return _unit(args, out)
    import msgspec

    from engine.errors import InvalidInput
    from engine.supervisor import Supervisor, notify

    if args.interval == 0:
        raise InvalidInput("--interval 0 would never rest", hint="--once looks once")
    with open_engine(args) as engine:
        settings = engine.config.settings.supervise
        if args.interval is not None:
            settings = msgspec.structs.replace(settings, interval=args.interval)
        show = Shown(out)
        with Supervisor(engine, settings=settings, dry_run=args.dry_run, report=show) as supervisor:
            with _until_told(supervisor):
                notify("READY=1")
                if args.once:
                    supervisor.tick()
                else:
                    supervisor.run()
            notify("STOPPING=1")
    return 0


class Shown:
    """One line for each thing that was done, tried or would be."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def __call__(self, done: Done) -> None:
        action = done.action
        if self._out.json:
            facts = {"verb": action.verb, "job": action.job, "name": action.name, "reason": action.reason}
            self._out.record({**facts, "outcome": done.outcome, "error": done.error})
            return
        if done.outcome == "ok":
            said = f"{DONE[action.verb]} {action.name}: {action.reason}"
        elif done.outcome == "planned":
            said = f"would {action.verb} {action.name}: {action.reason}"
        else:
            said = f"could not {action.verb} {action.name} ({done.error}): {action.reason}"
        self._out.value(None, said)
        self._out.flush()


@contextlib.contextmanager
def _until_told(supervisor: Supervisor) -> Iterator[None]:
    """SIGTERM and Ctrl-C let it end when it is done with what it is doing."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: supervisor.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unit(args: Namespace, out: Output) -> int:
    from engine.config import Config
    from engine.supervisor import unit

    text = unit(Path(sys.executable).with_name("serac"), Config.load(args.root).root)
    if out.json:
        out.document({"unit": text})
    else:
        out.write(text.rstrip("\n"))
    return 0
