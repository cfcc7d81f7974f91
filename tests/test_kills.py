"""Programs of serac's own, and criu, are killed from the host, some milliseconds after they appeared: the verb says so
or succeeds all the same, nothing is left, snapshots stay, and the verb called again succeeds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plays import Cut, called, play, stage, sweep
from roots import wait_for
from scenes import SCENES, Scene

from engine import Engine, JobState

__all__ = ["stage"]  # a fixture

pytestmark = pytest.mark.root

VICTIMS = {
    "serac-launch": ("run-bridge", "resume-files", "resume-process", "pause-process", "fork-lazy", "copy-out-paused"),
    "init": ("run", "resume-files-stacked"),
    "criu": ("pause-process", "resume-process-stacked", "take", "fork-process"),
    "serac-pager": ("resume-lazy", "fork-lazy"),
    "serac-guard": ("resume-lazy", "fork-lazy"),
}
"""program -> scenes in which it plays; a job's init bears the digest of its program in its name"""
DELAYS = (0, 2, 5, 10, 20, 40, 80)
"""milliseconds"""
PAGERS = ("serac-pager", "serac-guard")
CASES = [(victim, name) for victim, names in VICTIMS.items() for name in names]


def _ours(engine: Engine, process: Path) -> bool:
    """Whether it belongs to the engine on this root, or is a child of one."""
    if f"/{engine.config.name}" in (process / "cgroup").read_text():
        return True
    parent = (process / "stat").read_text().rpartition(") ")[2].split()[1]
    return os.fsencode(engine.config.root) in Path(f"/proc/{parent}/cmdline").read_bytes()


def _found(engine: Engine, victim: str) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            name = (process / "comm").read_text().strip()
            if (name == victim or (victim == "init" and name.startswith("init-"))) and _ours(engine, process):
                yield int(process.name)


def kill(pid: int) -> None:
    """And see it gone. Raises ProcessLookupError where it is by now."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 60)[0]
    finally:
        os.close(handle)


def killing(victim: str, delay: int, before: set[int]) -> Cut:
    """Kill the first one that wasn't there before the call."""

    def act(engine: Engine, scene: Scene) -> str | None:
        before.update(_found(engine, victim))
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                for pid in set(_found(engine, victim)) - before:
                    time.sleep(delay / 1000)
                    with contextlib.suppress(ProcessLookupError):
                        kill(pid)
                    return

        killer = threading.Thread(target=watch)
        killer.start()
        try:
            ended = called(engine, scene)
        finally:
            done.set()
            killer.join()
        if victim in PAGERS:  # what becomes of the job is sure when both are gone
            wait_for(lambda: not any(set(_found(engine, name)) - before for name in PAGERS))
        return ended.stdout if ended.returncode else None

    return act


def one(tree: Path, stage: Path, victim: str, name: str, delay: int) -> None:
    scene = SCENES[name]
    if scene.states and victim != "serac-launch":  # the job's own life may end with it, or its memory never come
        scene = scene._replace(states=scene.states | {JobState.FAILED, JobState.EXITED})
    play(tree, stage, scene, killing(victim, delay, set()), mortal=victim == "init")


@pytest.mark.parametrize(("victim", "name"), CASES)
def test_a_program_that_is_killed_from_outside(small_tree: Path, stage: Path, victim: str, name: str) -> None:
    delay = DELAYS[CASES.index((victim, name)) % len(DELAYS)]
    one(small_tree, stage, victim, name, delay)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "name"), CASES)
def test_a_program_that_is_killed_at_any_time(small_tree: Path, stage: Path, victim: str, name: str) -> None:
    sweep(map(str, DELAYS), lambda delay: one(small_tree, stage, victim, name, int(delay)))
