"""Who comes to a job while its init has closed the door for a pause, or while a verb is in the midst of its work."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import Command, serac, up
from hosting import held
from initjob import held_back
from roots import inside, shell, until, wait_for
from test_asking import ASK, asked
from test_session_attached import COUNT, gapless, hang_up, watching

from engine import Engine, JobState, SessionSpec, cgroup, session
from engine.lifecycle import processes

__all__ = ["serac", "up"]  # fixtures

pytestmark = pytest.mark.root


def test_a_client_that_knocks_again_at_once_is_let_in(serac: Command, engine: Engine, up: str) -> None:
    """It runs whenever it can, on init's own CPU, so that it is back before init has done anything else."""
    with watching(serac, "exec", up, "--", "sh", "-c", COUNT) as process:
        for pid in (processes.recall(engine._root, engine.job(up)).pid, process.pid):
            os.sched_setaffinity(pid, {0})
        os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
        hang_up(engine, up)
        serac.good("exec", up, "--", "touch", "/last")
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (7, "")
    assert gapless(1, output) > 1


def called(engine: Engine, name: str) -> list[int]:
    """The processes of job ``a`` that run such a program."""
    group = engine._root.group_of(engine.job("a"))
    return [pid for pid in cgroup.pids(group) if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]


def connected(pid: int) -> bool:
    return any("socket:" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())


def test_who_asks_while_init_closes_its_door_is_heard_after_the_pause(engine: Engine) -> None:
    """A terminal's process that is held back keeps the door closed for as long as the test needs."""
    engine.run(shell(f"until test -e /run/serac/go; do sleep 0.01; done; {ASK} --reason why; sleep 1000", name="a"))
    io = engine._root.io(engine.job("a").id)
    with (
        engine.exec("a", SessionSpec(argv=("sh",), tty=(24, 80))),
        session.connect(io, timeout=30) as idle,
        session.connect(io, timeout=30) as control,
        ThreadPoolExecutor() as pool,
    ):
        with held_back(*called(engine, "serac-terminal")):
            quiescing = pool.submit(control.quiesce)
            assert idle.asked() is None  # init has hung up on it
            (io / "go").touch()
            wait_for(lambda: any(map(connected, called(engine, "ask"))))
        quiescing.result(60)
    assert asked(engine, "a").reason == "why"


def resume(engine: Engine) -> object:
    return engine.resume("a")


def take(engine: Engine) -> object:
    return engine.snapshot_take("a")


@pytest.mark.parametrize(("verb", "place"), [(resume, "resume.start:before"), (take, "pause.release:before")])
def test_who_attaches_or_listens_in_the_midst_of_a_verb_waits_for_its_end(
    engine: Engine, verb: Callable[[Engine], object], place: str
) -> None:
    """The job runs by then, but its command doesn't; or its snapshot was taken, and it doesn't run as yet."""
    engine.run(shell("echo begun; sleep 1000", name="a"))
    until(engine, "a", b"begun\n")
    if verb is resume:
        engine.pause("a", mode="filesystem")
    with ThreadPoolExecutor() as pool:
        with held(place) as there:
            under_way = pool.submit(verb, engine)
            assert there.wait(60)
            attaching, listening = pool.submit(engine.attach, "a"), pool.submit(engine.listen, "a")
            for call in (attaching, listening):
                with pytest.raises(TimeoutError):
                    call.result(0.5)
        with attaching.result(60) as connection, listening.result(60):
            assert connection.session == 0
        under_way.result(60)


def test_a_job_whose_snapshot_is_taken_is_never_seen_paused(engine: Engine, tmp_path: Path) -> None:
    """Who waits for its pause waits on, and what is run in it runs when it does."""
    engine.run(shell("sleep 1000", name="a"))
    with ThreadPoolExecutor() as pool:
        with held("pause.release:before") as there:
            under_way = pool.submit(take, engine)
            assert there.wait(60)
            assert engine.job("a").state is JobState.RESUMING
            waiting = pool.submit(engine.wait, "a", JobState.PAUSED)
            running = pool.submit(inside, engine, "a", "echo ran")
            copying = pool.submit(engine.copy_out, "a", "/etc/passwd", os.fspath(tmp_path / "copy"))
            for call in (waiting, running, copying):
                with pytest.raises(TimeoutError):
                    call.result(0.5)
        assert running.result(60) == "ran\n"
        copying.result(60)
        under_way.result(60)
        assert not waiting.done()
        engine.pause("a", mode="filesystem")
        assert waiting.result(60).pauses == 2
