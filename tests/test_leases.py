"""A program in a job keeps it awake; what whoever supervises it reads, in the io directory."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from commands import Command, serac
from roots import inside, output, shell, until, wait_for

from engine import Engine, JobSpec, SessionSpec

__all__ = ["serac"]  # fixture

pytestmark = pytest.mark.root

AWAKE = "/.serac/awake"
PROTOCOL = Path(__file__).resolve().parents[1] / "native" / "protocol.h"


def lease(engine: Engine, ref: str) -> dict[bytes, bytes]:
    try:
        content = (engine._root.io(engine.job(ref).id) / "awake").read_bytes()
    except FileNotFoundError:
        return {}
    return dict(part.split(b"=", 1) for part in content.split(b"\0") if part)


HELD = {b"until": b"0", b"reason": b"compiling"}


def test_a_lease_outlives_a_pause(engine: Engine) -> None:
    """And a fork holds one of its own."""
    engine.run(shell(f"{AWAKE} --reason compiling -- sh -c 'while [ ! -e /go ]; do sleep 0.1; done'", name="a"))
    wait_for(lambda: lease(engine, "a") == HELD)
    snapshot = engine.pause("a", mode="process").snapshot
    engine.fork(snapshot, name="b")
    engine.resume("a")
    assert lease(engine, "a") == HELD
    wait_for(lambda: lease(engine, "b") == HELD)
    inside(engine, "b", "touch /go")
    assert engine.wait("b", timeout=60).status == 0
    assert lease(engine, "a") == HELD
    inside(engine, "a", "touch /go")
    assert engine.wait("a", timeout=60).status == 0
    assert lease(engine, "a") == lease(engine, "b") == {}


def test_a_lease_goes_with_its_processes(engine: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    engine.start("a", SessionSpec(argv=(AWAKE, "--for", "1h"), uid=65534, gid=65534))
    wait_for(lambda: int(lease(engine, "a").get(b"until", b"0")) > time.time_ns() + 3500 * 10**9)
    engine.pause("a", mode="filesystem")
    assert engine.resume("a").mode == "filesystem"
    wait_for(lambda: int(lease(engine, "a").get(b"until", b"0")) > time.time_ns() + 3500 * 10**9)
    engine.stop("a")
    assert lease(engine, "a") == {}


# what the contract says, done


def example() -> str:
    """The lines of Python in protocol.h."""
    lines = [line.removeprefix(" *   ") for line in PROTOCOL.read_text().splitlines()]
    first = next(at for at, line in enumerate(lines) if line.startswith("head, packet ="))
    last = next(at for at, line in enumerate(lines) if line.startswith("# kind 16:"))
    return "\n".join(lines[first:last])


def test_the_example_of_the_protocol(engine: Engine) -> None:
    """It is followed to the letter from outside: the socket and the bytes are the same."""
    engine.run(JobSpec(base="small", name="a"))
    io = engine._root.io(engine.job("a").id)
    code = example().replace("/run/serac/init.sock", str(io / "init.sock"))
    names: dict[str, object] = {}
    asking = threading.Thread(target=exec, args=("import contextlib, socket, struct\n" + code, names))
    asking.start()
    wait_for(lambda: engine.asked("a"))
    question = engine.asked("a")
    assert question is not None
    assert (question.reason, question.state) == ("deploy?", {"commit": "4f0c2a91"})
    engine.answer("a", {"approve": True})
    asking.join()
    assert (names["kind"], names["records"]) == (
        16, {b"outcome": b"answered", b"text": b"", b"state": b'{"approve":true}'},
    )  # fmt: skip
    names["sock"].close()  # type: ignore[attr-defined]


def test_the_shell_example_of_the_readme(engine: Engine, serac: Command) -> None:
    readme = (PROTOCOL.parents[1] / "README.md").read_text()
    line = re.search(r"^(line=\$\(/.serac/ask.*\)) +#", readme, re.MULTILINE)
    assert line is not None
    script = f'{line[1]}; echo "${{line%% *}}: ${{line#* }}"'
    engine.run(shell(script, name="build"))
    wait_for(lambda: engine.asked("build"))
    serac.good("pause", "build")
    serac.good("resume", "build", "--answer", '{"approve": true}')
    assert output(engine, "build") == 'resumed: {"approve":true}\n'


def test_the_commands_are_there_in_every_life(engine: Engine) -> None:
    """Whatever the job has put in their place is its own affair, until it is started anew."""
    engine.run(shell("rm /.serac/ask; mkdir /.serac/ask; touch /.serac/awake.new; echo up; sleep 1000", name="a"))
    until(engine, "a", b"up\n")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    inside(engine, "a", "rmdir /.serac/ask")
    engine.pause("a", mode="filesystem")
    engine.resume("a")
    assert "usage: awake" in inside(engine, "a", "/.serac/awake --what 2>&1")
