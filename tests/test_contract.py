"""What `Engine` and `AsyncEngine` both promise: each test drives the same through either.

The faces' names and signatures are compared too, so that no verb is forgotten."""

from __future__ import annotations

import inspect
import io
import threading
from pathlib import Path

import pytest
from faces import face
from roots import another_root, inside, output, shell, steps, until

from engine import AsyncEngine, Engine, JobSpec, JobState, SessionSpec
from engine.base import DirSource
from engine.errors import (
    CannotCheckpoint,
    CommandNotFound,
    InUse,
    InvalidInput,
    NameTaken,
    NotFound,
    Paused,
    Timeout,
    WrongState,
)
from engine.session import Exit, Output

__all__ = ["face"]  # fixtures

COUNTER = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


def public(kind: type) -> dict[str, object]:
    members = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {name: member for name, member in members.items() if callable(member)}


@pytest.mark.parametrize("name", sorted(public(Engine)))
def test_every_verb_has_an_asynchronous_twin(name: str) -> None:
    verb, twin = public(Engine)[name], public(AsyncEngine).get(name)
    assert twin is not None, f"engine/aio/__init__.py: {name} = _verb(Engine.{name})"
    expected, found = inspect.signature(verb), inspect.signature(twin)  # type: ignore[arg-type]
    assert list(found.parameters.values()) == list(expected.parameters.values())
    assert inspect.iscoroutinefunction(twin) != str(expected.return_annotation).startswith("Iterator")
    assert inspect.getdoc(twin) or not inspect.getdoc(verb)


def test_the_asynchronous_face_has_nothing_more() -> None:
    assert set(public(AsyncEngine)) - set(public(Engine)) == {"open"}


pytest_root = pytest.mark.root


@pytest_root
def test_a_jobs_whole_life(face: Engine) -> None:
    job = face.run(shell(COUNTER, name="a", labels={"mr": "1"}))
    until(face, "a", b"line 2\n")
    assert [entry.id for entry in face.jobs()] == [job.id]
    paused = face.pause("a", mode="filesystem", state={"n": 1}, labels={"why": "lunch"})
    assert face.wait("a").state is JobState.PAUSED
    assert face.snapshot(paused.snapshot).labels == {"mr": "1", "why": "lunch"}
    assert face.resume("a").strategy == "reuse"
    assert face.wait("a", JobState.RUNNING).spec.state == {"n": 1}
    assert face.freeze("a").state is JobState.FROZEN
    assert face.wait("a", [JobState.FROZEN, JobState.PAUSED]).state is JobState.FROZEN
    assert face.thaw("a").state is JobState.RUNNING
    stopped = face.stop("a")
    assert (stopped.state, stopped.status) == (JobState.EXITED, 143)
    assert face.jobs() == []
    face.remove("a")
    assert face.jobs(ended=True) == []


@pytest_root
def test_processes_go_on_and_are_copied(face: Engine) -> None:
    face.run(shell(COUNTER, name="a"))
    until(face, "a", b"line 3\n")
    taken = face.snapshot_take("a")
    assert taken.generation
    paused = face.pause("a", mode="process")
    assert paused.sizes["memory"] > 0
    assert face.fork(taken.snapshot, name="b", env={"X": "1"}).mode == "process"
    assert face.resume("a", memory="eager").memory == "eager"
    for ref in ("a", "b"):
        seen = [line for line in output(face, ref, live=False).splitlines() if line.startswith("line")]
        assert seen == [f"line {number}" for number in range(1, len(seen) + 1)]
    assert [entry.id for entry in face.snapshots()] == [taken.snapshot]


@pytest_root
def test_sessions(face: Engine) -> None:
    face.run(JobSpec(base="small", name="a", workdir="/src"))
    with face.exec("a", SessionSpec(argv=("sh", "-c", "cat; echo err >&2; pwd; exit 3")), stdin=True) as connection:
        data = b"0123456789abcdef" * 20_000  # more than the connection has room for
        reading = threading.Thread(target=lambda: events.extend(connection.events()))
        events: list[object] = []
        reading.start()
        assert connection.send(data) == len(data)
        connection.close_input()
        reading.join(60)
    streams = {
        stream: b"".join(event.data for event in events if isinstance(event, Output) and event.stream == stream)
        for stream in (1, 2)
    }
    assert streams == {1: data + b"/src\n", 2: b"err\n"}
    ending = events[-1]
    assert isinstance(ending, Exit)
    assert ending.exit == 3
    started = face.start("a", SessionSpec(argv=("sh", "-c", "echo up; read x; sleep 1000"), tty=(24, 80)))
    until(face, "a", b"up", started.id)
    with face.attach("a", started.id, offset=0) as connection:
        assert (connection.session, connection.tty, connection.offset) == (started.id, True, 0)
        connection.resize(30, 100)
        event = connection.receive()
        assert isinstance(event, Output)
        assert event.data.startswith(b"up")
        connection.signal(15)
        assert isinstance(list(connection.events())[-1], Exit)
    assert [status.running for status in face.sessions("a")] == [False, False]


@pytest_root
def test_follow_ends_with_the_session(face: Engine) -> None:
    face.run(shell("for i in 1 2 3; do echo $i; sleep 0.1; done; exit 4", name="a"))
    *said, ending = face.follow("a")
    assert b"".join(event.data for event in said if isinstance(event, Output)) == b"1\n2\n3\n"
    assert isinstance(ending, Exit)
    assert ending.exit == 4
    assert face.wait("a", timeout=30).status == 4
    assert list(face.follow("a", offset=said[0].end)) == [*said[1:], ending]
    assert [event.end for event in face.follow("a", live=False)] == [event.end for event in (*said, ending)]


@pytest_root
def test_attach_waits_for_a_resume(face: Engine) -> None:
    face.run(shell("echo begun; sleep 1000", name="a"))
    until(face, "a", b"begun\n")
    face.pause("a", mode="filesystem")
    with pytest.raises(Paused):
        face.attach("a")
    resuming = threading.Timer(0.3, lambda: face.resume("a"))
    resuming.start()
    with face.attach("a", wait=True) as connection:
        assert connection.session == 0
    resuming.join()


@pytest_root
def test_files_are_copied(face: Engine, tmp_path: Path) -> None:
    face.run(JobSpec(base="small", name="a"))
    (tmp_path / "one").write_text("content\n")
    face.copy_in("a", str(tmp_path / "one"), "/src/two")
    face.copy_out("a", "/src/two", str(tmp_path / "three"))
    assert (tmp_path / "three").read_text() == "content\n"
    stream = io.BytesIO()
    face.copy_out("a", "/src", stream)
    assert b"of the base\n" in stream.getvalue()


@pytest_root
def test_archives_travel(face: Engine, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    face.run(JobSpec(base="small", name="a"))
    inside(face, "a", "echo one > /one; rm /src/lower")
    snapshot = face.pause("a", mode="filesystem", archive="wait", progress=lambda *far: told.append(far)).snapshot
    assert told
    assert face.snapshot_pin(snapshot).pinned
    assert face.snapshot(snapshot).archive
    assert face.snapshot_verify(snapshot) == []
    changes = {change.path: change.kind for change in face.snapshot_diff(snapshot)}
    assert (changes["/one"], changes["/src/lower"]) == ("added", "deleted")
    face.snapshot_export(snapshot, str(tmp_path / "file"), with_base=True)
    with another_root(None) as other:
        assert other.snapshot_import(str(tmp_path / "file")).id == snapshot
    face.resume("a")
    inside(face, "a", "echo two > /two")
    second = face.pause("a", mode="filesystem").snapshot
    assert len(face.snapshot(second).layers) == 2
    assert len(face.snapshot_flatten(second).layers) == 1
    assert {change.path for change in face.snapshot_diff(snapshot, second)} >= {"/two"}
    face.remove("a")
    face.snapshot_remove(snapshot)
    assert {entry.kind for entry in face.collect(dry_run=True)} == {entry.kind for entry in face.collect()}
    assert face.collect() == []
    assert face.snapshot_import(str(tmp_path / "file")).id == snapshot
    assert face.archiving() == {}


@pytest_root
def test_bases(face: Engine, small_tree: Path) -> None:
    told: list[tuple[str, int, int]] = []
    (small_tree / "etc/other").write_text("another base\n")
    try:
        built = face.base_build("other", DirSource(path=small_tree), progress=lambda *far: told.append(far))
    finally:
        (small_tree / "etc/other").unlink()
    assert told[0][0] == "unpack"
    assert face.base("other") == built
    assert [base.names for base in face.bases()] == [("small",), ("other",)]
    warmth = face.base_warm("other")
    assert warmth.cached_after == warmth.size >= built.size
    face.base_remove("other")
    with pytest.raises(NotFound):
        face.base("other")


@pytest_root
def test_errors_are_the_same(face: Engine) -> None:
    face.run(JobSpec(base="small", name="a"))
    for error, act in (
        (NotFound, lambda: face.pause("nobody")),
        (NotFound, lambda: list(face.follow("nobody"))),
        (NotFound, lambda: list(face.snapshot_diff("nothing"))),
        (WrongState, lambda: face.resume("a")),
        (WrongState, lambda: face.remove("a")),
        (NameTaken, lambda: face.run(JobSpec(base="small", name="a"))),
        (InUse, lambda: face.base_remove("small")),
        (CommandNotFound, lambda: face.exec("a", SessionSpec(argv=("/no/such",)))),
        (CommandNotFound, lambda: face.run(JobSpec(base="small", argv=("/no/such",), name="b"))),
        (InvalidInput, lambda: face.pause("a", archive="soon")),  # type: ignore[arg-type]
        (InvalidInput, lambda: face.wait("a", "asleep")),  # type: ignore[arg-type]
        (Timeout, lambda: face.wait("a", timeout=0.1, poll_interval=0.01)),
    ):
        with pytest.raises(error):
            act()
    inside(face, "a", "echo still here")
    face.stop("a", grace=0)
    with pytest.raises(WrongState, match="won't be running"):
        face.wait("a", JobState.RUNNING)
    face.run(shell("sleep 1000", name="host", net="host"))
    with pytest.raises(CannotCheckpoint):
        face.pause("host", mode="process")


@pytest_root
def test_wait_for_what_others_do(face: Engine) -> None:
    """Another engine pauses, resumes and freezes; its own end, a job's steps."""
    face.run(JobSpec(base="small", name="a", steps=steps(one="sleep 1000")))
    for act, state in (
        (lambda other: other.pause("a", mode="filesystem"), JobState.PAUSED),
        (lambda other: other.resume("a"), JobState.RUNNING),
        (lambda other: other.freeze("a"), JobState.FROZEN),
        (lambda other: other.stop("a", grace=0), JobState.EXITED),
    ):
        with Engine(face.config.root, timeout=30) as other:
            acting = threading.Timer(0.2, act, [other])
            acting.start()
            assert face.wait("a", state, timeout=60, poll_interval=0.05).state is state
            acting.join()
    removing = threading.Timer(0.2, lambda: face.remove("b", force=True))
    face.run(JobSpec(base="small", name="b"))
    removing.start()
    with pytest.raises(NotFound):
        face.wait("b", timeout=60)
    removing.join()


@pytest_root
def test_events_tell_what_was_done(face: Engine) -> None:
    since = list(face.events())[-1].time
    job = face.run(JobSpec(base="small", name="a"))
    with pytest.raises(WrongState):
        face.resume("a")
    paused = face.pause("a", mode="filesystem")
    face.remove("a")
    told = [event for event in face.events(since=since) if event.job == job.id]
    assert [(event.kind, event.outcome, event.name) for event in told] == [
        ("run", "ok", "a"), ("resume", "wrong-state", "a"), ("pause", "ok", "a"), ("remove", "ok", "a"),
    ]  # fmt: skip
    _, refused, pause, _ = told
    assert refused.reason == "job a is running: can't resume it"
    assert (pause.snapshot, pause.facts["mode"]) == (paused.snapshot, "filesystem")
    assert pause.facts["timings"].keys() == paused.timings.keys() - {"total"}
    assert pause.ms is not None
    assert pause.ms >= paused.timings["total"]


@pytest_root
def test_events_are_followed(face: Engine) -> None:
    following = face.events(follow=True, poll_interval=0.01)
    running = threading.Timer(0.2, lambda: face.run(JobSpec(base="small", name="a")))
    running.start()
    assert next(event for event in following if event.kind == "run" and event.name == "a").outcome == "ok"
    following.close()  # type: ignore[attr-defined]
    running.join()


@pytest_root
def test_counters_count_verbs(face: Engine) -> None:
    before = face.counters().verbs["run"]["ok"].count
    face.run(JobSpec(base="small", name="a"))
    counted = face.counters()
    assert counted.verbs["run"]["ok"].count == before + 1
    assert counted.steps["run.launch"]["ok"].seconds > 0


def test_doctor() -> None:
    import asyncio

    assert [finding.name for finding in asyncio.run(AsyncEngine.doctor())] == [
        finding.name for finding in Engine.doctor()
    ]
