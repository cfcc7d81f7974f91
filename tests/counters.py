"""A job that counts in its own memory and says every number, for tests that take it through pauses."""

from __future__ import annotations

from roots import inside, output, shell, until, wait_for

from engine import Engine

COUNTER = "n=0; while :; do n=$((n + 1)); echo $n; test -e /stop && exit 7; sleep 0.02; done"
"""counts in its own memory"""


def counter(engine: Engine, name: str = "a", **fields: object) -> None:
    engine.run(shell(COUNTER, name=name, **fields))
    until(engine, name, b"5\n")


def counts(engine: Engine, ref: str, number: int = 0) -> list[int]:
    """All that it has said, from the first life on."""
    return [int(line) for line in output(engine, ref, number, live=False).split()]


def counts_on(engine: Engine, ref: str) -> None:
    """It says more, and in its whole log no number is missing or there twice."""
    before = len(counts(engine, ref))
    wait_for(lambda: len(counts(engine, ref)) > before + 3)
    found = counts(engine, ref)
    assert found == list(range(1, len(found) + 1))


def generation(engine: Engine, ref: str) -> str:
    return inside(engine, ref, "cat /run/serac/generation").strip()
