"""scripts/soak: mixed operations on one root, with engines, criu and a job's init killed in the middle, and several
engines at once; after each all must be as the model has it. At the end everything is removed, and the host must be as
it was.

A run is chosen by its seed alone; what was killed at a moment may meet another moment the next time. Odd seeds have
work in the background too."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import leftovers
import psutil
from roots import BUSYBOX, configure
from sources import steps_of_the_source

from engine import Engine, JobSpec
from engine.base import DirSource
from soaking import acts, chance
from soaking.acts import Child
from soaking.files import PLANT
from soaking.stage import LAST, Stage, Wrong
from soaking.world import RUNNING, Op

STEPS = sorted(steps_of_the_source())
REACHED = {
    "run": ("run",), "fork": ("run",), "pause": ("pause",), "resume": ("resume",), "take": ("pause", "resume"),
    "rm": ("remove",), "rm-force": ("remove",), "stop": ("stop",), "freeze": ("freeze",), "thaw": ("thaw",),
    "archive": ("archive",), "flatten": ("flatten", "archive"), "export": ("archive",), "import": ("import",),
    "gc": ("collect",),
}  # fmt: skip
"""verb -> the verbs whose steps it comes to"""
ALONE = ("write", "shm", "reboot", "kill-init", "session")
"""verbs that no engine is killed in"""
WAYS = {"here": 50, "step": 25, "moment": 10, "together": 10, "tools": 5}
LATEST = 0.4
"""seconds after which an engine is killed, at most"""


def steps_of(verb: str) -> list[str]:
    return [name for name in STEPS if name.partition(".")[0] in REACHED.get(verb, ())]


@contextlib.contextmanager
def staged(directory: Path, *, background: bool = False) -> Iterator[Stage]:
    """A root with a small base in a directory; closed at the end, and nothing removed. ``background``: pauses are
    archived, chains flattened and what is not needed collected by themselves."""
    directory.mkdir(exist_ok=True)
    configure(directory / "root")
    if background:
        (directory / "root/config.json").write_text('{"archive": "background", "depth": 3}')
    plant(directory / "tree")
    (directory / "tree").chmod(0o755)
    with Engine(directory / "root", timeout=acts.PATIENCE) as engine:
        engine.base_build(acts.BASE, DirSource(path=directory / "tree"))
        engine.run(JobSpec(base=acts.BASE, name="first"))  # now the base is mounted
        engine.remove("first", force=True)
    stage = Stage(directory / "root", directory)
    try:
        yield stage
    finally:
        stage.engine.close()


def plant(tree: Path) -> None:
    for name in ("bin", "tmp", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    subprocess.run(["/bin/sh", "-c", PLANT], cwd=tree, check=True)


class Soak:
    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.chance = random.Random(seed)
        self.ways = random.Random(f"ways {seed}")
        """of its own, for how many the operations draw depends on what a killed one has come to"""
        self.counts: Counter[str] = Counter()

    def operation(self) -> None:
        (way,) = self.ways.choices(list(WAYS), list(WAYS.values()))
        op = self._choose()
        if way == "together":
            self._together(op)
        elif op.verb in ALONE or way == "here":
            self.stage.act(op)
        elif way == "step" and steps_of(op.verb):
            place = self.chance.choice(steps_of(op.verb)) + self.chance.choice((":before", ":after"))
            self.stage.killed(op, place)
        elif way == "tools":
            self._tools_killed(op)
        else:
            self._killed_at_a_moment(op)
        self.counts[way] += 1

    def _choose(self) -> Op:
        return chance.operation(self.stage.state, self.chance, self.stage.fresh)

    def _killed_at_a_moment(self, op: Op) -> None:
        self.stage.engine.close()
        child = Child(self.stage.root, op)
        assert child.process.stdout is not None
        child.process.stdout.read(6)  # "begun\n"
        time.sleep(self.chance.random() ** 2 * LATEST)
        child.process.kill()
        self._ended([child], "killed at a moment", tools=False)

    def _together(self, first: Op) -> None:
        """Up to three engines at once."""
        ops = [first, *(self._choose() for _ in range(self.chance.randint(1, 2)))]
        ops = [op for op in ops if op.verb not in ALONE]
        if not ops:
            return self.stage.act(first)
        self.stage.engine.close()
        self._ended([Child(self.stage.root, op) for op in ops], "together", tools=False)

    def _tools_killed(self, op: Op) -> None:
        """A program that the engine has started is killed: criu, serac-launch, serac-init, whichever is met."""
        self.stage.engine.close()
        child = Child(self.stage.root, op)
        victim = self._victim(child, deadline=time.monotonic() + 5, skip=self.chance.randint(0, 5))
        self._ended([child], f"{victim} killed", tools=victim is not None)

    def _victim(self, child: Child, *, deadline: float, skip: int) -> str | None:
        with contextlib.suppress(psutil.Error):
            engine = psutil.Process(child.process.pid)
            while child.process.poll() is None and time.monotonic() < deadline:
                for process in engine.children(recursive=True):
                    name = process.name()
                    if name.startswith(("criu", "ld-linux", "serac-")) and (skip := skip - 1) < 0:
                        process.send_signal(signal.SIGKILL)
                        return name
        return None

    def _ended(self, children: list[Child], how: str, *, tools: bool) -> None:
        ends = [(child.op, child.end()) for child in children]
        self.stage.said += [f"{op} {how}: {end}" for op, end in ends]
        self.stage.ended(ends, tools=tools)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--root", type=Path, default=None, help="a directory that is made, and removed at the end")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1 << 31)
    directory = Path(chosen.root or tempfile.mkdtemp(prefix="serac-soak-", dir="/var/tmp"))
    if chosen.root is not None:
        directory.mkdir()  # a new one, for it is removed
    before = leftovers.count()
    done = soak(directory, seed, chosen.operations)
    shutil.rmtree(directory)
    ours = leftovers.difference(before, leftovers.settled(before))
    ours = [line for line in ours if belongs(line, done.stage)]
    if ours:
        sys.exit("\n".join(ours))
    print(f"\n{chosen.operations} operations, seed {seed}: nothing lost, nothing left; {dict(done.counts)}")


def belongs(line: str, stage: Stage) -> bool:
    """Whether what is left is of this root, or this process's own: others may be at work on the host."""
    tag = stage.engine.config.name
    return tag in line or "this process" in line or os.fspath(stage.root) in line


def soak(directory: Path, seed: int, operations: int) -> Soak:
    with staged(directory, background=seed % 2 == 1) as stage:
        running = Soak(stage, seed)
        began, number = time.monotonic(), 0
        try:
            for number in range(1, operations + 1):
                running.operation()
                if number % 10 == 0:
                    stage.look(stage.state.jobs)
                progress(number, operations, began, stage)
            finish(stage)
        except BaseException as error:
            print(f"\n{error}" if isinstance(error, Wrong) else f"\n{error!r}", file=sys.stderr)
            if not isinstance(error, Wrong):
                print("\n".join(["done last:", *stage.said[-LAST:]]), file=sys.stderr)
            print(
                f"operation {number}; again: scripts/soak --seed {seed} --operations {operations}; "
                f"the root is left: {stage.root}",
                file=sys.stderr,
            )
            raise SystemExit(1) from error
    return running


def progress(number: int, operations: int, began: float, stage: Stage) -> None:
    if sys.stdout.isatty() or number % 50 == 0:
        rate = number / (time.monotonic() - began)
        jobs, snaps = len(stage.state.jobs), len(stage.state.snaps)
        line = f"{number}/{operations} operations, {rate:.1f} a second, {jobs} jobs, {snaps} snapshots"
        print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def finish(stage: Stage) -> None:
    """Every job and snapshot is looked at once more; then all goes, the base too."""
    stage.look(stage.state.jobs)
    for snap in list(stage.state.snaps):
        name = stage.fresh("j")
        stage.act(Op("fork", snap=snap, name=name))
        assert stage.state.jobs[name].state == RUNNING
        stage.act(Op("rm-force", job=name))
    stage.act(Op("gc"))  # images that nothing has any more stay until then
    assert Engine.check(stage.root).violations == ()
    stage.empty()
    stage.engine.base_remove(acts.BASE)
    stage.engine.close()
    assert not stage.engine.config.run.exists()


if __name__ == "__main__":
    main()
