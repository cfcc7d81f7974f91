"""What a host holds of serac's making, counted from outside: a root test must leave it as it was.

    before = leftovers.count()
    ...
    assert not leftovers.difference(before, leftovers.settled(before))

Nothing here asks serac: it is all read from /proc, /sys and the tools of the kernel's own subsystems.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

Counts = Mapping[str, Mapping[str, int]]
"""kind of thing -> what there is of it and how often"""

OURS = re.compile(r"serac|criu")


def count() -> Counts:
    return {
        "mounts": Counter(mounts()),
        "cgroups": Counter(cgroups()),
        "network namespaces": Counter(names("/run/netns")),
        "network interfaces": Counter(names("/sys/class/net")),
        "nft tables": Counter(nft_tables()),
        "loop devices": Counter(loop_devices()),
        "run directories": Counter(run_directories()),
        **count_own(),
    }


def count_own() -> Counts:
    """What needs no root to be counted: most of it is this process's own."""
    return {
        "processes": Counter(processes()),
        "descriptors of this process": Counter(descriptors()),
        "threads of this process": Counter(thread.name for thread in threading.enumerate()),
    }


def settled(before: Counts) -> Counts:
    """Count again. The kernel takes a dead network namespace apart in a worker, which may take its time; and the first
    process of one that has nobody any more ends a moment later."""
    begun = time.monotonic()
    while names("/sys/class/net") != sorted(before["network interfaces"]) and time.monotonic() < begun + 30:
        time.sleep(0.02)
    while Counter(processes()) - Counter(before["processes"]) and time.monotonic() < begun + 2:
        time.sleep(0.02)
    return count()


def difference(before: Counts, after: Counts) -> list[str]:
    """One line for each thing that is there on one side only."""
    lines = []
    for kind in before:
        was, now = Counter(before[kind]), Counter(after[kind])
        lines += [f"left behind in {kind}: {thing}" for thing in (now - was).elements()]
        lines += [f"gone from {kind}: {thing}" for thing in (was - now).elements()]
    return lines


def mounts() -> Iterator[str]:
    """TARGET TYPE SOURCE SUBTREE of each line of this process's mount table (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, target = fields.split()[3:5]
        kind, source = rest.split()[:2]
        yield f"{target} {kind} {source} {root}"


def cgroups() -> Iterator[str]:
    """Every control group below one of that name, in v2 and in each v1 hierarchy."""
    for mount in mounts():
        target, kind = mount.split()[:2]
        if kind in ("cgroup", "cgroup2"):
            for directory, _, _ in os.walk(target):
                if OURS.search(directory.removeprefix(target)):
                    yield directory


def processes() -> Iterator[str]:
    """Processes in a control group of serac's, running a program of its or CRIU, and children of this process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It may end while it is looked at.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield from described(entry)


def described(process: Path) -> Iterator[str]:
    name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    child = int(parent) == os.getpid()
    # The zombie of a job's init waits for the host's init, which is no matter of serac's.
    ours = state != "Z" and (OURS.search((process / "cgroup").read_text()) or re.match(r"serac-|criu", name))
    if child or ours:
        yield f"{process.name} {name}" + (" (zombie)" if state == "Z" else "")


def names(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def nft_tables() -> list[str]:
    command = ["nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def loop_devices() -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        yield f"{backing.parts[3]} {backing.read_text().strip()}"


def run_directories() -> Iterator[str]:
    """Without what criu found out about the kernel, which the first dump of a root leaves there for the next, and what
    is in a base: nobody can change that, and its mount is counted."""
    bases = {target for target, kind, *_ in map(str.split, mounts()) if kind == "erofs"}
    for directory, folders, files in os.walk("/run/serac"):
        found = folders + [name for name in files if not name.startswith("criu-")]
        yield from (os.path.join(directory, name) for name in found)
        folders[:] = [name for name in folders if os.path.join(directory, name) not in bases]


def descriptors() -> Iterator[str]:
    """What each descriptor is open on; of the unnamed ones the kind alone."""
    for name in os.listdir("/proc/self/fd"):
        # The descriptor by which the directory itself is listed is gone by now.
        with contextlib.suppress(FileNotFoundError):
            yield re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{name}"))
