"""Which snapshots are kept: the rules, on rows alone."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import retention
from engine.config import Settings
from engine.model import Context, Job, JobSpec, JobState, Loading, Policy, Quota, Snapshot, Verdict

DAY = 86400.0
NOW = 1000 * DAY
SPEC = JobSpec(base="small")


def snapshot(number: int, *, age: float = 0.0, job: str = "job", layers: str = "", **fields: Any) -> Snapshot:
    """Of one layer of its own, unless ``layers`` names some, a letter each."""
    chain = tuple(layers) or (f"layer{number}",)
    return Snapshot(
        id=f"s{number}", job=job, name=job, spec=SPEC, base="b", layers=chain, context=Context(), created=NOW - age,
        **fields,
    )  # fmt: skip


def job(name: str, state: JobState = JobState.PAUSED, **fields: Any) -> Job:
    return Job(id=name, name=name, spec=SPEC, state=state, base="b", **fields)


def judged(
    snapshots: list[Snapshot],
    *policies: Policy,
    jobs: list[Job] | None = None,
    quota: Quota | None = None,
    **sizes: int,
) -> dict[str, Verdict]:
    rules = retention.Rules(policies, quota or Quota())
    found = retention.judge(snapshots, jobs or [], rules, sizes=sizes, now=NOW)
    assert [verdict.snapshot for verdict in found] == [
        entry.id for entry in sorted(snapshots, key=lambda entry: (entry.created, entry.id))
    ]
    assert all(verdict.reason for verdict in found)
    return {verdict.snapshot: verdict for verdict in found}


def gone(verdicts: dict[str, Verdict]) -> set[str]:
    return {name for name, verdict in verdicts.items() if not verdict.keep}


def test_without_policies_all_stays() -> None:
    verdicts = judged([snapshot(1, age=900 * DAY), snapshot(2)])
    assert {verdict.reason for verdict in verdicts.values()} == {"no policy speaks of it"}
    assert gone(verdicts) == set()


def test_what_is_older_than_its_time_goes() -> None:
    verdicts = judged([snapshot(1, age=8 * DAY), snapshot(2, age=6 * DAY)], Policy(ttl=7 * DAY))
    assert gone(verdicts) == {"s1"}
    assert verdicts["s1"].reason == "8 d old, more than 7 d, policy 1"
    assert verdicts["s2"].reason == "6 d old, 7 d are allowed, policy 1"


def test_the_last_ones_stay_whatever_their_age() -> None:
    some = [snapshot(number, age=number * DAY) for number in range(1, 6)]
    verdicts = judged(some, Policy(ttl=3.5 * DAY, keep_last=2))
    assert gone(verdicts) == {"s4", "s5"}
    old = [msgspec.structs.replace(entry, created=entry.created - 100 * DAY) for entry in some]
    assert gone(judged(old, Policy(ttl=3.5 * DAY, keep_last=2))) == {"s3", "s4", "s5"}
    assert gone(judged(some, Policy(keep_last=2))) == {"s3", "s4", "s5"}
    assert gone(judged(some, Policy(keep_last=0))) == {"s1", "s2", "s3", "s4", "s5"}


def test_the_last_ones_are_counted_by_job_or_all_together() -> None:
    some = [snapshot(number, age=number * DAY, job="ab"[number % 2]) for number in range(6)]
    assert gone(judged(some, Policy(keep_last=1))) == {"s2", "s3", "s4", "s5"}
    assert gone(judged(some, Policy(keep_last=1, per="policy"))) == {"s1", "s2", "s3", "s4", "s5"}


def test_the_first_policy_that_speaks_of_it_counts() -> None:
    release, branch = {"kind": "release", "mr": "1"}, {"kind": "branch"}
    some = [snapshot(1, age=9 * DAY, labels=release), snapshot(2, age=9 * DAY, labels=branch), snapshot(3, age=9 * DAY)]
    policies = (Policy(labels={"kind": "release"}), Policy(labels=branch, ttl=DAY), Policy(ttl=10 * DAY))
    verdicts = judged(some, *policies)
    assert gone(verdicts) == {"s2"}
    assert [verdict.reason.rpartition(", ")[2] for verdict in verdicts.values()] == ["policy 1", "policy 2", "policy 3"]


def test_a_time_of_its_own_comes_before_the_policies() -> None:
    some = [
        snapshot(1, age=9 * DAY, expires=NOW + 60), snapshot(2, age=5, expires=NOW - 3600), snapshot(3, age=9 * DAY),
    ]  # fmt: skip
    verdicts = judged(some, Policy(ttl=DAY, keep_last=1))
    assert gone(verdicts) == {"s2"}
    assert verdicts["s1"].reason == "its time ends in 1 min"
    assert verdicts["s2"].reason == "its time ended 1 h ago"
    assert verdicts["s3"].reason == "one of the last 1, policy 1"  # the others aren't counted


@pytest.mark.parametrize(
    "held",
    [
        [job("a", JobState.RESUMING, snapshot="s1", layers=("x",), upper="y")],
        [job("a", JobState.CREATED, layers=("layer1",), upper="y", forked_from="s1")],
        [job("a", JobState.CREATED, layers=("layer1",), upper="y")],  # whoever exports or copies
        [job("a", JobState.RUNNING, loading=Loading(snapshot="s1"))],
    ],
)
def test_what_is_in_use_stays(held: list[Job]) -> None:
    verdicts = judged([snapshot(1, age=DAY, expires=NOW - 1)], jobs=held, quota=Quota(snapshots=0))
    assert (gone(verdicts), verdicts["s1"].reason) == (set(), "it is in use")


def test_what_is_pinned_stays() -> None:
    verdicts = judged([snapshot(1, age=DAY, expires=NOW - 1, pinned=True)], Policy(ttl=0), quota=Quota(snapshots=0))
    assert (gone(verdicts), verdicts["s1"].reason) == (set(), "it is pinned")


def test_a_paused_job_goes_with_its_snapshot() -> None:
    some = [snapshot(1, age=9 * DAY), snapshot(2)]
    verdicts = judged(some, Policy(ttl=DAY), jobs=[job("a", snapshot="s1"), job("b", snapshot="s2")])
    assert gone(verdicts) == {"s1"}
    assert [verdict.job for verdict in verdicts.values()] == ["a", "b"]


def test_a_clock_that_was_set_back_makes_nothing_old() -> None:
    assert gone(judged([snapshot(1, age=-400 * DAY)], Policy(ttl=DAY))) == set()


def test_a_clock_that_was_set_forward_takes_nothing_for_its_age() -> None:
    some = [snapshot(1, age=9 * DAY), snapshot(2, age=8 * DAY, expires=NOW - 1), snapshot(3)]
    rules = retention.Rules((Policy(ttl=DAY),), Quota(snapshots=2))
    found = retention.judge(some, [], rules, sizes={}, now=None)
    assert [verdict.keep for verdict in found] == [False, True, True]  # the quota is none of ages
    assert found[1].reason == "the clock was set forward: ages don't count for a day"


@pytest.mark.parametrize(
    ("passed", "up", "boot", "trusted"),
    [
        (60.0, 60.0, "b", 0.0),
        (60.0, 60.0, "another", 0.0),
        (365 * DAY, 60.0, "another", 0.0),  # the host may have been off for so long
        (365 * DAY, 365 * DAY, "b", 0.0),
        (DAY, 60.0, "b", NOW + 2 * DAY),
        (-DAY, 60.0, "b", 0.0),
        (3700.0, 60.0, "b", NOW + 3700.0 + DAY),
        (3500.0, 60.0, "b", 0.0),
    ],
)
def test_clocks(passed: float, up: float, boot: str, trusted: float) -> None:
    before = retention.Clock(wall=NOW, up=100.0, boot="b")
    now = retention.Clock(wall=NOW + passed, up=100.0 + up, boot=boot)
    assert retention.ticked(before, now).trusted == trusted
    assert retention.ticked(None, now) == now


def test_a_clock_that_is_set_right_again_is_trusted() -> None:
    wrong = retention.ticked(
        retention.Clock(wall=NOW, up=0.0, boot="b"), retention.Clock(wall=NOW + 30 * DAY, up=60.0, boot="b")
    )
    later = retention.ticked(wrong, retention.Clock(wall=NOW + 30 * DAY + 60, up=120.0, boot="b"))
    assert later.trusted == wrong.trusted > later.wall
    assert retention.ticked(later, retention.Clock(wall=NOW + 180, up=180.0, boot="b")).trusted == 0.0


def test_the_quota_takes_the_oldest_and_paused_jobs_last() -> None:
    some = [snapshot(number, age=number * DAY) for number in range(1, 5)]
    paused = [job("a", snapshot="s4"), job("b", snapshot="s2")]
    for most, expected in ((4, ""), (3, "s3"), (2, "s3 s1"), (1, "s3 s1 s4"), (0, "s3 s1 s4 s2")):
        assert gone(judged(some, jobs=paused, quota=Quota(snapshots=most))) == set(expected.split())
    for most, expected in ((2, set()), (1, {"s4"}), (0, {"s4", "s2"})):
        assert gone(judged(some, jobs=paused, quota=Quota(paused=most))) == expected


def test_pinned_ones_count_and_stay() -> None:
    some = [snapshot(1, age=3, pinned=True), snapshot(2, age=2, pinned=True), snapshot(3, age=1)]
    assert gone(judged(some, quota=Quota(snapshots=1))) == {"s3"}


def test_only_what_becomes_free_counts() -> None:
    chain = [snapshot(1, age=3, layers="a"), snapshot(2, age=2, layers="ab"), snapshot(3, age=1, layers="abc")]
    sizes = {"a": 100, "b": 10, "c": 1}
    assert gone(judged(chain, quota=Quota(bytes=111), **sizes)) == set()
    assert gone(judged(chain, quota=Quota(bytes=110), **sizes)) == {"s3"}
    assert gone(judged(chain, quota=Quota(bytes=100), **sizes)) == {"s3", "s2"}
    assert gone(judged(chain, quota=Quota(bytes=99), **sizes)) == {"s3", "s2", "s1"}


def test_what_a_running_job_stands_on_is_no_gain() -> None:
    running = job("r", JobState.RUNNING, layers=("a",), upper="u")
    some = [snapshot(1, age=3, layers="a"), snapshot(2, age=2, layers="b")]
    assert gone(judged(some, jobs=[running], quota=Quota(bytes=105), a=100, b=10)) == {"s2"}
    assert gone(judged(some, jobs=[running], quota=Quota(bytes=50), a=100, b=10)) == {"s2"}


SNAPSHOTS = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.floats(-10 * DAY, 100 * DAY),
            "layers": st.text("abcdef", min_size=1, max_size=4),
            "pinned": st.booleans(),
            "expires": st.none() | st.floats(NOW - DAY, NOW + DAY),
            "labels": st.sampled_from([{}, {"k": "1"}, {"k": "2"}]),
        }
    ),
    max_size=12,
)
POLICIES = st.lists(
    st.builds(
        Policy,
        labels=st.sampled_from([{}, {"k": "1"}]),
        ttl=st.none() | st.floats(0, 50 * DAY),
        keep_last=st.none() | st.integers(0, 3),
        per=st.sampled_from(["job", "policy"]),
    ),
    max_size=3,
)
QUOTAS = st.builds(Quota, bytes=st.none() | st.integers(0, 30), snapshots=st.none() | st.integers(0, 8))


@given(SNAPSHOTS, POLICIES, QUOTAS)
def test_any_rows_are_judged_once_and_for_all(
    found: list[dict[str, Any]], policies: list[Policy], quota: Quota
) -> None:
    """What is kept would be kept again, the quota is met as far as it can be, and no pin is touched."""
    some = [snapshot(number, **fields) for number, fields in enumerate(found)]
    sizes = dict(zip("abcdef", (1, 2, 4, 8, 16, 32), strict=True))
    verdicts = judged(some, *policies, quota=quota, **sizes)
    left = [entry for entry in some if verdicts[entry.id].keep]
    assert gone(judged(left, *policies, quota=quota, **sizes)) == set()
    assert {entry.id for entry in some if entry.pinned} <= {entry.id for entry in left}
    free = [entry for entry in left if not entry.pinned]
    if quota.snapshots is not None and free:
        assert len(left) <= quota.snapshots
    if quota.bytes is not None and free:
        taken = sum(sizes[layer] for layer in set(itertools.chain(*(entry.layers for entry in left))))
        pinned = set(itertools.chain(*(entry.layers for entry in left if entry.pinned)))
        useless = all(pinned.issuperset(entry.layers) for entry in free)
        assert taken <= quota.bytes or useless


@pytest.mark.parametrize(
    "wrong",
    [
        '{"retention": [{"ttl": -1}]}', '{"retention": [{"keep_last": -1}]}', '{"retention": [{"keep": 1}]}',
        '{"quota": {"bytes": -1}}', '{"quota": {"bytes": "1G"}}', '{"retention": [{"per": "label"}]}',
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(wrong, type=Settings)


def test_settings() -> None:
    given = '{"retention": [{"labels": {"kind": "release"}}, {"ttl": 604800, "keep_last": 3}], "quota": {"paused": 9}}'
    settings = msgspec.json.decode(given, type=Settings)
    assert settings.retention == (Policy(labels={"kind": "release"}), Policy(ttl=7 * DAY, keep_last=3))
    assert settings.quota == Quota(paused=9)
