"""How many hosted sessions there may be, and how they go: from each state, with nothing left."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import leftovers
import msgspec
import pytest
from hosting import answer, elsewhere, held, kill_all, killed, made, sandboxes
from roots import wait_for

from engine import Engine, JobState
from engine.hosted import Sandboxes, Status

pytestmark = pytest.mark.root
__all__ = ["sandboxes"]  # a fixture


def limited(engine: Engine, *, sessions: int, paused: bool = True) -> Sandboxes:
    """Sandboxes on the engine's root that may have so many sessions, as for every process from now on."""
    settings = {"archive": "never", "sessions": sessions, "sessions_paused": paused}
    (engine.config.root / "config.json").write_bytes(msgspec.json.encode(settings))
    return Sandboxes(engine.config.root, timeout=30)


def refused(result: object) -> bool:
    return (getattr(result, "success"), getattr(result, "error_code")) == (False, "limit-reached")  # noqa: B009


def test_there_are_no_more_sessions_than_configured(engine: Engine) -> None:
    with limited(engine, sessions=2) as sandboxes:
        one, two = made(sandboxes), made(sandboxes, request_id="two")
        third = sandboxes.create("small")
        assert refused(third)
        assert "config.json allows 2" in third.error_message
        one.pause()
        assert refused(sandboxes.create("small"))  # paused ones count
        assert one.resume().success
        assert made(sandboxes, request_id="two") == two  # a repeated request needs no place
        assert sandboxes.list().total_count == 2
        two.delete()
        assert sandboxes.create("small").success
        engine.stop(one.session_id, grace=0)
        assert sandboxes.create("small").success  # what has ended doesn't count


def test_paused_sessions_need_not_count(engine: Engine) -> None:
    with limited(engine, sessions=1, paused=False) as sandboxes:
        one = made(sandboxes)
        assert refused(sandboxes.create("small"))
        one.pause()
        two = made(sandboxes)
        again = one.resume(request_id="r")
        assert refused(again)
        assert again.status is Status.PAUSED
        assert two.pause().success
        assert one.resume(request_id="r").success
        assert one.resume(request_id="r").success
        one.pause()
        two.resume()
        assert one.resume(request_id="r").success  # it was done, and is not done again
        assert one.resume().error_code == "limit-reached"


def test_processes_share_the_limit(engine: Engine) -> None:
    with limited(engine, sessions=2) as sandboxes:
        asking = [elsewhere(sandboxes, "create('small')") for _ in range(5)]
        told = [answer(process)["error_code"] for process in asking]
        assert sorted(told, key=str) == [None, None, *["limit-reached"] * 3]
        assert sandboxes.list().total_count == 2


def test_who_was_killed_while_it_made_a_session_holds_no_place(engine: Engine) -> None:
    with limited(engine, sessions=1) as sandboxes:
        killed(sandboxes, "create('small', request_id='r')", "run.commit:before")
        assert sandboxes.create("small").success


# deletes


def whole(sandboxes: Sandboxes) -> list[str]:
    """What there is of a root but its base."""
    root, name, run = sandboxes.engine.config.root, sandboxes.engine.config.name, sandboxes.engine.config.run
    found = [os.fspath(path) for directory in ("jobs", "layers", "tmp") for path in (root / directory).iterdir()]
    groups = [path for path in leftovers.cgroups() if f"/{name}/" in path]
    return [*found, *groups, *leftovers.names(f"{run}/jobs"), *(one.id for one in sandboxes.engine.snapshots())]


def running(sandboxes: Sandboxes, ref: str) -> None:
    pass


def frozen(sandboxes: Sandboxes, ref: str) -> None:
    sandboxes.engine.freeze(ref)


def paused(sandboxes: Sandboxes, ref: str) -> None:
    sandboxes.pause(ref)


def resumed(sandboxes: Sandboxes, ref: str) -> None:
    sandboxes.pause(ref)
    sandboxes.resume(ref)


def stopped(sandboxes: Sandboxes, ref: str) -> None:
    sandboxes.engine.stop(ref, grace=0)


def failed(sandboxes: Sandboxes, ref: str) -> None:
    kill_all(sandboxes.engine, ref)
    wait_for(lambda: sandboxes.engine.job(ref).state is JobState.FAILED)


STATES = {
    "RUNNING": (running, resumed),
    "FROZEN": (frozen,),
    "PAUSED": (paused,),
    "EXITED": (stopped,),
    "FAILED": (failed,),
}


@pytest.mark.parametrize(
    ("status", "bring"),
    [(status, bring) for status, ways in STATES.items() for bring in ways],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_session_is_deleted_in_any_state(
    sandboxes: Sandboxes, status: str, bring: Callable[[Sandboxes, str], None]
) -> None:
    session = made(sandboxes)
    session.command.execute_command("sleep 1000 > /dev/null 2>&1 &")
    bring(sandboxes, session.session_id)
    assert sandboxes.get_session(session.session_id).status == status
    assert sandboxes.list(status=status).session_ids == [session.session_id]
    assert whole(sandboxes) != []
    assert sandboxes.delete(session).success
    wait_for(lambda: whole(sandboxes) == [])  # bytes of process images go in a thread
    assert sandboxes.delete(session).success
    assert sandboxes.delete("0123456789ab").success


@pytest.mark.parametrize(
    ("verb", "place"), [("pause", "pause.seal:before"), ("resume", "resume.commit:before")], ids=["pausing", "resuming"]
)
def test_a_delete_waits_for_what_is_under_way(sandboxes: Sandboxes, verb: str, place: str) -> None:
    session = made(sandboxes)
    if verb == "resume":
        session.pause()
    with ThreadPoolExecutor() as pool:
        with held(place) as there:
            begun = getattr(sandboxes, f"{verb}_async")(session)
            assert there.wait(30)
            assert begun.status in ("PAUSING", "RESUMING")
            deleting = pool.submit(sandboxes.delete, session)
            assert answer(elsewhere(sandboxes, f"get_session('{session.session_id}')"))["status"] == begun.status
        assert deleting.result().success
    wait_for(lambda: whole(sandboxes) == [])


@pytest.mark.parametrize(
    ("verb", "place"), [("pause", "pause.seal:before"), ("resume", "resume.commit:before")], ids=["pausing", "resuming"]
)
def test_a_session_is_deleted_whose_process_was_killed(sandboxes: Sandboxes, verb: str, place: str) -> None:
    session = made(sandboxes)
    session.command.execute_command("sleep 1000 > /dev/null 2>&1 &")
    if verb == "resume":
        session.pause()
    killed(sandboxes, f"{verb}('{session.session_id}')", place)
    assert sandboxes.engine._root.catalog.job(session.session_id).state in (JobState.PAUSING, JobState.RESUMING)
    assert sandboxes.delete(session).success
    with Engine(sandboxes.engine.config.root, timeout=30):
        assert whole(sandboxes) == []
