"""Values as text for people: sizes, ages, commands; and text from a job made safe for a terminal."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
WORDS = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def printable(text: str, *, keep: str = "") -> str:
    """The text with what could steer a terminal or break a line written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shell(argv: Iterable[str]) -> str:
    """A command as one would type it."""
    return " ".join(word if WORDS.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'" for word in argv)


def short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def size(count: int) -> str:
    """Bytes for people: ``312.5 MiB``."""
    power = min(max(count.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f"{count / (1 << 10 * power):.{min(power, 1)}f} {UNITS[power]}"


def age(since: float) -> str:
    """How long ago, in its one largest unit."""
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit} ago"
    return f"{int(seconds)}s ago"


def moment(when: float | None) -> str:
    """A point in time, local, to the second; nothing for None."""
    if when is None:
        return ""
    return datetime.datetime.fromtimestamp(when).astimezone().isoformat(" ", "seconds")


def pairs(values: Mapping[str, Any]) -> str:
    """``a=1 b=2``"""
    return " ".join(f"{key}={value}" for key, value in values.items())


def milliseconds(timings: Mapping[str, float]) -> str:
    """The steps of a verb in the order they were made, the total last."""
    steps = {name: spent for name, spent in timings.items() if name != "total"}
    return ", ".join(f"{name} {spent:.1f}" for name, spent in steps.items()) + " ms"


def json(value: Any) -> str:
    """A JSON value on one line."""
    return msgspec.json.encode(value).decode()
