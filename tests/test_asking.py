"""A process of a job asks; whoever resumes, forks or answers tells it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from commands import Command, serac
from roots import another_root, inside, output, shell, steps, until, wait_for
from test_races import meanwhile

from engine import Engine, JobSpec, JobState, SessionSpec
from engine.errors import Busy, InvalidInput, NotFound, WrongState
from engine.model import Mode, Question

__all__ = ["serac"]  # fixture

pytestmark = pytest.mark.root

ASK = "/.serac/ask"
DEPLOY = f"""echo at >> /asked; {ASK} --reason deploy? --state '{{"commit": "4f0c"}}'; echo went on"""


def asked(engine: Engine, ref: str) -> Question:
    """What a job asks, once it does."""
    wait_for(lambda: engine.asked(ref))
    found = engine.asked(ref)
    assert found is not None
    return found


def test_a_resume_answers(engine: Engine) -> None:
    before = time.time()
    engine.run(shell(DEPLOY, name="a", state="of the caller"))
    question = asked(engine, "a")
    assert (question.reason, question.state) == ("deploy?", {"commit": "4f0c"})
    assert question.since is not None
    assert before - 1 <= question.since <= time.time()
    paused = engine.pause("a", mode="process")
    assert engine.snapshot(paused.snapshot).context.question == engine.asked("a") == question
    assert engine.job("a").spec.state == engine.snapshot(paused.snapshot).context.state == {"commit": "4f0c"}
    assert engine.resume("a", answer={"approve": True}).untold is None
    assert output(engine, "a") == 'resumed {"approve":true}\nwent on\n'
    assert engine.wait("a", timeout=30).status == 0
    assert engine.asked("a") is None


def test_a_fork_has_an_answer_of_its_own(engine: Engine) -> None:
    """The snapshot stays, and with it the question; what ran before is the same for all."""
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    for name, answer in (("yes", True), ("no", False)):
        assert engine.fork(snapshot, name=name, answer=answer).untold is None
    engine.fork(snapshot, name="nothing")
    engine.resume("a")
    said = {name: output(engine, name) for name in ("yes", "no", "nothing", "a")}
    lines = {"yes": "forked true", "no": "forked false", "nothing": "forked null", "a": "resumed null"}
    assert said == {name: f"{line}\nwent on\n" for name, line in lines.items()}
    assert all(engine.wait(name, timeout=30).status == 0 for name in lines)


def test_a_fork_that_is_told_can_not_be_paused_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot

    def pause() -> None:
        with Engine(engine.config.root, timeout=0.2) as other, pytest.raises(Busy):
            other.pause("b", mode="filesystem")

    moment = meanwhile(monkeypatch, "engine.lifecycle.asking._tell", pause)
    assert engine.fork(snapshot, name="b", answer=1).untold is None
    assert moment.came
    assert output(engine, "b") == "forked 1\nwent on\n"


def test_an_answer_without_a_pause(engine: Engine) -> None:
    engine.run(shell(f"{ASK} --reason one; {ASK} --reason two || echo status $?; {ASK} --reason three", name="a"))
    for reason, answer in (("one", 1), ("three", [3])):
        if reason == "three":
            wait_for(lambda: asked(engine, "a").reason == "two")
            assert engine.refuse("a", 'because of "it"').reason == "two"
        wait_for(lambda reason=reason: asked(engine, "a").reason == reason)  # type: ignore[misc]
        assert engine.answer("a", answer).reason == reason
    assert output(engine, "a") == 'answered 1\nrefused "because of \\"it\\""\nstatus 1\nanswered [3]\n'
    assert [answer.question.reason for answer in engine.job("a").answers] == ["one", "three"]
    engine.wait("a", timeout=30)
    with pytest.raises(WrongState):
        engine.answer("a", 1)


def test_who_does_not_ask_gets_no_answer(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    assert engine.asked("a") is None
    with pytest.raises(NotFound):
        engine.answer("a", 1)
    with pytest.raises(NotFound):
        engine.refuse("a", "no")
    snapshot = engine.pause("a", mode="process").snapshot
    for verb in (lambda: engine.resume("a", answer=1), lambda: engine.fork(snapshot, answer=1)):
        with pytest.raises(WrongState, match="nobody asks"):
            verb()
    with pytest.raises(WrongState, match="paused"):
        engine.answer("a", 1)
    engine.resume("a")


def test_a_resume_with_a_bad_answer_changes_nothing(engine: Engine) -> None:
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    for bad in ({"not": object()}, "x" * 40_000):
        with pytest.raises(InvalidInput):
            engine.answer("a", bad)
    engine.pause("a", mode="process")
    for bad in ({"not": object()}, "x" * 40_000):
        with pytest.raises(InvalidInput):
            engine.resume("a", answer=bad)
    assert engine.job("a").state is JobState.PAUSED
    engine.resume("a", answer="x" * 30_000)
    assert output(engine, "a") == f'resumed "{"x" * 30_000}"\nwent on\n'


def test_a_take_leaves_the_question_open(engine: Engine) -> None:
    """The copy has the question too, and a fork of it its own answer."""
    engine.run(shell(DEPLOY, name="a"))
    question = asked(engine, "a")
    snapshot = engine.snapshot_take("a").snapshot
    assert engine.asked("a") == engine.snapshot(snapshot).context.question == question
    engine.fork(snapshot, name="b", answer=2)
    engine.answer("a", 1)
    assert output(engine, "a") == "answered 1\nwent on\n"
    assert output(engine, "b") == "forked 2\nwent on\n"


def test_the_callers_state_comes_first(engine: Engine) -> None:
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    paused = engine.pause("a", mode="process", state="mine")
    assert engine.job("a").spec.state == engine.snapshot(paused.snapshot).context.state == "mine"
    assert asked(engine, "a").state == {"commit": "4f0c"}


# from the files


STEPS = steps(
    first="echo first >> /ran",
    second=f"echo second >> /ran; {ASK} --reason one >> /said; {ASK} --reason two >> /said; cat /said",
    third=f"{ASK} --reason one >> /said; cat /said",
)


def test_a_step_that_starts_again_finds_its_answers(engine: Engine) -> None:
    """It asks in vain what it had asked before; a step after it, which asks the same, asks anew."""
    engine.run(JobSpec(base="small", name="a", steps=STEPS))
    for reason, answer in (("one", 1), ("two", 2), ("one", 3)):
        assert asked(engine, "a").reason == reason
        engine.pause("a", mode="filesystem")
        assert engine.resume("a", answer=answer).mode == "filesystem"
    assert engine.wait("a", timeout=30).status == 0
    said = "resumed 1\nresumed 1\nresumed 2\nresumed 3\n"
    assert inside_out(engine, "a", "/said") == said
    assert inside_out(engine, "a", "/ran") == "first\n" + 3 * "second\n"


def inside_out(engine: Engine, ref: str, path: str) -> str:
    upper = engine.job(ref).upper
    assert upper is not None
    return (engine.config.root / "layers" / upper / "upper" / path.lstrip("/")).read_text()


def test_answers_to_processes_are_found_after_a_start_from_the_files(engine: Engine) -> None:
    engine.run(shell(f"{ASK} --reason one; {ASK} --reason two; sleep 1000", name="a"))
    asked(engine, "a")
    engine.pause("a", mode="process")
    engine.resume("a", answer=1)
    wait_for(lambda: asked(engine, "a").reason == "two")
    engine.answer("a", 2)
    until(engine, "a", b"answered 2\n")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    until(engine, "a", b"resumed 1\nanswered 2\nresumed 1\nanswered 2\n")


def test_a_fork_from_the_files_has_an_answer_too(engine: Engine) -> None:
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    engine.fork(snapshot, name="b", mode="filesystem", answer="b")
    engine.resume("a", mode="filesystem", answer="a")
    assert output(engine, "b") == 'forked "b"\nwent on\n'
    assert output(engine, "a") == 'resumed "a"\nwent on\n'


def test_a_question_travels(engine: Engine, small_tree: Any, tmp_path: Any) -> None:
    engine.run(shell(DEPLOY, name="a"))
    question = asked(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "a.serac"))
    with another_root(small_tree) as other:
        other.snapshot_import(os.fspath(tmp_path / "a.serac"))
        assert other.snapshot(snapshot).context.question == question
        other.fork(snapshot, name="b", answer={"approve": False})
        assert output(other, "b") == 'forked {"approve":false}\nwent on\n'


# who asks, and how


@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_two_ask_at_once(engine: Engine, mode: Mode) -> None:
    """They are answered one after the other: a resume answers the first alone."""
    engine.run(JobSpec(base="small", name="a"))
    for number in (1, 2):
        engine.start("a", SessionSpec(argv=("/bin/sh", "-c", f"{ASK} --reason {number}; sleep 1000")))
        wait_for(lambda: asked(engine, "a").reason)
    first = asked(engine, "a").reason
    engine.pause("a", mode=mode)
    engine.resume("a", answer="first")
    wait_for(lambda: asked(engine, "a").reason != first)
    engine.answer("a", "second")
    wait_for(lambda: len({output_so_far(engine, "a", number) for number in (1, 2)} - {""}) == 2)
    outcomes = {output_so_far(engine, "a", number) for number in (1, 2)}
    assert outcomes == {'resumed "first"\n', 'answered "second"\n'}


def output_so_far(engine: Engine, ref: str, number: int) -> str:
    return output(engine, ref, number, live=False)


def test_an_asker_that_is_killed_while_it_waits(engine: Engine) -> None:
    """The question goes with it, also in the midst of a resume: that is told, and no failure."""
    engine.run(shell(f"{ASK} --reason one & echo $! > /pid; wait $!; echo ended $?; sleep 1000", name="a"))
    asked(engine, "a")
    inside(engine, "a", "until test -s /pid; do :; done; kill $(cat /pid)")
    wait_for(lambda: engine.asked("a") is None)
    until(engine, "a", b"ended 143\n")
    with pytest.raises(NotFound):
        engine.answer("a", 1)
    engine.start("a", SessionSpec(argv=(ASK, "--reason", "again")))
    asked(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    engine.resume("a", answer=2)
    assert engine.snapshots() == []
    assert snapshot
    assert output(engine, "a", max(session.id for session in engine.sessions("a"))) == "resumed 2\n"


def test_a_timeout_does_not_count_the_pause(engine: Engine) -> None:
    engine.run(shell(f"{ASK} --timeout 10; echo status $?", name="a"))
    asked(engine, "a")
    engine.pause("a", mode="process")
    time.sleep(11)  # the job's ten seconds would be over
    engine.resume("a", answer=1)
    assert output(engine, "a") == "resumed 1\nstatus 0\n"
    engine.run(shell(f"{ASK} --timeout 1 2>&1; echo status $?", name="b"))
    assert output(engine, "b").endswith("timed out\nstatus 3\n")
    assert engine.asked("b") is None


def test_other_users_ask_too(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    status = engine.start("a", SessionSpec(argv=(ASK, "--reason", "nobody's"), uid=65534, gid=65534))
    asked(engine, "a")
    engine.answer("a")
    assert output(engine, "a", status.id) == "answered null\n"


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ('{"a": 1', '{"a": 1'),
        ("", ""),
        ("nan", "nan"),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        ("1e999", "1e999"),
        (r'"\ud800"', r'"\ud800"'),
        (r'"\u0000"', "\0"),
        ("caf\udce9", "caf?"),
        ("[" + "1," * 10000 + "1]", [1] * 10001),
    ],
)
def test_states_of_any_kind(engine: Engine, state: str, kept: Any) -> None:
    """What is no JSON is a text; nothing of it stops a verb."""
    engine.run(JobSpec(base="small", name="a"))
    question = state.encode("utf-8", "surrogateescape")
    engine.copy_in("a", tar_of("state", question), "/tmp")
    engine.start("a", SessionSpec(argv=(ASK, "--reason", "what?", "--state", "@/tmp/state")))
    assert asked(engine, "a").state == kept
    engine.pause("a", mode="filesystem")
    assert engine.job("a").spec.state == kept
    engine.resume("a", answer=1)


def tar_of(name: str, content: bytes) -> Any:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


FORGERIES = {
    "long": "head -c 3000000 /dev/zero | tr '\\0' x > ask",
    "no records": "echo hello > ask",
    "no number": "printf 'reason=x\\0pid=1\\0id=-5\\0' > ask",
    "a directory": "mkdir ask answers",
    "a fifo": "mkfifo ask answers",
    "a link": "ln -s /proc/1/maps ask; ln -s /etc/passwd answers",
}


@pytest.mark.parametrize("script", FORGERIES.values(), ids=FORGERIES)
def test_forged_questions(engine: Engine, script: str) -> None:
    """A job's root can put anything where init puts the question: nobody asks then."""
    engine.run(shell(f"cd /run/serac; {script}; echo ready; sleep 1000", name="a"))
    until(engine, "a", b"ready\n")
    assert engine.asked("a") is None
    for mode in ("process", "filesystem"):
        engine.pause("a", mode=mode)  # type: ignore[arg-type]
        engine.resume("a")


def test_a_forged_question_has_nobody_who_waits(engine: Engine) -> None:
    forge = "printf 'reason=%s\\0state=[1]\\0pid=1\\0id=7\\0since=0\\0' $(head -c 20000 /dev/zero | tr '\\0' x) > ask"
    engine.run(shell(f"cd /run/serac; {forge}; echo ready; sleep 1000", name="a"))
    until(engine, "a", b"ready\n")
    assert len(asked(engine, "a").reason) == 20000
    with pytest.raises(NotFound):
        engine.answer("a", 1)
    assert engine.job("a").answers == ()
    engine.pause("a", mode="process")
    assert "the answer" in str(engine.resume("a", answer=1).untold)
    assert engine.job("a").answers == ()


# an engine that dies in between


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_answer_outlives_its_engine(engine: Engine, place: str) -> None:
    """After the resume's commit the job has its answer, whoever tells it."""
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    engine.pause("a", mode="process")
    script = (
        "import sys; from engine import Engine\nwith Engine(sys.argv[1]) as engine: engine.resume('a', answer='yes')"
    )
    command = [sys.executable, "-c", script, os.fspath(engine.config.root)]
    environment = {**os.environ, "SERAC_FAULT": f"answer.tell:{place}"}
    assert subprocess.run(command, check=False, env=environment, timeout=60).returncode == -signal.SIGKILL
    engine.jobs()
    assert output(engine, "a") == 'resumed "yes"\nwent on\n'
    assert engine.wait("a", timeout=30).status == 0


# the command


def test_the_command_shows_and_answers(engine: Engine, serac: Command) -> None:
    engine.run(shell(DEPLOY, name="a"))
    asked(engine, "a")
    assert "running, asks: deploy?" in serac.good("ps")
    assert serac.json("show", "a")["asks"]["state"] == {"commit": "4f0c"}
    assert "asks: " in serac.good("show", "a")
    assert serac.error("answer", "a", "{")[0] == 200
    assert serac.error("run", "--detach", "--on-ask", "pause", "--", "true")[0] == 200
    serac.good("pause", "a", "--mode", "process")
    assert "paused, asks: deploy?" in serac.good("ps")
    assert serac.json("ps")[0]["asks"]["reason"] == "deploy?"
    assert serac.error("answer", "a", "1")[0] == 203
    serac.good("resume", "a", "--as", "b", "--answer", "null")
    serac.good("resume", "a", "--answer", '{"approve": true}')
    assert output(engine, "a") == 'resumed {"approve":true}\nwent on\n'
    assert output(engine, "b") == "forked null\nwent on\n"
    engine.run(shell(f"{DEPLOY}; {DEPLOY}", name="c"))
    asked(engine, "c")
    assert "which asked: deploy?" in serac.good("answer", "c", "[1]")
    until(engine, "c", b"answered [1]\nwent on\n")
    asked(engine, "c")
    assert json.loads(serac.good("--json", "answer", "c", "--refuse", "no"))["reason"] == "deploy?"
    assert output(engine, "c").endswith('refused "no"\nwent on\n')
