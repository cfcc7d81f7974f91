"""Engines that are killed and verbs that are broken off at a step, and what may remain of them in a root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from roots import wait_for

from engine import Engine, steps
from engine.lifecycle import processes


def killed(engine: Engine, verb: str, place: str) -> None:
    """Call a verb in an engine of its own that is killed at ``place``."""
    script = f"import sys; from engine import Engine, JobSpec\nwith Engine(sys.argv[1], timeout=30) as engine: {verb}"
    command = [sys.executable, "-c", script, os.fspath(engine.config.root)]
    done = subprocess.run(command, env={**os.environ, "SERAC_FAULT": place}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


@contextlib.contextmanager
def interrupted(place: str) -> Iterator[None]:
    """Ctrl-C at ``verb.step:before`` or ``:after``."""

    def interrupt(name: str, when: str) -> None:
        if f"{name}:{when}" == place:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_fault", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


def nothing_of_a_dump(engine: Engine, ref: str) -> None:
    """What a dump that came to nothing may have left: criu, its pid file, the image, the manifest, its links, the
    network lock."""
    job = engine.job(ref)
    assert job.upper is not None
    layer = engine.config.root / "layers" / job.upper
    assert sorted(path.name for path in layer.iterdir()) == ["upper", "work"]
    assert [path for path in (layer / "upper").rglob("link_remap.*") if path.is_file()] == []
    assert not (engine.config.run / "jobs" / job.id / "criu.pid").exists()
    assert holders(engine) == []
    assert tables(engine, ref) == ""


def holders(engine: Engine) -> list[str]:
    """Other processes that hold something of the root or of its run directory open, as each criu does."""
    places = (os.fspath(engine.config.root), os.fspath(engine.config.run))
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            if int(process.name) != os.getpid() and any(link.startswith(places) for link in links):
                found.append(f"{process.name} {(process / 'comm').read_text()}")
    return found


def no_processes(engine: Engine) -> None:
    """None of a job, and no criu. What dies with its engine may still be on the way."""
    assert [path for path in leftovers.cgroups() if f"/{engine.config.name}/" in path] == []
    wait_for(lambda: holders(engine) == [])


def tables(engine: Engine, ref: str) -> str:
    """The nftables of a job's network namespace."""
    job = engine.job(ref)
    init = processes.recall(engine._root, job).pid
    command = ["nsenter", f"--net=/proc/{init}/ns/net", "nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def only_its_own(engine: Engine, *refs: str) -> None:
    """What lies in the root belongs to jobs and snapshots that are there."""
    jobs = engine.jobs(ended=True)
    assert sorted(job.name for job in jobs) == sorted(refs)
    wanted = {layer for job in jobs for layer in (*job.layers, job.upper)}
    wanted |= {layer for snapshot in engine.snapshots() for layer in snapshot.layers}
    assert {path.name for path in (engine.config.root / "layers").iterdir()} == wanted - {None}
    assert {path.name for path in (engine.config.root / "jobs").iterdir()} == {job.id for job in jobs}
    assert list((engine.config.root / "tmp").iterdir()) == []
