"""A base of which nothing is in memory, as after a boot: what it brings to warm it before a job needs it; its cost."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

from bench.measure import Outcome, Sample, settle, timed
from bench.place import Place
from bench.serac import Subject
from bench.workloads import JOB
from engine import Engine, JobSpec
from engine.base import DirSource
from engine.model import Mode

WIDE = "wide"
DATA = "/data"
STEP = 8
"""a job reads one file of so many, of a megabyte each"""


class Case(NamedTuple):
    cache: str
    warmed: str
    """nothing, the profile, or the whole base"""


CASES = (Case("cold", "nothing"), Case("cold", "profile"), Case("cold", "whole"), Case("warm", "nothing"))
WAYS: Mapping[str, Mode | None] = {"run": None, "resume, process": "process", "resume, filesystem": "filesystem"}
FIGURES = ("run", "resume", "first instruction", "last file")


def warm(place: Place) -> Outcome:
    """Prewarming a base after a boot: what it brings to a run and a resume, what it costs."""
    size = place.plan.base
    title = f"Prewarming: a base of {size} MB, of which a job reads {size // STEP} MB when it begins or is back"
    outcome = Outcome(name="warm", title=title)
    read: dict[str, list[int]] = {}
    with place.engine() as engine:
        _build(place, engine)
        profile = engine.base_profile(JobSpec(base=WIDE, argv=(JOB, "read", DATA, str(STEP))))
        outcome.notes.append(f"its profile: {_megabytes(profile.size)} MB in {len(profile.parts['data.blob'])} parts")
        subject = Subject(engine, "reader", base=WIDE, reads=(DATA, STEP))
        for _ in range(place.plan.few * 2):
            for case in CASES:
                _turn(outcome, engine, subject, case, read)
    for warmed, sizes in read.items():
        outcome.notes.append(f"base_warm, {warmed}: reads {_megabytes(int(statistics.median(sizes)))} MB")
    _compare(outcome)
    return outcome


def _build(place: Place, engine: Engine) -> None:
    tree = place.directory / "wide"
    shutil.copytree(place.tree, tree, symlinks=True)
    try:
        data = tree / DATA.lstrip("/")
        data.mkdir()
        for number in range(place.plan.base):
            (data / str(number)).write_bytes(os.urandom(1 << 20))
        engine.base_build(WIDE, DirSource(path=tree))
    finally:
        shutil.rmtree(tree)


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}"


def _turn(outcome: Outcome, engine: Engine, subject: Subject, case: Case, read: dict[str, list[int]]) -> None:
    """The subject runs, before and after it."""
    for way, mode in WAYS.items():
        if mode is not None:
            subject.pause(mode)
        settle(case.cache)
        engine.base(WIDE)  # what the engine itself has on the disk is no matter of the base's
        engine.job(subject.id)
        if case.warmed != "nothing":
            ms, warmth = timed(lambda: engine.base_warm(WIDE, whole=case.warmed == "whole"))
            outcome.add("serac", "base_warm", Sample(ms), way=way, **case._asdict())
            read.setdefault(case.warmed, []).append(warmth.cached_after - warmth.cached_before)
        samples = _begun(engine) if mode is None else subject.resume()
        wanted = {name: samples[name] for name in FIGURES if name in samples}
        outcome.add_all("serac", wanted, way=way, **case._asdict())


def _begun(engine: Engine) -> Mapping[str, Sample]:
    began = time.time_ns()
    job = Subject(engine, "begun", base=WIDE, reads=(DATA, STEP))
    samples = {
        "run": Sample(job.ms),
        "first instruction": Sample((job.born.first - began) / 1e6),
        "last file": Sample((job.born.files - began) / 1e6),
    }
    job.remove()
    return samples


def _compare(outcome: Outcome) -> None:
    def until(way: str, case: Case) -> float:
        return outcome.p50("serac", "last file", way=way, **case._asdict())

    cold, *others = CASES
    for way in WAYS:
        ratios = ", ".join(f"{until(way, cold) / until(way, case):.2f} x with {_said(case)}" for case in others)
        outcome.notes.append(f"{way}, to the last file, against a cold cache that nothing was done for: {ratios}")


def _said(case: Case) -> str:
    return "a warm cache" if case.cache == "warm" else f"base_warm ({case.warmed})"
