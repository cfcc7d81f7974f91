"""An engine is killed before and after each step of each verb; the next one puts the world right.

What the crash tables of engine/lifecycle promise: the job is in one of the states named there, the verb called again
succeeds, what the job had written is there, and nothing is left at the end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import leftovers
import pytest
from roots import shell, wait_for

from engine import Engine, JobSpec, JobState
from engine.errors import NotFound
from engine.model import Mode

pytestmark = pytest.mark.root

SOURCES = Path(__file__).resolve().parents[1] / "engine" / "lifecycle"
VERBS = {
    "run": "engine.run(JobSpec(base='small', name='b', argv=('/bin/sh', '-c', 'echo begun > /begun; sleep 1000')))",
    "pause": "engine.pause('a', mode='filesystem')",
    "resume": "engine.pause('a', mode='filesystem'); engine.resume('a')",
    "remove": "engine.remove('a', force=True)",
    "stop": "engine.stop('a', grace=0)",
    "freeze": "engine.freeze('a')",
    "thaw": "engine.freeze('a'); engine.thaw('a')",
    "base": "engine.base_build('other', DirSource(path=Path(os.environ['TREE'])))",
}
WITH_PROCESSES = {
    "pause": "engine.pause('a', mode='process')",
    "resume": "engine.pause('a', mode='process'); engine.resume('a')",
    "run": "engine.fork(engine.pause('a', mode='process').snapshot, name='b')",
}
"""verbs for the steps that only processes have; the rest of these verbs is in test_checkpoint_faults.py"""
ONLY_WITH_PROCESSES = re.compile(r"pause\.(preflight|dump|kill)|(resume|run)\.(restore|go)")
PLACES = ("before", "after")


def steps_of_the_source() -> set[str]:
    """Every step that a verb's module names, ``{verb}.launch`` spelled out."""
    found: set[str] = set()
    for path in SOURCES.glob("*.py"):
        for name in re.findall(r'step\(f?"([^"]+)"', path.read_text()):
            found |= {name.replace("{verb}", verb) for verb in ("run", "resume")} if "{verb}" in name else {name}
    return {name for name in found if not name.startswith("recover.")}


ELSEWHERE = re.compile(r"(archive|flatten|collect|import|demote)\.")
"""verbs whose steps are in test_recover_archives.py"""
STEPS = sorted(name for name in steps_of_the_source() - {"base.unmount", "base.remove"} if not ELSEWHERE.match(name))


def test_every_step_has_a_verb_that_reaches_it() -> None:
    assert {name.split(".")[0] for name in STEPS} == set(VERBS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", STEPS)
def test_a_killed_engine_loses_nothing(engine: Engine, small_tree: Path, name: str, place: str) -> None:
    only_with_processes = ONLY_WITH_PROCESSES.fullmatch(name)
    if only_with_processes:
        learn(engine)
    engine.close()
    idle = leftovers.count()
    engine.run(shell("echo kept > /kept; sync; sleep 1000", name="a"))
    upper = wait_for_kept(engine)
    engine.close()  # SQLite keeps a closed connection's descriptor while the process has another one to the same file
    verb = name.split(".")[0]
    script = (WITH_PROCESSES if only_with_processes else VERBS)[verb]
    assert killed(engine, script, f"{name}:{place}", small_tree), f"{name} was not reached"
    with Engine(engine.config.root, timeout=30) as next_engine:
        check_state(next_engine, verb)
        again(next_engine, verb, small_tree)
        if verb != "remove":
            wait_for(lambda: (upper / "kept").read_text() == "kept\n")  # the next life has it empty for a moment
        empty_of_jobs(next_engine)
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    for place_on_disk in ("layers", "images", "jobs", "tmp"):
        assert list((engine.config.root / place_on_disk).iterdir()) == []
    assert len(list((engine.config.root / "bases").iterdir())) == len(engine.bases())


def learn(engine: Engine) -> None:
    """What criu finds out about the kernel is kept for one boot."""
    engine.run(JobSpec(base="small", name="warm"))
    engine.pause("warm", mode="process")
    engine.remove("warm")


def wait_for_kept(engine: Engine) -> Path:
    import time

    job = engine.job("a")
    assert job.upper is not None
    upper = engine.config.root / "layers" / job.upper / "upper"
    deadline = time.monotonic() + 30
    while not ((upper / "kept").exists() and (upper / "kept").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return upper


def killed(engine: Engine, verb: str, fault: str, tree: Path) -> bool:
    """Run a verb in an engine of its own that is killed at ``fault``; whether it was."""
    script = (
        "import os, sys; from pathlib import Path; from engine import Engine, JobSpec; "
        "from engine.base import DirSource\n"
        f"with Engine(sys.argv[1], timeout=30) as engine: {verb}"
    )
    environment = {**os.environ, "SERAC_FAULT": fault, "TREE": os.fspath(tree)}
    command = [sys.executable, "-c", script, os.fspath(engine.config.root)]
    done = subprocess.run(command, env=environment, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode == -signal.SIGKILL


STATES = {
    "run": {JobState.RUNNING, JobState.PAUSED},
    "pause": {JobState.RUNNING, JobState.PAUSED},
    "resume": {JobState.RUNNING, JobState.PAUSED},
    "stop": {JobState.RUNNING, JobState.EXITED, JobState.FAILED},
    "freeze": {JobState.RUNNING, JobState.FROZEN},
    "thaw": {JobState.RUNNING, JobState.FROZEN},
    "base": {JobState.RUNNING},
}


def check_state(engine: Engine, verb: str) -> None:
    """What the crash tables allow for the job that was there before."""
    states = {job.name: job.state for job in engine.jobs(ended=True)}
    if verb == "remove":
        assert states.get("a") in (None, JobState.RUNNING, JobState.FAILED)
    else:
        assert states["a"] in STATES[verb]
    if verb == "run":
        assert states.get("b") in (None, JobState.RUNNING)


def again(engine: Engine, verb: str, tree: Path) -> None:
    """The verb called again succeeds, or finds its work done."""
    if verb == "run":
        try:
            engine.job("b")
        except NotFound:
            engine.run(shell("sleep 1000", name="b"))
    elif verb == "base":
        from engine.base import DirSource

        engine.base_build("other", DirSource(path=tree))
    elif verb == "remove":
        if any(job.name == "a" for job in engine.jobs(ended=True)):
            engine.remove("a", force=True)
    elif verb == "stop":
        engine.stop("a", grace=0)
    elif verb in ("freeze", "thaw"):
        getattr(engine, verb)("a")
    else:
        if engine.job("a").state is JobState.RUNNING:
            engine.pause("a", mode="filesystem")
        engine.resume("a")
        assert engine.job("a").state is JobState.RUNNING


def empty_of_jobs(engine: Engine) -> None:
    for job in engine.jobs(ended=True):
        engine.remove(job.id, force=True)


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_a_reboot_in_the_middle(engine: Engine, mode: Mode) -> None:
    """The run directory and every process are gone; the catalog and the bytes are there."""
    engine.run(shell("echo kept > /kept; sleep 1000", name="ran"))
    engine.run(shell("sleep 1000", name="paused"))
    engine.pause("paused", mode=mode)
    engine.close()
    reboot(engine)
    with Engine(engine.config.root, timeout=30) as after:
        assert after.job("ran").state is JobState.FAILED
        assert after.job("ran").failure
        assert after.resume("paused").mode == mode
        assert after.job("paused").state is JobState.RUNNING
        empty_of_jobs(after)


def reboot(engine: Engine) -> None:
    from engine import launch

    for kill in Path("/sys/fs/cgroup").glob(f"**/serac/{engine.config.name}/*/cgroup.kill"):
        kill.write_text("1")
        while "populated 1" in (kill.parent / "cgroup.events").read_text():
            pass
        kill.parent.rmdir()
    for mount in (engine.config.run / "mounts").iterdir():
        launch.unmount(mount, timeout=30)
    shutil.rmtree(engine.config.run)
