"""What a filesystem resume starts again is decided from what a job may have written itself: none of it is trusted."""

from __future__ import annotations

import msgspec

from engine.lifecycle.sessions import context_of
from engine.model import Context, Job, JobSpec, JobState, SessionSpec, SessionStatus, Step

JOB = Job(id="0123456789ab", name="a", spec=JobSpec(base="b"), state=JobState.RUNNING, base="d")
NO_TEXT = "/caf\udce9"


def context(main: SessionSpec | None, others: dict[int, SessionSpec], directories: dict[int, str]) -> Context:
    statuses = {number: SessionStatus(id=number, running=True, done=("one", NO_TEXT)) for number in (0, *others)}
    found = context_of(JOB, main, others, statuses, directories, labels={})
    assert msgspec.json.decode(msgspec.json.encode(found), type=Context) == found
    return found


def test_a_directory_that_is_no_text_is_left_for_the_first_one() -> None:
    shell = SessionSpec(id=0, argv=("sh",), workdir="/src", tty=(24, 80))
    (first,) = context(shell, {}, {0: NO_TEXT}).sessions
    assert first.workdir == "/src"
    (first,) = context(shell, {}, {0: "/café"}).sessions
    assert first.workdir == "/café"


def test_a_session_that_no_catalog_can_hold_is_passed_over() -> None:
    kept = SessionSpec(argv=("sleep", "9"), workdir="/", keep=True)
    others = {
        1: kept,
        2: msgspec.structs.replace(kept, argv=("sleep", NO_TEXT)),
        3: msgspec.structs.replace(kept, env={NO_TEXT: "x"}),
        4: msgspec.structs.replace(kept, workdir=NO_TEXT),
        5: msgspec.structs.replace(kept, argv=(), steps=(Step(name="x\0", script="true"),)),
    }
    assert [session.id for session in context(None, others, {}).sessions] == [1]


def test_only_steps_that_there_are_were_completed() -> None:
    steps = SessionSpec(id=0, steps=(Step(name="one", script="true"), Step(name="two", script="true")), workdir="/")
    (first,) = context(steps, {}, {}).sessions
    assert first.done == ("one",)
