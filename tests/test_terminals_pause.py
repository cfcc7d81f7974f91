"""Shells that keep /dev/tty open, paused with their processes again and again: criu restores the children of init in
an order of its own, and wants who holds /dev/tty to come before who has the terminal's master."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from roots import inside, wait_for
from screens import Screen
from test_shells import libraries

from engine import Engine, JobSpec, SessionSpec
from engine.base import DirSource

pytestmark = pytest.mark.root

ROUNDS = 4
DASH = "/bin/dash"


@pytest.fixture
def job(engine: Engine, small_tree: Path, tmp_path: Path) -> str:
    """A job with dash that stays up."""
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree, symlinks=True)
    for path in (DASH, *libraries(DASH)):
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    engine.base_build("dash", DirSource(path=tree))
    return engine.run(JobSpec(base="dash", name="up")).name


def holders_of_dev_tty(engine: Engine, job: str) -> int:
    return int(inside(engine, job, "ls -l /proc/[0-9]*/fd | grep -c ' /dev/tty$'"))


def shell(engine: Engine, job: str, *argv: str, colour: str) -> int:
    """The number of its session, which has a variable, a window and a job in the background."""
    number = engine.start(job, SessionSpec(argv=argv, tty=(24, 80))).id
    assert number is not None
    with Screen(engine, job, number) as user:
        user.type(f"stty rows 41 columns 132; colour={colour}; sleep 5000 & echo re''ady\r")
        user.expect("ready")
    return number


def goes_on(engine: Engine, job: str, number: int, *, colour: str, life: str) -> None:
    with Screen(engine, job, number) as user:
        user.expect("ready")
        user.type(f"echo li''fe {life} $colour; stty size; jobs; echo en''d {life}\r")
        user.expect(f"life {life} {colour}")
        user.expect("41 132")
        user.expect("Running")
        user.expect(f"end {life}")


def test_shells_that_hold_dev_tty_are_paused_again_and_again(engine: Engine, job: str) -> None:
    shells = {
        shell(engine, job, *argv, colour=colour): colour
        for argv, colour in ((("dash", "-i"), "green"), (("sh", "-i"), "blue"), (("dash", "-i"), "red"))
    }
    wait_for(lambda: holders_of_dev_tty(engine, job) == len(shells))  # more for as long as a child executes nothing
    for life in range(ROUNDS):
        snapshot = engine.pause(job, mode="process").snapshot
        fork = engine.fork(snapshot, mode="process").job if life == ROUNDS - 1 else None
        assert engine.resume(job).mode == "process"
        for number, colour in shells.items():
            goes_on(engine, job, number, colour=colour, life=f"{life}")
    assert fork is not None
    for number, colour in shells.items():
        goes_on(engine, fork, number, colour=colour, life="forked")
    engine.pause(fork, mode="process")
