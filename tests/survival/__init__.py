"""Programs that run inside a job and see for themselves whether a pause in mode process left everything as it was.

A probe is a generator function of one of the modules here. It sets a thing up, yields, and checks after it; meanwhile
the job may be paused and resumed any number of times, or be forked. What the yield gives is how long the job did not
run since. `same` and `holds` say what differs. Nothing here knows of serac: a probe needs Python's standard library
alone, and passes as well when nothing happens at its yield.

    python3 -m survival MODULE.PROBE...

runs each in a process and a session of its own in the job. It prints READY when all are set up, waits for a line in the
fifo /go (the fields of Stood), and prints what became of each as a JSON object: OK, or what differs.

The probes of the module ``lost`` are of what can't be carried: a pause refuses them.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from typing import NamedTuple


class Stood(NamedTuple):
    """How long the job did not run, in seconds, from its setting up to its check."""

    still: float
    """certainly: from the end of each pause to the beginning of the next resume"""
    freezing: float
    """at most, besides: while it was being paused and resumed"""


Probe = Generator[None, Stood, None]

MODULES = (
    "clocks",
    "descriptors",
    "files",
    "inet",
    "ipc",
    "locks",
    "memory",
    "processes",
    "signals",
    "unix",
    "watches",
)


class Differs(Exception):
    """Something isn't as it was."""


def same(found: object, expected: object, what: str = "it") -> None:
    if found != expected:
        raise Differs(f"{what}: {found!r:.200}, not {expected!r:.200}")


def holds(true: object, what: str) -> None:
    if not true:
        raise Differs(f"not so: {what}")


def probes(*modules: str) -> list[str]:
    """MODULE.PROBE of all in these modules."""
    return [f"{module}.{name}" for module in modules for name in of_module(module)]


def of_module(module: str) -> list[str]:
    # Not above: the programs in the job are many, and each has in memory what is imported.
    import inspect

    loaded = importlib.import_module(f"survival.{module}")
    own = (each for each in vars(loaded).values() if inspect.isgeneratorfunction(each))
    return [each.__name__ for each in own if each.__module__ == loaded.__name__ and not each.__code__.co_argcount]
