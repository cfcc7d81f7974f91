"""Sandboxes for tests: those of the `engine` fixture's root, and calls in processes that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine import Engine, steps
from engine.hosted import Sandboxes, Session
from engine.lifecycle import processes

SCRIPT = """
import sys
import msgspec
from engine.hosted import Sandboxes

with Sandboxes(sys.argv[1], timeout=30) as sandboxes:
    result = sandboxes.{call}
    told = {{name: getattr(result, name) for name in ("success", "error_code", "error_message", "request_id")}}
    told["status"] = getattr(result, "status", None)
    told["session"] = result.session.session_id if getattr(result, "session", None) else None
    told["exit_code"], told["output"] = getattr(result, "exit_code", None), getattr(result, "output", None)
    print(msgspec.json.encode(told).decode())
"""


@pytest.fixture
def sandboxes(engine: Engine) -> Iterator[Sandboxes]:
    """On a root with the base ``small``; what is left in it is removed with the engine's."""
    with Sandboxes(engine.config.root, timeout=30) as sandboxes:
        yield sandboxes


def made(sandboxes: Sandboxes, **fields: Any) -> Session:
    result = sandboxes.create("small", **fields)
    assert result.success, result
    assert result.session is not None
    return result.session


def elsewhere(sandboxes: Sandboxes, call: str, *, fault: str = "") -> subprocess.Popen[str]:
    """A call in another process, which has begun; ``fault`` as of engine/steps.py."""
    command = [sys.executable, "-c", SCRIPT.format(call=call), os.fspath(sandboxes.engine.config.root)]
    return subprocess.Popen(command, env={**os.environ, "SERAC_FAULT": fault}, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    told: dict[str, Any] = msgspec.json.decode(out)
    return told


def killed(sandboxes: Sandboxes, call: str, fault: str) -> None:
    """A call in a process that is killed in the middle of it."""
    process = elsewhere(sandboxes, call, fault=fault)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def kill_all(engine: Engine, ref: str) -> None:
    """A job's init is killed from outside, and all its processes with it."""
    root = engine._root
    os.kill(processes.recall(root, root.catalog.job(ref)).pid, signal.SIGKILL)


@contextlib.contextmanager
def held(place: str) -> Iterator[threading.Event]:
    """What this process does stands still at ``verb.step:before`` or ``:after``; the event is set when it does."""
    there, go_on = threading.Event(), threading.Event()

    def stand(name: str, when: str) -> None:
        if f"{name}:{when}" == place:
            there.set()
            assert go_on.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_fault", stand)
        try:
            yield there
        finally:
            go_on.set()
