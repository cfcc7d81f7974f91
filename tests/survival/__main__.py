"""Run probes, as the package's docstring says."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterable

from survival import Differs, Probe, Stood

GO = "/go"
PATIENCE = 40.0
"""seconds without a word from any of those who are still to say something"""


class Runner:
    """The process of one probe: it says that it is set up, is told to check, and says what it found."""

    def __init__(self, name: str) -> None:
        self.name = name
        told, self._tell = os.pipe()
        self.said, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            with contextlib.suppress(BrokenPipeError):
                os.write(say, outcome(lambda: run(name, told, say)).encode())
            os._exit(0)
        os.close(told)
        os.close(say)

    def hear(self) -> str:
        """What it says next."""
        return os.read(self.said, 65536).decode() or "is gone without a word"

    def tell(self, stood: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._tell, stood.encode())


def run(name: str, told: int, say: int) -> None:
    module, _, function = name.partition(".")
    probe: Probe = getattr(importlib.import_module(f"survival.{module}"), function)()
    next(probe)
    os.write(say, b"READY")
    stood = Stood(*map(float, os.read(told, 64).split()))
    with contextlib.suppress(StopIteration):
        probe.send(stood)
        raise Differs("it yields twice")


def outcome(work: Callable[[], None]) -> str:
    """OK, or what differs; anything else that it raises is a mistake of the probe, or worse than a difference."""
    try:
        work()
    except Differs as error:
        return str(error)
    except BaseException:
        import traceback  # not above, as in the package

        return traceback.format_exc()
    return "OK"


def heard(runners: Iterable[Runner]) -> dict[str, str]:
    """What each says next."""
    waiting = {runner.said: runner for runner in runners}
    said = {}
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], PATIENCE)
        if not ready:
            return said | {runner.name: "says nothing" for runner in waiting.values()}
        for fd in ready:
            runner = waiting.pop(fd)
            said[runner.name] = runner.hear()
    return said


def main(names: list[str]) -> None:
    os.mkfifo(GO)
    go = os.open(GO, os.O_RDWR)  # at both ends: whoever writes need not come after the one who reads
    runners = [Runner(name) for name in names]
    first = heard(runners)
    print("READY", flush=True)
    stood = os.read(go, 64).decode()
    ready = [runner for runner in runners if first[runner.name] == "READY"]
    for runner in ready:
        runner.tell(stood)
    print(json.dumps(first | heard(ready)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
