"""What a process of a job would do to its files and see of them, done from the host: in the job's user namespace, on
the job's root.

grown, taken = jobroots.inside(engine, "a", partial(forest.grow, seed=1), census.take)
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import Engine
from engine.lifecycle import processes

TESTS = Path(__file__).resolve().parent
CLONE_NEWUSER = 0x1000_0000


def inside(engine: Engine, ref: str, *calls: Callable[[int], Any]) -> list[Any]:
    """What each call gave for a descriptor of the job's root, in turn. Calls and results go by pickle: functions of
    modules here, or `functools.partial` of them."""
    init = processes.recall(engine._root, engine.job(ref)).pid
    done = subprocess.run(
        [sys.executable, "-m", "jobroots"],
        input=pickle.dumps((init, calls)),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(TESTS)},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    results: list[Any] = pickle.loads(done.stdout)
    return results


def main() -> None:
    init, calls = pickle.load(sys.stdin.buffer)
    root = os.open(f"/proc/{init}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    enter_user_namespace(f"/proc/{init}/ns/user")
    sys.stdout.buffer.write(pickle.dumps([call(root) for call in calls]))


def enter_user_namespace(path: str) -> None:
    """As root of it, unless it is this process's own."""
    if os.path.samestat(os.stat(path), os.stat("/proc/self/ns/user")):
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWUSER) < 0:
        raise OSError(ctypes.get_errno(), "setns", path)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


if __name__ == "__main__":
    main()
