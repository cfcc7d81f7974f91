"""No verb takes notice of how much a job has written: 2 GB and 20,000 files cost what 10 MB and 10 files do.

Seen by counts and not by a clock: the bytes and calls that the engine, the programs it waits for and the job's own
processes read and write; the times of last access, which reading a file or listing a directory moves; the pages that
the kernel holds of a file. The clock's numbers are printed (``-s``), for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from costs import LONG_AGO, SLACK, Work, forget, pages, processes, since, work
from roots import inside

from engine import Engine, JobSpec

pytestmark = pytest.mark.root

SMALL = "fallocate -l $((10 << 20)) /big; mkdir /dir0; for i in `seq 10`; do echo $i > /dir0/$i; done"
LARGE = (
    "fallocate -l $((2 << 30)) /big; "
    "for i in `seq 0 199`; do mkdir /dir$i; for j in `seq 100`; do echo $j > /dir$i/$j; done; done"
)


def pause(engine: Engine, name: str) -> Mapping[str, float]:
    return engine.pause(name, mode="filesystem").timings


def reuse(engine: Engine, name: str) -> Mapping[str, float]:
    result = engine.resume(name)
    assert result.strategy == "reuse"
    return result.timings


def stack(engine: Engine, name: str) -> Mapping[str, float]:
    result = engine.resume(name)
    assert result.strategy == "stack"
    return result.timings


def fork(engine: Engine, name: str) -> Mapping[str, float]:
    return engine.fork(engine.job(name).snapshot or "", name=f"{name}-fork").timings


Verb = Callable[[Engine, str], Mapping[str, float]]


def test_costs_are_flat(engine: Engine) -> None:
    _, small, large = (costs(engine, name, script) for name, script in (("first", "true"), ("s", SMALL), ("l", LARGE)))
    for verb in small:
        assert large[verb].read <= small[verb].read + SLACK, verb
        assert large[verb].written <= small[verb].written + SLACK, verb
        assert large[verb].calls <= 1.25 * small[verb].calls, verb


def costs(engine: Engine, name: str, script: str) -> dict[str, Work]:
    """The work of each verb on a job that has run ``script``."""
    engine.run(JobSpec(base="small", name=name))
    inside(engine, name, script)
    snapshot = engine.snapshot(engine.pause(name, mode="filesystem").snapshot)  # flushes it all
    upper = engine.config.root / "layers" / snapshot.layers[-1] / "upper"
    engine.resume(name)
    found = {verb.__name__: cost(engine, verb, name, upper) for verb in (pause, reuse)}
    pinned = engine.snapshot_pin(engine.pause(name, mode="filesystem").snapshot)
    found |= {verb.__name__: cost(engine, verb, name, upper) for verb in (fork, stack)}
    for job in (name, f"{name}-fork"):
        engine.remove(job, force=True)
    engine.snapshot_remove(pinned.id)
    return found


def cost(engine: Engine, verb: Verb, name: str, upper: Path) -> Work:
    """The work of one verb; fails when it looked into the upper or copied something from it."""
    files, layers = list(entries(upper)), engine.config.root / "layers"
    known = set(layers.iterdir())
    forget(files)
    before = work(*processes(engine))
    timings = verb(engine, name)
    found = since(before, work(*processes(engine)))
    print(f"\n{verb.__name__} {name}: {found}, {', '.join(f'{step} {ms:.1f} ms' for step, ms in timings.items())}")
    assert [path for path in files if path.lstat().st_atime != LONG_AGO] == []
    assert {path: pages(path) for path in files if pages(path)} == {}
    assert [
        path for layer in set(layers.iterdir()) - known for path in entries(layer / "upper") if path.name != "upper"
    ] == []
    return found


def entries(upper: Path) -> Iterator[Path]:
    """The directory itself and what the job wrote, without what serac puts into each job anew."""
    yield upper
    for path in upper.rglob("*"):
        if path.name == "big" or path.parts[len(upper.parts)].startswith("dir"):
            yield path


def test_an_access_would_be_seen(tmp_path: Path, root_directory: Path) -> None:
    directory = root_directory.parent / "accessed"
    directory.mkdir()
    file = directory / "file"
    file.write_bytes(b"x" * 100_000)
    os.sync()
    forget([directory, file])
    assert pages(file) == 0
    before = work()
    assert len(file.read_bytes()) == len(os.listdir(directory)) * 100_000
    assert since(before, work()).read >= 100_000
    assert file.stat().st_atime != LONG_AGO
    assert directory.stat().st_atime != LONG_AGO
    assert pages(file) > 0
