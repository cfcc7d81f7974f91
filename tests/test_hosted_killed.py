"""Calls whose process is killed in the middle, and the same calls at the same time: each request is done once."""

from __future__ import annotations

import leftovers
import pytest
from hosting import answer, elsewhere, killed, made, sandboxes
from roots import wait_for

from engine import Engine
from engine.hosted import Sandboxes, Session, Status

pytestmark = pytest.mark.root
__all__ = ["sandboxes"]  # a fixture

STEPS = {
    "create": ("run.prepare", "run.mount", "run.launch", "run.commit"),
    "pause": ("pause.freeze", "pause.look", "pause.dump", "pause.seal", "pause.flush", "pause.commit", "pause.release"),
    "resume": ("resume.plan", "resume.mount", "resume.restore", "resume.commit", "resume.go"),
    "delete": ("remove.commit", "remove.release", "remove.bytes"),
}
COMMITTED = ("pause.commit:after", "pause.release:before", "pause.release:after")


def places(verb: str) -> list[str]:
    return [f"{name}:{when}" for name in STEPS[verb] for when in ("before", "after")]


def alive(session: Session) -> Session:
    """With a process that would show if it were started again."""
    session.command.execute_command("(echo begun >> /begun; sleep 1000) > /dev/null 2>&1 &")
    wait_for(lambda: lives(session) == 1)
    return session


def lives(session: Session) -> int:
    """How often its process began; 0 when it isn't there."""
    found = session.command.execute_command("pidof sleep > /dev/null && wc -l < /begun")
    return int(found.output) if found.success else 0


def groups(engine: Engine) -> list[str]:
    return [path for path in leftovers.cgroups() if f"/{engine.config.name}/" in path]


@pytest.mark.parametrize("place", places("create"))
def test_create(sandboxes: Sandboxes, place: str) -> None:
    killed(sandboxes, "create('small', {'a': 'b'}, request_id='r')", place)
    session = made(sandboxes, labels={"a": "b"}, request_id="r")
    assert session.command.execute_command("echo up").output == "up\n"
    assert sandboxes.list().session_ids == [session.session_id]
    assert sandboxes.engine.jobs(ended=True)[0].id == session.session_id
    assert answer(elsewhere(sandboxes, "create('small', {'a': 'b'}, request_id='r')"))["session"] == session.session_id


@pytest.mark.parametrize("call", ["pause", "pause_async"])
@pytest.mark.parametrize("place", places("pause"))
def test_pause(sandboxes: Sandboxes, place: str, call: str) -> None:
    session = alive(made(sandboxes))
    killed(sandboxes, f"{call}('{session.session_id}', request_id='r')", place)
    # Without another call it is as it was, or it is done.
    assert sandboxes.get_session(session.session_id).status == ("PAUSED" if place in COMMITTED else "RUNNING")
    result = session.pause(request_id="r")
    assert (result.success, result.status, result.mode) == (True, "PAUSED", "process")
    assert groups(sandboxes.engine) == []
    assert sandboxes.engine.job(session.session_id).pauses == 1
    assert len(sandboxes.engine.snapshots()) == 1
    assert session.resume().success
    assert session.pause(request_id="r").status is Status.RUNNING  # not a second time
    assert lives(session) == 1


@pytest.mark.parametrize("call", ["resume", "resume_async"])
@pytest.mark.parametrize("place", places("resume"))
def test_resume(sandboxes: Sandboxes, place: str, call: str) -> None:
    session = alive(made(sandboxes))
    session.pause()
    killed(sandboxes, f"{call}('{session.session_id}', request_id='r')", place)
    assert sandboxes.get_session(session.session_id).status in ("PAUSED", "RUNNING")
    result = session.resume(request_id="r")
    assert (result.success, result.status) == (True, "RUNNING")
    assert lives(session) == 1
    session.pause()
    assert session.resume(request_id="r").status is Status.PAUSED  # not a second time


@pytest.mark.parametrize("place", ["resume.launch:before", "resume.launch:after", "resume.commit:after"])
def test_resume_from_files(sandboxes: Sandboxes, place: str) -> None:
    session = made(sandboxes)
    session.command.execute_command("echo kept > /kept")
    sandboxes.pause(session, mode="filesystem")
    killed(sandboxes, f"resume('{session.session_id}', request_id='r')", place)
    assert session.resume(request_id="r").status is Status.RUNNING
    assert session.command.execute_command("cat /kept").output == "kept\n"
    session.pause()
    assert session.resume(request_id="r").status is Status.PAUSED


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("place", places("delete"))
def test_delete(sandboxes: Sandboxes, place: str, paused: bool) -> None:
    session = alive(made(sandboxes))
    if paused:
        session.pause()
    killed(sandboxes, f"delete('{session.session_id}', request_id='r')", place)
    assert sandboxes.delete(session, request_id="r").success
    assert sandboxes.engine.jobs(ended=True) == []
    assert groups(sandboxes.engine) == []
    for directory in ("jobs", "layers", "tmp"):
        assert list((sandboxes.engine.config.root / directory).iterdir()) == []


# at the same time


def test_one_request_creates_one_session_however_many_ask(sandboxes: Sandboxes) -> None:
    asking = [elsewhere(sandboxes, "create('small', {'a': 'b'}, request_id='r')") for _ in range(4)]
    here = made(sandboxes, labels={"a": "b"}, request_id="r").session_id
    assert {answer(process)["session"] for process in asking} == {here}
    assert sandboxes.list().session_ids == [here]


def test_one_request_pauses_and_resumes_once_however_many_ask(sandboxes: Sandboxes) -> None:
    session = alive(made(sandboxes))
    for verb, end in (("pause", "PAUSED"), ("resume", "RUNNING")):
        asking = [elsewhere(sandboxes, f"{verb}('{session.session_id}', request_id='r')") for _ in range(4)]
        here = getattr(session, verb)(request_id="r")
        assert (here.success, here.status) == (True, end)
        for process in asking:
            told = answer(process)
            assert (told["success"], told["status"], told["request_id"]) == (True, end, "r")
    job = sandboxes.engine.job(session.session_id)
    assert (job.pauses, len(job.requests), lives(session)) == (1, 2, 1)


def test_of_several_requests_one_pauses_and_the_others_are_told(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    asking = [elsewhere(sandboxes, f"pause('{session.session_id}', request_id='r-{n}')") for n in range(4)]
    told = [answer(process) for process in asking]
    (winner,) = [one["request_id"] for one in told if one["success"]]
    for one in told:
        if not one["success"]:
            assert (one["error_code"], one["status"]) == ("wrong-state", "PAUSED")
            assert one["error_message"].endswith(f"by request {winner}")


def test_a_session_is_deleted_by_whoever_comes_first(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    asking = [elsewhere(sandboxes, f"delete('{session.session_id}')") for _ in range(4)]
    assert all(answer(process)["success"] for process in asking)
    assert sandboxes.engine.jobs(ended=True) == []
