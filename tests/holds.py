"""Driving ``serac-launch network`` from outside, for tests.

with holds.holding(program, namespace, [("lock", "1")]) as held:
    assert held.report[-1] == ("ready", "1")
    assert held.end() == 0
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import launches
from launches import Record
from namespaces import Namespace

LIMIT = 30
"""seconds until a test that waits for the network gives up"""


class Held:
    """A ``serac-launch network`` that has said all that it says before its hold ends."""

    def __init__(self, process: subprocess.Popen[bytes], go: int) -> None:
        assert process.stdout
        self.process = process
        self.go: int | None = go
        self.said = b""
        while not self.said.endswith(b"ready=1\0") and (more := os.read(process.stdout.fileno(), 4096)):
            self.said += more
        self.report = launches.decode(self.said)

    @property
    def failure(self) -> tuple[str, int, str]:
        found = dict(self.report)
        return found["step"], int(found["errno"]), found["path"]

    def end(self) -> int:
        """Connections closed."""
        assert self.go is not None
        os.write(self.go, b"g")
        rest = self.finish()
        assert [key for key, _ in rest if key != "took"] == ["closed"]
        assert self.process.returncode == 0
        return int(rest[-1][1])

    def finish(self) -> list[Record]:
        self.leave()
        rest, errors = self.process.communicate(timeout=LIMIT)
        assert errors == b""
        return launches.decode(rest)

    def leave(self) -> None:
        if self.go is not None:
            os.close(self.go)
            self.go = None


@contextlib.contextmanager
def holding(
    program: Path, where: Namespace, records: list[Record], *, env: dict[str, str] | None = None
) -> Iterator[Held]:
    namespace = os.open(f"/proc/{where.pid}/ns/net", os.O_RDONLY)
    hold, go = os.pipe()
    process = subprocess.Popen(
        [program, "network"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[namespace, hold],
        env={**os.environ, **(env or {})},
    )
    os.close(hold)
    spec = [("serac-launch", "1"), ("net", f"fd:{namespace}"), ("hold", f"{hold}"), *records]
    os.close(namespace)
    assert process.stdin
    with process:
        process.stdin.write(launches.encode(spec))
        process.stdin.close()
        process.stdin = None
        held = Held(process, go)
        try:
            yield held
        finally:
            held.leave()
