"""Everything the command prints: text for people, JSON for programs, errors for both.

With ``--json`` a verb prints one object, a list one array, a stream (logs, attached output) one object a line. On a
terminal JSON is indented and text may have colour (unless NO_COLOR is set); piped, JSON is one line and text is plain.
Names, failures and labels may come from a job: control characters in them are escaped. A session's own output
isn't touched.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from engine.cli.text import printable
from engine.errors import SeracError, from_os

STYLES = {
    "running": "32", "frozen": "36", "paused": "33", "pausing": "33", "resuming": "32", "failed": "31", "exited": "2",
    "ok": "32", "missing": "31", "absent": "33",
}  # fmt: skip
NEWLINE = "\n"
BOLD, RED, FAINT = "1", "31", "2"


class Output:
    """Where a verb's results go. Results to standard output, remarks and errors to standard error."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.terminal = sys.stdout.isatty()
        self._broken = False
        colour = not os.environ.get("NO_COLOR")
        self._colour = colour and self.terminal
        self._colour_errors = colour and sys.stderr.isatty()

    def value(self, value: object, text: str) -> None:
        """One result: the value for programs, a line for people."""
        if self.json:
            self.document(value)
        else:
            self.write(printable(text, keep="\n"))

    def document(self, value: object) -> None:
        encoded = msgspec.json.encode(complete(value))
        self.write((msgspec.json.format(encoded, indent=2) if self.terminal else encoded).decode())

    def record(self, value: object) -> None:
        """One line of a stream of JSON objects, at once."""
        self.write(msgspec.json.encode(complete(value)).decode())
        self.flush()

    def table(self, values: Sequence[object], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A list of results; a table even when it is empty, so that it has its head."""
        if self.json:
            self.document(list(values))
            return
        cells = [[printable(cell) or "-" for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        self.write(self._row(columns, widths, BOLD))
        for row in cells:
            self.write(self._row(row, widths, None))

    def listing(self, value: object, pairs: Mapping[str, str]) -> None:
        """One result in detail, ``key: value`` lines; empty values are left out."""
        if self.json:
            self.document(value)
            return
        width = max(map(len, pairs)) + 1
        for key, text in pairs.items():
            if text:
                label = _style(f"{key}:".ljust(width), BOLD if self._colour else None)
                self.write(f"{label} {printable(text, keep=NEWLINE).replace(NEWLINE, NEWLINE + ' ' * (width + 1))}")

    def names(self, names: Sequence[str]) -> None:
        """Names alone, one a line, for ``$(...)``."""
        if self.json:
            self.document(list(names))
        elif names:
            self.write("\n".join(map(printable, names)))

    def removed(self, names: Sequence[str], remove: Callable[[str], None]) -> None:
        """Remove one after the other and say so at once: an error later on doesn't hide what is gone."""
        for name in names:
            remove(name)
            if not self.json:
                self.write(f"removed {printable(name)}")
        if self.json:
            self.document({"removed": list(names)})

    def note(self, text: str) -> None:
        """A remark for people, never part of the result."""
        print(_style(printable(text), FAINT if self._colour_errors else None), file=sys.stderr, flush=True)

    def error(self, error: SeracError) -> None:
        if self.json and not self._broken:
            facts = {"code": error.code, "message": str(error), "hint": error.hint, "status": error.status}
            self.document({"error": facts if error.reason is None else {**facts, "reason": error.reason}})
            return
        label = _style("serac:", RED if self._colour_errors else None)
        print(f"{label} {printable(str(error))}\nhint: {printable(error.hint)}", file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """A line of results as it is."""
        with self._writing():
            print(text)

    def write_bytes(self, data: bytes) -> None:
        """Bytes of results as they are, at once."""
        with self._writing():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    @contextlib.contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Standard output for a verb that writes bytes there itself; when that fails nobody writes more of them."""
        try:
            yield sys.stdout.buffer
        except BaseException:
            self._broken = True
            _drop_standard_output()
            raise

    def flush(self) -> None:
        with self._writing():
            sys.stdout.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The border to standard output. A reader that went away is no error of ours: BrokenPipeError goes through."""
        try:
            with self.stream():
                yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise from_os(error, "write standard output") from error

    def _row(self, cells: Sequence[str], widths: Sequence[int], style: str | None) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        if not self._colour:
            return "  ".join(padded).rstrip()
        return "  ".join(_style(text, style or STYLES.get(text.strip())) for text in padded)


def complete(value: object) -> Any:
    """A domain value with every field that it has, also those that hold their default. Bytes that are no UTF-8, as in
    paths, are escaped: JSON can't hold them."""
    if isinstance(value, msgspec.Struct):
        return {field: complete(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {key: complete(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [complete(item) for item in value]
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def _drop_standard_output() -> None:
    """So that the interpreter's own flush at the end has nothing to complain about."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _style(text: str, style: str | None) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style else text
