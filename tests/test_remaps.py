"""A file that is open under a name that is gone, but has another: criu gives it a third one in the layer."""

from __future__ import annotations

import pytest
from roots import inside, shell, until, wait_for

from engine import Engine, SessionSpec
from engine.errors import CannotCheckpoint, CommandNotFound, NoSpace
from engine.lifecycle import resume
from engine.session import Exit

pytestmark = pytest.mark.root

WRITER = """mkdir -p /w/d; exec 3>> /w/d/a; ln /w/d/a /w/b; rm /w/d/a; echo ready
while :; do read line < /w/go 2> /dev/null && echo $line >&3 && : > /w/go; done"""


@pytest.fixture
def job(engine: Engine) -> str:
    engine.run(shell(WRITER, name="a"))
    until(engine, "a", b"ready\n")
    return "a"


def written(engine: Engine, ref: str, word: str) -> None:
    """The writer's descriptor and the other name are one file still."""
    inside(engine, ref, f"echo {word} > /w/go")
    wait_for(lambda: word in inside(engine, ref, "cat /w/b").split())


def test_it_is_one_file_after_every_resume(engine: Engine, job: str) -> None:
    for word in ("one", "two", "three"):
        image = engine.snapshot(engine.pause(job, mode="process").snapshot).image
        assert image is not None
        assert [name.rpartition("/")[0] for name in image.remaps] == ["w/d"]
        assert engine.resume(job).strategy == "reuse"
        written(engine, job, word)
        assert inside(engine, job, "ls /w/d") == ""
    assert inside(engine, job, "stat -c %h /w/b") == "1\n"


def test_a_restore_that_fails_late_leaves_it_for_the_next(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.pause(job, mode="process")

    def full(*_: object) -> None:
        raise NoSpace("no room for the commit")

    with monkeypatch.context() as patched:
        patched.setattr(resume, "_commit", full)
        for _ in range(2):
            with pytest.raises(NoSpace):
                engine.resume(job)
    engine.resume(job)
    written(engine, job, "after")


def test_a_start_from_the_files_that_is_refused_leaves_it_for_the_processes(engine: Engine) -> None:
    gone_after = WRITER.replace("echo ready", "mv /bin/sh /w/sh; echo ready")
    engine.run(shell(gone_after, name="a"))
    until(engine, "a", b"ready\n")
    engine.pause("a", mode="process")
    with pytest.raises(CommandNotFound):
        engine.resume("a", mode="filesystem")
    engine.resume("a", mode="process")
    with engine.exec("a", SessionSpec(argv=("/bin/mv", "/w/sh", "/bin/sh"))) as moving:
        assert [event.exit for event in moving.events() if isinstance(event, Exit)] == [0]
    written(engine, "a", "after")


def test_forks_have_their_own(engine: Engine, job: str) -> None:
    snapshot = engine.pause(job, mode="process").snapshot
    for name in ("b", "c"):
        engine.fork(snapshot, name=name)
        assert inside(engine, name, "ls /w/d") == ""
    assert engine.resume(job).strategy == "stack"
    assert inside(engine, job, "ls /w/d") == ""


def test_in_a_directory_whose_name_is_no_text_the_files_alone_are_kept(engine: Engine) -> None:
    engine.run(shell(f"cd /; mkdir -p /w; d=/w/`printf '\\377'`; {WRITER.replace('/w/d', '$d')}", name="a"))
    until(engine, "a", b"ready\n")
    with pytest.raises(CannotCheckpoint):
        engine.pause("a", mode="process")
    written(engine, "a", "on")
    assert inside(engine, "a", "ls /w/* | grep -c link_remap") == "0\n"
    assert engine.pause("a").mode == "filesystem"
    engine.resume("a")
