"""A job's root does what it can to the files that the engine reads. The engine passes over it or says one clear thing,
never waits for it, never swells by it, and can always stop and remove the job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from roots import another_root, configure, empty, inside, shell, until

from engine import Engine, JobSpec, JobState, SessionSpec, Step
from engine.base import DirSource
from engine.errors import InvalidInput, NoSpace, ProtocolError, SeracError
from engine.lifecycle import logs

pytestmark = pytest.mark.root

PATIENCE = 120
"""seconds; what takes longer hangs"""
GROWTH_MAX = 100 << 10
"""kilobytes"""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Neither hang nor swell."""
    usual = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"hangs for {PATIENCE} s"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, see proc_pid_clear_refs(5)
    before = kilobytes("VmRSS")
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)
    assert kilobytes("VmHWM") - before < GROWTH_MAX


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


class Trap(NamedTuple):
    script: str
    """of the job's root, in its /run/serac"""
    errors: Mapping[str, str] = MappingProxyType({})
    """verb -> the error that it gives; all others work"""


PROTOCOL, LAUNCH = "ProtocolError", "LaunchFailed"
FORGED = r"printf 'arg=/bin/forged\0main=1\0keep=1\0' > 0.spec; printf 'exit=9\0started=1\0ended=2\0' > 0.status"

TRAPS = {
    "a status that is a directory": Trap("mkdir 77.status"),
    "a status that is a fifo": Trap("mkfifo 77.status"),
    "a status that is garbage": Trap("head -c 1000000 /dev/urandom > 77.status"),
    "a status that is endless": Trap("head -c 100000000 /dev/zero > 77.status"),
    "a status that is a link out": Trap("ln -s /etc/passwd 77.status; ln -s ../../../catalog.sqlite 78.status"),
    "a status of four hundred names": Trap(
        "head -c 2000000 /dev/zero > x; for i in `seq 100 499`; do ln x $i.status; done",
        {"sessions": PROTOCOL, "pause": PROTOCOL},
    ),
    "statuses of many records": Trap(
        "yes running=1 | tr '\\n' '\\0' | head -c 1999990 > x; for i in `seq 10 17`; do ln x $i.status; done",
        {"sessions": PROTOCOL, "pause": PROTOCOL},
    ),
    "specs of many records": Trap(
        "yes arg=x | tr '\\n' '\\0' | head -c 999996 > x; printf 'running=1\\0' > y;"
        " for i in `seq 10 25`; do ln x $i.spec; ln y $i.status; done",
        {"pause": PROTOCOL},
    ),
    "specs of too many records": Trap(
        "yes arg=x | tr '\\n' '\\0' | head -c 1999998 > x; for i in `seq 10 16`; do ln x $i.spec; done"
    ),
    "a socket that is a directory": Trap("rm init.sock; mkdir -p init.sock/full ask/full", {"exec": PROTOCOL}),
    "a socket that is a fifo": Trap("rm init.sock; mkfifo init.sock ask", {"exec": PROTOCOL}),
    "a socket that is gone": Trap("rm init.sock", {"exec": "WrongState"}),
    "a socket that leads to another": Trap("mv init.sock x; ln -s x init.sock", {"exec": PROTOCOL}),
    "a forged first session": Trap(FORGED),
    "logs that are fifos": Trap("for i in 0 77; do rm -f $i.log; mkfifo $i.log $i.log.old; done", {"logs": PROTOCOL}),
    "logs that are five gigabytes of nothing": Trap("truncate -s 5G 0.log", {"logs": PROTOCOL}),
    "logs that are links": Trap("mv 0.log x; ln -s x 0.log; ln -s /etc/passwd 0.log.old", {"logs": PROTOCOL}),
    "a deep tree": Trap("for i in 1 2 3; do p=`printf 'd/%.0s' $(seq 1500)`; mkdir -p $p; cd $p; done"),
    "names for the files that are put in": Trap(
        "for i in hosts hostname resolv.conf; do mkdir -p /etc/$i.aside /etc/$i.new /etc/.$i; done"
    ),
    "a directory for a file that is put in": Trap("rm -f /etc/hosts; mkdir -p /etc/hosts/full", {"resume": LAUNCH}),
    "a link loop for /etc": Trap("rm -r /etc; ln -s etc /etc", {"resume": LAUNCH}),
    "a link out for /etc": Trap("mv /etc /old; ln -s ../../../../../../../../old /etc"),
    "a file for the place of init": Trap("rm -r /.serac; touch /.serac", {"resume": LAUNCH}),
    "a link for the place of the io directory": Trap("mv /run /gone; ln -s gone /run"),
}


VERBS: dict[str, Callable[[Engine], object]] = {
    "ps": lambda engine: engine.jobs(ended=True),
    "sessions": lambda engine: engine.sessions("a"),
    "exec": lambda engine: inside(engine, "a", "true"),
    "logs": lambda engine: read(engine, 0, live=False),
    "pause": lambda engine: engine.pause("a", mode="filesystem"),
    "resume": lambda engine: engine.resume("a"),
    "stop": lambda engine: engine.stop("a", grace=0.1) if engine.job("a").state is JobState.RUNNING else None,
    "rm": lambda engine: engine.remove("a"),
}


def read(engine: Engine, number: int, *, live: bool) -> int:
    return sum(1 for _ in engine.follow("a", number, live=live))


def outcome(engine: Engine, verb: str) -> str | None:
    """None, or the error's class; of a clear one: one line and a hint."""
    error = None
    try:
        VERBS[verb](engine)
    except SeracError as refusal:
        error = refusal
    assert error is None or ("\n" not in str(error) and error.hint)
    return None if error is None else type(error).__name__


def laid(engine: Engine, trap: Trap) -> None:
    """A job ``a`` whose root has laid the trap."""
    engine.run(shell("echo begun; sleep 1000", name="a"))
    until(engine, "a", b"begun\n")
    assert inside(engine, "a", f"cd /run/serac\n{trap.script}\ncd /; echo laid") == "laid\n"


def nothing_left_of_it(engine: Engine) -> None:
    assert engine.jobs(ended=True) == []
    engine._root.await_removals()
    for place in ("jobs", "layers", "tmp"):
        assert list((engine.config.root / place).iterdir()) == []


@pytest.mark.parametrize("name", TRAPS)
def test_a_job_that_lays_traps(engine: Engine, name: str) -> None:
    trap = TRAPS[name]
    laid(engine, trap)
    with bounded():
        found = {}
        for verb in VERBS:
            # What was refused a pause runs on.
            if verb != "resume" or engine.job("a").state is JobState.PAUSED:
                found[verb] = outcome(engine, verb)
    assert {verb: error for verb, error in found.items() if error is not None} == trap.errors
    nothing_left_of_it(engine)


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if "/etc" not in trap.script])
def test_a_job_that_lays_traps_can_be_stopped_and_removed(engine: Engine, name: str) -> None:
    laid(engine, TRAPS[name])
    with bounded():
        engine.stop("a", grace=0)
        outcome(engine, "sessions")
        with contextlib.suppress(ProtocolError):
            read(engine, 0, live=True)
        assert [job.name for job in engine.jobs(ended=True)] == ["a"]
        engine.remove("a")
    nothing_left_of_it(engine)


def test_a_forged_first_session_changes_nothing(engine: Engine) -> None:
    laid(engine, TRAPS["a forged first session"])
    context = engine.snapshot(engine.pause("a", mode="filesystem").snapshot).context
    assert [spec.argv[:2] for spec in context.sessions] == [("/bin/sh", "-c")]
    engine.resume("a")
    until(engine, "a", b"begun\nbegun\n")


def test_names_that_init_does_not_write_travel_with_no_process(
    engine: Engine, small_tree: Path, tmp_path: Path
) -> None:
    odd = "touch `printf '\\377'`.log x.log 007.status 1234567890.spec; truncate -s 5G 70.log"
    many = "touch x; i=100; while [ $i -lt 6000 ]; do ln x $i.log; i=$((i+1)); done"
    laid(engine, Trap(f"{odd}; {many}"))
    snapshot = engine.snapshot(engine.pause("a", mode="process").snapshot)
    assert snapshot.image is not None
    assert {"0.log", "0.spec", "0.status", "1.log"} <= snapshot.image.logs.keys()
    assert not snapshot.image.logs.keys() & {"x.log", "007.status", "1234567890.spec", "70.log"}
    assert len(snapshot.image.logs) == logs.FILES_MAX
    engine.snapshot_export(snapshot.id, os.fspath(tmp_path / "a.serac"))
    with another_root(small_tree) as other:
        other.snapshot_import(os.fspath(tmp_path / "a.serac"))
        assert other.fork(snapshot.id, name="b").mode == "process"
        assert inside(other, "b", "echo on") == "on\n"
    engine.resume("a", mode="process")


# text that no process can be given, or no catalog hold

ODD = "\udcff"


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ("echo", ODD)},
        {"env": {"A": ODD}},
        {"env": {ODD: "a"}},
        {"steps": (Step(name="a", script=ODD),)},
        {"steps": (Step(name=ODD, script="true"),)},
        {"workdir": f"/{ODD}"},
        {"labels": {"a": ODD}},
        {"labels": {ODD: "a"}},
        {"state": {"a": [ODD]}},
        {"state": object()},
        {"name": f"a{ODD}"},
        {"workdir": "/a\0b"},
    ],
    ids=repr,
)
def test_a_job_of_text_that_is_none_is_refused(engine: Engine, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        engine.run(JobSpec(base="small", **fields))  # type: ignore[arg-type]
    nothing_left_of_it(engine)


def test_verbs_refuse_text_that_is_none(engine: Engine) -> None:
    engine.run(shell("echo begun; sleep 1000", name="a"))
    until(engine, "a", b"begun\n")
    for spec in (
        SessionSpec(argv=("echo", ODD)),
        SessionSpec(argv=("true",), env={"A": ODD}),
        SessionSpec(argv=("true",), workdir=f"/{ODD}"),
    ):
        for verb in (engine.exec, engine.start):
            with pytest.raises(InvalidInput):
                verb("a", spec)
    for named in ({"labels": {"a": ODD}}, {"state": ODD}, {"state": object()}):
        with pytest.raises(InvalidInput):
            engine.pause("a", **named, mode="filesystem")  # type: ignore[arg-type]
        assert engine.job("a").state is JobState.RUNNING
    engine.pause("a", mode="filesystem")
    for workdir in (f"/{ODD}", "relative", "/a\0b"):
        with pytest.raises(InvalidInput):
            engine.resume("a", workdir=workdir)
        assert engine.job("a").state is JobState.PAUSED
    engine.resume("a")
    until(engine, "a", b"begun\nbegun\n")


# a full disk


@pytest.fixture
def small_disk(root_directory: Path) -> Iterator[Path]:
    """A filesystem of 64 megabytes with nothing set aside for root."""
    image, mount = root_directory.with_name("disk"), root_directory.with_name("mount")
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def fill(mount: Path) -> None:
    """To the last byte, and the last inode block."""
    with open(mount / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    os.sync()
    with contextlib.suppress(OSError):
        for number in range(10000):
            (mount / f"filler{number}").write_bytes(b"x")


def free(mount: Path) -> int:
    found = os.statvfs(mount)
    return found.f_bavail * found.f_frsize


def test_on_a_full_disk_verbs_leave_what_they_found_and_removals_give_room(small_disk: Path, small_tree: Path) -> None:
    root = small_disk / "root"
    configure(root)
    with Engine(root, timeout=30) as engine:
        try:
            engine.base_build("small", DirSource(path=small_tree))
            engine.run(JobSpec(base="small", name="big"))
            inside(engine, "big", "head -c 20000000 /dev/urandom > /big")
            engine.pause("big", mode="filesystem")
            engine.run(shell("echo begun; sleep 1000", name="a"))
            until(engine, "a", b"begun\n")
            fill(small_disk)
            assert free(small_disk) == 0
            before = [(job.name, job.state) for job in engine.jobs(ended=True)], engine.snapshots()
            with bounded():
                for verb in (
                    lambda: engine.run(JobSpec(base="small", name="b")),
                    lambda: engine.pause("a", mode="filesystem"),
                    lambda: engine.base_build("other", DirSource(path=small_tree)),
                    lambda: engine.fork(engine.snapshots()[0].id, name="c"),
                ):
                    fill(small_disk)  # the verb before may have given something back
                    with pytest.raises(NoSpace):
                        verb()
                    assert ([(job.name, job.state) for job in engine.jobs(ended=True)], engine.snapshots()) == before
            engine.remove("big")
            assert free(small_disk) > 20000000
            engine.pause("a", mode="filesystem")
            engine.resume("a")
            until(engine, "a", b"begun\nbegun\n")
        finally:
            for filler in small_disk.glob("filler*"):
                filler.unlink()
            empty(engine)
