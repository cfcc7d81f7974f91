"""What a supervisor knows and decides, as tables: pure functions of facts, with a clock that nobody waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, Supervise
from engine.errors import InvalidInput
from engine.lifecycle.activity import Activity
from engine.lifecycle.run import check
from engine.model import Job, JobSpec, JobState
from engine.session import Lease, RawQuestion, Trace
from engine.supervisor import Facts, Pressure, decide
from engine.supervisor.decide import REASON_MAX, duration
from engine.supervisor.watch import Held, Watch, load, observe, save

SETTINGS = Supervise(freeze_after=60, pause_after=300, cold_after=3600, stall=10, available=5)
NOW = 100_000.0
CALM, SHORT = Pressure(stall=0.0), Pressure(stall=40.0)
WALL = 1_800_000_000.0


def facts(state: str = "running", age: float = 0.0, *, job: str = "a", **fields: Any) -> Facts:
    looked = fields.pop("looked", NOW)
    kept = {name: fields.pop(name) for name in ("lease", "retry", "asked") if name in fields}
    watch = Watch(life="1", state=JobState(state), since=NOW - age, last="it began", looked=looked, **kept)
    return Facts(job=job, name=job, state=JobState(state), watch=watch, **fields)


def verbs(*jobs: Facts, settings: Supervise = SETTINGS, pressure: Pressure = CALM) -> list[tuple[str, str]]:
    return [(action.verb, action.job) for action in decide(jobs, settings, pressure, NOW)]


LEASE = Held(until_ns=0, end=None)

TABLE: list[tuple[str, Facts, str | None]] = [
    ("a busy job runs on", facts(age=0), None),
    ("not yet idle for long", facts(age=59.9), None),
    ("idle long enough to be frozen", facts(age=60), "freeze"),
    ("a frozen one isn't frozen again", facts("frozen", 60), None),
    ("a frozen one isn't paused yet", facts("frozen", 299), None),
    ("a frozen one is paused", facts("frozen", 300), "pause"),
    ("a running one is paused at once when it is due", facts(age=1e6), "pause"),
    ("a lease keeps it awake", facts(age=1e6, lease=LEASE), None),
    ("a lease keeps a frozen one too", facts("frozen", 1e6, lease=LEASE), None),
    ("its own age is longer", facts(age=400, pause_after=500.0), "freeze"),
    ("and reached", facts(age=500, pause_after=500.0), "pause"),
    ("its own age is shorter than that for a freeze", facts(age=30, pause_after=20.0), "pause"),
    ("it is never to be paused, nor frozen", facts(age=1e6, pause_after=0.0), None),
    ("it asks", facts(age=0, question=""), "pause"),
    ("it asks while it holds a lease", facts(age=0, question="", lease=LEASE), "pause"),
    ("it asks though it is never idle", facts(age=0, question="", pause_after=0.0), "pause"),
    ("it asked and was frozen", facts("frozen", question="x"), "pause"),
    ("what failed is left for a while", facts(age=1e6, retry=NOW + 1), None),
    ("what failed and asks too", facts(question="x", retry=NOW + 1), None),
    ("what failed is tried again", facts(age=1e6, retry=NOW), "pause"),
    ("its CPU time was last looked at when it wasn't due", facts(age=301, looked=NOW - 2, pause_after=300.0), "freeze"),
    ("or never since it did something", facts(age=0, looked=NOW - 1, pause_after=0.01), None),
    ("paused, not for long", facts("paused", 3599), None),
    ("paused and not archived", facts("paused", 3600), "archive"),
    ("paused and about to be archived", facts("paused", 3600, rest="due"), None),
    ("paused and archived", facts("paused", 3600, rest="archived"), "demote"),
    ("paused, and others run on it", facts("paused", 3600, rest="shared"), None),
    ("cold", facts("paused", 1e9, rest="cold"), None),
    ("a paused job's question is nobody's", facts("paused", 0, question="x"), None),
]


@pytest.mark.parametrize(("job", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_done_with_a_job(job: Facts, expected: str | None) -> None:
    assert verbs(job) == ([] if expected is None else [(expected, "a")])


@pytest.mark.parametrize("name", ["freeze_after", "pause_after", "cold_after"])
def test_an_age_of_0_is_never(name: str) -> None:
    never = msgspec.structs.replace(SETTINGS, **{name: 0.0})
    old = {
        "freeze_after": facts(age=200),
        "pause_after": facts("frozen", 1e9),
        "cold_after": facts("paused", 1e9, rest="archived"),
    }
    assert verbs(old[name], settings=SETTINGS) != []
    assert verbs(old[name], settings=never) == []


def test_the_longest_idle_comes_first() -> None:
    jobs = [facts(age=age, job=job) for job, age in (("a", 310), ("b", 5000), ("c", 70), ("d", 400))]
    assert verbs(*jobs) == [("pause", "b"), ("pause", "d"), ("pause", "a"), ("freeze", "c")]


def test_who_asks_comes_before_all() -> None:
    assert verbs(facts(age=5000, job="a"), facts(job="b", question="?")) == [("pause", "b"), ("pause", "a")]


PRESSED: list[tuple[str, list[Facts], list[tuple[str, str]]]] = [
    ("nobody is idle", [facts(age=0)], []),
    ("idle, but not for long enough to be frozen", [facts(age=59)], []),
    ("the longest idle frozen one", [facts("frozen", 10, job="a"), facts("frozen", 20, job="b")], [("pause", "b")]),
    (
        "frozen before running",
        [facts(age=200, job="a"), facts("frozen", 5, job="b")],
        [("pause", "b"), ("freeze", "a")],
    ),
    ("a running one, where none is frozen", [facts(age=61)], [("pause", "a")]),
    ("a lease holds", [facts("frozen", 200, lease=LEASE)], []),
    ("never idle", [facts("frozen", 200, pause_after=0.0)], []),
    ("failed just now", [facts("frozen", 200, retry=NOW + 1)], []),
    ("frozen just now", [facts("frozen", 0)], []),
    ("nothing that is paused", [facts("paused", 200)], []),
    ("one that is due anyway is no second one", [facts("frozen", 400)], [("pause", "a")]),
    (
        "who asks is none either",
        [facts("frozen", 50, question="?"), facts("frozen", 9, job="b")],
        [("pause", "a"), ("pause", "b")],
    ),
]


@pytest.mark.parametrize(("jobs", "expected"), [row[1:] for row in PRESSED], ids=[row[0] for row in PRESSED])
def test_what_is_done_when_memory_is_short(jobs: list[Facts], expected: list[tuple[str, str]]) -> None:
    assert verbs(*jobs, pressure=SHORT) == expected
    if expected:
        assert (
            any("memory is short" in action.reason for action in decide(jobs, SETTINGS, SHORT, NOW)) or jobs[0].question
        )


@pytest.mark.parametrize(
    ("pressure", "settings", "expected"),
    [
        (Pressure(stall=9.9), SETTINGS, False),
        (Pressure(stall=10.0), SETTINGS, True),
        (Pressure(stall=0.0, available=1.0), SETTINGS, False),  # what the kernel says of stalls is what counts
        (Pressure(stall=None, available=5.0), SETTINGS, False),
        (Pressure(stall=None, available=4.9), SETTINGS, True),
        (Pressure(stall=99.0, available=0.0), msgspec.structs.replace(SETTINGS, stall=0), False),
        (Pressure(stall=None, available=0.0), msgspec.structs.replace(SETTINGS, stall=0), False),
    ],
)
def test_when_memory_is_short(pressure: Pressure, settings: Supervise, expected: bool) -> None:
    assert bool(verbs(facts("frozen", 100), settings=settings, pressure=pressure)) is expected


def test_reasons_say_it_all() -> None:
    (action,) = decide([facts("frozen", 930)], SETTINGS, CALM, NOW)
    assert action.reason.startswith("idle for 15 min 30 s: no CPU beyond 1 %, no output, no client, no lease")
    assert action.facts == {"state": "frozen", "seconds": 930.0, "last": "it began"}
    (action,) = decide([facts("paused", 7200)], SETTINGS, CALM, NOW)
    assert action.reason == "paused for 2 h"
    (action,) = decide([facts("frozen", 70)], SETTINGS, SHORT, NOW)
    assert action.reason.startswith("memory is short: processes waited for it 40 % of the last ten seconds; idle for")


def test_what_a_job_says_is_bounded_and_fit_for_a_terminal() -> None:
    (action,) = decide([facts(question="\x1b[2J\n\udcff" + "x" * 10_000)], SETTINGS, CALM, NOW)
    assert action.asked
    assert action.reason.startswith("it asks for it: ?[2J??xxx")
    assert len(action.reason) < REASON_MAX + 50
    msgspec.json.encode(action)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


ANY_JOBS = st.lists(
    st.builds(
        facts,
        state=st.sampled_from(["running", "frozen", "paused"]),
        age=st.floats(0, 1e6),
        job=st.uuids().map(str),
        pause_after=st.none() | st.floats(0, 1e5),
        lease=st.sampled_from([None, LEASE]),
        retry=st.sampled_from([0.0, NOW + 1]),
        question=st.none() | st.text(max_size=300),
        rest=st.sampled_from(["local", "due", "archived", "shared", "cold"]),
    ),
    max_size=8,
    unique_by=lambda job: job.job,
)


@given(jobs=ANY_JOBS, stall=st.none() | st.floats(0, 100), available=st.floats(0, 100))
def test_any_decision_is_sound(jobs: list[Facts], stall: float | None, available: float) -> None:
    pressure = Pressure(stall=stall, available=available)
    actions = decide(jobs, SETTINGS, pressure, NOW)
    by_id = {job.job: job for job in jobs}
    assert len({action.job for action in actions}) == len(actions)
    assert actions == decide(jobs[::-1], SETTINGS, pressure, NOW)
    for action in actions:
        job = by_id[action.job]
        assert job.watch.retry <= NOW
        assert (job.state is JobState.PAUSED) == (action.verb in ("archive", "demote"))
        assert action.verb != "freeze" or job.state is JobState.RUNNING
        assert action.asked == (job.question is not None and job.state is not JobState.PAUSED)
        if not action.asked and action.verb in ("freeze", "pause"):
            assert job.watch.lease is None
            assert job.pause_after != 0
        assert action.reason
    early = [a for a in actions if a.verb == "pause" and not a.asked and "memory is short" in a.reason]
    assert len(early) <= 1


# what is known over time


def job(state: str = "running", *, started: float = 1.0, snapshot: str | None = None) -> Job:
    return Job(
        id="a", name="a", spec=JobSpec(base="b"), state=JobState(state), base="b", started=started, snapshot=snapshot
    )


def seen(cpu: float = 0.0, *, size: int = 0, **fields: Any) -> Activity:
    return Activity(cpu=cpu, trace=Trace(files=1, size=size, newest_ns=1), **{"clients": 0, **fields})


def follow(*looks: tuple[Job, Activity | None, float], wall: float = WALL) -> list[Watch]:
    """What is known after each look, at so many seconds."""
    watch, found = None, []
    for looked_at, activity, now in looks:
        watch = observe(watch, looked_at, activity, now=now, wall=wall + now, cpu=1.0)
        found.append(watch)
    return found


def test_what_is_seen_first_began_then() -> None:
    (watch,) = follow((job(), seen(50.0, size=9), 1000.0))
    assert (watch.since, watch.last) == (1000.0, "it began")


DEEDS: list[tuple[str, Activity, Activity, bool]] = [
    ("nothing", seen(1.0), seen(1.0), False),
    ("CPU below the threshold", seen(1.0), seen(1.09), False),
    ("CPU beyond it", seen(1.0), seen(1.11), True),
    ("output", seen(), seen(size=1), True),
    ("a client", seen(), seen(clients=1), True),
    ("a client that has gone", seen(clients=1), seen(), False),
    ("a lease", seen(), seen(lease=Lease(until_ns=0, reason="")), True),
    ("a lease that is over", seen(), seen(lease=Lease(until_ns=1, reason="")), False),
    (
        "a question",
        seen(),
        seen(question=RawQuestion(reason="", state=None, pid=1, number=1, since=None), asked=(1, 1)),
        False,
    ),
]


@pytest.mark.parametrize(("first", "then", "active"), [row[1:] for row in DEEDS], ids=[row[0] for row in DEEDS])
def test_what_counts_as_activity(first: Activity, then: Activity, active: bool) -> None:
    before, after = follow((job(), first, 0.0), (job(), then, 10.0))
    assert after.since == (10.0 if active else before.since)
    assert (after.last == before.last) is not active


def test_clients_of_a_frozen_job_wait_like_it() -> None:
    looks = follow((job("frozen"), seen(clients=1), 0.0), (job("frozen"), seen(clients=1), 10.0))
    assert looks[-1].since == 0.0


def test_a_thaw_is_activity_and_a_freeze_is_none() -> None:
    running, frozen, thawed = follow((job(), seen(), 0.0), (job("frozen"), seen(), 10.0), (job(), seen(), 20.0))
    assert (running.since, frozen.since, thawed.since) == (0.0, 0.0, 20.0)


def test_a_new_life_begins_anew_but_for_the_question_that_it_was_paused_for() -> None:
    first = observe(None, job(), seen(9.0), now=0.0, wall=WALL, cpu=1.0)
    first = msgspec.structs.replace(first, asked=(1, 2), failures=3, retry=99.0)
    paused = observe(first, job("paused", snapshot="s"), None, now=50.0, wall=WALL, cpu=1.0)
    assert (paused.since, paused.failures, paused.asked) == (50.0, 0, (1, 2))
    again = observe(paused, job("paused", snapshot="s"), None, now=90.0, wall=WALL, cpu=1.0)
    assert again == paused
    resumed = observe(again, job(started=2.0), seen(0.1), now=100.0, wall=WALL, cpu=1.0)
    assert (resumed.since, resumed.cpu, resumed.asked) == (100.0, 0.1, (1, 2))


def test_two_looks_at_once_say_nothing_about_cpu() -> None:
    """A burst between them is neither lost nor taken for more than it is."""
    looks = follow((job(), seen(0.0), 0.0), (job(), seen(0.02), 0.1), (job(), seen(0.02), 10.0))
    assert [watch.since for watch in looks] == [0.0, 0.0, 0.0]
    looks = follow((job(), seen(0.0), 0.0), (job(), seen(0.9), 0.9), (job(), seen(0.9), 1.8))
    assert looks[-1].since == 1.8


def test_a_lease_ends_by_the_clock_that_nobody_sets() -> None:
    lease = Lease(until_ns=int((WALL + 60) * 1e9), reason="builds")
    first = observe(None, job(), seen(lease=lease), now=0.0, wall=WALL, cpu=1.0)
    assert first.lease is not None
    assert first.lease.end == pytest.approx(60.0, abs=1e-3)
    for jump in (-1e8, 1e8):
        held = observe(first, job(), seen(lease=lease), now=59.0, wall=WALL + jump, cpu=1.0)
        assert (held.lease, held.since) == (first.lease, 59.0)
        over = observe(held, job(), seen(lease=lease), now=61.0, wall=WALL + jump, cpu=1.0)
        assert (over.lease, over.since) == (None, 59.0)


def test_a_lease_that_is_renewed_holds_on() -> None:
    first, then = (seen(lease=Lease(until_ns=int((WALL + end) * 1e9), reason="")) for end in (60, 120))
    looks = follow((job(), first, 0.0), (job(), then, 59.0), (job(), then, 100.0), (job(), then, 121.0))
    assert [watch.lease is not None for watch in looks] == [True, True, True, False]


@given(walls=st.lists(st.floats(-1e10, 1e10), min_size=5, max_size=5))
def test_a_wall_clock_that_jumps_changes_nothing(walls: list[float]) -> None:
    steady, jumping = None, None
    for number, wall in enumerate(walls):
        now = 100.0 * number
        steady = observe(steady, job(), seen(), now=now, wall=WALL + now, cpu=1.0)
        jumping = observe(jumping, job(), seen(), now=now, wall=wall, cpu=1.0)
    assert steady == jumping


# between two supervisors


def test_what_was_seen_outlasts_the_supervisor(tmp_path: Path) -> None:
    (watch,) = follow((job(), seen(3.0, size=5), 100.0))
    watch = msgspec.structs.replace(watch, asked=(3, 4), lease=LEASE)
    save(tmp_path, {"a": watch}, now=150.0)
    assert load(tmp_path, now=200.0) == {"a": watch}
    assert [path.name for path in tmp_path.iterdir()] == ["watch.json"]


def test_after_a_reboot_only_the_ages_of_what_is_paused_hold(tmp_path: Path) -> None:
    (runs,), (rests,) = follow((job(), seen(), 100.0)), follow((job("paused", snapshot="s"), None, 100.0))
    save(tmp_path, {"a": runs, "b": rests}, now=150.0)
    content = (tmp_path / "watch.json").read_bytes()
    kept = msgspec.json.decode(content)
    (tmp_path / "watch.json").write_bytes(msgspec.json.encode({**kept, "boot": "another"}))
    assert load(tmp_path, now=7.0) == {"b": msgspec.structs.replace(rests, since=7.0 - 50.0)}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"boot": 1}', b"\xff", b'{"boot":"x","saved":1,"jobs":{"a":{}}}']
)
def test_what_cannot_be_read_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "watch.json").write_bytes(content)
    assert load(tmp_path, now=1.0) == {}
    assert load(tmp_path / "nowhere", now=1.0) == {}


# settings


@pytest.mark.parametrize(
    "text",
    ['{"interval": 0}', '{"interval": -1}', '{"pause_after": -1}', '{"cpu": "1"}', '{"mode": "x"}', '{"other": 1}'],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"supervise": {text}}}')
    with pytest.raises(InvalidInput):
        Config.load(tmp_path)


def test_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"supervise": {"pause_after": 60, "freeze_after": 0}}')
    found = Config.load(tmp_path).settings.supervise
    assert (found.pause_after, found.freeze_after, found.cold_after) == (60, 0, 86400)


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("inf")])
def test_a_job_cannot_be_idle_for_no_time(age: float) -> None:
    with pytest.raises(InvalidInput):
        check(JobSpec(base="b", pause_after=age))
    check(JobSpec(base="b", pause_after=0.0))
