"""A root and the model of it, side by side: an operation is done, then what there is must be what the model allows."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import leftovers
from remains import holders
from test_background import workers

from engine import Engine
from engine import model as domain
from engine.errors import SeracError
from engine.lifecycle import mounting
from soaking import acts
from soaking.acts import Child
from soaking.world import FAILED, LIVE, RUNNING, Job, Op, Outcome, State, ended, outcomes

PATIENCE = 60.0
"""seconds for what goes on by itself: removed bytes, memory that comes in, work in the background"""

LAST = 30
"""of what was done, lines that an error has"""


class Wrong(AssertionError):
    """What there is isn't what the model allows."""


class Seen(NamedTuple):
    """What a job shows."""

    files: dict[str, object]
    shm: str
    answers: dict[str, tuple[str, int]]


class Stage:
    """``engine`` is open between two operations; ``said`` has what was done, a line each."""

    def __init__(self, root: Path, exports: Path) -> None:
        self.root, self.exports = root, exports
        self.engine = Engine(root, timeout=acts.PATIENCE)
        self.state = State()
        self.said: list[str] = []
        self.made = 0

    # names

    def fresh(self, kind: str) -> str:
        """A name, or a number, that nothing has had."""
        self.made += 1
        return f"{kind}{self.made}"

    # what can be done

    def act(self, op: Op) -> None:
        """Do it here; then all must be as the model has it."""
        if op.verb == "write":
            assert op.change is not None
            text = self.state.jobs[op.job].life.files.script(op.change)
            if text is None:
                return
            with self._told(op, "here"):
                acts.script(self.engine, op.job, f"cd /w; umask 022; {text}")
        else:
            with self._told(op, "here") as told:
                told.append(self._perform(op))
        error = None if self.said[-1].endswith("ok") else self.said[-1].rpartition(" ")[2]
        self.compare([o.state for o in outcomes(self.state, op) if o.error == error and not o.partly], touched(op))

    def _perform(self, op: Op) -> str:
        if op.verb == "reboot":
            self.engine.close()
            acts.reboot(self.engine)
            self.reopen()
            return "ok"
        try:
            acts.perform(self.engine, op, self.exports)
        except SeracError as error:
            return error.code
        return "ok"

    def killed(self, op: Op, place: str) -> None:
        """In an engine of its own that is killed at ``verb.step:before`` or ``:after``, if it comes there."""
        self.engine.close()
        with self._told(op, place) as told:
            told.append(Child(self.root, op, fault=place).end())
        self.ended([(op, told[0])])

    def ended(self, ends: Sequence[tuple[Op, str]], *, tools: bool = False) -> None:
        """Operations at the same time, in engines of their own, each with how it ended: ``ok``, ``killed`` or an error.
        ``tools``: their programs were killed too."""
        self.reopen()
        for op, end in ends:
            if (op.verb, end) == ("stop", "killed"):  # the job may have been told to end, and would do so any moment
                with contextlib.suppress(SeracError):
                    self.engine.stop(op.job, grace=0)
        self.compare(self.allowed(ends, tools=tools), sorted({name for op, _ in ends for name in touched(op)}))

    def reopen(self) -> None:
        """What a crash left is put right by that."""
        self.engine.close()
        self.engine = Engine(self.root, timeout=acts.PATIENCE)

    def allowed(self, ends: Sequence[tuple[Op, str]], *, tools: bool = False) -> list[State]:
        """All that may come of operations in any order."""
        found = []
        for order in itertools.permutations(ends):
            states = [self.state]
            for op, end in order:
                if end == "busy" and len(ends) > 1:
                    continue  # it met another one of these, in whatever order
                states = [after for before in states for after in _after(before, op, end, tools=tools)]
            found += states
        return found

    @contextlib.contextmanager
    def _told(self, op: Op, how: str) -> Iterator[list[str]]:
        self.said.append(f"{op} {how}:")
        outcome: list[str] = []
        yield outcome
        self.said[-1] += f" {outcome[0] if outcome else 'ok'}"

    # what must be

    def compare(self, allowed: list[State], names: Iterable[str]) -> None:
        """Take the one of the states that is there. Raises Wrong if none of them is."""
        self._memory()
        rows = Rows(self.engine.jobs(ended=True), self.engine.snapshots())
        bound, differences = list[State](), list[str]()
        for state in allowed:
            found = copy.deepcopy(state)
            lines = bind(found, rows)
            differences.append("; ".join(lines))
            if not lines:
                bound.append(found)
        if not bound:
            raise Wrong(self._story("no state that is allowed", differences or ["there is none for that error"]))
        self.state = self._shown(bound, names)
        self._root_is_right()

    def look(self, names: Iterable[str]) -> None:
        """All must be as the model has it."""
        self.compare([self.state], names)

    def _memory(self) -> None:
        """Wait until all memory of jobs that were resumed lazily is there."""
        self._wait("memory comes in", lambda: not any(job.loading for job in self.engine.jobs()))

    def _wait(self, what: str, probe: object) -> None:
        assert callable(probe)
        deadline = time.monotonic() + PATIENCE
        while not probe():
            if time.monotonic() > deadline:
                raise Wrong(self._story(f"not in {PATIENCE} s: {what}", []))
            time.sleep(0.005)

    def _shown(self, bound: list[State], names: Iterable[str]) -> State:
        """Of these states the first that has what these jobs show."""
        for name in names:
            if name not in bound[0].jobs or bound[0].jobs[name].state == "frozen":
                continue
            seen = self._see(bound[0].jobs[name])
            differences = [unlike(state.jobs[name], seen) for state in bound]
            bound = [state for state, lines in zip(bound, differences, strict=True) if not lines]
            if not bound:
                raise Wrong(self._story(f"job {name} shows something else", map("; ".join, differences)))
            for state in bound:
                learn(state.jobs[name], seen)
        return bound[0]

    def _see(self, job: Job) -> Seen:
        files = acts.copied(self.engine, job.name)
        if job.state != RUNNING:
            return Seen(files, "", {})
        return Seen(files, *acts.ask(self.engine, job))

    def _root_is_right(self) -> None:
        """What lies in the root, and what the host has of it, are what the rows speak of."""
        if self.engine.config.settings.archive == "background":
            self._wait("what goes on in the background ends", lambda: not workers(self.engine))
            if os.listdir(self.root / "tmp"):  # it had to give up, because of what was done meanwhile
                self.reopen()
        catalog, run = self.engine._root.catalog, self.engine.config.run
        jobs = {job.id: job for job in catalog.jobs()}
        layers = {layer.id: layer for layer in catalog.layers()}
        needed = {layer for job in jobs.values() for layer in (*job.layers, *job.mounted, job.upper)} - {None}
        needed |= {layer for snapshot in catalog.snapshots() for layer in snapshot.layers}
        self._wait("tmp/ is empty", lambda: not os.listdir(self.root / "tmp"))
        live = {job.id for job in jobs.values() if job.state in LIVE}
        if not live:  # what removes bytes may be about to end
            self._wait("no process has anything of the root", lambda: not holders(self.engine))
        groups = [path for path in leftovers.cgroups() if f"/serac/{self.engine.config.name}" in path]
        told = {
            "layers without a row": set(os.listdir(self.root / "layers")) - layers.keys(),
            "layers that are needed and have no row": needed - layers.keys(),
            "rows without a layer": layers.keys() - set(os.listdir(self.root / "layers")),
            "jobs' directories": set(os.listdir(self.root / "jobs")) ^ jobs.keys(),
            "run directories": set(leftovers.names(os.fspath(run / "jobs"))) ^ live,
            "control groups": {group.split("/serac/")[1].partition("/")[2].split("/")[0] for group in groups} - {""},
            "images that are named and gone": images(self.engine) - set(os.listdir(self.root / "images")),
            "layers in a state that isn't theirs": set(_odd(self.root / "layers", layers.values())),
        }
        told["control groups"] ^= live
        bases = {base.digest for base in catalog.bases()}
        told["mounts"] = mounts(self.engine) - bases - mounting.wanted(self.engine._root, jobs.values())
        lines = [f"{kind}: {', '.join(map(str, found))}" for kind, found in told.items() if found]
        if lines:
            raise Wrong(self._story("the root isn't what its rows say", lines))

    def _story(self, what: str, lines: Iterable[str]) -> str:
        rows = [
            *(
                f"  job {j.name} {j.state} snapshot={j.snapshot} {j.failure or ''}"
                for j in self.engine.jobs(ended=True)
            ),
            *(f"  snapshot {s.id} of {s.name} {s.mode} {s.reason or ''}" for s in self.engine.snapshots()),
        ]
        return "\n".join([what, *lines, "there is:", *rows, "done last:", *self.said[-LAST:]])

    # the end

    def empty(self) -> None:
        """Everything goes, through the verbs; then the root must be empty. The base stays."""
        for job in self.engine.jobs(ended=True):
            self.engine.remove(job.id, force=True)
        for snapshot in self.engine.snapshots():
            self.engine.snapshot_remove(snapshot.id)
        self.engine.collect()
        self.state = State()
        self.made = 0
        self.said.clear()
        for export in self.exports.glob("*.serac"):
            export.unlink()
        self.look(())
        for place in ("layers", "images", "jobs"):
            if found := os.listdir(self.root / place):
                raise Wrong(self._story(f"{place}/ isn't empty", found))


def touched(op: Op) -> list[str]:
    return [name for name in (op.job, op.name) if name]


def _after(before: State, op: Op, end: str, *, tools: bool) -> list[State]:
    possible = outcomes(before, op)
    if end == "ok":
        return [outcome.state for outcome in possible if outcome.error is None and (tools or not outcome.partly)]
    if end == "killed":
        return [before, *(outcome.state for outcome in possible if outcome.error is None)]
    if tools and op.verb in ("pause", "take") and op.job in before.jobs:
        # A criu that is killed just as it puts its code into a process takes that along.
        possible = [*possible, Outcome(ended(before, op.job, FAILED), partly=True)]
    if tools and op.verb in ("rm", "rm-force"):  # it is committed before what the host has of the job is taken down
        possible = [*possible, *(outcome._replace(partly=True) for outcome in possible if outcome.error is None)]
    refused = [outcome.state for outcome in possible if outcome.error == end]
    return refused + ([before, *(outcome.state for outcome in possible if outcome.partly)] if tools else [])


class Rows(NamedTuple):
    jobs: list[domain.Job]
    snapshots: list[domain.Snapshot]


def bind(state: State, rows: Rows) -> list[str]:
    """Give the state's new snapshots their ids; what is otherwise in it than in the rows, a line each."""
    ids = {snapshot.id: snapshot for snapshot in rows.snapshots}
    strange = [snapshot for snapshot in rows.snapshots if snapshot.id not in state.snaps]
    for new in [snap for snap in state.snaps.values() if snap.id.startswith("?")]:
        for snapshot in strange:
            if (snapshot.name, snapshot.mode) == (new.job, new.mode):
                state.rename_snap(new.id, snapshot.id)
                strange.remove(snapshot)
                break
    wanted = {job.name: (job.state, job.snap) for job in state.jobs.values()}
    found = {job.name: (str(job.state), job.snapshot if job.state == "paused" else None) for job in rows.jobs}
    lines = [
        f"job {name}: {wanted.get(name)} <> {found.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    kept = {snap.id: (snap.mode, snap.pinned) for snap in state.snaps.values()}
    there = {key: (str(snapshot.mode), snapshot.pinned) for key, snapshot in ids.items()}
    lines += [
        f"snapshot {key}: {kept.get(key)} <> {there.get(key)}"
        for key in sorted(kept.keys() | there.keys())
        if kept.get(key) != there.get(key)
    ]
    return lines


def unlike(job: Job, seen: Seen) -> list[str]:
    wanted = job.life.files.seen()
    lines = [
        f"/w/{name}: {wanted.get(name)} <> {seen.files.get(name)}"
        for name in sorted(wanted.keys() | seen.files.keys())
        if wanted.get(name) != seen.files.get(name)
    ]
    if job.state != RUNNING:
        return lines
    if seen.shm != job.life.shm:
        lines.append(f"/dev/shm: {job.life.shm!r} <> {seen.shm!r}")
    for name, agent in job.life.agents.items():
        life, count = seen.answers[name]
        if count != agent.count + 1 or agent.life not in (None, life):
            lines.append(f"agent {name}: {agent} <> {life} {count}")
    return lines


def learn(job: Job, seen: Seen) -> None:
    for name, (life, count) in seen.answers.items():
        job.life.agents[name].life, job.life.agents[name].count = life, count


def images(engine: Engine) -> set[str]:
    catalog = engine._root.catalog
    named = {layer.image for layer in catalog.layers()}
    named |= {entry.image.digest for entry in catalog.snapshots() if entry.image is not None}
    return {digest for digest in named if digest is not None}


def mounts(engine: Engine) -> set[str]:
    """Names of what is mounted for jobs in common."""
    return set(leftovers.names(os.fspath(engine.config.run / "mounts")))


def _odd(place: Path, layers: Iterable[domain.Layer]) -> Iterator[str]:
    """Layers whose directory has what it shouldn't, or lacks what it should have."""
    for layer in layers:
        found = set(os.listdir(place / layer.id))
        wanted = {"upper", "work"} if layer.owner is not None else {"upper"} if layer.directory else set()
        free = {"snapshot.json", "manifest.json", "layer.json", "image"} if layer.owner is None else {"work"}
        if not wanted - {"work"} <= found or not found <= wanted | free:
            yield f"{layer.id} ({layer}) has {sorted(found)}"
