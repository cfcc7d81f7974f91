"""Travels that are broken off: full disks, engines that are killed, what another engine does meanwhile.

An import leaves the root as it was or has the snapshot; an export leaves a whole file or none."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command
from roots import another_root, configure, empty, inside, shell
from test_interrupted import interrupted, killed, places
from test_races import by_another, meanwhile
from travels import exported, imported, names, paused, refused, state

from engine import Engine
from engine.base import DirSource
from engine.errors import Busy, NoSpace, NotFound, SeracError
from engine.lifecycle import imports

pytestmark = pytest.mark.root

FILL = "head -c 12000000 /dev/urandom > /file; md5sum /file > /sum"


@pytest.fixture
def there(small_tree: Path) -> Iterator[Engine]:
    with another_root(small_tree) as engine:
        yield engine


@pytest.fixture
def bare() -> Iterator[Engine]:
    with another_root(None) as engine:
        yield engine


def works(engine: Engine, snapshot: str) -> None:
    """The snapshot is there and whole, and nothing else is."""
    assert [entry.id for entry in engine.snapshots()] == [snapshot]
    assert engine.snapshot_verify(snapshot) == []
    row = engine.snapshot(snapshot)
    chain = engine._root.catalog.chain(row.layers)
    assert names(engine.config.root / "layers") == set(row.layers)
    assert names(engine.config.root / "images") == {str(layer.image) for layer in chain}
    assert names(engine.config.root / "bases") == {base.digest for base in engine.bases()}
    assert names(engine.config.root / "tmp") == set()
    job = engine.fork(snapshot, name="check").job
    assert inside(engine, job, "test ! -e /sum || md5sum -c /sum") in ("", "/file: OK\n")
    engine.remove(job, force=True)


# full disks


@contextlib.contextmanager
def disk(path: Path, size: int, kind: str) -> Iterator[Path]:
    """A small one on a directory of its own."""
    path.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    else:
        file = path.with_suffix(".ext4")
        with file.open("wb") as stream:
            stream.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", file], check=True)
        subprocess.run(["mount", "-o", "loop", file, path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def cramped(tmp_path: Path, small_tree: Path) -> Iterator[Engine]:
    """A root with ten megabytes to spare, or so."""
    with disk(tmp_path / "disk", 20 << 20, "ext4") as path:
        configure(path / "root")
        with Engine(path / "root", timeout=120) as engine:
            try:
                engine.base_build("small", DirSource(path=small_tree))
                yield engine
            finally:
                empty(engine)


@pytest.mark.parametrize("known", [True, False])
def test_an_import_on_a_full_disk(
    engine: Engine, cramped: Engine, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Also when there was room when it began."""
    if not known:
        monkeypatch.setattr(imports, "_check_room", lambda root, parts: None)
    large = paused(engine, "head -c 30000000 /dev/urandom > /file")
    data = exported(engine, large)
    with refused(cramped, NoSpace, r"the snapshot needs 2[89] MiB" if known else "No space left"):
        imported(cramped, data)
    small = paused(engine, "echo x > /x")
    imported(cramped, exported(engine, small))
    works(cramped, small)


def test_an_export_on_a_full_disk(engine: Engine, tmp_path: Path) -> None:
    snapshot = paused(engine, FILL)
    engine.snapshot_archive(snapshot)
    with disk(tmp_path / "disk", 4 << 20, "tmpfs") as path:
        (path / "out").write_bytes(b"old")
        with refused(engine, NoSpace, "export"):
            engine.snapshot_export(snapshot, os.fspath(path / "out"))
        assert (path / "out").read_bytes() == b"old"
        assert names(path) == {"out"}
    with refused(engine, NoSpace, "export"):
        engine.snapshot_export(snapshot, "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_a_reader_that_goes_away(engine: Engine) -> None:
    snapshot = paused(engine, FILL)
    engine.snapshot_archive(snapshot)
    before = state(engine)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as out:
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            engine.snapshot_export(snapshot, out)
    assert state(engine) == before


# engines that die, and imports that are broken off


STEPS = ["import.read", "import.place", "import.layers", "import.commit"]
BEFORE_COMMIT = [*places(*STEPS)][:-1]


@pytest.mark.parametrize("with_base", [True, False])
def test_an_import_that_is_broken_off(engine: Engine, there: Engine, bare: Engine, with_base: bool) -> None:
    snapshot, host = paused(engine, FILL), bare if with_base else there
    data = exported(engine, snapshot, with_base=with_base)
    for place in BEFORE_COMMIT:
        before = state(host)
        with interrupted(place):
            imported(host, data)
        assert state(host) == before, place
    with interrupted("import.commit:after"):
        imported(host, data)
    works(host, snapshot)


@pytest.mark.parametrize("with_base", [True, False])
def test_an_engine_that_is_killed(engine: Engine, there: Engine, bare: Engine, tmp_path: Path, with_base: bool) -> None:
    snapshot, host = paused(engine, FILL), bare if with_base else there
    file = tmp_path / "file"
    engine.snapshot_export(snapshot, os.fspath(file), with_base=with_base)
    host.jobs()
    before = state(host)
    for place in BEFORE_COMMIT:
        killed(host, f"engine.snapshot_import({os.fspath(file)!r})", place)
        with Engine(host.config.root, timeout=120):
            pass
        assert state(host) == before, place
    killed(host, f"engine.snapshot_import({os.fspath(file)!r})", "import.commit:after")
    with Engine(host.config.root, timeout=120):
        works(host, snapshot)


def test_a_commit_that_fails(engine: Engine, bare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(engine, FILL)
    data = exported(engine, snapshot, with_base=True)

    def full(*_: object) -> None:
        raise NoSpace("no room for the catalog")

    with monkeypatch.context() as patch, refused(bare, NoSpace):
        patch.setattr(imports, "_commit", full)
        imported(bare, data)
    imported(bare, data)
    works(bare, snapshot)


def test_a_stream_that_ends_in_the_middle(engine: Engine, there: Engine) -> None:
    data = exported(engine, paused(engine, FILL))
    for size in (0, 100, 1000, len(data) // 2, len(data) - 1):
        with refused(there, SeracError, "ends too early"):
            imported(there, data[:size])


# several at once


@pytest.mark.parametrize("with_base", [True, False])
def test_importers_at_once(engine: Engine, there: Engine, bare: Engine, with_base: bool) -> None:
    snapshot, host = paused(engine, FILL), bare if with_base else there
    data = exported(engine, snapshot, with_base=with_base)
    gate, ends = threading.Barrier(4), list[object]()

    def take(engine: Engine) -> None:
        gate.wait()
        try:
            ends.append(imported(engine, data).id)
        except SeracError as error:
            ends.append(error)

    with Engine(host.config.root, timeout=120) as second:
        threads = [threading.Thread(target=take, args=(one,)) for one in (host, second, host, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ends == [snapshot] * 4
    works(host, snapshot)


def test_processes_that_import_at_once(engine: Engine, bare: Engine, tmp_path: Path) -> None:
    """Two snapshots that have the base and a layer in common."""
    first = paused(engine, FILL)
    engine.snapshot_pin(first)
    job = engine.snapshot(first).job
    engine.resume(job)
    second = engine.pause(job, mode="filesystem").snapshot
    files = []
    for snapshot in (first, second):
        files.append(tmp_path / snapshot)
        engine.snapshot_export(snapshot, os.fspath(files[-1]), with_base=True)
    words = [Command(bare.config.root).words("snapshot", "import", os.fspath(file)) for file in files * 2]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in words]
    assert [process.wait(300) for process in running] == [0] * 4
    assert {snapshot.id for snapshot in bare.snapshots()} == {first, second}
    assert len(names(bare.config.root / "images")) == 2
    assert names(bare.config.root / "tmp") == set()
    bare.snapshot_remove(first)
    works(bare, second)


def test_another_one_is_faster(engine: Engine, there: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = paused(engine, FILL)
    data = exported(engine, snapshot)
    moment = meanwhile(
        monkeypatch, "engine.lifecycle.imports._name", by_another(there, lambda other: imported(other, data))
    )
    taken = imported(there, data)
    assert moment.came
    assert there.snapshots() == [taken]
    works(there, snapshot)


@pytest.mark.parametrize("what", ["image", "base"])
def test_what_was_here_goes_meanwhile(
    engine: Engine, there: Engine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    snapshot = paused(engine, FILL)
    data = exported(engine, snapshot)
    if what == "image":
        imported(there, data)
        there.snapshot_remove(snapshot)  # its image stays for the collection
        assert len(names(there.config.root / "images")) == 1

    def act(other: Engine) -> None:
        other.collect() if what == "image" else other.base_remove("small")

    moment = meanwhile(monkeypatch, "engine.lifecycle.imports._name", by_another(there, act))
    with pytest.raises(Busy, match="removed meanwhile"):
        imported(there, data)
    assert moment.came
    assert there.snapshots() == []
    for place in ("tmp", "layers", "images"):
        assert names(there.config.root / place) == set()
    if what == "image":
        imported(there, data)
        works(there, snapshot)


class Writer(io.BytesIO):
    """Takes a stream, and does something once when the first megabyte has come."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = act

    def write(self, data: object) -> int:
        if self.act is not None and self.tell() > 1 << 20:
            act, self.act = self.act, None
            act()
        return super().write(data)  # type: ignore[arg-type]


def go_on(job: str) -> Callable[[Engine], object]:
    def act(other: Engine) -> None:
        assert other.resume(job).strategy == "stack"
        inside(other, job, "head -c 1000000 /dev/zero > /file; echo new > /sum; sync")

    return act


def test_the_job_goes_on_meanwhile(engine: Engine, there: Engine) -> None:
    snapshot = paused(engine, FILL)
    writer = Writer(by_another(engine, go_on(engine.snapshot(snapshot).job)))
    engine.snapshot_export(snapshot, writer)
    assert writer.act is None
    imported(there, writer.getvalue())
    works(there, snapshot)


@pytest.mark.parametrize("mode", ["filesystem", "process"])
def test_it_is_removed_meanwhile(engine: Engine, there: Engine, mode: str) -> None:
    """An export of processes may come to nothing then, and says so."""
    job = engine.run(shell("sleep 1000")).id
    inside(engine, job, FILL)
    snapshot = engine.pause(job, mode="process" if mode == "process" else "filesystem").snapshot
    engine.snapshot_archive(snapshot)

    def act(other: Engine) -> None:
        other.remove(job)
        other.collect()

    writer = Writer(by_another(engine, act))
    try:
        engine.snapshot_export(snapshot, writer)
    except NotFound:
        assert mode == "process"
    else:
        imported(there, writer.getvalue())
        there.fork(snapshot, name="b")
    assert writer.act is None
    engine.collect()
    for place in ("jobs", "layers", "tmp", "images"):
        assert names(engine.config.root / place) == set()
