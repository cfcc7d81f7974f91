"""criu is killed, in the middle of a dump or of a restore. The job runs on with all that it had, or the snapshot stays.

The job is a witness (tests/witness.py): it notices when a timer, a connection or memory of its own is lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from remains import holders, killed, no_processes, nothing_of_a_dump, only_its_own
from roots import shell, until, wait_for
from witness import ROUNDS, small_tree, witness

from engine import Engine, JobState, cgroup, launch, steps
from engine.checkpoint import rpc
from engine.errors import CannotCheckpoint, CannotRestore, NoSpace
from engine.kernel import process, procfs
from engine.lifecycle.criu import settle

__all__ = ["small_tree"]  # a fixture

pytestmark = pytest.mark.root


class Criu:
    """``at``: kill criu, or do something ``instead``, when it has come to the notification of this name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.at: str | None = None
        self.instead: Callable[[], object] = self.kill
        self.pid = 0
        receive, begin = rpc.Conversation._receive, launch.Criu.__init__

        def begun(criu: launch.Criu, pid: int, *rest: object) -> None:
            self.pid = pid
            begin(criu, pid, *rest)  # type: ignore[arg-type]

        def received(conversation: rpc.Conversation) -> rpc.Fields:
            fields = receive(conversation)
            told = fields.get(5)
            if self.at is not None and isinstance(told, bytes) and rpc.decoded(told).get(1) == self.at.encode():
                self.instead()
            return fields

        patch.setattr(launch.Criu, "__init__", begun)
        patch.setattr(rpc.Conversation, "_receive", received)

    def kill(self) -> None:
        """And see it dead, if it wasn't: the processes that it traced are let go then."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not alive(self.pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def criu(monkeypatch: pytest.MonkeyPatch) -> Criu:
    return Criu(monkeypatch)


@pytest.mark.parametrize("at", ["pre-dump", "network-lock"])
def test_a_criu_that_is_killed_before_it_touches_a_process(engine: Engine, criu: Criu, at: str) -> None:
    one = witness(engine)
    criu.at = at
    with pytest.raises(CannotCheckpoint) as caught:
        engine.pause("a", mode="process")
    assert caught.value.reason == "criu-killed"
    criu.at = None
    assert engine.job("a").state is JobState.RUNNING
    one.goes_on()
    nothing_of_a_dump(engine, "a")
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    one.goes_on()


def test_auto_takes_the_files_when_criu_is_killed(engine: Engine, criu: Criu) -> None:
    witness(engine)
    criu.at = "network-lock"
    result = engine.pause("a")
    assert (result.mode, result.reason) == ("filesystem", "criu-killed")
    assert engine.snapshot(result.snapshot).image is None


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
@pytest.mark.parametrize("place", ["pause.dump:after", "pause.seal:after", "pause.flush:after"])
def test_a_pause_fails_after_its_criu_was_killed(
    engine: Engine, criu: Criu, monkeypatch: pytest.MonkeyPatch, place: str, frozen: bool
) -> None:
    """The connections are in repair mode then, and the processes must not run before they are out of it."""

    def fail(name: str, when: str) -> None:
        if f"{name}:{when}" == place:
            criu.kill()
            raise NoSpace("no room")

    one = witness(engine)
    if frozen:
        engine.freeze("a")
    with monkeypatch.context() as patched:
        patched.setattr(steps, "_fault", fail)
        with pytest.raises(NoSpace):
            engine.pause("a", mode="process")
    if frozen:
        assert engine.job("a").state is JobState.FROZEN
        one.stands_still()
        engine.thaw("a")
    one.goes_on()
    nothing_of_a_dump(engine, "a")
    engine.pause("a", mode="process")
    engine.resume("a", mode="process")
    one.goes_on()


@pytest.mark.parametrize("place", ["pause.seal:before", "pause.flush:after", "pause.commit:after"])
def test_a_pause_goes_through_when_all_is_written_and_criu_is_killed(
    engine: Engine, criu: Criu, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    one = witness(engine)
    told = one.says()

    def kill(name: str, when: str) -> None:
        if f"{name}:{when}" == place:
            criu.kill()

    with monkeypatch.context() as patched:
        patched.setattr(steps, "_fault", kill)
        engine.pause("a", mode="process")
    no_processes(engine)
    assert engine.resume("a", mode="process").strategy == "reuse"
    assert one.says()[0] < told[0] + 10_000
    one.goes_on()


@pytest.mark.parametrize("place", ["pause.dump:after", "pause.flush:before"])
def test_the_engine_is_killed_and_then_its_criu(engine: Engine, place: str) -> None:
    """Nobody is left to undo the dump but the next engine."""
    one = witness(engine)
    killed(engine, "engine.pause('a', mode='process')", place)
    job = engine._root.catalog.job("a")
    pid = int((engine.config.run / "jobs" / job.id / "criu.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    with Engine(engine.config.root, timeout=30) as other:
        assert other.job("a").state is JobState.RUNNING
        one.seen_by(other).goes_on()
        nothing_of_a_dump(other, "a")
        other.pause("a", mode="process")
        other.resume("a", mode="process")
        one.seen_by(other).goes_on()


@pytest.mark.parametrize("at", ["pre-restore", "setup-namespaces", "post-restore", "pre-resume"])
def test_a_criu_that_is_killed_in_a_restore(engine: Engine, criu: Criu, at: str) -> None:
    one = witness(engine)
    before = engine.snapshot(engine.pause("a", mode="process").snapshot)
    criu.at = at
    with contextlib.suppress(CannotRestore):  # from pre-resume on nothing is left to criu but to let go
        engine.resume("a", mode="process")
    criu.at = None
    if engine.job("a").state is JobState.PAUSED:
        no_processes(engine)
        assert engine.snapshots() == [before]
        only_its_own(engine, "a")
        engine.resume("a", mode="process")
    else:
        assert at == "pre-resume"
    one.goes_on()


@pytest.mark.parametrize("seed", range(6))
def test_a_criu_that_is_killed_at_any_time_of_a_dump(engine: Engine, criu: Criu, seed: int) -> None:
    """Its connections may fail and a process may be lost then, see engine/lifecycle/abandoned.py; never is anything
    left, and no job hangs or is half there."""
    one = witness(engine, children=8, kib=2000)
    born = len(processes_of(engine))
    delay = random.Random(seed).random() * 0.1
    timer = threading.Timer(delay, criu.kill)
    criu.instead = timer.start
    criu.at = "network-lock"
    with contextlib.suppress(CannotCheckpoint):
        engine.pause("a", mode="process")
    timer.join()
    criu.at = None
    job = engine.job("a")
    assert holders(engine) == []
    if job.state is JobState.PAUSED:
        engine.resume("a", mode="process")
    first = one.report()

    def shows_how_it_fares() -> bool:
        said = one.report()
        if said.startswith("wrong") or len(processes_of(engine)) < born:
            return True
        return int(said.split()[0]) >= int(first.split()[0]) + 2 * ROUNDS

    wait_for(shows_how_it_fares)
    report = one.report()
    lost = len(processes_of(engine)) < born
    if report.startswith("wrong") or lost:
        assert lost or "connection: Operation not permitted" in report
        wait_for(lambda: engine.job("a").state in (JobState.EXITED, JobState.FAILED))
    else:
        assert engine.job("a").state is JobState.RUNNING
        one.goes_on()
        nothing_of_a_dump(engine, "a")


def processes_of(engine: Engine) -> list[int]:
    return cgroup.pids(engine._root.group_of(engine.job("a")))


def test_a_launcher_that_is_killed_when_criu_has_begun(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it could say so: the engine knows of no criu then, and criu doesn't die with the launcher."""
    one = witness(engine)
    popen, report, launchers = launch._popen, launch._report, list[subprocess.Popen[bytes]]()

    def noted(verb: str, *rest: Any) -> subprocess.Popen[bytes]:
        process = popen(verb, *rest)
        launchers.extend([process] if verb == "criu" else [])
        return process

    def cut_off(fd: int, deadline: float) -> Iterator[tuple[str, str]]:
        for key, value in report(fd, deadline):
            if key == "ready" and launchers and launchers[0].stdout is not None and launchers[0].stdout.fileno() == fd:
                launchers.pop().kill()
                return
            yield key, value

    with monkeypatch.context() as patch:
        patch.setattr(launch, "_popen", noted)
        patch.setattr(launch, "_report", cut_off)
        with pytest.raises(CannotCheckpoint):
            engine.pause("a", mode="process")
    assert holders(engine) == []
    nothing_of_a_dump(engine, "a")
    one.goes_on()


def test_a_criu_that_has_not_said_who_it_is(engine: Engine) -> None:
    """Its launcher was killed between its lock and its first word."""
    one = witness(engine)
    job = engine.job("a")
    file = engine._root.run_job(job.id) / "criu.pid"
    subprocess.run(["setsid", "--fork", "flock", file, "sleep", "1000"], check=True)
    wait_for(lambda: file.exists() and is_locked(file))
    settle(engine._root, job, committed=False)
    assert not file.exists()
    nothing_of_a_dump(engine, "a")
    one.goes_on()


@pytest.mark.parametrize("place", ["pause.seal:after", "pause.commit:after"])
def test_a_job_that_is_removed_takes_its_criu_along(engine: Engine, place: str) -> None:
    engine.run(shell("sleep 1000", name="a"))
    killed(engine, "engine.pause('a', mode='process')", place)
    assert holders(engine)
    engine.remove("a", force=True)
    no_processes(engine)


def is_locked(file: Path) -> bool:
    with open(file, "rb") as opened, contextlib.suppress(BlockingIOError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def test_a_launcher_that_is_killed_before_a_dump_is_broken_off(engine: Engine, criu: Criu) -> None:
    one = witness(engine)

    def both() -> None:
        os.kill(parent(criu.pid), signal.SIGKILL)
        raise KeyboardInterrupt

    criu.at, criu.instead = "pre-dump", both
    with pytest.raises(KeyboardInterrupt):
        engine.pause("a", mode="process")
    criu.at = None
    assert holders(engine) == []
    nothing_of_a_dump(engine, "a")
    one.goes_on()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def leave_one(criu: Criu) -> None:
    """criu is killed while a process that it had made for a while, as it does, is there: that one has its files."""
    with process.opened(criu.pid) as pidfd:
        links = procfs.descriptors(criu.pid)
        fd = process.descriptor(pidfd, next(number for number, link in links.items() if link.endswith("/criu.pid")))
    subprocess.run(["setsid", "--fork", "sleep", "1000"], pass_fds=[fd], check=True)
    os.close(fd)
    criu.kill()


def test_what_a_killed_criu_had_made_goes_with_it(engine: Engine, criu: Criu) -> None:
    one = witness(engine)
    criu.at, criu.instead = "pre-dump", partial(leave_one, criu)
    with pytest.raises(CannotCheckpoint) as caught:
        engine.pause("a", mode="process")
    assert caught.value.reason == "criu-killed"
    criu.at = None
    nothing_of_a_dump(engine, "a")
    one.goes_on()


def test_what_a_killed_criu_had_made_goes_when_the_next_engine_comes(engine: Engine) -> None:
    """The engine that had started it is gone, too."""
    witness(engine)
    tests = os.fspath(Path(__file__).parent)
    script = f"sys.path.insert(0, {tests!r}); import test_criu_killed; test_criu_killed.pause_and_die(engine)"
    killed(engine, script, "none")
    with Engine(engine.config.root, timeout=30) as after:
        assert after.job("a").state is JobState.RUNNING
        nothing_of_a_dump(after, "a")


def pause_and_die(engine: Engine) -> None:
    """For an engine of its own."""
    patch = pytest.MonkeyPatch()
    criu = Criu(patch)

    def both() -> None:
        leave_one(criu)
        os.kill(os.getpid(), signal.SIGKILL)

    criu.at, criu.instead = "pre-dump", both
    engine.pause("a", mode="process")


def test_nothing_runs_when_it_dies_with_its_engine_before_the_commit(engine: Engine) -> None:
    job = engine.run(shell("echo ready; while :; do echo x >> /count; done", name="a"))
    until(engine, "a", b"ready")
    group = engine._root.group_of(job)
    processes = len(cgroup.pids(group))
    snapshot = engine.snapshot(engine.pause("a", mode="process").snapshot)
    count = engine.config.root / "layers" / snapshot.layers[-1] / "upper/count"
    size = count.stat().st_size
    killed(engine, "engine.resume('a')", "resume.commit:before")
    wait_for(lambda: len(cgroup.pids(group)) == processes)  # criu is gone
    time.sleep(0.2)  # in which they would write a thousand lines
    assert count.stat().st_size == size
    with Engine(engine.config.root, timeout=30) as other:
        other.resume("a", mode="process")
        wait_for(lambda: count.stat().st_size > size)
