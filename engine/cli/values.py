"""What options' values look like: each function turns one argument into a value, or says what it should look like.

They are argparse types: an ``ArgumentTypeError`` becomes InvalidInput with the option's name before it.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import Any

from engine.model import LIMIT_RANGES, Step

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:iB|B)?", re.IGNORECASE | re.ASCII)
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
ENV_NAME = re.compile(r"[^=\0]+")
CONTROL = re.compile(r"(?:ctrl-|\^)([a-z@\[\\\]^_])", re.IGNORECASE | re.ASCII)


def memory(text: str) -> int:
    """Bytes: ``512M``, ``2G``, ``1.5GiB`` or a plain number of bytes; K, M, G and T are powers of 1024."""
    match = SIZE.fullmatch(text)
    if not match:
        raise ArgumentTypeError(f"{text!r} is no size (examples: 512M, 2G, 1073741824)")
    size = int(float(match[1]) * UNITS[match[2].upper()])
    return int(_within(size, "memory", text, "4M to 1024T"))


def cpus(text: str) -> float:
    """Processors: ``2``, ``0.5``."""
    return _within(_number(text), "cpus", text, "0.01 to 4096 processors")


def pids(text: str) -> int:
    """How many processes and threads."""
    if not re.fullmatch(r"[0-9]+", text):
        raise ArgumentTypeError(f"{text!r} is no whole number")
    return int(_within(int(text), "pids", text, "8 to 4194304 processes"))


def rounds(text: str) -> int:
    """How often something is done: at least once."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise ArgumentTypeError(f"{text!r} is no number of rounds (examples: 1, 30)")
    return int(text)


def duration(text: str) -> float:
    """Seconds: ``10``, ``1.5``, ``500ms``, ``2m``, ``1h``."""
    match = DURATION.fullmatch(text)
    if not match:
        raise ArgumentTypeError(f"{text!r} is no time (examples: 10, 500ms, 2m)")
    return float(match[1]) * SECONDS[match[2] or "s"]


def variable(text: str) -> tuple[str, str]:
    """An environment variable or a label: ``KEY=VALUE``; the value may be empty."""
    key, equals, value = text.partition("=")
    if not equals or not ENV_NAME.fullmatch(key):
        raise ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def step(text: str) -> Step:
    """``NAME=SCRIPT``."""
    name, equals, script = text.partition("=")
    if not equals or not name or not script.strip():
        raise ArgumentTypeError(f"{text!r} is not NAME=SCRIPT")
    return Step(name=name, script=script)


def words(text: str) -> tuple[str, ...]:
    """A list with commas: ``git,gcc,make``."""
    found = tuple(word for word in text.split(",") if word)
    if not found:
        raise ArgumentTypeError("an empty list")
    return found


def json_value(text: str) -> Any:
    """Any JSON value."""
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ArgumentTypeError(f"{text!r} is no JSON: {error}") from error


def session(text: str) -> int:
    """A session's number."""
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ArgumentTypeError(f"{text!r} is no session's number")
    return int(text)


def detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` as the bytes that a terminal sends for them; single characters stand for themselves."""
    return bytes(_key(word) for word in text.split(","))


def _key(word: str) -> int:
    match = CONTROL.fullmatch(word)
    if match:
        return ord(match[1].upper()) & 0x1F
    if len(word) == 1 and word.isascii():
        return ord(word)
    raise ArgumentTypeError(f"{word!r} is no key (examples: ctrl-p,ctrl-q or ctrl-])")


def _number(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
        raise ArgumentTypeError(f"{text!r} is no number")
    return float(text)


def _within(number: float, limit: str, text: str, meaning: str) -> float:
    lowest, highest = LIMIT_RANGES[limit]
    if not lowest <= number <= highest:
        raise ArgumentTypeError(f"{text} is out of range: {meaning}")
    return number
