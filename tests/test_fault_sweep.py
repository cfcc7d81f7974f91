"""An engine is cut short before and after each step of each verb, by SIGKILL, by a reboot or by a loss of power; the
next engine puts the world right.

What the crash tables of engine/lifecycle promise: the job is in a state that is named there, the invariants hold, the
verb called again succeeds, what was durable is there, and nothing is left at the end. The steps are found by playing
each verb once; one that nothing here reaches fails the tests."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from plays import DOWN, Cut, called, chosen, discover, disk_of, mount, play, reboot, stage, sweep
from scenes import SCENES, Scene
from sources import steps_of_the_source
from worlds import REBUILDING

from engine import Engine

__all__ = ["stage"]  # a fixture

pytestmark = pytest.mark.root

SAMPLE = 10
"""of the places of a scene one in so many is swept in a default run, for each way to cut it short"""

REACHED: dict[str, list[str]] = {}
"""scene -> places, as far as they were found out in this run"""


def places_of(tree: Path, stage: Path, name: str) -> list[str]:
    if name not in REACHED:
        REACHED[name] = discover(tree, stage, SCENES[name])
    return REACHED[name]


def test_every_step_is_reached(small_tree: Path, stage: Path) -> None:
    places = {place for name in SCENES for place in places_of(small_tree, stage, name)}
    assert {place.partition(":")[0] for place in places} == steps_of_the_source() - set(REBUILDING)


# ways to be cut short


def nothing_more(_: Engine) -> str | None:
    """The engine alone was killed."""
    return None


SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
"""EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32), and EXT4_GOING_FLAGS_NOLOGFLUSH of fs/ext4/ext4.h"""


def power_cut(engine: Engine) -> str:
    """A reboot, after which the disk has only what had been flushed to it."""
    path = disk_of(engine)
    fd = os.open(path / "mount", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)
    reboot(engine)
    subprocess.run(["umount", path / "mount"], check=True)
    # What the kernel still writes for the old one, until no mount namespace has it, must not get into the new one.
    subprocess.run(["cp", "--sparse=always", path / "disk", path / "after"], check=True)
    (path / "after").rename(path / "disk")
    mount(path)
    return DOWN


ENDS: dict[str, Callable[[Engine], str | None]] = {"kill": nothing_more, "reboot": reboot, "power": power_cut}


def cut(place: str, end: str) -> Cut:
    def act(engine: Engine, scene: Scene) -> str | None:
        assert called(engine, scene, fault=place).returncode == -signal.SIGKILL, "was not reached"
        return ENDS[end](engine)

    return act


def swept(tree: Path, stage: Path, name: str, places: Callable[[str], list[str]]) -> None:
    """``places``: of an end."""
    cases = {f"{end} {place}": (place, end) for end in ENDS for place in places(end)}
    sweep(cases, lambda case: play(tree, stage, SCENES[name], cut(*cases[case])))


@pytest.mark.parametrize("name", SCENES)
def test_a_verb_that_is_cut_short_loses_nothing(small_tree: Path, stage: Path, name: str) -> None:
    found = places_of(small_tree, stage, name)
    swept(small_tree, stage, name, lambda end: chosen(f"{name} {end}", found, one_in=SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_a_verb_that_is_cut_short_anywhere_loses_nothing(small_tree: Path, stage: Path, name: str) -> None:
    found = places_of(small_tree, stage, name)
    swept(small_tree, stage, name, lambda _: found)
