"""Sessions as hosted sandboxes have them: their life, their answers, and what their ids are good for."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import leftovers
import pytest
from hosting import answer, elsewhere, held, made, sandboxes
from roots import wait_for

from engine import Engine, JobSpec, JobState, store
from engine.hosted import Sandboxes, Session, Status, changes

pytestmark = pytest.mark.root
__all__ = ["sandboxes"]  # a fixture

REPO = Path(__file__).resolve().parents[1]


def status(sandboxes: Sandboxes, session: Session) -> Status | None:
    return sandboxes.get_session(session.session_id).status


def on_the_host(engine: Engine) -> list[str]:
    """What there is of this root's jobs: control groups, processes in them, mounts other than the base."""
    name, run = engine.config.name, os.fspath(engine.config.run)
    groups = [path for path in leftovers.cgroups() if f"/{name}/" in path]
    mounts = [line for line in leftovers.mounts() if line.startswith((f"{run}/jobs", os.fspath(engine.config.root)))]
    return [*groups, *mounts, *leftovers.names(f"{run}/jobs")]


def test_a_whole_life(sandboxes: Sandboxes) -> None:
    result = sandboxes.create("small", {"team": "a"}, request_id="r-1", env={"WHO": "me"}, workdir="/src")
    assert (result.success, result.request_id, result.error_code) == (True, "r-1", None)
    session = result.session
    assert session is not None
    assert (session.image, session.labels, session.status) == ("small", {"team": "a"}, "RUNNING")
    assert sandboxes.engine.job(session.session_id).state is JobState.RUNNING
    assert session.command.execute_command("echo $WHO; pwd; echo kept > /kept").output == "me\n/src\n"
    session.command.execute_command("(while true; do echo tick >> /ticks; sleep 0.05; done) > /dev/null 2>&1 &")
    assert on_the_host(sandboxes.engine) != []
    paused = sandboxes.pause(session)
    assert (paused.success, paused.status, paused.mode, paused.reason) == (True, "PAUSED", "process", None)
    assert on_the_host(sandboxes.engine) == []
    assert status(sandboxes, session) is Status.PAUSED
    resumed = sandboxes.resume(session)
    assert (resumed.success, resumed.status) == (True, "RUNNING")
    assert session.command.execute_command("cat /kept").output == "kept\n"
    before = session.command.execute_command("wc -l < /ticks").output
    wait_for(lambda: session.command.execute_command("wc -l < /ticks").output != before)  # it went on
    assert sandboxes.delete(session).success
    gone = sandboxes.get_session(session.session_id)
    assert (gone.success, gone.error_code, gone.session, gone.status) == (False, "not-found", None, None)
    assert sandboxes.engine.jobs(ended=True) == []
    assert on_the_host(sandboxes.engine) == []


def test_what_a_pause_kept_is_said(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    paused = session.pause(request_id="p")
    assert paused.mode == "process"
    assert session.pause(request_id="p") == paused  # told the same again
    session.resume()
    assert sandboxes.pause(session, mode="filesystem").mode == "filesystem"
    assert sandboxes.resume(session, mode="process").error_code == "cannot-restore"
    assert status(sandboxes, session) is Status.PAUSED
    assert session.resume().success


def test_a_request_is_done_once_even_when_other_ones_came_since(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    for call in (session.pause, session.resume):
        for number in (1, 2):
            assert call(request_id=f"first-{number}").success is (number == 1)
    assert session.pause(request_id="first-1").status is Status.RUNNING  # done, and resumed since
    assert session.pause(request_id="second").status is Status.PAUSED
    assert session.resume(request_id="first-1").status is Status.PAUSED
    job = sandboxes.engine.job(session.session_id)
    assert job.pauses == 2
    assert [(done.verb, done.id) for done in job.requests] == [
        ("pause", "first-1"),
        ("resume", "first-1"),
        ("pause", "second"),
    ]


def test_who_paused_it_instead_is_said(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    session.pause(request_id="mine")
    other = session.pause(request_id="other")
    assert (other.success, other.error_code, other.status) == (False, "wrong-state", "PAUSED")
    assert "PAUSED already, by request mine" in other.error_message
    assert session.pause().success  # who gives no id asks for the state
    sandboxes.engine.resume(session.session_id)
    other = session.resume(request_id="other")
    assert (other.success, other.error_code, other.status) == (False, "wrong-state", "RUNNING")
    assert "by a call without a request id" in other.error_message
    assert session.resume().success


def test_create_with_the_same_request_gives_the_same_session(sandboxes: Sandboxes) -> None:
    session = made(sandboxes, labels={"a": "b"}, request_id="once")
    assert made(sandboxes, labels={"a": "b"}, request_id="once") == session
    session.pause()
    again = made(sandboxes, labels={"a": "b"}, request_id="once")
    assert (again.session_id, again.status) == (session.session_id, "PAUSED")
    for other in (sandboxes.create("small", {"a": "c"}, request_id="once"), sandboxes.create("x", request_id="once")):
        assert (other.success, other.error_code, other.session) == (False, "invalid-input", None)
    session.delete()
    assert made(sandboxes, labels={"a": "b"}, request_id="once").session_id != session.session_id


def test_sessions_are_listed_by_label_and_status(sandboxes: Sandboxes) -> None:
    sandboxes.engine.run(JobSpec(base="small", name="no-session"))
    ids = [made(sandboxes, labels={"n": str(number), "all": ""}).session_id for number in range(3)]
    sandboxes.pause(ids[1])
    assert sandboxes.list({"all": ""}).session_ids == ids
    assert sandboxes.list({"n": "1"}, status="PAUSED").session_ids == [ids[1]]
    assert sandboxes.list({"n": "1"}, status=Status.RUNNING).session_ids == []
    assert sandboxes.list({"n": "1", "m": ""}).session_ids == []
    assert [one.labels["n"] for one in sandboxes.list({"all": ""}).sessions] == ["0", "1", "2"]
    pages = [sandboxes.list({"all": ""}, page, limit=2) for page in (1, 2, 3)]
    assert [page.session_ids for page in pages] == [ids[:2], ids[2:], []]
    assert {page.total_count for page in pages} == {3}
    assert sandboxes.list().total_count == 3
    assert "no-session" in [job.name for job in sandboxes.engine.jobs()]


# async


def test_everybody_sees_a_pause_that_is_under_way(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    look = f"get_session('{session.session_id}')"
    for verb, place, passing, end in (
        ("pause_async", "pause.seal:before", "PAUSING", "PAUSED"),
        ("resume_async", "resume.commit:before", "RESUMING", "RUNNING"),
    ):
        with held(place) as there:
            begun = getattr(sandboxes, verb)(session)
            assert (begun.success, begun.status) == (True, passing)
            assert there.wait(30)
            assert answer(elsewhere(sandboxes, look))["status"] == passing
            assert status(sandboxes, session) == passing
        assert asyncio.run(outcome(begun)).status == end
        assert answer(elsewhere(sandboxes, look))["status"] == end


async def outcome(begun: Any) -> Any:
    return await begun


def test_several_are_awaited_at_the_same_time(sandboxes: Sandboxes) -> None:
    async def all_of(verb: str) -> list[Any]:
        return await asyncio.gather(*(outcome(getattr(sandboxes, verb)(session)) for session in sessions))

    sessions = [made(sandboxes) for _ in range(3)]
    assert {result.status for result in asyncio.run(all_of("pause_async"))} == {"PAUSED"}
    assert {result.status for result in asyncio.run(all_of("resume_async"))} == {"RUNNING"}


def test_a_process_ends_when_what_it_began_is_done(sandboxes: Sandboxes) -> None:
    """Also one that closes nothing and waits for nothing."""
    session = made(sandboxes)
    script = (
        "import sys; from engine.hosted import Sandboxes; print(Sandboxes(sys.argv[1]).pause_async(sys.argv[2]).status)"
    )
    command = [sys.executable, "-c", script, os.fspath(sandboxes.engine.config.root), session.session_id]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout in ("PAUSING\n", "PAUSED\n")
    assert sandboxes.engine._root.catalog.job(session.session_id).state is JobState.PAUSED


def test_what_can_not_be_begun_is_said_at_once(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    sandboxes.engine.stop(session.session_id, grace=0)
    for begun in (sandboxes.pause_async(session), sandboxes.resume_async(session, request_id="r")):
        assert (begun.success, begun.error_code, begun.status) == (False, "wrong-state", "EXITED")
        assert asyncio.run(outcome(begun)).error_code == "wrong-state"
    assert asyncio.run(outcome(sandboxes.pause_async("0123456789ab"))).error_code == "not-found"


# timeouts


@pytest.mark.parametrize("awaited", [False, True], ids=["waits", "awaits"])
def test_a_timeout_leaves_the_work_going_on_and_the_same_call_waits_again(sandboxes: Sandboxes, awaited: bool) -> None:
    session = made(sandboxes)

    def pause(timeout: float) -> Any:
        if awaited:
            return asyncio.run(outcome(sandboxes.pause_async(session, timeout, 0.1, request_id="p")))
        return sandboxes.pause(session, timeout, 0.1, request_id="p")

    with held("pause.seal:before") as there:
        sandboxes.pause_async(session, 60, 0.1, request_id="p")
        assert there.wait(60)
        late = pause(0.5)
        assert (late.success, late.error_code, late.status) == (False, "timeout", "PAUSING")
        assert "0.5 seconds" in late.error_message
        assert pause(0.2).error_code == "timeout"
    assert pause(30).status is Status.PAUSED
    assert sandboxes.engine.job(session.session_id).pauses == 1


@pytest.mark.parametrize("awaited", [False, True], ids=["waits", "awaits"])
def test_a_timeout_calls_nothing_off_that_waits_for_its_turn(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, awaited: bool
) -> None:
    monkeypatch.setattr(changes, "WORKERS", 1)
    with Sandboxes(engine.config.root, timeout=30) as sandboxes:
        one, other = made(sandboxes), made(sandboxes)
        with held("pause.seal:before"):
            sandboxes.pause_async(one)
            if awaited:
                late = asyncio.run(outcome(sandboxes.pause_async(other, 0.2, 0.1, request_id="p")))
            else:
                late = sandboxes.pause(other, 0.2, 0.1, request_id="p")
            assert (late.success, late.error_code, late.status) == (False, "timeout", "RUNNING")
        assert sandboxes.pause(other, request_id="p").status is Status.PAUSED


def test_a_call_waits_for_what_another_engine_does(sandboxes: Sandboxes) -> None:
    session = made(sandboxes)
    directory = sandboxes.engine.config.root / "jobs" / session.session_id
    root = sandboxes.engine.config.root
    with Sandboxes(root, timeout=0.1) as hasty, ThreadPoolExecutor() as pool:
        with store.locked(directory, timeout=1):
            assert hasty.delete(session, 0.3, 0.05).error_code == "busy"
            command = pool.submit(session.command.execute_command, "echo ran", 60)
        assert command.result().output == "ran\n"
    with Sandboxes(root, timeout=60) as patient:
        with store.locked(directory, timeout=1):
            late = patient.pause(session, 0.4, 0.05, request_id="q")
            assert (late.error_code, late.status) == ("timeout", "RUNNING")
        assert patient.pause(session, 60, 0.05, request_id="q").status is Status.PAUSED


# answers to what can't be


@pytest.mark.parametrize("request_id", ["", " ", "a b", "-a", "a\n", "a/b", "\0", "\ud800", "x" * 129, "é"])
def test_a_request_id_that_can_not_be_is_refused(sandboxes: Sandboxes, request_id: str) -> None:
    results = [
        sandboxes.create("small", request_id=request_id),
        sandboxes.pause("0123456789ab", request_id=request_id),
        sandboxes.resume_async("0123456789ab", request_id=request_id),
        sandboxes.delete("0123456789ab", request_id=request_id),
    ]
    assert [(result.success, result.error_code) for result in results] == [(False, "invalid-input")] * 4
    assert sandboxes.list().total_count == 0


def test_odd_input_is_answered(sandboxes: Sandboxes) -> None:
    create, none = sandboxes.create, "0123456789ab"
    session = made(sandboxes, labels={})
    name = sandboxes.engine.job(session.session_id).name
    answers = {
        "not-found": [
            create("nosuch"),
            create(""),
            create("\ud800"),
            *(call(one) for call in (sandboxes.pause, sandboxes.resume) for one in (none, "", name, "\ud800")),
            sandboxes.get_session(session.session_id[:6]),
            sandboxes.get_session(name),
        ],
        "invalid-input": [
            create("small", {"serac.session": "x"}),
            create("small", {"\ud800": ""}),
            create("small", {"a": "\0"}),
            create("small", env={"a=b": ""}),
            create("small", workdir="relative"),
            create("small", net="everywhere"),  # type: ignore[arg-type]
            sandboxes.pause(session, 0),
            sandboxes.pause(session, float("nan")),
            sandboxes.pause(session, float("inf")),
            session.command.execute_command("true", 1e300),
            sandboxes.resume(session, poll_interval=-1),
            sandboxes.pause(session, mode="somehow"),  # type: ignore[arg-type]
            sandboxes.list(page=0),
            sandboxes.list(limit=0),
            sandboxes.list(status="ASLEEP"),
        ],
    }
    for code, results in answers.items():
        for result in results:
            assert (result.success, result.error_code) == (False, code), result
            assert result.request_id
            assert result.error_message
            assert result.hint
    assert sandboxes.list().session_ids == [session.session_id]
    assert made(sandboxes, labels={"": "", "é ": "\n"}).labels == {"": "", "é ": "\n"}


def test_what_can_not_be_meant_is_raised(sandboxes: Sandboxes) -> None:
    wrong: Any = 1
    session = made(sandboxes)
    for call in (
        lambda: sandboxes.create(wrong),
        lambda: sandboxes.create("small", {"a": wrong}),
        lambda: sandboxes.create("small", request_id=wrong),
        lambda: sandboxes.create("small", limits=wrong),
        lambda: sandboxes.pause(wrong),
        lambda: sandboxes.pause(None),  # type: ignore[arg-type]
        lambda: sandboxes.resume(session, "300"),  # type: ignore[arg-type]
        lambda: sandboxes.delete(session, True),
        lambda: sandboxes.get_session(wrong),
        lambda: sandboxes.list(page="1"),  # type: ignore[arg-type]
        lambda: session.command.execute_command(wrong),
        lambda: session.command.execute_command("true", None),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    assert sandboxes.list().session_ids == [session.session_id]


def test_a_job_that_is_no_session_is_left_alone(engine: Engine, sandboxes: Sandboxes) -> None:
    job = engine.run(JobSpec(base="small", name="mine")).id
    for result in (sandboxes.pause(job), sandboxes.resume(job), sandboxes.delete(job), sandboxes.get_session(job)):
        assert (result.success, result.error_code) == (False, "not-found")
    assert engine.job(job).state is JobState.RUNNING


def test_the_example_of_the_readme_runs(sandboxes: Sandboxes) -> None:
    readme = (REPO / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from engine\.hosted .*?)```", readme, re.DOTALL)
    root = os.fspath(sandboxes.engine.config.root)
    script = example.replace('"/var/lib/serac"', repr(root)).replace('"debian"', '"small"')
    assert script.count(root) == script.count('"small"') == 1
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "1 done"
    assert "/missing" in lines[1]
    assert lines[3] == "True PAUSED"
    assert lines[4] in ("RESUMING", "RUNNING")
    assert lines[5:] == ["kept", "", "True"]
    assert sandboxes.list().total_count == 0
