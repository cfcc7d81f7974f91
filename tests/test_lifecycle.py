"""The verbs from outside: what a job sees after a resume, what the host has left after a removal."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import leftovers
import msgspec
import pytest
from roots import inside, output, shell, steps, until, wait_for

from engine import Engine, JobSpec, JobState, Limits, SessionSpec, Step
from engine.errors import CommandNotFound, InUse, InvalidInput, NameTaken, NotFound, WrongState
from engine.session import Exit, Output

pytestmark = pytest.mark.root


def test_a_job_runs_and_ends_with_its_status(engine: Engine) -> None:
    job = engine.run(shell("echo hello; echo oops >&2; exit 7", name="short"))
    ended = engine.wait("short", timeout=30)
    assert (ended.id, ended.state, ended.status) == (job.id, JobState.EXITED, 7)
    events = list(engine.follow("short"))
    assert [(event.stream, event.data) for event in events if isinstance(event, Output)] == [
        (1, b"hello\n"),
        (2, b"oops\n"),
    ]
    assert isinstance(events[-1], Exit)


def test_a_pause_leaves_no_process_mount_cgroup_or_namespace(engine: Engine) -> None:
    idle = leftovers.count()
    engine.run(shell("sleep 1000", name="a"))
    assert leftovers.difference(idle, leftovers.count())
    result = engine.pause("a", mode="filesystem")
    assert leftovers.difference(idle, leftovers.settled(idle)) == []
    assert engine.job("a").state is JobState.PAUSED
    assert result.mode == "filesystem"
    assert {"freeze", "seal", "flush", "commit", "release", "total"} <= set(result.timings)


def test_files_come_back_and_the_command_starts_again(engine: Engine) -> None:
    script = "echo $((`cat /n 2>/dev/null` + 1)) > /n; rm -f /src/lower; cat /n; sleep 1000"
    engine.run(shell(script, name="a"))
    until(engine, "a", b"1\n")
    engine.pause("a", mode="filesystem")
    result = engine.resume("a")
    assert result.strategy == "reuse"
    assert engine.job("a").snapshot is None
    assert engine.snapshots() == []
    until(engine, "a", b"2\n")
    assert inside(engine, "a", "ls /src; cat /n") == "2\n"


def test_reuse_keeps_inode_numbers_and_hard_links(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    look = "stat -c '%i %h %Z' /one /two /src"
    before = inside(engine, "a", f"echo x > /one; ln /one /two; {look}")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert inside(engine, "a", look) == before


def test_environment_directory_state_and_labels_travel(engine: Engine) -> None:
    spec = shell("echo $PWD $COLOUR; sleep 1000", name="a", env={"COLOUR": "blue"}, workdir="/src", labels={"mr": "42"})
    engine.run(spec)
    until(engine, "a", b"/src blue\n")
    result = engine.pause("a", state={"place": [1, 2]}, labels={"why": "lunch"}, mode="filesystem")
    snapshot = engine.snapshot(result.snapshot)
    assert snapshot.context.state == {"place": [1, 2]}
    assert snapshot.labels == {"mr": "42", "why": "lunch"}
    engine.resume("a")
    until(engine, "a", b"/src blue\n/src blue\n")
    assert engine.job("a").spec.state == {"place": [1, 2]}


def test_steps_go_on_at_the_first_one_not_completed(engine: Engine) -> None:
    script = "echo two >> /trace; test -e /go || sleep 1000"
    spec = JobSpec(base="small", name="a", steps=steps(one="echo one >> /trace", two=script, three="echo 3 >> /trace"))
    engine.run(spec)
    wait_for_file(engine, "a", "/trace", "one\ntwo\n")
    snapshot = engine.snapshot(engine.pause("a", mode="filesystem").snapshot)
    assert snapshot.context.sessions[0].done == ("one",)
    forked = engine.fork(snapshot.id, name="b")
    asleep = "until ps -o args | grep -qx 'sleep 1000'; do sleep 0.02; done"
    inside(engine, "b", f"{asleep}; touch /go; killall sleep")
    assert engine.wait(forked.job, timeout=30).status != 0  # the sleep that step two waited for was killed
    engine.resume("a")
    inside(engine, "a", f"{asleep}; touch /go")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert engine.wait("a", timeout=30).status == 0
    lines = text_of(engine, "a", "/trace").split()
    assert lines[0] == "one"
    assert lines.count("one") == 1
    assert lines[-2:] == ["two", "3"]


def test_a_detached_session_comes_back_under_its_number(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    started = engine.start("a", SessionSpec(argv=("/bin/sh", "-c", "echo up; sleep 1000"), workdir="/src"))
    once = engine.exec("a", SessionSpec(argv=("sleep", "1000")))
    engine.pause("a", mode="filesystem")
    once.close()
    engine.resume("a")
    live = {status.id for status in engine.sessions("a") if status.running}
    assert live == {started.id}


def test_a_shell_on_a_terminal_comes_back_where_it_was(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    connection = engine.exec("a", SessionSpec(argv=("/bin/sh",), tty=(24, 80)))
    connection.send(b"mkdir /deep; cd /deep; echo at $PWD\n")
    seen = b""
    for event in connection.events():
        seen += event.data if isinstance(event, Output) else b""
        if b"at /deep" in seen:
            break
    connection.close()
    snapshot = engine.snapshot(engine.pause("a", mode="filesystem").snapshot)
    assert [spec.workdir for spec in snapshot.context.sessions] == ["/deep"]
    engine.resume("a")
    assert [status.running for status in engine.sessions("a")] == [True]


def test_forks_share_a_snapshot_and_see_each_their_own(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", "echo common > /common; mkdir /d; touch /d/gone")
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.snapshot_pin(snapshot)
    for name in ("b", "c"):
        engine.fork(snapshot, name=name)
        inside(engine, name, f"echo {name} > /own; rm -r /d")
    assert engine.resume("a").strategy == "stack"
    assert inside(engine, "a", "cat /common; ls /d; ls /own || true").split() == ["common", "gone"]
    assert inside(engine, "b", "cat /common /own; hostname").split() == ["common", "b", "b"]
    assert inside(engine, "c", "cat /common /own; ls -d /d || true").split() == ["common", "c"]
    with pytest.raises(NameTaken):
        engine.fork(snapshot, name="b")


def test_the_root_directory_keeps_its_attributes_when_stacked(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", "chmod 751 /; chown 7:8 /")
    engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
    engine.resume("a")
    assert inside(engine, "a", "stat -c '%a %u %g' /") == "751 7 8\n"


def test_many_rounds_stack_and_reuse(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    for number in range(12):
        inside(engine, "a", f"echo {number} >> /log; mv /dir{number} /dir{number + 1} 2>/dev/null || mkdir /dir1")
        snapshot = engine.pause("a", mode="filesystem").snapshot
        if number % 2:
            engine.snapshot_pin(snapshot)
        engine.resume("a")
    assert inside(engine, "a", "cat /log | tr '\\n' ' '; ls -d /dir*") == " ".join(map(str, range(12))) + " /dir12\n"


def test_freeze_and_thaw(engine: Engine) -> None:
    engine.run(shell("while :; do date +%s%N > /tick; done", name="a"))
    wait_for(lambda: text_of(engine, "a", "/tick"))
    assert engine.freeze("a").state is JobState.FROZEN
    with pytest.raises(WrongState):
        engine.exec("a", SessionSpec(argv=("true",)))
    assert engine.thaw("a").state is JobState.RUNNING
    engine.freeze("a")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert engine.job("a").state is JobState.RUNNING


def test_stop_lets_the_job_end_by_itself_first(engine: Engine) -> None:
    engine.run(shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done", name="a"))
    until(engine, "a", b"up\n")
    assert engine.stop("a").status == 3
    assert output(engine, "a").endswith("bye\n")
    engine.run(shell("trap '' TERM; echo up; while :; do sleep 0.1; done", name="b"))
    until(engine, "b", b"up\n")
    assert engine.stop("b", grace=0.2).status == 137


def test_a_process_in_the_job_sees_its_sandbox(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    seen = inside(engine, "a", "id -u; hostname; cat /proc/1/comm")
    assert seen.split()[:2] == ["0", "a"]
    assert seen.split()[2].startswith("init-")
    job = engine.job("a")
    uids = {os.stat(f"/proc/{pid}").st_uid for pid in processes_of(engine, job.id)}
    assert uids == {engine.config.settings.id_first}


@pytest.mark.parametrize("userns", ["private", "host"])
def test_files_have_plain_ids_on_disk(engine: Engine, userns: str) -> None:
    engine.run(JobSpec(base="small", name="a", userns=userns))  # type: ignore[arg-type]
    inside(engine, "a", "echo x > /mine; chown 1000:1000 /mine")
    job = engine.job("a")
    assert job.upper is not None
    info = os.stat(engine.config.root / "layers" / job.upper / "upper/mine")
    assert (info.st_uid, info.st_gid) == (1000, 1000)


def test_limits_hold(engine: Engine) -> None:
    spec = shell("sleep 1000", name="a", limits=Limits(memory=64 << 20, pids=20, cpus=0.5))
    engine.run(spec)
    refused = inside(engine, "a", "i=0; while [ $i -lt 40 ]; do sleep 1000 >&- 2>&- & i=$((i+1)); done 2>&1; true")
    assert "fork" in refused
    with pytest.raises(InvalidInput):
        engine.run(shell("true", limits=Limits(memory=100)))


def test_what_cannot_be_leaves_nothing(engine: Engine) -> None:
    before = leftovers.count()
    tree = contents(engine.config.root)
    for spec, error in (
        (JobSpec(base="nosuch", argv=("true",)), NotFound),
        (JobSpec(base="small", argv=("/no/such/program",)), CommandNotFound),
        (JobSpec(base="small", argv=("true",), steps=(Step(name="a", script=""),)), InvalidInput),
        (JobSpec(base="small", argv=("true",), name="Not A Name"), InvalidInput),
        (JobSpec(base="small", argv=("true",), workdir="relative"), InvalidInput),
    ):
        with pytest.raises(error):
            engine.run(spec)
    assert engine.jobs(ended=True) == []
    assert leftovers.difference(before, leftovers.settled(before)) == []
    assert contents(engine.config.root) == tree


def test_a_name_is_taken_once(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    with pytest.raises(NameTaken):
        engine.run(JobSpec(base="small", name="a"))
    assert [job.name for job in engine.jobs()] == ["a"]


def test_bases_and_snapshots_in_use_stay(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    with pytest.raises(InUse):
        engine.base_remove("small")
    snapshot = engine.pause("a", mode="filesystem").snapshot
    with pytest.raises(InUse):
        engine.snapshot_remove(snapshot)
    engine.remove("a")
    with pytest.raises(NotFound):
        engine.snapshot(snapshot)


def test_a_removed_snapshot_leaves_the_layers_of_its_forks(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", "echo kept > /kept")
    snapshot = engine.pause("a", mode="filesystem").snapshot
    engine.fork(snapshot, name="b")
    engine.remove("a")
    assert inside(engine, "b", "cat /kept") == "kept\n"
    engine.remove("b", force=True)
    assert list((engine.config.root / "layers").iterdir()) == []


def test_a_base_from_a_snapshot(engine: Engine) -> None:
    from engine.model import SnapshotSource

    engine.run(JobSpec(base="small", name="a", env={"FROM": "a"}))
    inside(engine, "a", "echo warm > /warm; rm /src/lower; ln -s /etc/passwd /link; mkdir -m 700 /own; chown 5:6 /own")
    snapshot = engine.pause("a", mode="filesystem").snapshot
    base = engine.base_build("warm", SnapshotSource(snapshot=snapshot))
    assert base.names == ("warm",)
    engine.run(JobSpec(base="warm", name="b"))
    assert inside(engine, "b", "cat /warm; ls /src; readlink /link; stat -c '%a %u %g' /own; echo $FROM") == (
        "warm\n/etc/passwd\n700 5 6\na\n"
    )


def test_a_killed_job_is_found_failed(engine: Engine) -> None:
    job = engine.run(shell("sleep 1000", name="a"))
    (group,) = Path(engine._root.host.unified, "serac").glob(f"*/{job.id}/cgroup.kill")
    group.write_text("1")
    assert engine.wait("a", timeout=30).state is JobState.FAILED
    assert not group.exists()


def test_two_engines_pause_one_job_once(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    outcomes: list[str] = []

    def attempt() -> None:
        with Engine(engine.config.root, timeout=30) as other:
            try:
                other.pause("a", mode="filesystem")
                outcomes.append("paused")
            except WrongState:
                outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["paused", "refused", "refused", "refused"]


def test_the_same_name_for_forty_jobs_at_once_goes_to_one(engine: Engine) -> None:
    won: list[str] = []

    def attempt() -> None:
        try:
            won.append(engine.run(JobSpec(base="small", name="a")).id)
        except NameTaken:
            won.append("")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, won)) == [False] * 7 + [True]
    assert len(list((engine.config.root / "jobs").iterdir())) == 1


def test_who_started_a_session_misses_nothing_however_slow(engine: Engine) -> None:
    """The log keeps 256 MiB: a session that didn't wait for its reader would be 44 MB ahead of what is kept."""
    engine.run(JobSpec(base="small", name="a"))
    wanted = 300_000_000
    with engine.exec("a", SessionSpec(argv=("head", "-c", str(wanted), "/dev/zero"))) as connection:
        log = engine.config.root / "jobs" / engine.job("a").id / "io" / f"{connection.session}.log"
        still = None
        while log.stat().st_size != still:
            still = log.stat().st_size
            time.sleep(0.2)
        assert sum(len(event.data) for event in connection.events() if isinstance(event, Output)) == wanted


def test_the_files_of_ended_sessions_are_bounded(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    for _ in range(80):
        with engine.exec("a", SessionSpec(argv=("true",))) as connection:
            assert [event.exit for event in connection.events() if isinstance(event, Exit)] == [0]
    assert [status.id for status in engine.sessions("a")] == list(range(17, 81))
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert inside(engine, "a", "echo on") == "on\n"
    assert len(engine.sessions("a")) == 64


@pytest.mark.parametrize("noted", [True, False], ids=["noted at the pause", "by a pause that noted nothing"])
def test_a_session_that_does_not_come_back_leaves_no_files(engine: Engine, noted: bool) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", "true")
    with engine.exec("a", SessionSpec(argv=("sleep", "1000"))) as connection:
        lives = connection.session
        engine.pause("a", mode="filesystem")
    if not noted:
        with engine._root.catalog.transaction() as transaction:
            snapshot = engine.snapshot(engine.job("a").snapshot or "")
            context = msgspec.structs.replace(snapshot.context, ended=None)
            transaction.put_snapshot(msgspec.structs.replace(snapshot, context=context))
    engine.resume("a")
    assert [(status.id, status.running) for status in engine.sessions("a")] == [(1, False)]
    assert [path.name for path in engine._root.io(engine.job("a").id).glob(f"{lives}.*")] == [f"{lives}.used"]


def test_sessions_of_a_life_that_was_given_up_leave_nothing(engine: Engine) -> None:
    """A power cut soon after a stacked resume takes the job back to its snapshot."""
    job = engine.run(JobSpec(base="small", name="a")).id
    inside(engine, "a", "true")
    engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
    assert engine.resume("a").strategy == "stack"
    inside(engine, "a", "true")
    with engine.exec("a", SessionSpec(argv=("sleep", "1000"))):
        assert [status.id for status in engine.sessions("a")] == [1, 2, 3]
    engine._root.put(msgspec.structs.replace(engine.job("a"), state=JobState.RESUMING))
    assert engine.job("a").state is JobState.PAUSED
    engine.resume("a")
    assert [(status.id, status.running) for status in engine.sessions("a")] == [(1, False)]
    assert [path.name for path in (engine.config.root / "jobs" / job / "io").glob("[23].*")] == ["3.used"]


def wait_for_file(engine: Engine, ref: str, path: str, content: str) -> None:
    wait_for(lambda: text_of(engine, ref, path) == content)


def text_of(engine: Engine, ref: str, path: str) -> str:
    """A file of a job, read from its upper on the host: works in every state."""
    job = engine.job(ref)
    layer = job.upper or job.layers[-1]
    file = engine.config.root / "layers" / layer / "upper" / path.lstrip("/")
    return file.read_text() if file.exists() else ""


def processes_of(engine: Engine, job_id: str) -> list[int]:
    (group,) = Path(engine._root.host.unified, "serac").glob(f"*/{job_id}/cgroup.procs")
    return [int(line) for line in group.read_text().split()]


def contents(directory: Path) -> list[str]:
    """Every path below a root but the catalog's own files."""
    return sorted(os.fspath(path) for path in directory.rglob("*") if not path.name.startswith("catalog"))
