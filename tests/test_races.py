"""What two engines on one root do to each other in the moments where it hurts.

No luck is needed to meet such a moment: `meanwhile` lets the second engine act right before the first one's next call
of some function."""

from __future__ import annotations

import importlib
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from roots import inside, output, shell, until

from engine import Engine, JobSpec, JobState
from engine.base import DirSource
from engine.errors import Busy, InvalidInput, NoSpace, NotFound
from engine.model import SnapshotSource

pytestmark = pytest.mark.root


class Moment:
    """``came``: whether what was to happen in the middle did."""

    came = False


def meanwhile(monkeypatch: pytest.MonkeyPatch, place: str, act: Callable[[], object]) -> Moment:
    """Call ``act`` once: before the next call of the function ``place``, a dotted name."""
    module, _, name = place.rpartition(".")
    owner, moment = importlib.import_module(module), Moment()
    real = getattr(owner, name)

    def first(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(owner, name, real)
        act()
        moment.came = True
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, first)
    return moment


def by_another(engine: Engine, act: Callable[[Engine], object]) -> Callable[[], None]:
    """``act`` with an engine of its own on the same root."""

    def call() -> None:
        with Engine(engine.config.root, timeout=30) as other:
            act(other)

    return call


def refused(error: type[Exception], act: Callable[[Engine], object]) -> Callable[[Engine], None]:
    def call(other: Engine) -> None:
        with pytest.raises(error):
            act(other)

    return call


def paused(engine: Engine, script: str = "echo old > /f") -> str:
    """A job ``a``, paused; its snapshot."""
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", script)
    return engine.pause("a", mode="filesystem").snapshot


def names(directory: Path) -> list[str]:
    """Of what is in a directory; an engine that closes takes empty ones of the run directory away."""
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


# a snapshot whose layer is about to be written


@pytest.mark.parametrize(
    ("place", "error"),
    [("processes.bring_up", Busy), ("resume._start", NotFound)],
    ids=["resuming", "after the commit"],
)
def test_no_fork_of_a_layer_that_is_being_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    snapshot = paused(engine)
    fork = refused(error, lambda other: other.fork(snapshot, name="b"))
    moment = meanwhile(monkeypatch, f"engine.lifecycle.{place}", by_another(engine, fork))
    assert engine.resume("a").strategy == "reuse"
    assert moment.came
    assert [job.name for job in engine.jobs(ended=True)] == ["a"]
    assert names(engine.config.root / "layers") == [engine.job("a").upper]
    assert inside(engine, "a", "cat /f") == "old\n"


@pytest.mark.parametrize("again", [False, True], ids=["resumed", "resumed and paused again"])
def test_no_fork_of_a_snapshot_that_went_since_it_was_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    snapshot = paused(engine)

    def go_on(other: Engine) -> None:
        other.resume("a")
        if again:
            other.pause("a", mode="filesystem")

    moment = meanwhile(monkeypatch, "engine.lifecycle.run._make", by_another(engine, go_on))
    with pytest.raises(NotFound):
        engine.fork(snapshot, name="b")
    assert moment.came
    assert [job.name for job in engine.jobs(ended=True)] == ["a"]


def test_no_fork_of_a_snapshot_that_was_removed_since_it_was_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = paused(engine)
    moment = meanwhile(monkeypatch, "engine.lifecycle.run._make", by_another(engine, lambda other: other.remove("a")))
    with pytest.raises(NotFound):
        engine.fork(snapshot, name="b")
    assert moment.came
    for place in ("jobs", "layers", "tmp"):
        assert names(engine.config.root / place) == []


def test_a_fork_in_time_makes_the_resume_stack(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(engine)
    moment = meanwhile(
        monkeypatch,
        "engine.lifecycle.resume._prepare",
        by_another(engine, lambda other: other.fork(snapshot, name="b")),
    )
    assert engine.resume("a").strategy == "stack"
    assert moment.came
    inside(engine, "a", "echo new > /f")
    assert inside(engine, "b", "cat /f") == "old\n"


def test_no_pin_of_a_snapshot_that_is_being_resumed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(engine)
    pin = refused(Busy, lambda other: other.snapshot_pin(snapshot))
    moment = meanwhile(monkeypatch, "engine.lifecycle.processes.bring_up", by_another(engine, pin))
    assert engine.resume("a").strategy == "reuse"
    assert moment.came
    assert engine.snapshots() == []
    with pytest.raises(NotFound):
        engine.snapshot_pin(snapshot)
    second = engine.pause("a", mode="filesystem").snapshot
    assert [(entry.id, entry.pinned) for entry in engine.snapshots()] == [(second, False)]


def test_a_pin_in_time_makes_the_resume_stack(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(engine)
    moment = meanwhile(
        monkeypatch,
        "engine.lifecycle.resume._prepare",
        by_another(engine, lambda other: other.snapshot_pin(snapshot)),
    )
    assert engine.resume("a").strategy == "stack"
    assert moment.came
    assert engine.snapshot(snapshot).pinned


# reading what a job was paused to


class Reader(io.BytesIO):
    """Takes a copy, and does something once when the first bytes have come."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act: Callable[[], None] | None = act

    def write(self, data: object) -> int:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().write(data)  # type: ignore[arg-type]


FILL = "mkdir /d; head -c 8000000 /dev/zero | tr '\\0' o > /d/a; cp /d/a /d/b; echo old > /d/z"
SPOIL = "head -c 8000000 /dev/zero | tr '\\0' n > /d/a; echo new > /d/z; rm /d/b; sync"


def test_a_copy_shows_the_old_content_when_the_job_goes_on(engine: Engine) -> None:
    paused(engine, FILL)
    strategies = []

    def go_on(other: Engine) -> None:
        strategies.append(other.resume("a").strategy)
        inside(other, "a", SPOIL)

    reader = Reader(by_another(engine, go_on))
    engine.copy_out("a", "/d", reader)
    assert strategies == ["stack"]
    content = reader.getvalue()
    assert (content.count(b"o" * 8000000), content.count(b"old\n"), content.count(b"n" * 512)) == (2, 1, 0)
    assert inside(engine, "a", "cat /d/z; ls /d") == "new\na\nz\n"


def test_a_copy_is_whole_when_the_job_is_removed(engine: Engine) -> None:
    paused(engine, FILL)
    reader = Reader(by_another(engine, lambda other: other.remove("a")))
    engine.copy_out("a", "/d", reader)
    assert reader.getvalue().count(b"o" * 8000000) == 2
    assert engine.jobs(ended=True) == []
    for place in ("jobs", "layers", "tmp"):
        assert names(engine.config.root / place) == []


@pytest.mark.parametrize("removed", [False, True], ids=["resumed", "removed"])
def test_a_base_of_a_snapshot_has_the_old_content(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    snapshot = paused(engine, FILL)
    strategies = []

    def act(other: Engine) -> None:
        if removed:
            other.remove("a")
        else:
            strategies.append(other.resume("a").strategy)
            inside(other, "a", SPOIL)

    moment = meanwhile(monkeypatch, "engine.base.unpack_stream", by_another(engine, act))
    engine.base_build("warm", SnapshotSource(snapshot=snapshot))
    assert moment.came
    assert strategies == ([] if removed else ["stack"])
    engine.run(JobSpec(base="warm", name="b"))
    assert inside(engine, "b", "tr -d o < /d/a | wc -c; cmp /d/a /d/b; cat /d/z") == "0\nold\n"


# the run directory, which goes with the last who needs it


@pytest.mark.parametrize("place", ["processes.bring_up", "mounting.mounted", "processes._launch"])
def test_an_engine_that_closes_takes_nothing_from_one_that_begins(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    moment = meanwhile(monkeypatch, f"engine.lifecycle.{place}", by_another(engine, lambda other: other.jobs()))
    engine.run(JobSpec(base="small", name="a"))
    assert moment.came
    assert inside(engine, "a", "cat /src/lower") == "of the base\n"
    assert (engine.config.run / "jobs").stat().st_mode & 0o077 == 0
    assert (engine.config.run / "mounts").stat().st_mode & 0o077 == 0


# names


def test_no_job_is_called_like_an_id(engine: Engine) -> None:
    first = engine.run(JobSpec(base="small", name="a"))
    with pytest.raises(InvalidInput):
        engine.run(JobSpec(base="small", name=first.id))
    snapshot = engine.pause("a", mode="filesystem").snapshot
    with pytest.raises(InvalidInput):
        engine.fork(snapshot, name=first.id)
    assert engine.job(first.id).name == "a"


def test_a_removal_never_hits_the_next_job_of_that_name(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(JobSpec(base="small", name="a"))
    seconds = []

    def replace(other: Engine) -> None:
        other.remove("a", force=True)
        seconds.append(other.run(JobSpec(base="small", name="a")).id)

    moment = meanwhile(monkeypatch, "engine.store.locked", by_another(engine, replace))
    with pytest.raises(NotFound):
        engine.remove("a", force=True)
    assert moment.came
    assert [job.id for job in engine.jobs()] == seconds


def test_a_removal_by_a_name_that_is_gone_hits_no_id(engine: Engine) -> None:
    """Short names are beginnings of ids, too, as often as not."""
    victim = engine.run(JobSpec(base="small", name="victim")).id
    with pytest.raises(NotFound):
        engine.remove(victim[:1], force=True)
    assert [job.id for job in engine.jobs()] == [victim]
    assert engine.job(victim[:4]).id == victim


# bases


def test_a_base_that_goes_while_a_job_begins(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = meanwhile(
        monkeypatch, "engine.layers.create", by_another(engine, lambda other: other.base_remove("small"))
    )
    with pytest.raises(NotFound):
        engine.run(JobSpec(base="small", name="a"))
    assert moment.came
    for place in ("jobs", "layers", "tmp", "bases"):
        assert names(engine.config.root / place) == []
    assert names(engine.config.run / "mounts") == names(engine.config.run / "jobs") == []


def test_a_base_is_built_again_while_it_is_removed(
    engine: Engine, small_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is gone and the bytes are still there when the build comes to place its image."""
    placing = threading.Event()
    build = threading.Thread(
        target=by_another(engine, lambda other: other.base_build("small", DirSource(path=small_tree)))
    )

    def begin() -> None:
        meanwhile(monkeypatch, "engine.lifecycle.images.placed", placing.set)
        build.start()
        assert placing.wait(30)

    moment = meanwhile(monkeypatch, "engine.lifecycle.mounting.unmount", begin)
    engine.base_remove("small")
    build.join()
    assert moment.came
    assert names(engine.config.root / "bases") == [base.digest for base in engine.bases()]
    engine.run(shell("cat /src/lower", name="a"))
    engine.wait("a", timeout=30)
    assert output(engine, "a") == "of the base\n"


@pytest.mark.parametrize("seconds", ["other", "small"], ids=["the other name", "the same name"])
def test_two_removals_of_a_base_at_once(
    engine: Engine, small_tree: Path, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    """The second one has found the base by its name before the first one takes a name away."""
    engine.base_build("other", DirSource(path=small_tree))
    second = by_another(engine, lambda other: other.base_remove(seconds))
    moment = meanwhile(monkeypatch, "engine.lifecycle.bases._held", second)
    if seconds == "other":
        engine.base_remove("small")
        assert engine.bases() == []
    else:
        with pytest.raises(NotFound):
            engine.base_remove("small")
        assert [base.names for base in engine.bases()] == [("other",)]
    assert moment.came
    assert len(names(engine.config.root / "bases")) == len(engine.bases())


# what a verb that fails, or succeeds, leaves to the others


def test_short_threads_leave_no_descriptors(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))

    def round_of_threads() -> list[str]:
        for _ in range(25):
            threads = [threading.Thread(target=lambda: engine.job("a")) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return sorted(re.sub(r"\[\d+\]", "", os.readlink(f"/proc/self/fd/{name}")) for name in descriptors())

    assert round_of_threads().count(os.fspath(engine.config.root / "catalog.sqlite")) <= 8
    before = len(descriptors())
    round_of_threads()
    assert len(descriptors()) <= before + 3  # the connections that are kept idle, at most


def descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


def test_a_pause_that_fails_keeps_the_state(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(shell("sleep 1000", name="a", state={"place": 1}))

    def full() -> None:
        raise NoSpace("no room")

    meanwhile(monkeypatch, "engine.lifecycle.flush.through", full)
    with pytest.raises(NoSpace):
        engine.pause("a", state={"place": 2}, labels={"x": "y"}, mode="filesystem")
    job = engine.job("a")
    assert (job.state, job.spec.state, job.spec.labels) == (JobState.RUNNING, {"place": 1}, {})
    assert engine.snapshot(engine.pause("a", mode="filesystem").snapshot).context.state == {"place": 1}


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "forked"])
def test_a_removal_by_force_keeps_the_snapshot_under_a_stacked_job(engine: Engine, pinned: bool) -> None:
    engine.run(shell("echo begun; sleep 1000", name="a"))
    until(engine, "a", b"begun\n")
    inside(engine, "a", "echo old > /f")
    snapshot = engine.pause("a", mode="filesystem").snapshot
    if pinned:
        engine.snapshot_pin(snapshot)
    else:
        engine.fork(snapshot, name="b")
    assert engine.resume("a").strategy == "stack"
    engine.remove("a", force=True)
    assert [entry.id for entry in engine.snapshots()] == [snapshot]
    engine.fork(snapshot, name="c")
    assert inside(engine, "c", "cat /f") == "old\n"
