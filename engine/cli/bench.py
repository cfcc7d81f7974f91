"""``serac bench``: what pausing and resuming costs on this host."""

from __future__ import annotations

import contextlib
import signal
from argparse import Namespace
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from engine.cli import text, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Verbs
from engine.errors import SeracError
from engine.model import JobSpec

if TYPE_CHECKING:
    from engine.benching import HostSeen, Kept, Measured, Series

MODES: dict[str, tuple[Kept, ...]] = {
    "process": ("process",),
    "filesystem": ("filesystem",),
    "both": ("process", "filesystem"),
}
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COLUMNS = ("MODE", "CACHE", "VERB", "P50 MS", "P95 MS", "P99 MS", "RUNS")


def add(verbs: Verbs) -> None:
    parser = verbs.add(
        "bench", bench, "measure what pausing and resuming costs on this host",
        more="Starts a job of its own on the base, pauses and resumes it again and again, and removes it, also after "
        "Ctrl-C, which takes effect when the verb under way has ended. Prints percentiles, the median of each step, "
        "what the host is, and what stands out. With --json there is every sample.",
        usage="serac bench [OPTIONS] BASE [-- CMD [ARG ...]]",
        examples="serac bench debian\nserac bench debian --mode process --rounds 100 -- sleep infinity\n"
        "serac bench debian --json > before.json",
    )  # fmt: skip
    parser.add_argument("base", metavar="BASE", help="a base's name or digest")
    parser.add_argument("--mode", choices=tuple(MODES), default="both", help="what a pause keeps (default both)")
    parser.add_argument("--rounds", metavar="N", type=values.rounds, default=30, help="so many of each (default 30)")
    parser.add_argument(
        "--durability",
        choices=("full", "fast"),
        default="full",
        help="whether a pause waits for the disk (default: it does)",
    )
    parser.add_argument(
        "--cold", action="store_true",
        help="each round again with the page cache dropped before each run: this makes the whole host slow meanwhile",
    )  # fmt: skip


def bench(args: Namespace, out: Output) -> int:
    from engine.benching import measure

    with _Interruption.heard() as interruption, open_engine(args) as engine:

        def progress(done: int, total: int) -> None:
            interruption.check()
            if not out.json and done % 10 == 0:
                out.note(f"{done} of {total} rounds")

        if args.cold:
            out.note("the page cache is dropped again and again: the whole host is slow until this ends")
        spec = JobSpec(base=args.base, argv=tuple(args.command or ()))
        try:
            measured = measure(
                engine,
                spec,
                modes=MODES[args.mode],
                rounds=args.rounds,
                cold=args.cold,
                durability=args.durability,
                progress=progress,
            )
        except (SeracError, _Interrupted):
            # A terminal's Ctrl-C reaches criu too, and what a verb then says is no news.
            if interruption.number is None:
                raise
            return 128 + interruption.number
    _show(measured, out)
    return 0


class _Interrupted(Exception):
    """By a signal, between two runs."""


class _Interruption:
    """SIGINT and its like, noted, so that none comes in the middle of a verb or of the job's removal."""

    def __init__(self) -> None:
        self.number: int | None = None

    @classmethod
    @contextlib.contextmanager
    def heard(cls) -> Iterator[_Interruption]:
        noted = cls()
        before = {number: signal.signal(number, noted) for number in ENDS}
        try:
            yield noted
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def check(self) -> None:
        if self.number is not None:
            raise _Interrupted


def _show(measured: Measured, out: Output) -> None:
    if out.json:
        out.document(measured)
        return
    out.table(measured.series, COLUMNS, (_row(series) for series in measured.series))
    out.value(None, "\nmedian ms by step")
    for series in measured.series:
        inner = f" (within these: {_steps(series.within)})" if series.within else ""
        out.value(None, f"{series.verb}, {series.mode}, {series.cache}: {_steps(series.breakdown)}{inner}")
    out.value(None, "")
    out.listing(measured.host, _host(measured.host))
    for remark in measured.remarks:
        out.value(None, f"\n{remark.what}\n  remedy: {remark.remedy}")


def _row(series: Series) -> tuple[str, ...]:
    figures = map(_figure, (series.p50, series.p95, series.p99))
    return series.mode, series.cache, series.verb, *figures, str(len(series.samples))


def _steps(medians: dict[str, float]) -> str:
    return ", ".join(f"{name} {_figure(ms)}" for name, ms in medians.items())


def _figure(ms: float) -> str:
    """Three digits are what it is good for."""
    return f"{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 2}f}"


def _host(host: HostSeen) -> dict[str, str]:
    return {
        "kernel": f"{host.kernel}, {host.machine}",
        "processors": f"{host.cpus} x {host.processor}" if host.processor else str(host.cpus),
        "memory": text.size(host.memory),
        "root": f"{host.filesystem} on {host.device}",
        "criu": host.criu or "none",
        "load": f"{host.load[0]:.2f} before, {host.load[1]:.2f} after",
    }
