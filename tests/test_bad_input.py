"""What a user can get wrong: each mistake is one clear line and a remedy, with an exit status and an exception of its
own, the same through the command and the library; and it changes nothing, on the disk or on the host.

Here are the mistakes that concern one verb, made on a root that works; test_bad_root.py has the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import leftovers
import pytest
from roots import on_disk, shell

from engine import Engine, JobSpec, Limits, SessionSpec, Step, errors
from engine.base import DebianSource, DirSource, OciSource, TarSource
from engine.errors import (
    BadPath,
    CannotCheckpoint,
    CannotRestore,
    CommandNotExecutable,
    CommandNotFound,
    InUse,
    InvalidInput,
    NameTaken,
    NotFound,
    SeracError,
    ToolFailed,
    WrongState,
)
from engine.model import SnapshotSource

pytestmark = pytest.mark.root


class Mistake(NamedTuple):
    error: type[SeracError]
    words: str
    """of the command, split at blanks"""
    call: Callable[[Engine], object]
    said: str
    """a part of the line that tells the user what was wrong"""


def small(*argv: str, **fields: object) -> JobSpec:
    return JobSpec(base="small", argv=argv, **fields)  # type: ignore[arg-type]


def session(*argv: str, **fields: object) -> SessionSpec:
    return SessionSpec(argv=argv, **fields)  # type: ignore[arg-type]


MISTAKES = {
    "unknown base": Mistake(NotFound, "run --base nosuch -- true", lambda e: e.run(JobSpec(base="nosuch")), "nosuch"),
    "unknown job": Mistake(NotFound, "pause nosuch", lambda e: e.pause("nosuch", mode="filesystem"), "nosuch"),
    "unknown snapshot": Mistake(NotFound, "snapshot rm nosuch", lambda e: e.snapshot_remove("nosuch"), "nosuch"),
    "unknown session": Mistake(NotFound, "attach up 77", lambda e: e.attach("up", 77), "77"),
    "name taken": Mistake(NameTaken, "run --name up -- true", lambda e: e.run(small("true", name="up")), "up"),
    "name taken by a fork": Mistake(
        NameTaken, "resume paused --as up", lambda e: e.fork(e.job("paused").snapshot or "", name="up"), "up"
    ),
    "not a name": Mistake(InvalidInput, "run --name a/b -- true", lambda e: e.run(small("true", name="a/b")), "a/b"),
    "not a base's name": Mistake(
        InvalidInput, "base build ../x --dir /etc", lambda e: e.base_build("../x", DirSource(path=Path("/etc"))), "../x"
    ),
    "memory out of range": Mistake(
        InvalidInput, "run --memory 100 -- true", lambda e: e.run(small("true", limits=Limits(memory=100))), "100"
    ),
    "memory beyond all": Mistake(
        InvalidInput,
        "run --memory 99999999T -- true",
        lambda e: e.run(small("true", limits=Limits(memory=99999999 << 40))),
        "out of range",
    ),
    "cpus out of range": Mistake(
        InvalidInput, "run --cpus 0 -- true", lambda e: e.run(small("true", limits=Limits(cpus=0.0))), "0"
    ),
    "cpus beyond all": Mistake(
        InvalidInput, "run --cpus 1000000 -- true", lambda e: e.run(small("true", limits=Limits(cpus=1e6))), "1000000"
    ),
    "pids out of range": Mistake(
        InvalidInput, "run --pids 1 -- true", lambda e: e.run(small("true", limits=Limits(pids=1))), "1"
    ),
    "pids beyond all": Mistake(
        InvalidInput,
        "run --pids 999999999 -- true",
        lambda e: e.run(small("true", limits=Limits(pids=10**9 - 1))),
        "out of range",
    ),
    "relative directory": Mistake(
        InvalidInput, "run --workdir src -- true", lambda e: e.run(small("true", workdir="src")), "src"
    ),
    "unknown denial": Mistake(
        InvalidInput, "run --allow nosuch -- true", lambda e: e.run(small("true", allow=("nosuch",))), "nosuch"
    ),
    "two steps of a name": Mistake(
        InvalidInput,
        "run --step a=true --step a=false",
        lambda e: e.run(JobSpec(base="small", steps=(Step(name="a", script="true"), Step(name="a", script="false")))),
        "same name",
    ),
    "command and steps": Mistake(
        InvalidInput,
        "run --step a=true -- true",
        lambda e: e.run(small("true", steps=(Step(name="a", script="true"),))),
        "not both",
    ),
    "unknown mode": Mistake(
        InvalidInput,
        "pause up --mode frozen",
        lambda e: e.pause("up", mode="frozen"),
        "frozen",  # type: ignore[arg-type]
    ),
    "processes that can't be kept": Mistake(
        CannotCheckpoint,
        "pause hosted --mode process",
        lambda e: e.pause("hosted", mode="process"),
        "the host's network",
    ),
    "processes that weren't kept": Mistake(
        CannotRestore, "resume paused --mode process", lambda e: e.resume("paused", mode="process"), "no processes"
    ),
    "not paused": Mistake(WrongState, "resume up", lambda e: e.resume("up"), "running"),
    "paused": Mistake(WrongState, "exec paused -- true", lambda e: e.exec("paused", session("true")), "paused"),
    "running": Mistake(WrongState, "rm up", lambda e: e.remove("up"), "running"),
    "base in use": Mistake(InUse, "base rm small", lambda e: e.base_remove("small"), "small"),
    "snapshot in use": Mistake(
        InUse, "snapshot rm {snapshot}", lambda e: e.snapshot_remove(e.job("paused").snapshot or ""), "paused"
    ),
    "no such command": Mistake(CommandNotFound, "run -- /no/such", lambda e: e.run(small("/no/such")), "/no/such"),
    "no such command in a session": Mistake(
        CommandNotFound, "exec up -- nosuch", lambda e: e.exec("up", session("nosuch")), "nosuch"
    ),
    "not a program": Mistake(
        CommandNotExecutable, "exec up -- /etc/passwd", lambda e: e.exec("up", session("/etc/passwd")), "/etc/passwd"
    ),
    "no such directory": Mistake(
        BadPath, "run --workdir /no/such -- true", lambda e: e.run(small("true", workdir="/no/such")), "/no/such"
    ),
    "no such directory in a session": Mistake(
        BadPath,
        "exec up -w /no/such -- true",
        lambda e: e.exec("up", session("true", workdir="/no/such")),
        "/no/such",
    ),
    "copy from nowhere": Mistake(
        BadPath, "cp up:/no/such {scratch}/x", lambda e: e.copy_out("up", "/no/such", "/proc/self/nosuch"), "/no/such"
    ),
    "copy to nowhere": Mistake(
        BadPath,
        "cp /etc/passwd up:/no/such/dir/x",
        lambda e: e.copy_in("up", "/etc/passwd", "/no/such/dir/x"),
        "/no/such",
    ),
    "copy out of the job": Mistake(
        BadPath, "cp /etc/passwd up:/out/x", lambda e: e.copy_in("up", "/etc/passwd", "/out/x"), "/out"
    ),
    "copy of what isn't here": Mistake(
        InvalidInput, "cp /no/such up:/tmp", lambda e: e.copy_in("up", "/no/such", "/tmp"), "/no/such"
    ),
    "base of no tar": Mistake(
        InvalidInput,
        "base build x --tar /no/such",
        lambda e: e.base_build("x", TarSource(path=Path("/no/such"))),
        "/no/such",
    ),
    "base of what is no tar": Mistake(
        ToolFailed,
        "base build x --tar {scratch}/text",
        lambda e: e.base_build("x", TarSource(path=scratch(e) / "text")),
        "tar",
    ),
    "base of no directory": Mistake(
        InvalidInput,
        "base build x --dir /no/such",
        lambda e: e.base_build("x", DirSource(path=Path("/no/such"))),
        "/no/such",
    ),
    "base of no image": Mistake(
        InvalidInput, "base build x --oci {scratch}", lambda e: e.base_build("x", OciSource(path=scratch(e))), "scratch"
    ),
    "base of no snapshot": Mistake(
        NotFound,
        "base build x --snapshot nosuch",
        lambda e: e.base_build("x", SnapshotSource(snapshot="nosuch")),
        "nosuch",
    ),
    "base of no suite": Mistake(
        InvalidInput, "base build x --debian ../x", lambda e: e.base_build("x", DebianSource(suite="../x")), "../x"
    ),
}


def scratch(engine: Engine) -> Path:
    return engine.config.root.parent / "scratch"


@pytest.fixture
def furnished(engine: Engine) -> Engine:
    """A root with a job that is up and one that is paused, and a link in the first that leads out of it."""
    engine.run(shell("ln -s ../../../../../../../tmp/nosuch /out; exec sleep 1000", name="up"))
    engine.run(JobSpec(base="small", name="hosted", net="host"))
    engine.run(JobSpec(base="small", name="paused"))
    engine.pause("paused", mode="filesystem")
    scratch(engine).mkdir()
    (scratch(engine) / "text").write_text("no tar at all\n")
    return engine


def test_each_mistake_is_told_and_changes_nothing(furnished: Engine) -> None:
    """One engine for all of them, for they leave it as it was; what is wrong with any is told at the end."""
    before = state(furnished)
    problems: list[str] = []
    for name, mistake in MISTAKES.items():
        problems += [f"{name}: {problem}" for problem in by_library(furnished, mistake)]
        problems += [f"{name}: {problem}" for problem in by_command(furnished, mistake)]
        after = state(furnished)
        problems += [
            f"{name} changed {what}: {change(before[what], after[what])}"
            for what in before
            if before[what] != after[what]
        ]
        before = after
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def state(engine: Engine) -> dict[str, object]:
    return {
        "the host": leftovers.settled(leftovers.count()),
        "the disk": on_disk(engine.config.root),
        "the scratch directory": on_disk(scratch(engine)),
        "the catalog": (engine.jobs(ended=True), engine.snapshots(), engine.bases()),
    }


def change(before: object, after: object) -> object:
    if isinstance(before, dict) and isinstance(after, dict):
        return sorted(str(key) for key in {**before, **after} if before.get(key) != after.get(key))
    return before, after


def by_library(engine: Engine, mistake: Mistake) -> Iterator[str]:
    try:
        mistake.call(engine)
    except SeracError as error:
        if type(error) is not mistake.error:
            yield f"the library raised {error!r}"
        yield from unclear(str(error), error.hint, mistake.said)
    else:
        yield "the library let it pass"


def by_command(engine: Engine, mistake: Mistake) -> Iterator[str]:
    snapshot = engine.job("paused").snapshot
    words = mistake.words.format(scratch=scratch(engine), snapshot=snapshot).split()
    command = [sys.executable, "-m", "engine.cli", "--root", os.fspath(engine.config.root)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != mistake.error.status or done.stdout:
        yield f"the command's status is {done.returncode}, its output {done.stdout!r} {done.stderr!r}"
    lines = done.stderr.splitlines()
    if len(lines) == 2 and lines[0].startswith("serac: ") and lines[1].startswith("hint: "):
        yield from unclear(lines[0].removeprefix("serac: "), lines[1].removeprefix("hint: "), mistake.said)
    else:
        yield f"the command said {lines}"


def unclear(message: str, hint: str, said: str) -> Iterator[str]:
    """What is wrong with the words."""
    if "\n" in message or "\n" in hint or not hint.strip():
        yield f"not one line and a remedy: {message!r}, {hint!r}"
    if said not in message:
        yield f"{said!r} is not in {message!r}"


def test_every_class_of_error_has_a_status_of_its_own() -> None:
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, SeracError)]
    assert len({error.status for error in classes}) == len({error.code for error in classes}) == len(classes)
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    table = dict(re.findall(r"^\| ([a-z-]+) \| (\d+) \|", readme, re.MULTILINE))
    assert table == {error.code: str(error.status) for error in classes if error is not SeracError}
