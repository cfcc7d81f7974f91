"""What a long verb shows of itself. rich is imported only where there is a terminal to draw on."""

from __future__ import annotations

import sys
from typing import IO, Any

from engine.cli.output import Output
from engine.cli.text import printable


class Progress:
    """What a long verb shows of itself: a bar where standard error is a terminal, else a line for each new thing.

    It is called with (what is done, how much is done, of how much); a total of 0 means that nobody knows.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._bar = sys.stderr.isatty() and not out.json

    def __enter__(self) -> Progress:
        if self._bar:
            self._bars = _bars(sys.stderr)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._begin(what)
        if self._bars is not None:
            self._bars.update(self._tasks[what], completed=done, total=total or None)

    def _begin(self, what: str) -> None:
        if self._bars is None:
            self._tasks[what] = None
            if not self._out.json:
                self._out.note(what)
            return
        for task in self._tasks.values():
            self._bars.stop_task(task)
        self._tasks[what] = self._bars.add_task(printable(what), total=None)


def _bars(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    text = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), console=console)
