"""`scripts/bench`, or with everything installed: PYTHONPATH=tests .venv/bin/python -m bench"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import leftovers

from bench import hostfacts, interrupts, place, readme, report
from bench.measure import Outcome
from bench.plan import FULL, QUICK
from bench.readme import RESULTS
from bench.scenarios import SCENARIOS, SLOW, Scenario

UNFINISHED = Path(__file__).resolve().parents[2] / "build/bench"
LOCK = Path("/run/lock/serac-tests")
"""of the root tests, which count what the host holds, as this does"""


def main() -> int:
    args = _arguments()
    if os.geteuid() != 0:
        print("bench: needs root: run 'sudo scripts/bench'", file=sys.stderr)
        return 1
    names = args.only or [name for name in SCENARIOS if not args.quick or name not in SLOW]
    output = args.output or (UNFINISHED if args.quick or args.only else RESULTS)
    interrupts.install()
    with place.made(QUICK if args.quick else FULL) as where:
        host = hostfacts.facts(where.directory)
        found = report.Report(host=host, outcomes=[])
        for name in names:
            found.outcomes.append(_measured(name, SCENARIOS[name], where))
            host["load after"] = hostfacts.load()
            report.write(found, output)  # what there is, for the next one may fail
    _publish(found, output)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure serac against its floor and its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller sizes: some three minutes")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--output",
        type=Path,
        help="directory for JSON, Markdown and plots; default: tests/bench/results, of a part build/bench",
    )
    return parser.parse_args()


def _measured(name: str, scenario: Scenario, where: place.Place) -> Outcome:
    with _alone():
        before = leftovers.count()
        began = time.monotonic()
        print(f"\n== {name}: {scenario.__doc__ or ''}", flush=True)
        outcome = scenario(where)
        print("\n".join(report.figures(outcome)))
        print("\n".join([*outcome.notes, *(budget.verdict for budget in outcome.budgets)]))
        left = leftovers.difference(before, leftovers.settled(before))
        print("\n".join([*left, f"{time.monotonic() - began:.0f} s"]), flush=True)
    return outcome


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with LOCK.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"\nwaiting for others who measure or test on this host ({LOCK})", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(found: report.Report, output: Path) -> None:
    from bench import plots  # matplotlib is slow to come, and only `scripts/setup --bench` installs it

    drawn = plots.draw(found, output)
    print("\n== what has to hold")
    for outcome in found.outcomes:
        print("\n".join(f"{outcome.name}: {budget.verdict}" for budget in outcome.budgets))
    missed = sum(not budget.held for outcome in found.outcomes for budget in outcome.budgets)
    if output == RESULTS:
        readme.main()
    print(f"{missed} missed; written: {', '.join(os.fspath(file) for file in (output / 'results.md', *drawn))}")


if __name__ == "__main__":
    sys.exit(main())
