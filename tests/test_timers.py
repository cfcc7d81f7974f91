"""Timers in an image that must go on: files.img written by hand, as criu's protobuf has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint import keep_running, rpc

HEAD = bytes.fromhex("19435654 38313056")
"""IMG_COMMON_MAGIC and FILES_MAGIC of criu's magic.h"""

TIMERFD = 17


def timer(
    *, ticks: int, value: tuple[int, int], every: tuple[int, int], owner: bytes = b"\x08\1\x10\2\x18\3\x20\4"
) -> bytes:
    """A timerfd_entry."""
    fields: list[int | bytes] = [300, 0o2000000, owner, 1, ticks, 0, *value, *every]
    return b"".join(rpc._field(number, field) for number, field in enumerate(fields, 1))


def image(directory: Path, *timers: bytes) -> Path:
    """Other files are before, between and after the timers."""
    regular = rpc._field(1, 1) + rpc._field(2, 7) + rpc._field(3, rpc._field(6, b"/a" * 100))
    entries = [regular]
    for place, entry in enumerate(timers):
        entries += [rpc._field(1, TIMERFD) + rpc._field(2, place) + rpc._field(12, entry), regular]
    content = HEAD + b"".join(len(entry).to_bytes(4, "little") + entry for entry in entries)
    (directory / "files.img").write_bytes(content)
    return directory


RUNNING = timer(ticks=2, value=(0, 5000), every=(0, 10_000_000))
DISARMED = timer(ticks=0, value=(0, 0), every=(1, 0))
ONCE = timer(ticks=1, value=(0, 0), every=(0, 0))
STOPPED = [
    timer(ticks=1, value=(0, 0), every=(0, 10_000_000)),
    timer(ticks=200, value=(0, 0), every=(3, 0), owner=b""),
]


def test_what_has_run_out_and_was_not_read_runs_out_again_at_once(tmp_path: Path) -> None:
    goes_on = [
        timer(ticks=1, value=(0, 1), every=(0, 10_000_000)),
        timer(ticks=200, value=(0, 1), every=(3, 0), owner=b""),
    ]
    wanted = (image(tmp_path, RUNNING, *goes_on, DISARMED, ONCE) / "files.img").read_bytes()
    assert keep_running(image(tmp_path, RUNNING, *STOPPED, DISARMED, ONCE)) == 2
    assert (tmp_path / "files.img").read_bytes() == wanted


@pytest.mark.parametrize("timers", [(), (RUNNING,), (DISARMED, ONCE)], ids=["none", "running", "not to run"])
def test_other_timers_stay_as_they_are(tmp_path: Path, timers: tuple[bytes, ...]) -> None:
    before = (image(tmp_path, *timers) / "files.img").read_bytes()
    assert keep_running(tmp_path) == 0
    assert (tmp_path / "files.img").read_bytes() == before


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        keep_running(tmp_path)
