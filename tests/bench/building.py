"""A real project: what running on serac costs its build, and what a cold start costs instead of a resume."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from roots import output

from bench.measure import Outcome, Sample, at_rest, timed
from bench.place import Place
from engine import Engine, JobSpec, SessionSpec, layers
from engine.base import DebianSource
from engine.model import SnapshotSource
from engine.session import Output

APT_ASIDE = Path(__file__).resolve().parents[2] / "scripts/apt-aside"
PROJECT = "zlib"
PACKAGES = ("gcc", "libc6-dev", "make")
BUILD = "cd /src && ./configure >/dev/null && make -j2 >/dev/null 2>&1"
TIMED = f"began=$(date +%s%N); {BUILD} || exit 1; echo $(($(date +%s%N) - began)); times"
"""on standard output: nanoseconds; then user and system time of the shell, and of what it has started"""
COST = 1.02


def build(place: Place) -> Outcome:
    """The build of a real project in a job and on the bare overlay; a cold start instead of a resume."""
    outcome = Outcome(
        name="build", title=f"The build of {PROJECT} (configure, make -j2): on serac, and on the bare overlay"
    )
    source = _source(place.directory)
    if source is None:
        outcome.notes.append("left out: Debian's mirror has not given the source")
        return outcome
    with _prepared(place, source) as engine:
        _turn(Outcome(name="unmeasured", title=""), place, engine, first="serac")  # the first ones fill the cache
        for number in range(place.plan.few * 4):
            _turn(outcome, place, engine, first="serac" if number % 2 else "bare overlay")
        for _ in range(place.plan.few):
            _cold_start(outcome, engine, source)
    for verb in ("build", "build, processor time"):
        outcome.budget(f"{verb}, in a job against the bare overlay", _ratio(outcome, verb), COST)
    outcome.notes.append("a build's ratio is the median of those of neighbours, which saw the same host")
    return outcome


def _ratio(outcome: Outcome, verb: str) -> float:
    own, bare = (outcome.find(who, verb).samples for who in ("serac", "bare overlay"))
    return statistics.median(one / other for one, other in zip(own, bare, strict=True))


def _turn(outcome: Outcome, place: Place, engine: Engine, *, first: str) -> None:
    """One build each; who is ``first`` in one turn is the second in the next, so that neither has the better place."""
    builds = {"bare overlay": lambda: _bare(place, engine), "serac": lambda: _job(engine)}
    for who in sorted(builds, key=lambda who: who != first):
        at_rest()
        outcome.add_all(who, builds[who]())


def _source(directory: Path) -> Path | None:
    """The project's source as a tar file with the directory ``src``; None when the mirror doesn't answer."""
    suite = _suite()
    place = directory / "source"
    place.mkdir()
    aside = [os.fspath(APT_ASIDE), os.fspath(place / "apt"), "deb-src", suite]
    for words in (["update"], ["source", "--download-only", PROJECT]):
        if subprocess.run([*aside, *words], cwd=place, check=False, stdout=subprocess.DEVNULL).returncode:
            return None
    (place / "src").mkdir()
    (original,) = place.glob(f"{PROJECT}_*.orig.tar.*")
    unpack: list[str | Path] = ["tar", "-xf", original, "-C", place / "src", "--strip-components=1", "--no-same-owner"]
    subprocess.run(unpack, check=True)
    subprocess.run(["tar", "-C", place, "-cf", place / "src.tar", "src"], check=True)
    return place / "src.tar"


def _suite() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("VERSION_CODENAME="))


@contextlib.contextmanager
def _prepared(place: Place, source: Path) -> Iterator[Engine]:
    """An engine with two bases: ``debian`` with a compiler, and ``project`` with the source in it as well."""
    with place.engine() as engine:
        engine.base_build("debian", DebianSource(suite=_suite(), include=PACKAGES))
        engine.run(JobSpec(base="debian", name="prepare"))
        with source.open("rb") as stream:
            engine.copy_in("prepare", stream, "/")
        snapshot = engine.pause("prepare", mode="filesystem").snapshot
        engine.base_build("project", SnapshotSource(snapshot=snapshot))
        engine.remove("prepare")
        engine.remove(engine.run(JobSpec(base="project")).id, force=True)  # now it is mounted, and stays so
        engine.base_warm("project")
        yield engine


def said(text: str) -> Mapping[str, Sample]:
    """What TIMED has printed, by verb."""
    nanoseconds, _, spent = text.splitlines()
    seconds = sum(float(minutes) * 60 + float(rest) for minutes, rest in re.findall(r"(\d+)m([\d.]+)s", spent))
    return {"build": Sample(int(nanoseconds) / 1e6), "build, processor time": Sample(seconds * 1000)}


def _job(engine: Engine) -> Mapping[str, Sample]:
    job = engine.run(JobSpec(base="project", argv=("/bin/sh", "-c", TIMED)))
    try:
        engine.wait(job.id)
        return said(output(engine, job.id))
    finally:
        engine.remove(job.id, force=True)


def _bare(place: Place, engine: Engine) -> Mapping[str, Sample]:
    """The same base, mounted with the same options, in a mount namespace that ends with the build."""
    overlay = place.directory / "bare"
    lower = engine.config.run / "mounts" / engine.base("project").digest
    for name in ("upper", "work", "root"):
        (overlay / name).mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={overlay}/upper,workdir={overlay}/work,{','.join(layers.OPTIONS)}"
    script = f"mount -t overlay -o {options} overlay {overlay}/root; mount -t proc proc {overlay}/root/proc"
    enter = f"exec chroot {overlay}/root /bin/sh -c '{TIMED}'"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", f"{script}; {enter}"]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]})
        return said(done.stdout)
    finally:
        shutil.rmtree(overlay)


def _cold_start(outcome: Outcome, engine: Engine, source: Path) -> None:
    """New job, unpack, build; beside it the resume of a job that has built."""
    ms, job = timed(lambda: _started_cold(engine, source))
    outcome.add("cold start", "resume", Sample(ms))
    engine.pause(job, mode="process")
    ms, result = timed(lambda: engine.resume(job))
    outcome.add("serac", "resume", Sample(ms, result.timings))
    engine.remove(job, force=True)


def _started_cold(engine: Engine, source: Path) -> str:
    job = engine.run(JobSpec(base="debian"))
    with source.open("rb") as stream:
        engine.copy_in(job.id, stream, "/")
    spec = SessionSpec(argv=("/bin/sh", "-c", TIMED))
    with engine.exec(job.id, spec) as connection:
        printed = b"".join(event.data for event in connection.events() if isinstance(event, Output))
    said(printed.decode())  # the build has come to its end
    return job.id
