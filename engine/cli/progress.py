"""What a long verb shows of itself. rich is imported only where there is a terminal to draw on."""

from __future__ import annotations

import sys
from typing import IO, Any

from engine.cli.output import Output
from engine.cli.text import printable


class Progress:
    """Bars on standard error where that is a terminal, else nothing.

    It is called with (what is done, how much is done, of how much); a total of 0 means that nobody knows.
    """

    def __init__(self, out: Output) -> None:
        self._bars = _bars(sys.stderr) if sys.stderr.isatty() and not out.json else None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            return
        if what not in self._tasks:
            for task in self._tasks.values():
                self._bars.stop_task(task)
            self._tasks[what] = self._bars.add_task(printable(what), total=None)
        self._bars.update(self._tasks[what], completed=done, total=total or None)


def _bars(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    text = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), console=console)
