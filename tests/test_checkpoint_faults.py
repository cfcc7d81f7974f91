"""What goes wrong around a checkpoint: the engine is killed, a step fails, the disk is full, an image is spoilt. A dump
that fails leaves the job running with all that it had; a restore that fails leaves the snapshot.

The job is a witness (tests/witness.py): it notices when a timer, a connection or memory of its own is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from remains import interrupted, killed, no_processes, nothing_of_a_dump, only_its_own
from roots import configure, empty, inside, output, shell, until, wait_for
from witness import small_tree, witness

from engine import Engine, JobState, Limits, checkpoint
from engine.base import DirSource
from engine.errors import CannotRestore, Damaged, NoSpace, SeracError
from engine.lifecycle import flush, pause, restore, resume

__all__ = ["small_tree"]  # a fixture

pytestmark = pytest.mark.root

PAUSE = ("freeze", "look", "preflight", "dump", "seal", "flush", "commit", "kill", "release")
RESUME = ("plan", "mount", "restore", "commit", "go")
FORK = ("prepare", "mount", "restore", "commit", "go")


def places(verb: str, names: tuple[str, ...]) -> list[str]:
    return [f"{verb}.{name}:{when}" for name in names for when in ("before", "after")]


def until_place(verb: str, names: tuple[str, ...], last: str) -> tuple[list[str], list[str]]:
    """The places of a verb before and after its commit."""
    found = places(verb, names)
    at = found.index(last)
    return found[: at + 1], found[at + 1 :]


BEFORE_PAUSED, AFTER_PAUSED = until_place("pause", PAUSE, "pause.commit:before")
BEFORE_RESUMED, AFTER_RESUMED = until_place("resume", RESUME, "resume.commit:before")
BEFORE_FORKED, AFTER_FORKED = until_place("run", FORK, "run.commit:before")


# the engine is killed


@pytest.mark.parametrize("place", BEFORE_PAUSED)
def test_an_engine_that_dies_in_a_pause_leaves_the_job_running(engine: Engine, place: str) -> None:
    one = witness(engine)
    killed(engine, "engine.pause('a', mode='process')", place)
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.RUNNING
        one.seen_by(other).goes_on()
        nothing_of_a_dump(other, "a")
        only_its_own(other, "a")
        assert other.snapshots() == []
        other.pause("a", mode="process")
        other.resume("a", mode="process")
        one.seen_by(other).goes_on()


@pytest.mark.parametrize("place", AFTER_PAUSED)
def test_an_engine_that_dies_at_the_end_of_a_pause_leaves_it_paused(engine: Engine, place: str) -> None:
    one = witness(engine)
    killed(engine, "engine.pause('a', mode='process')", place)
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.PAUSED
        no_processes(other)
        assert not (other.config.run / "jobs" / other.job("a").id).exists()
        only_its_own(other, "a")
        assert other.resume("a", mode="process").strategy == "reuse"
        one.seen_by(other).goes_on()


@pytest.mark.parametrize("place", BEFORE_RESUMED)
def test_an_engine_that_dies_in_a_resume_leaves_it_paused(engine: Engine, place: str) -> None:
    one = witness(engine)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    killed(engine, "engine.resume('a')", place)
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.PAUSED
        assert other.snapshots() == [before]
        no_processes(other)
        assert not (other.config.run / "jobs" / other.job("a").id).exists()
        only_its_own(other, "a")
        other.resume("a", mode="process")
        one.seen_by(other).goes_on()


@pytest.mark.parametrize("place", AFTER_RESUMED)
def test_an_engine_that_dies_at_the_end_of_a_resume_leaves_it_running(engine: Engine, place: str) -> None:
    one = witness(engine)
    engine.pause("a", mode="process")
    killed(engine, "engine.resume('a')", place)
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.RUNNING
        one.seen_by(other).goes_on()
        nothing_of_a_dump(other, "a")
        only_its_own(other, "a")
        other.pause("a", mode="process")
        other.resume("a", mode="process")
        one.seen_by(other).goes_on()


@pytest.mark.parametrize("place", BEFORE_FORKED)
def test_an_engine_that_dies_in_a_fork_leaves_the_snapshot(engine: Engine, place: str) -> None:
    one = witness(engine)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    killed(engine, f"engine.fork('{before.id}', name='b')", place)
    with Engine(engine.config.root, timeout=30) as other:
        assert other.snapshots() == [before]
        only_its_own(other, "a")
        no_processes(other)
        other.fork(before.id, name="b", mode="process")
        one.seen_by(other).copied("b").goes_on()


@pytest.mark.parametrize("place", AFTER_FORKED)
def test_an_engine_that_dies_at_the_end_of_a_fork_leaves_it_running(engine: Engine, place: str) -> None:
    one = witness(engine)
    snapshot = engine.pause("a", mode="process").snapshot
    killed(engine, f"engine.fork('{snapshot}', name='b')", place)
    with Engine(engine.config.root, timeout=30) as other:
        only_its_own(other, "a", "b")
        copy = one.seen_by(other).copied("b")
        copy.goes_on()
        nothing_of_a_dump(other, "b")
        other.pause("b", mode="process")
        other.resume("b", mode="process")
        copy.goes_on()


# a verb is broken off


def test_a_pause_that_is_broken_off_leaves_the_processes_as_they_were(engine: Engine) -> None:
    one = witness(engine)
    for place in BEFORE_PAUSED:
        with interrupted(place):
            engine.pause("a", mode="process")
        assert engine.job("a").state is JobState.RUNNING, place
        one.goes_on()
        nothing_of_a_dump(engine, "a")
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    one.goes_on()


def test_a_pause_of_a_frozen_job_that_is_broken_off_leaves_it_frozen(engine: Engine) -> None:
    one = witness(engine)
    engine.freeze("a")
    for place in BEFORE_PAUSED:
        with interrupted(place):
            engine.pause("a", mode="process")
        assert engine.job("a").state is JobState.FROZEN, place
        one.stands_still()
    engine.thaw("a")
    one.goes_on()
    nothing_of_a_dump(engine, "a")


def test_what_breaks_off_after_the_commit_does_not_undo_a_pause(engine: Engine) -> None:
    one = witness(engine)
    for place in AFTER_PAUSED:
        with interrupted(place):
            engine.pause("a", mode="process")
        assert engine.job("a").state is JobState.PAUSED, place
        engine.resume("a", mode="process")
        one.goes_on()


@pytest.mark.parametrize("pinned", [False, True], ids=["reuse", "stack"])
def test_a_resume_that_is_broken_off_leaves_the_processes_for_the_next(engine: Engine, pinned: bool) -> None:
    one = witness(engine)
    before = engine.snapshot_pin(engine.pause("a", mode="process").snapshot, pinned=pinned)
    for place in BEFORE_RESUMED:
        with interrupted(place):
            engine.resume("a")
        assert engine.job("a").state is JobState.PAUSED, place
        assert engine.snapshots() == [before], place
        only_its_own(engine, "a")
    assert engine.resume("a", mode="process").strategy == ("stack" if pinned else "reuse")
    one.goes_on()


def test_a_resume_that_is_broken_off_after_its_commit_runs_on(engine: Engine) -> None:
    one = witness(engine)
    for place in AFTER_RESUMED:
        engine.pause("a", mode="process")
        with interrupted(place):
            engine.resume("a")
        assert engine.job("a").state is JobState.RUNNING, place
        one.goes_on()


def test_a_fork_that_is_broken_off_leaves_nothing(engine: Engine) -> None:
    one = witness(engine)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    for place in [*BEFORE_FORKED, "run.commit:after", "run.go:before"]:
        with interrupted(place):
            engine.fork(before.id, name="b")
        only_its_own(engine, "a")
        assert engine.snapshots() == [before], place
    engine.fork(before.id, name="b", mode="process")
    one.copied("b").goes_on()


@pytest.mark.parametrize(("module", "function"), [(flush, "through"), (pause, "_commit")])
def test_a_full_disk_at_the_end_of_a_dump(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise NoSpace("no room")

    one = witness(engine)
    with monkeypatch.context() as patched:
        patched.setattr(module, function, full)
        for mode in ("process", "auto"):
            with pytest.raises(NoSpace):
                engine.pause("a", mode=mode)  # type: ignore[arg-type]
    one.goes_on()
    nothing_of_a_dump(engine, "a")


# the image is spoilt


def spoil_pages(images: Path) -> None:
    for pages in images.glob("pages-*.img"):
        os.truncate(pages, pages.stat().st_size // 2)


SPOILT: dict[str, Callable[[Path], None]] = {
    "no inventory": lambda images: (images / "inventory.img").unlink(),
    "half the pages": spoil_pages,
    "files of nonsense": lambda images: (images / "files.img").write_bytes(os.urandom(4096)),
    "empty process tree": lambda images: os.truncate(images / "pstree.img", 0),
    "a core cut off": lambda images: os.truncate(images / "core-1.img", 20),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("verb", ["resume", "fork"])
def test_a_spoilt_image_leaves_the_snapshot(engine: Engine, spoil: Callable[[Path], None], verb: str) -> None:
    witness(engine, children=1)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    spoil(engine.config.root / "layers" / before.layers[-1] / "image")
    for _ in range(2):
        with pytest.raises((CannotRestore, Damaged)) as caught:
            engine.resume("a") if verb == "resume" else engine.fork(before.id, name="b")
        assert caught.value.hint
        assert engine.job("a").state is JobState.PAUSED
        assert engine.snapshots() == [before]
        only_its_own(engine, "a")
        no_processes(engine)
    assert engine.resume("a", mode="filesystem").mode == "filesystem"
    wait_for(lambda: "report" in inside(engine, "a", "ls /"))


def test_what_was_written_in_a_life_that_came_to_nothing_is_taken_back(engine: Engine) -> None:
    """Its init knows where its log ended, and goes on there."""
    engine.run(shell("echo begun; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done", name="a"))
    until(engine, "a", b"line 3\n")
    engine.pause("a", mode="process")
    log = engine._root.io(engine.job("a").id) / "0.log"
    with log.open("ab") as file:
        file.write(b"of a life that was taken back")
    engine.resume("a", mode="process")
    until(engine, "a", b"line 9\n")
    assert "taken back" not in output(engine, "a", live=False)


def test_processes_that_would_be_of_the_host(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an image that was forged might have it: criu makes the user namespace that the image says."""
    witness(engine, children=1)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    monkeypatch.setattr("engine.kernel.process.id_map", lambda _pid: ((0, 0, 1 << 32),))
    with pytest.raises(Damaged, match="not be in the user namespace of a job"):
        engine.resume("a")
    assert engine.job("a").state is JobState.PAUSED
    assert engine.snapshots() == [before]
    no_processes(engine)
    monkeypatch.undo()
    engine.resume("a", mode="process")


def test_an_image_that_is_gone(engine: Engine) -> None:
    witness(engine, children=0)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    images = engine.config.root / "layers" / before.layers[-1] / "image"
    images.rename(images.with_name("elsewhere"))
    for mode in ("auto", "process"):
        with pytest.raises(CannotRestore) as caught:
            engine.resume("a", mode=mode)  # type: ignore[arg-type]
        assert caught.value.reason == "no-image"
        assert engine.job("a").state is JobState.PAUSED
        assert engine.snapshots() == [before]
    images.with_name("elsewhere").rename(images)
    engine.resume("a", mode="process")


# the disk is full


@pytest.fixture
def small_disk(root_directory: Path) -> Iterator[Path]:
    """A filesystem of 64 megabytes with nothing set aside for root."""
    image, mount = root_directory.with_name("disk"), root_directory.with_name("mount")
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_dump_that_is_larger_than_the_disk(small_disk: Path, small_tree: Path) -> None:
    configure(small_disk / "root")
    with Engine(small_disk / "root", timeout=30) as engine:
        try:
            engine.base_build("small", DirSource(path=small_tree))
            one = witness(engine, children=4, kib=20000)
            for mode in ("process", "auto"):
                with pytest.raises(NoSpace):
                    engine.pause("a", mode=mode)  # type: ignore[arg-type]
                assert engine.job("a").state is JobState.RUNNING
                one.goes_on()
                nothing_of_a_dump(engine, "a")
            assert engine.pause("a", mode="filesystem").mode == "filesystem"
        finally:
            empty(engine)


def test_a_restore_that_has_too_little_memory(engine: Engine) -> None:
    """The kernel kills in the job's control group, where criu is too."""
    one = witness(engine, children=2, kib=20000, limits=Limits(memory=200 << 20))
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    job = engine.job("a")
    for memory in (8 << 20, 30 << 20):
        narrow = msgspec.structs.replace(job.spec, limits=Limits(memory=memory))
        engine._root.put(msgspec.structs.replace(job, spec=narrow))
        with pytest.raises(SeracError):
            engine.resume("a", mode="process", memory="eager")
        assert engine.snapshots() == [before]
        assert engine.job("a").spec == job.spec
        no_processes(engine)
        only_its_own(engine, "a")
    engine.resume("a", mode="process")
    one.goes_on()


def test_a_restore_whose_network_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NoSpace("no room")

    one = witness(engine)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    for owner, name in ((restore, "_network"), (restore, "_fill_shm"), (resume, "_commit")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(NoSpace):
                engine.resume("a")
        assert engine.snapshots() == [before]
        no_processes(engine)
        only_its_own(engine, "a")
    engine.resume("a", mode="process")
    one.goes_on()


def test_a_dump_whose_description_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    one = witness(engine)
    monkeypatch.setattr(checkpoint, "host_facts", fail)
    for mode in ("process", "auto"):
        with pytest.raises(SeracError, match="Input/output error"):
            engine.pause("a", mode=mode)  # type: ignore[arg-type]
        one.goes_on()
        nothing_of_a_dump(engine, "a")
