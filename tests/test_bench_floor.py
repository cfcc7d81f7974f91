"""The floor gives its job the world that serac gives one, so that the two are compared for the same work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import place, plan
from bench.floor import Floor
from bench.serac import Subject

from engine import cgroup

pytestmark = pytest.mark.root

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
STATUS = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


class World:
    """What a process has, read from the host's /proc."""

    def __init__(self, pid: int) -> None:
        proc = Path("/proc", str(pid))
        words = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        self.status = {name: words[name].split() for name in (*STATUS, *CAPABILITIES)}
        self.mounts = sorted(self._mounts(proc))
        self.shared = {
            name for name in NAMESPACES if (proc / "ns" / name).readlink() == Path("/proc/self/ns", name).readlink()
        }
        self.ids = (proc / "uid_map").read_text().split()
        self.limits = (proc / "limits").read_text()
        self.interfaces = (proc / "net/fib_trie").read_text()
        self.numbers = words["NSpid"].split()[1:]

    @staticmethod
    def _mounts(proc: Path) -> Iterator[tuple[str, str, list[str]]]:
        """Target, type of filesystem, options of the mount."""
        for line in (proc / "mountinfo").read_text().splitlines():
            fields, _, kind = line.partition(" - ")
            words = fields.split()
            yield words[4], kind.split()[0], sorted(words[5].split(","))


def test_a_job_of_the_floor_has_the_world_of_one_of_serac() -> None:
    with place.made(plan.QUICK) as where, where.engine() as engine:
        subject = Subject(engine, "beside")
        own = [World(pid) for pid in sorted(cgroup.pids(engine._root.group_of(engine.job(subject.id))))]
        subject.pause("filesystem")
        with Floor(where.floor, where.directory, subject) as floor:
            floor.run()
            group = cgroup.Group(path=str(floor.group))
            theirs = [World(pid) for pid in sorted(cgroup.pids(group))]
            floor.stop(dump=False)
    assert [world.numbers for world in theirs] == [["1"], ["2"]]
    for one, other in zip(own[:2], theirs, strict=True):
        assert one.status == other.status
        assert one.shared == other.shared
        assert one.ids == other.ids
        assert one.limits == other.limits
        assert one.interfaces == other.interfaces
        assert one.mounts == other.mounts
