"""The count of what is left on a host sees what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest


def test_descriptors_and_children_of_this_process_are_seen() -> None:
    before = leftovers.count_own()
    read, write = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = leftovers.difference(before, leftovers.count_own())
    child.communicate()
    os.close(read)
    os.close(write)
    assert [line for line in found if line.endswith(": pipe")] == [
        "left behind in descriptors of this process: pipe"
    ] * 3
    assert any(f": {child.pid} " in line for line in found)
    left = leftovers.difference(before, leftovers.count_own())
    # Programs of other tests come and go beside this one.
    assert [line for line in left if " processes: " not in line or f" {child.pid} " in line] == []


def test_what_is_gone_is_told_too() -> None:
    assert leftovers.difference({"mounts": {"/a": 1}}, {"mounts": {}}) == ["gone from mounts: /a"]


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup v2 directory of a name that is counted."""
    target = next(mount for mount in leftovers.mounts() if " cgroup2 " in mount).split()[0]
    group = Path(target, "serac-test")
    group.mkdir()
    yield group
    group.rmdir()


@pytest.mark.root
def test_a_group_and_a_process_in_it_are_seen(group: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        (group / "cgroup.procs").write_text(str(sleeper.pid))
        found = leftovers.count()
        sleeper.kill()
    assert os.fspath(group) in found["cgroups"]
    assert f"{sleeper.pid} sleep" in found["processes"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "make", "undo"),
    [
        ("mounts", "mount -t tmpfs none {dir}", "umount {dir}"),
        ("network namespaces", "install -D /dev/null /run/netns/serac-test", "rm /run/netns/serac-test"),
        ("network interfaces", "ip link add serac-test type veth peer serac-test2", "ip link delete serac-test"),
        ("run directories", "install -D /dev/null /run/serac/test/left", "rm -r /run/serac/test"),
        ("nft tables", "nft add table ip serac-test", "nft delete table ip serac-test"),
    ],
)
def test_what_a_job_may_leave_is_seen(tmp_path: Path, kind: str, make: str, undo: str) -> None:
    before = leftovers.count()
    run(make, tmp_path)
    found = leftovers.difference(before, leftovers.count())
    run(undo, tmp_path)
    assert [line for line in found if line.startswith(f"left behind in {kind}: ")]


def run(command: str, directory: Path) -> None:
    subprocess.run(command.format(dir=directory).split(), check=True)
