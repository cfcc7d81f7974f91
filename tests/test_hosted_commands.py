"""Commands in hosted sessions: what they print arrives as it is, what takes too long ends, each request runs once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hosting import answer, elsewhere, kill_all, made, sandboxes
from roots import wait_for

from engine import Engine
from engine.hosted import CommandResult, Sandboxes, Session
from engine.hosted.command import OUTPUT_MAX

pytestmark = pytest.mark.root
__all__ = ["sandboxes"]  # a fixture


@pytest.fixture
def session(sandboxes: Sandboxes) -> Session:
    return made(sandboxes)


def run(session: Session, line: str, timeout: float = 30.0, **options: object) -> CommandResult:
    return session.command.execute_command(line, timeout, **options)  # type: ignore[arg-type]


def text(session: Session, path: str) -> str:
    return run(session, f"cat {path}").output


def test_both_streams_are_kept_apart_and_in_order(session: Session) -> None:
    result = run(session, "echo one; sleep 1; echo two >&2; sleep 1; printf three")
    assert (result.success, result.exit_code, result.error_code, result.error_message) == (True, 0, None, "")
    assert (result.output, result.stdout, result.stderr) == ("one\ntwo\nthree", "one\nthree", "two\n")


@pytest.mark.parametrize(
    ("line", "status"), [("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143), ("nosuch", 127), ("-x", 127)]
)
def test_a_command_that_fails_says_how(session: Session, line: str, status: int) -> None:
    result = run(session, line)
    assert (result.success, result.exit_code, result.error_code) == (False, status, None)
    assert str(status) in result.error_message
    assert result.request_id


def test_bytes_arrive_as_they_are(session: Session) -> None:
    every = "".join(f"\\{byte:03o}" for byte in range(256))
    result = run(session, f"printf '{every}'; printf '{every}' >&2")
    assert result.stdout_bytes == result.stderr_bytes == bytes(range(256))
    assert sorted(result.output_bytes) == sorted(bytes(range(256)) * 2)
    assert "\ufffd" in result.stdout
    assert run(session, "printf 'caf\\303\\251'").output == "caf\u00e9"
    assert run(session, "").output_bytes == b""


def test_output_has_a_bound_and_what_is_kept_is_the_end(session: Session) -> None:
    exact = run(session, f"head -c {OUTPUT_MAX} /dev/zero")
    assert (exact.truncated, exact.stdout_bytes) == (False, bytes(OUTPUT_MAX))
    more = run(session, f"head -c {OUTPUT_MAX} /dev/zero; printf a")
    assert (more.truncated, more.stdout_bytes) == (True, bytes(OUTPUT_MAX - 1) + b"a")
    flood = run(session, "yes 0123456 | head -c 40000000; echo end >&2", request_id="flood")
    assert (flood.success, flood.truncated, len(flood.output_bytes)) == (True, True, OUTPUT_MAX)
    assert flood.stderr == "end\n"
    assert flood.stdout_bytes == (b"0123456\n" * (OUTPUT_MAX // 8))[4:]
    assert run(session, "yes 0123456 | head -c 40000000; echo end >&2", request_id="flood") == flood


def test_a_command_has_its_own_directory_and_environment(sandboxes: Sandboxes) -> None:
    session = made(sandboxes, workdir="/src", env={"A": "job", "B": "job"})
    assert run(session, "pwd; echo $A $B", env={"B": "own"}).output == "/src\njob own\n"
    assert run(session, "pwd", cwd="/etc").output == "/etc\n"
    assert run(session, "pwd", cwd="/gone").error_code == "bad-path"
    assert run(session, "pwd", cwd="etc").error_code in ("bad-path", "invalid-input")
    assert run(session, "true", env={"a=b": ""}).error_code == "invalid-input"
    assert run(session, "echo '\0'").error_code == "invalid-input"
    assert run(session, "echo \ud800").error_code == "invalid-input"
    assert run(session, "true", request_id="a b").error_code == "invalid-input"
    assert run(session, "true", timeout=0).error_code == "invalid-input"


def test_what_a_command_leaves_running_goes_on(session: Session) -> None:
    assert run(session, "sleep 1000 & echo begun").output == "begun\n"
    wait_for(lambda: run(session, "pidof sleep").success)


# timeouts


def test_a_timeout_kills_all_that_the_command_started(session: Session) -> None:
    run(session, "sleep 1001 > /dev/null 2>&1 &")  # of another command: stays
    line = "echo begun; (sleep 1002 | sleep 1003) & setsid sleep 1004 & (setsid sh -c 'sleep 1005 & sleep 1006' &)"
    result = run(session, f"{line}; sleep 1007", timeout=3.0)
    assert (result.success, result.error_code, result.exit_code) == (False, "timeout", 137)
    assert "3 seconds" in result.error_message
    assert result.output == "begun\n"
    wait_for(lambda: run(session, "ps | grep -o 'sleep 100[0-9]'").output == "sleep 1001\n")


def test_a_timeout_ends_what_ignores_signals_and_what_floods(session: Session) -> None:
    assert run(session, "trap '' TERM INT HUP; while true; do sleep 1000; done", timeout=0.5).error_code == "timeout"
    flood = run(session, "yes", timeout=3.0)
    assert (flood.error_code, flood.truncated, len(flood.output_bytes)) == ("timeout", True, OUTPUT_MAX)
    wait_for(lambda: run(session, "pidof sleep yes").output == "")


def test_a_repeated_request_that_timed_out_is_told_so_again(session: Session) -> None:
    first = run(session, "echo begun; sleep 1000", timeout=0.5, request_id="r")
    assert first.error_code == "timeout"
    assert run(session, "echo begun; sleep 1000", timeout=0.5, request_id="r") == first


# once a request


def test_a_repeated_request_gives_the_same_and_runs_nothing(session: Session) -> None:
    line = "echo again >> /count; echo out; echo err >&2; exit 7"
    first = run(session, line, request_id="r")
    assert (first.exit_code, first.stdout, first.stderr) == (7, "out\n", "err\n")
    assert run(session, line, request_id="r") == first
    assert text(session, "/count") == "again\n"
    assert run(session, line, request_id="s") == msgspec.structs.replace(first, request_id="s")
    session.pause()
    assert run(session, line, request_id="r") == first  # also of a session that is paused
    session.resume()
    other = run(session, "echo other", request_id="r")
    assert (other.error_code, other.exit_code, other.output) == ("invalid-input", None, "")


def test_requests_at_the_same_time_run_it_once(sandboxes: Sandboxes, session: Session) -> None:
    line = "echo again >> /count; sleep 0.5; echo done"
    call = f"get_session('{session.session_id}').session.command.execute_command({line!r}, request_id='r')"
    asking = [elsewhere(sandboxes, call) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        here = [pool.submit(run, session, line, request_id="r") for _ in range(3)]
    assert {result.result().output for result in here} | {answer(each)["output"] for each in asking} == {"done\n"}
    assert text(session, "/count") == "again\n"


def test_a_command_outlives_its_caller_and_is_found_again(sandboxes: Sandboxes, session: Session) -> None:
    line = "echo begun | tee -a /count; until test -e /go; do sleep 0.05; done; echo done; exit 4"
    call = f"get_session('{session.session_id}').session.command.execute_command({line!r}, request_id='r')"
    process = elsewhere(sandboxes, call)
    wait_for(lambda: text(session, "/count") == "begun\n")
    process.kill()
    process.communicate()
    run(session, "touch /go")
    result = run(session, line, request_id="r")
    assert (result.exit_code, result.output, text(session, "/count")) == (4, "begun\ndone\n", "begun\n")


def test_a_command_goes_on_after_a_pause_and_is_found_again(sandboxes: Sandboxes, session: Session) -> None:
    line = "echo begun; until test -e /go; do sleep 0.05; done; echo done; exit 4"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, session, line, request_id="r")
        wait_for(lambda: run(session, "pidof sleep").success)
        assert session.pause().mode == "process"
        cut = running.result()
    assert (cut.success, cut.error_code, cut.exit_code, cut.output) == (False, "paused", None, "begun\n")
    assert [run(session, line, request_id=name).error_code for name in ("r", "s", None)] == ["paused"] * 3
    session.resume()
    run(session, "touch /go")
    result = run(session, line, request_id="r")
    assert (result.exit_code, result.output) == (4, "begun\ndone\n")


def test_a_snapshot_that_is_taken_meanwhile_is_not_felt(engine: Engine, session: Session) -> None:
    line = "echo begun; until test -e /go; do sleep 0.05; done; echo done"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, session, line)
        wait_for(lambda: run(session, "pidof sleep").success)
        engine.snapshot_take(session.session_id)
        run(session, "touch /go")
        assert running.result().output == "begun\ndone\n"


def test_a_session_that_ends_meanwhile_is_said(engine: Engine, session: Session) -> None:
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, session, "echo begun; sleep 1000")
        wait_for(lambda: run(session, "pidof sleep").success)
        kill_all(engine, session.session_id)
        result = running.result()
    assert (result.success, result.error_code, result.exit_code, result.output) == (
        False,
        "wrong-state",
        None,
        "begun\n",
    )
    assert run(session, "true").error_code == "wrong-state"
    session.delete()
    assert run(session, "true").error_code == "not-found"
