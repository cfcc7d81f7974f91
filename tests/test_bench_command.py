"""``serac bench``: what it measures and says, and that it leaves nothing, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import leftovers
import pytest
from commands import Command, serac
from remains import holders
from roots import shell, wait_for
from test_background import ended

from engine import Engine, JobSpec
from engine.benching import (
    IN_TURN,
    Measured,
    Run,
    Series,
    _mount_of,
    breakdown,
    measure,
    remarks,
    summarised,
    within,
)
from engine.errors import CannotCheckpoint, InvalidInput, NotFound, WrongState
from engine.kernel.mountinfo import Mount

__all__ = ["serac"]  # a fixture

root = pytest.mark.root


def nothing_left(engine: Engine) -> None:
    engine._root.await_removals()
    assert engine.jobs(ended=True) == []
    assert engine.snapshots() == []
    assert holders(engine) == []
    for name in ("tmp", "jobs", "layers"):
        assert list((engine.config.root / name).iterdir()) == []


# the command


@root
def test_both_modes_as_json(engine: Engine, serac: Command) -> None:
    document = serac.json("bench", "small", "--rounds", "2")
    assert list(document) == list(Measured.__struct_fields__)
    assert (document["format"], document["base"]) == ("serac-measured/1", engine.base("small").digest)
    assert (document["argv"], document["rounds"], document["durability"]) == ([], 2, "full")
    found = {(one["mode"], one["cache"], one["verb"]): one for one in document["series"]}
    assert list(found) == [(m, "warm", v) for m in ("process", "filesystem") for v in ("pause", "resume")]
    for (mode, _, verb), one in found.items():
        assert len(one["samples"]) == 2
        assert one["p50"] == min(one["samples"])
        assert one["p95"] == one["p99"] == max(one["samples"])
        assert len(one["steps"]["total"]) == 2
        assert {"pause": "freeze", "resume": "plan"}[verb] in one["breakdown"]
        assert ("dump" in one["breakdown"]) == (mode == "process" and verb == "pause")
        assert ("restore" in one["breakdown"]) == (mode == "process" and verb == "resume")
        assert set(one["breakdown"]) <= {*IN_TURN[verb], "else"}
        assert not set(one["breakdown"]) & set(one["within"])
    assert document["host"]["cpus"] > 0
    assert document["host"]["criu"]
    nothing_left(engine)


@root
def test_what_a_person_reads(engine: Engine, serac: Command) -> None:
    done = serac("bench", "small", "--rounds", "1", "--mode", "filesystem", "--", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["MODE", "CACHE", "VERB", "P50", "MS", "P95", "MS", "P99", "MS", "RUNS"]
    assert [line.split()[:3] + line.split()[-1:] for line in lines[1:3]] == [
        ["filesystem", "warm", "pause", "1"],
        ["filesystem", "warm", "resume", "1"],
    ]
    assert any(line.startswith("pause, filesystem, warm: freeze ") for line in lines)
    assert any(line.startswith("kernel:") for line in lines)
    assert done.stderr.decode().splitlines() == ["0 of 2 rounds"]
    nothing_left(engine)


@root
def test_cold_stands_beside_warm(engine: Engine, serac: Command) -> None:
    idle = leftovers.count()
    done = serac("bench", "small", "--rounds", "1", "--mode", "filesystem", "--cold", "--durability", "fast", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(one["cache"], one["verb"], len(one["samples"])) for one in document["series"]] == [
        ("warm", "pause", 1),
        ("warm", "resume", 1),
        ("cold", "pause", 1),
        ("cold", "resume", 1),
    ]
    assert all("flush" not in one["steps"] for one in document["series"])
    assert b"the whole host is slow" in done.stderr
    ended(engine)  # what flushes in the background
    found = leftovers.difference(idle, leftovers.count())
    assert [line for line in found if line.startswith("left behind")] == []


@root
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nobase",), 201, "nobase"),
        (("small", "--rounds", "0"), 200, "'0' is no number of rounds"),
        (("small", "--rounds", "100000"), 200, "100000 rounds can't be measured"),
        (("small", "--", "/bin/nothing"), 127, "/bin/nothing"),
        (("small", "--", "true"), 203, "the command ended in the middle of the measurement: with status 0"),
        (("small", "--mode", "process", "--", "sh", "-c", "cd /proc/1; sleep 1000"), 217, "/proc/PID"),
    ],
)
def test_errors_leave_nothing(engine: Engine, serac: Command, words: Sequence[str], status: int, said: str) -> None:
    done = serac("--json", "bench", *words)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["status"]) == (status, status)
    assert said in error["message"]
    nothing_left(engine)


@root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["process", "filesystem"])
def test_interrupted_it_removes_its_job(engine: Engine, serac: Command, number: signal.Signals, mode: str) -> None:
    with subprocess.Popen(
        serac.words("bench", "small", "--mode", mode, "--rounds", "5000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            wait_for(lambda: any(job.pauses for job in engine.jobs()))
            process.send_signal(number)
            process.send_signal(number)  # who is impatient
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (128 + number, b"")
    assert b"Traceback" not in err
    nothing_left(engine)


# the library


@root
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_what_the_caller_raises_ends_it(engine: Engine, moment: int) -> None:
    def progress(done: int, total: int) -> None:
        assert total == 4
        if done == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(engine, JobSpec(base="small"), modes=("process", "filesystem"), rounds=1, progress=progress)
    nothing_left(engine)


@root
def test_it_is_one_job_that_goes_on(engine: Engine) -> None:
    """The name in the spec may be taken; the job's processes are the same in all rounds of mode process."""
    engine.run(JobSpec(base="small", name="taken"))
    spec = shell("n=0; while :; do n=$((n+1)); sleep 0.01; done", name="taken")
    told: list[tuple[int, int]] = []
    measured = measure(
        engine, spec, modes=("process",), rounds=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert measured.argv == spec.argv
    assert [job.name for job in engine.jobs(ended=True)] == ["taken"]


@root
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda engine: measure(engine, JobSpec(base="small"), rounds=0), InvalidInput),
        (lambda engine: measure(engine, JobSpec(base="small"), modes=()), InvalidInput),
        (lambda engine: measure(engine, JobSpec(base="none")), NotFound),
        (lambda engine: measure(engine, shell("exit 3"), rounds=1), WrongState),
        (lambda engine: measure(engine, shell("cd /proc/1; sleep 99"), rounds=1), CannotCheckpoint),
    ],
)
def test_what_cannot_be_measured(engine: Engine, call: Callable[[Engine], Measured], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(engine)
    nothing_left(engine)


# what is said of samples


def test_steps_in_turn_and_what_lies_within() -> None:
    steps = {"freeze": [1.0, 3.0, 2.0], "dump": [5.0, 5.0, 9.0], "criu-frozen": [4.0, 4.0, 4.0], "total": [9.0] * 3}
    assert breakdown("pause", [10.0, 12.0, 11.0], steps) == {"freeze": 2.0, "dump": 5.0, "else": 4.0}
    assert within("pause", steps) == {"criu-frozen": 4.0}
    assert breakdown("pause", [6.0], {"freeze": [4.0], "dump": [3.0]})["else"] == 0


def test_a_step_that_a_run_did_not_have_is_no_sample() -> None:
    runs = [
        Run("process", "warm", "pause", 5.0, {"freeze": 1.0, "dump": 3.0}),
        Run("process", "warm", "resume", 7.0, {"plan": 1.0}),
        Run("process", "warm", "pause", 3.0, {"freeze": 2.0}),
    ]
    pause, resume = summarised(runs)
    assert (pause.samples, pause.p50, pause.p99) == ((5.0, 3.0), 3.0, 5.0)
    assert pause.steps == {"freeze": (1.0, 2.0), "dump": (3.0,)}
    assert (resume.verb, resume.samples) == ("resume", (7.0,))
    assert summarised([]) == ()


def series(*samples: float, verb: str = "pause", cache: str = "warm", **steps: Sequence[float]) -> Series:
    (one,) = summarised(
        [
            Run("process", cache, verb, ms, {name: spent[place] for name, spent in steps.items()})  # type: ignore[arg-type]
            for place, ms in enumerate(samples)
        ]
    )
    return one


@pytest.mark.parametrize(
    ("measured", "codes"),
    [
        ([series(10, 10, flush=[6, 6])], ["flush"]),
        ([series(10, 10, 10, flush=[6, 4, 4])], []),
        ([series(10, 10)], []),
        ([series(*[10.0] * 9, 31)], ["spread"]),
        ([series(*[10.0] * 9, 30)], []),
        ([series(*[10.0] * 8, 31)], []),  # too few
        ([series(10, verb="resume"), series(21, verb="resume", cache="cold")], ["cold"]),
        ([series(10, verb="resume"), series(20, verb="resume", cache="cold")], []),
        ([series(21, verb="resume", cache="cold")], []),  # beside nothing
        ([series(10), series(21, cache="cold")], []),  # a base is read by resumes
    ],
)
def test_what_stands_out(measured: Sequence[Series], codes: Sequence[str]) -> None:
    assert [remark.code for remark in remarks(measured, base="b", durability="full")] == codes


def test_remarks_name_the_figure_and_the_remedy() -> None:
    (flush,) = remarks([series(10, 10, flush=[6, 6])], base="b", durability="full")
    assert flush.what == "pause, mode process: 60% of it is the flush, the wait for the disk"
    assert "--durability fast" in flush.remedy
    assert remarks([series(10, 10, flush=[6, 6])], base="b", durability="fast") == ()
    (spread,) = remarks([series(*[10.0] * 9, 40, look=[9] * 10, dump=[1.0] * 9 + [31])], base="b", durability="full")
    assert (
        spread.what == "pause, mode process: the 95th percentile is 4.0 times the median, most of all in the step dump"
    )
    cold = [series(10, verb="resume"), series(30, verb="resume", cache="cold")]
    (remark,) = remarks(cold, base="b", durability="full")
    assert "3.0 times" in remark.what
    assert "`serac base warm b`" in remark.remedy


def test_the_filesystem_is_the_one_that_is_seen() -> None:
    def mount(target: str, kind: str) -> Mount:
        return Mount("/", target, kind, "dev", frozenset())

    table = [mount("/", "ext4"), mount("/var", "xfs"), mount("/var", "btrfs"), mount("/var/lib2", "tmpfs")]
    assert _mount_of(Path("/var/lib/serac"), table).type == "btrfs"
    assert _mount_of(Path("/srv"), table).type == "ext4"
