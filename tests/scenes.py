"""Every verb once, as a scene: what is there before, the call, and what may be there after it was cut short.

Which steps a scene goes through isn't written here: it is found out by playing it (tests/plays.py)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
from outcomes import (
    base_is,
    comes_back,
    has_failed,
    has_file,
    is_answered,
    is_archived,
    is_as_it_must_be,
    is_collected,
    is_flat,
    is_flushed,
    is_gone,
    is_imported,
    is_in,
    memory_is_whole,
    none_is_pinned,
    pins,
    second_runs,
)
from remains import killed
from roots import inside, shell, wait_for

from engine import Engine, JobState, SessionSpec
from engine.base import DirSource
from engine.errors import InvalidInput, NameTaken, NotFound, SeracError, WrongState
from engine.lifecycle import pause, recover
from engine.model import Mode

LIVES = """
echo begun >> /lives; trap 'exit 0' TERM
test -e /sum || { head -c 200000 /dev/urandom > /kept; mkdir /d; ln /kept /d/link; rm /src/lower; md5sum /kept > /new; }
mv /new /sum; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done
"""
"""A job that has written what must not be lost once there is /sum, and counts on; each life of it leaves a line."""

PREAMBLE = """
import contextlib, logging, os, sys
from pathlib import Path
from engine import *
from engine.base import DirSource, OciSource
from engine.errors import BadPath
from engine.lifecycle import ahead, flush
from engine.model import SnapshotSource
"""


class Scene(NamedTuple):
    call: str
    """in Python, with ``engine``; files lie where the variables TREE (of a base) and WORK (empty) say"""
    prepare: tuple[Callable[[Engine], object], ...] = ()
    """before the call"""
    states: frozenset[JobState] = frozenset()
    """in which a job ``a`` may be then; none: it may be gone"""
    done: type[SeracError] | None = None
    """by which the verb that is called again says that there is nothing left to do"""
    then: Callable[[Engine], object] = bool
    """raises unless the verb has done what it is for"""


def states(*names: str) -> frozenset[JobState]:
    return frozenset(map(JobState, names))


# what is there before


def job(engine: Engine, **fields: object) -> None:
    """A job ``a`` that has written all of it, to the device too."""
    engine.run(shell(LIVES, name="a", **fields))
    upper = engine.config.root / "layers" / str(engine.job("a").upper) / "upper"
    wait_for((upper / "sum").exists)
    os.sync()


def bridged(engine: Engine) -> None:
    job(engine, net="bridge")


def on_host_network(engine: Engine) -> None:
    job(engine, net="host")


def paused(mode: Mode, *, pinned: bool = False, archived: bool = False) -> Callable[[Engine], None]:
    def pause(engine: Engine) -> None:
        snapshot = engine.pause("a", mode=mode).snapshot
        if pinned:
            engine.snapshot_pin(snapshot)
        if archived:
            engine.snapshot_archive(snapshot)

    return pause


def paused_fast(engine: Engine) -> None:
    """Nobody in the background flushes it."""
    with recover.taken(engine._root, "a") as found:
        pause.pause(engine._root, found, mode="process", labels={}, state=msgspec.UNSET, durability="fast")


def resumed(engine: Engine) -> None:
    engine.resume("a")


def chain(mode: Mode) -> tuple[Callable[[Engine], object], ...]:
    """``a``, paused on two layers."""
    return (job, paused("filesystem", pinned=True), resumed, written, paused(mode))


def written(engine: Engine) -> None:
    wait_for(lambda: inside(engine, "a", "echo second > /second && cat /second") == "second\n")


def frozen(engine: Engine) -> None:
    engine.freeze("a")


def other_base(engine: Engine) -> None:
    engine.base_build("other", DirSource(path=Path(__file__).parent / "programs"))


def garbage(engine: Engine) -> None:
    """Layers that no row needs, an image that no row has, and a directory whose image has the same."""
    engine.run(shell("sleep 1000", name="c"))
    engine.snapshot_archive(engine.pause("c", mode="filesystem").snapshot)
    engine.resume("c")
    engine.snapshot_pin(engine.pause("c", mode="filesystem", archive="wait").snapshot)
    engine.remove("c")
    engine.fork(str(engine.job("a").snapshot), name="b", mode="filesystem")
    engine.snapshot_flatten(str(engine.job("a").snapshot))  # what b has mounted stays until it ends
    engine.stop("b", grace=0)


def exported(engine: Engine) -> None:
    engine.snapshot_export(str(engine.job("a").snapshot), os.environ["WORK"] + "/export.serac")
    engine.remove("a")
    for snapshot in engine.snapshots():
        engine.snapshot_remove(snapshot.id)
    engine.collect()


def layout(engine: Engine) -> None:
    engine.snapshot_export(str(engine.job("a").snapshot), os.environ["WORK"] + "/layout", format="oci")


def over(engine: Engine) -> None:
    """The job has ended, and nobody has looked."""
    os.kill(init(engine), signal.SIGKILL)
    group = engine._root.group_of(engine._root.catalog.job("a"))
    wait_for(lambda: "populated 0" in Path(group.path, "cgroup.events").read_text())


def init(engine: Engine) -> int:
    place = engine.config.run / "jobs" / engine._root.catalog.job("a").id / "init.json"
    return int(json.loads(place.read_bytes())["pid"])


def asking(engine: Engine) -> None:
    """A process of the job asks, and waits."""
    engine.start("a", SessionSpec(argv=("/.serac/ask", "--reason", "why")))
    wait_for(lambda: engine.asked("a") is not None)


def failed(engine: Engine) -> None:
    """A job that is to be kept when it fails has failed, and nobody has looked."""
    script = "echo begun >> /lives; head -c 200000 /dev/urandom > /kept; mkdir /d; ln /kept /d/link; rm /src/lower; "
    script += "md5sum /kept > /sum; exit 3"
    engine.run(shell(script, name="a", snapshot_on="failure"))
    group = engine._root.group_of(engine._root.catalog.job("a"))
    wait_for(lambda: "populated 0" in Path(group.path, "cgroup.events").read_text())
    os.sync()


def pages_came(engine: Engine) -> None:
    """Memory came back, lazily, and nobody has looked."""
    engine.resume("a", memory="lazy")
    group = engine._root.pages_group(engine._root.catalog.job("a").id)
    wait_for(lambda: "populated 0" in Path(group.path, "cgroup.events").read_text())


def pages_came_and_over(engine: Engine) -> None:
    """And then the job ended by itself."""
    pages_came(engine)
    os.kill(init(engine), signal.SIGTERM)
    group = engine._root.group_of(engine._root.catalog.job("a"))
    wait_for(lambda: "populated 0" in Path(group.path, "cgroup.events").read_text())


def pages_lost(engine: Engine) -> None:
    """What was to bring memory back was killed before it could say that all is in."""
    pages_came(engine)
    place = engine.config.run / "jobs" / engine._root.catalog.job("a").id / "pages"
    place.write_text("")
    os.kill(init(engine), signal.SIGKILL)
    assert engine.wait("a", timeout=30).state is JobState.FAILED


def killed_at(call: str, place: str) -> Callable[[Engine], None]:
    """An engine died before."""

    def kill(engine: Engine) -> None:
        engine.close()
        killed(engine, call, place)

    return kill


RUNS, STAYS = states("running"), states("paused")
PAUSES, RESUMES = states("running", "paused"), states("paused", "running")
SNAPSHOT = "engine.job('a').snapshot"
SCENES = {
    "run": Scene("engine.run(JobSpec(base='small', name='b'))", (job,), RUNS, NameTaken, second_runs),
    "run-bridge": Scene(
        "engine.run(JobSpec(base='small', name='b', net='bridge'))", (bridged,), RUNS, NameTaken, second_runs
    ),
    "pause-files": Scene("engine.pause('a', mode='filesystem')", (job,), PAUSES, WrongState, is_in("paused")),
    "pause-process": Scene("engine.pause('a', mode='process')", (bridged,), PAUSES, WrongState, is_in("paused")),
    "pause-auto": Scene("engine.pause('a')", (on_host_network,), PAUSES, WrongState, is_in("paused")),
    "pause-frozen": Scene(
        "engine.pause('a', mode='process')", (job, frozen), states("frozen", "paused"), WrongState, is_in("paused")
    ),
    "resume-files": Scene("engine.resume('a')", (job, paused("filesystem")), RESUMES, WrongState, is_in("running")),
    "resume-files-stacked": Scene(
        "engine.resume('a')", (job, paused("filesystem", pinned=True)), RESUMES, WrongState, is_in("running")
    ),
    "resume-process": Scene("engine.resume('a')", (job, paused("process")), RESUMES, WrongState, is_in("running")),
    "resume-process-stacked": Scene(
        "engine.resume('a')", (bridged, paused("process", pinned=True)), RESUMES, WrongState, is_in("running")
    ),
    "resume-process-anew": Scene(
        "engine.resume('a', mode='filesystem')", (job, paused("process")), RESUMES, WrongState, is_in("running")
    ),
    "resume-refused": Scene(
        "with contextlib.suppress(BadPath): engine.resume('a', mode='filesystem', workdir='/nosuch')",
        (job, paused("process")),
        STAYS,
        None,
        is_in("paused"),
    ),
    "resume-refused-stacked": Scene(
        "with contextlib.suppress(BadPath): engine.resume('a', mode='filesystem', workdir='/nosuch')",
        (job, paused("filesystem", pinned=True)),
        STAYS,
        None,
        is_in("paused"),
    ),
    "resume-lazy": Scene(
        "engine.resume('a', memory='lazy')", (job, paused("process")), RESUMES, WrongState, is_in("running")
    ),
    "resume-again": Scene(
        "engine.resume('a', memory='eager')",
        (job, paused("process", pinned=True), pages_lost),
        states("failed", "paused", "running"),
        WrongState,
        is_in("running"),
    ),
    "prefetch": Scene(
        "engine.prefetch('a'); ahead.close(engine._root)",
        (job, paused("process", archived=True)),
        STAYS,
        None,
        is_in("paused"),
    ),
    "take": Scene("engine.snapshot_take('a')", (job,), PAUSES, WrongState, is_in("running", "paused")),
    "fork-files": Scene(
        f"engine.fork({SNAPSHOT}, name='b')", (job, paused("filesystem")), STAYS, NameTaken, second_runs
    ),
    "fork-process": Scene(
        f"engine.fork({SNAPSHOT}, name='b')", (bridged, paused("process")), STAYS, NameTaken, second_runs
    ),
    "fork-lazy": Scene(
        f"engine.fork({SNAPSHOT}, name='b', memory='lazy')", (job, paused("process")), STAYS, NameTaken, second_runs
    ),
    "stop": Scene(
        "engine.stop('a', grace=20)", (job,), states("running", "exited", "failed"), None, is_in("exited", "failed")
    ),
    "freeze": Scene("engine.freeze('a')", (job,), states("running", "frozen"), None, is_in("frozen")),
    "thaw": Scene("engine.thaw('a')", (job, frozen), states("running", "frozen"), None, is_in("running")),
    "remove": Scene("engine.remove('a', force=True)", (bridged,), states(), NotFound, is_gone),
    "remove-paused": Scene("engine.remove('a')", (job, paused("process", archived=True)), states(), NotFound, is_gone),
    "snapshot-pin": Scene(f"engine.snapshot_pin({SNAPSHOT})", (job, paused("filesystem")), STAYS, None, pins),
    "snapshot-remove": Scene(
        "[engine.snapshot_remove(s.id) for s in engine.snapshots() if s.pinned]",
        (job, paused("process", pinned=True), resumed),
        RUNS,
        None,
        none_is_pinned,
    ),
    "settle": Scene("engine.job('a')", (job, over), states("failed", "exited"), None, is_in("failed", "exited")),
    "settle-loaded": Scene(
        "engine.job('a')", (job, paused("process"), pages_came_and_over), states("exited"), None, memory_is_whole
    ),
    "loaded": Scene("engine.job('a')", (job, paused("process"), pages_came), RUNS, None, memory_is_whole),
    "archive": Scene(f"engine.snapshot_archive({SNAPSHOT})", chain("process"), STAYS, None, is_archived),
    "flatten": Scene(f"engine.snapshot_flatten({SNAPSHOT})", chain("process"), STAYS, None, is_flat),
    "collect": Scene("engine.collect()", (*chain("process"), garbage), STAYS, None, is_collected),
    "export": Scene(
        f"engine.snapshot_export({SNAPSHOT}, os.environ['WORK'] + '/export')",
        (job, paused("process")),
        STAYS,
        None,
        has_file("export"),
    ),
    "export-oci": Scene(
        f"engine.snapshot_export({SNAPSHOT}, os.environ['WORK'] + '/image', format='oci')",
        (job, paused("filesystem")),
        STAYS,
        InvalidInput,
        has_file("image"),
    ),
    "import": Scene(
        "engine.snapshot_import(os.environ['WORK'] + '/export.serac')",
        (*chain("process"), exported),
        states(),
        None,
        comes_back,
    ),
    "import-oci": Scene(
        "engine.snapshot_import(os.environ['WORK'] + '/layout')",
        (job, paused("filesystem"), layout),
        STAYS,
        None,
        is_imported,
    ),
    "base-build": Scene(
        "engine.base_build('other', DirSource(path=Path(os.environ['TREE'])))", (job,), RUNS, None, base_is(there=True)
    ),
    "base-build-snapshot": Scene(
        f"engine.base_build('other', SnapshotSource(snapshot={SNAPSHOT}))",
        (job, paused("filesystem")),
        STAYS,
        None,
        base_is(there=True),
    ),
    "base-remove": Scene("engine.base_remove('other')", (job, other_base), RUNS, NotFound, base_is(there=False)),
    "copy-out-paused": Scene(
        "engine.copy_out('a', '/kept', os.environ['WORK'] + '/kept')",
        (job, paused("filesystem")),
        STAYS,
        None,
        has_file("kept"),
    ),
    "demote": Scene("engine.demote('a')", (job, paused("process", archived=True)), STAYS, None, is_in("paused")),
    "flush": Scene("flush.flush(engine._root)", (job, paused_fast), STAYS, None, is_flushed),
    "check": Scene(
        "Engine.check(engine.config.root, repair=True)",
        (job, paused("process", archived=True)),
        STAYS,
        None,
        is_as_it_must_be,
    ),
    "answer": Scene("engine.answer('a')", (job, asking), RUNS, NotFound, is_answered),
    "recover-answer": Scene(
        "engine.jobs()", (job, asking, killed_at("engine.answer('a')", "answer.commit:after")), RUNS, None, is_answered
    ),
    "keep": Scene("engine.job('a')", (failed,), states("exited"), None, has_failed),
    "recover-created": Scene(
        "engine.jobs()", (job, killed_at("engine.run(JobSpec(base='small', name='b'))", "run.start:after")), RUNS
    ),
    "recover-standing": Scene(
        "engine.jobs()", (job, killed_at("engine.freeze('a')", "freeze.freeze:after")), RUNS, None, is_in("running")
    ),
    "recover-pausing": Scene(
        "engine.jobs()", (job, killed_at("engine.pause('a', mode='process')", "pause.seal:after")), RUNS
    ),
    "recover-resuming": Scene(
        "engine.jobs()",
        (job, paused("process"), killed_at("engine.resume('a')", "resume.restore:after")),
        STAYS,
    ),
    "recover-pending": Scene(
        "engine.jobs()", (job, paused("filesystem"), killed_at("engine.resume('a')", "resume.commit:after")), RUNS
    ),
}
