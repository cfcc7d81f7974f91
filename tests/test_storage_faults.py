"""Disks that are full, that fail, or that can't be written: at every write of every verb. What was there stays, a job
that runs runs on, the error is clear; when the disk is well again the verb succeeds.

A call of the system fails by strace(1), which answers it in the kernel's stead; full disks and lost writes are real."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import invariants
import pytest
from plays import (
    Cut,
    call_once,
    called,
    chosen,
    disk_of,
    disk_of_its_own,
    kept_by_an_ended,
    mount,
    play,
    prepare,
    reboot,
    stage,
    sweep,
)
from roots import configure, empty, inside, shell, wait_for
from scenes import LIVES, SCENES, Scene, job

from engine import Engine, JobState, store
from engine.base import DirSource
from engine.errors import SeracError
from engine.model import Mode

__all__ = ["stage"]  # a fixture

pytestmark = pytest.mark.root

BLOCK = 4096
LEAVES = (*range(12), 14, 17, 20, 24, 30, 37, 46, 58, 73, 100, 150, 250, 400, 700, 1200, 2000, 4100, 8000)
"""blocks that are left of a disk; a restore wants 4096"""
CALLS = (
    "chmod,chown,fallocate,fchmod,fchmodat,fchown,fdatasync,fsetxattr,fsync,ftruncate,link,linkat,"
    "lsetxattr,mkdir,mkdirat,pwrite64,rename,renameat,rmdir,sendfile,setxattr,syncfs,unlink,unlinkat,utimensat,"
    "write"
)
FLUSHES = ("fdatasync", "fsync", "syncfs")
COUNTED: dict[str, list[str]] = {}
"""scene -> its calls, as far as they were counted in this run: ``fsync:2`` is the second fsync(2)"""
HIT: Counter[str] = Counter()
"""calls of verbs that failed because they were told to, in this run"""
FULL_SAMPLE, FAILING_SAMPLE = 13, 60
"""of the cases of a scene one in so many is played in a default run"""


# full


def full(blocks: int) -> Cut:
    """A disk that has so many blocks to spare while the verb is called."""

    def act(engine: Engine, scene: Scene) -> str | None:
        with filled(disk_of(engine) / "mount", blocks):
            done = called(engine, scene)
        return done.stdout if done.returncode else None

    return act


@contextlib.contextmanager
def filled(mount: Path, blocks: int) -> Iterator[None]:
    filler = mount / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while (left := os.statvfs(mount).f_bavail - blocks) > 0:
                end, size = os.fstat(file.fileno()).st_size, (left + 1) // 2 * BLOCK
                os.posix_fallocate(file.fileno(), end, size)
        yield
    finally:
        filler.unlink()


def on_a_full_disk(tree: Path, stage: Path, name: str, blocks: int) -> bool:
    """Whether there was room enough."""
    said = play(tree, stage, SCENES[name], full(blocks))
    assert said is None or said.startswith("NoSpace") or "MiB of disk are free" in said, said
    return said is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_a_disk_that_is_full_at_any_write(small_tree: Path, stage: Path, name: str) -> None:
    enough = []

    def one(blocks: str) -> None:
        if len(enough) < 3:  # what is enough depends on what SQLite has to write by chance
            enough.extend([blocks] * on_a_full_disk(small_tree, stage, name, int(blocks)))

    sweep(map(str, LEAVES), one)
    assert enough


# failing


def failing(call: str, number: int) -> Cut:
    """The call of the engine's that has this number fails."""

    def act(engine: Engine, scene: Scene) -> str | None:
        log = Path(os.environ["WORK"], "strace")
        inject = f"inject={call}:error=EIO:when={number}"
        done = called(engine, scene, around=("strace", "-qq", "-e", "signal=none", "-o", os.fspath(log), "-e", inject))
        hit = "(INJECTED)" in log.read_text()
        HIT[scene.call] += hit
        if hit and done.returncode and call in FLUSHES and scene.call.startswith("engine.pause"):
            assert engine._root.catalog.job("a").state != "paused", "what isn't on the device isn't paused"
        if hit and call == "syncfs":
            assert done.returncode, "a flush failed, and nobody was told"
        if hit and call == "unlink":
            drop_pid_files(engine)
        return done.stdout if done.returncode else None

    return act


def drop_pid_files(engine: Engine) -> None:
    """One that could not be removed goes with its job, and means nothing: no criu has its lock."""
    for file in engine.config.run.glob("jobs/*/criu.pid"):
        with open(file, "rb") as held:
            store.flock(held.fileno(), fcntl.LOCK_EX, file, patience=0.0)
        file.unlink()


def calls_of(tree: Path, stage: Path, name: str) -> list[str]:
    """Every call of a scene that may fail."""
    if name not in COUNTED:
        with disk_of_its_own(tree) as engine:
            prepare(engine, SCENES[name], stage)
            engine.close()
            log = stage / "strace"
            around = ("strace", "-qq", "-e", "signal=none", "-o", os.fspath(log), "-e", f"trace={CALLS}")
            assert called(engine, SCENES[name], around=around).returncode == 0
            counts = Counter(re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE))
        COUNTED[name] = [f"{call}:{number}" for call in sorted(counts) for number in range(1, counts[call] + 1)]
    return COUNTED[name]


def on_a_failing_disk(tree: Path, stage: Path, name: str, place: str) -> None:
    call, number = place.split(":")
    said = play(tree, stage, SCENES[name], failing(call, int(number)))
    assert said is None or re.match(r"\w+ .{5}", said)


@pytest.mark.parametrize("name", SCENES)
def test_a_disk_that_is_full_or_fails(small_tree: Path, stage: Path, name: str) -> None:
    full = chosen(f"full {name}", [str(blocks) for blocks in LEAVES[:FULL_SAMPLE]], one_in=FULL_SAMPLE)
    sweep(full, lambda blocks: on_a_full_disk(small_tree, stage, name, int(blocks)))
    failing = chosen(f"failing {name}", calls_of(small_tree, stage, name), one_in=FAILING_SAMPLE)
    sweep(failing, lambda place: on_a_failing_disk(small_tree, stage, name, place))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_a_disk_that_fails_at_any_call(small_tree: Path, stage: Path, name: str) -> None:
    places, before = calls_of(small_tree, stage, name), HIT[SCENES[name].call]
    sweep(places, lambda place: on_a_failing_disk(small_tree, stage, name, place))
    assert HIT[SCENES[name].call] - before > 0.8 * len(places), "how often SQLite writes varies, but not as much"


# writes that are lost

LOST = "has lost what was written"


@contextlib.contextmanager
def losing_disk(tree: Path, path: Path) -> Iterator[Engine]:
    """An engine on a disk that can lose blocks: its file lies in a memory that has no room for one block more."""
    memory, mount = path / "memory", path / "mount"
    for directory in (memory, mount):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={72 << 20}", "none", memory], check=True)
    try:
        with open(memory / "disk", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 64 << 20)
        subprocess.run(
            ["mkfs.ext4", "-q", "-b", str(BLOCK), "-O", "^has_journal", "-E", "nodiscard", memory / "disk"], check=True
        )
        subprocess.run(["mount", "-o", "loop", memory / "disk", mount], check=True)
        try:
            configure(mount / "root")
            with Engine(mount / "root", timeout=30) as engine:
                try:
                    engine.base_build("small", DirSource(path=tree))
                    yield engine
                    empty(engine)
                except BaseException:
                    reboot(engine)
                    raise
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["umount", memory], check=True)


def lose(memory: Path, file: Path) -> None:
    """The blocks of a file can't be written any more."""
    found = subprocess.run(["filefrag", "-e", "-b4096", file], check=True, capture_output=True, text=True).stdout
    extents = re.findall(r"^ +\d+: +\d+\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):", found, re.MULTILINE)
    assert extents
    for first, length in extents:
        where = ["--offset", str(int(first) * BLOCK), "--length", str(int(length) * BLOCK)]
        subprocess.run(["fallocate", "--punch-hole", *where, memory / "disk"], check=True)
    with open(memory / "pad", "wb", buffering=0) as pad, contextlib.suppress(OSError):
        while pad.write(b"x" * BLOCK):
            pass


@pytest.mark.parametrize("mode", ["filesystem", "process"])
def test_what_a_disk_has_lost_is_never_paused(small_tree: Path, tmp_path: Path, mode: Mode) -> None:
    """The disk says so once; a second pause, and that of another job, would be told that all is well."""
    with losing_disk(small_tree, tmp_path) as engine:
        for name in ("a", "b"):
            engine.run(shell("head -c 1000000 /dev/zero > /big; sync; touch /there; sleep 1000", name=name))
            inside(engine, name, "until test -e /there; do sleep 0.02; done")
        os.sync()
        upper = engine.config.root / "layers" / str(engine.job("a").upper) / "upper"
        lose(tmp_path / "memory", upper / "big")
        inside(engine, "a", "head -c 1000000 /dev/urandom | dd of=/big conv=notrunc bs=4096 2>/dev/null")
        for name, said in (("b", "flush layer"), ("a", LOST), ("a", LOST)):
            with pytest.raises(SeracError, match=said):
                engine.pause(name, mode=mode)
            assert engine.job(name).state is JobState.RUNNING
            inside(engine, name, "true")
        assert engine.snapshots() == []
        (tmp_path / "memory/pad").unlink()
        with pytest.raises(SeracError, match=LOST):
            engine.pause("a", mode=mode)
        engine.run(shell("sleep 1000", name="c"))
        assert engine.pause("c", mode=mode).mode == mode


# a disk that can't be written any more

VERBS = (
    "engine.run(JobSpec(base='small', name='c'))",
    "engine.pause('a', mode='filesystem')",
    "engine.pause('a', mode='process')",
    "engine.snapshot_take('a')",
    "engine.freeze('a')",
    "engine.resume('b')",
    "engine.resume('b', mode='filesystem')",
    "engine.fork(engine.job('b').snapshot, name='c')",
    "engine.snapshot_pin(engine.job('b').snapshot)",
    "engine.snapshot_archive(engine.job('b').snapshot)",
    "engine.base_build('other', DirSource(path=Path(os.environ['TREE'])))",
    "engine.remove('b')",
)


def turn_read_only(engine: Engine) -> None:
    """As after an error that the kernel met."""
    path = disk_of(engine)
    subprocess.run(["mount", "-o", "remount,errors=remount-ro", path / "mount"], check=True)
    listed = ["losetup", "--noheadings", "--output", "NAME", "--associated", path / "disk"]
    device = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")


def test_a_disk_that_has_become_read_only(small_tree: Path, stage: Path) -> None:
    stage.mkdir()
    with disk_of_its_own(small_tree) as engine:
        engine.run(shell(LIVES, name="b"))
        wait_for(lambda: inside(engine, "b", "cat /sum 2>/dev/null"))
        snapshot = engine.snapshot(engine.pause("b", mode="process").snapshot)
        job(engine)
        running = engine.job("a").id
        turn_read_only(engine)
        for call in VERBS:
            for who in ("the engine", "another"):
                with pytest.raises(SeracError):
                    call_once(engine, call) if who == "the engine" else by_another(engine, call)
                assert events(engine, running) == "populated 1\nfrozen 0\n", (call, who)
        engine.close()
        reboot(engine)
        subprocess.run(["umount", disk_of(engine) / "mount"], check=True)
        checked = subprocess.run(["e2fsck", "-fy", disk_of(engine) / "disk"], check=False, capture_output=True)
        assert checked.returncode <= 1  # errors were corrected
        mount(disk_of(engine))
        with Engine(engine.config.root, timeout=30) as after:
            assert after.job("a").state is JobState.FAILED
            assert after.snapshots() == [snapshot]
            invariants.hold(after)
            kept_by_an_ended(after)
            assert after.resume("b").mode == "process"
            assert inside(after, "b", "md5sum -c /sum; wc -l < /lives") == "/kept: OK\n1\n"


def by_another(engine: Engine, call: str) -> None:
    with Engine(engine.config.root, timeout=30) as other:
        call_once(other, call)


def events(engine: Engine, job_id: str) -> str:
    """Of a job's control group."""
    return next(
        Path(engine._root.host.unified, "serac", engine.config.name).glob(f"{job_id}/cgroup.events")
    ).read_text()
