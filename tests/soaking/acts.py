"""The operations as an engine does them.

``python -m soaking.acts ROOT`` does the one that it reads, as JSON, from standard input, in an engine of its own, and
says how that went: ``ok``, or the code of the error."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import leftovers
import msgspec
from roots import wait_for
from test_background import workers

from engine import Engine, JobSpec, SessionSpec, launch
from engine.errors import SeracError
from engine.lifecycle import processes
from engine.session import Exit, Output
from soaking.files import from_tar
from soaking.world import MAIN, Job, Op

TESTS = Path(__file__).resolve().parents[1]
BASE = "soak"
PATIENCE = 30

AGENT = """mkdir -p /agents; cd /agents
for fifo in ask.$0 answer.$0; do [ -p $fifo ] || mkfifo $fifo; done
read life < /proc/sys/kernel/random/uuid
exec 3<>ask.$0 4<>answer.$0
count=0
while read line <&3; do count=$((count + 1)); echo "$life $count" >&4; done"""
"""a process that counts in its memory what it is asked, and tells which life of it counts"""

ASK = """cat /dev/shm/mark 2> /dev/null || echo
until cd /agents 2> /dev/null; do sleep 0.01; done
for agent; do
    until [ -p ask.$agent ] && [ -p answer.$agent ]; do sleep 0.01; done
    echo > ask.$agent; read answer < answer.$agent; echo $agent $answer
done"""


def agent(name: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", AGENT, name)


def perform(engine: Engine, op: Op, exports: Path) -> None:
    """Raises what the engine raises."""
    export = os.fspath(exports / f"{op.snap}.serac")
    match op.verb:
        case "run":
            engine.run(JobSpec(base=BASE, name=op.name, argv=agent(MAIN)))
        case "session":
            engine.start(op.job, SessionSpec(argv=agent(op.name)))
        case "shm":
            script(engine, op.job, f"echo {op.mark} > /dev/shm/mark")
        case "pause":
            engine.pause(op.job, mode=op.mode)  # type: ignore[arg-type]
        case "resume":
            engine.resume(op.job, mode=op.mode, memory=op.memory)  # type: ignore[arg-type]
        case "fork":
            engine.fork(op.snap, name=op.name, mode=op.mode, memory=op.memory)  # type: ignore[arg-type]
        case "take":
            engine.snapshot_take(op.job)
        case "pin" | "unpin":
            engine.snapshot_pin(op.snap, pinned=op.verb == "pin")
        case "snapshot-rm":
            engine.snapshot_remove(op.snap)
        case "archive":
            engine.snapshot_archive(op.snap)
            assert engine.snapshot_verify(op.snap) == []
        case "flatten":
            engine.snapshot_flatten(op.snap)
        case "export":
            engine.snapshot_export(op.snap, export)
        case "import":
            engine.snapshot_import(export)
        case "freeze":
            engine.freeze(op.job)
        case "thaw":
            engine.thaw(op.job)
        case "stop":
            engine.stop(op.job, grace=0)
        case "rm" | "rm-force":
            engine.remove(op.job, force=op.verb == "rm-force")
        case "gc":
            engine.collect()
        case "kill-init":
            os.kill(processes.recall(engine._root, engine.job(op.job)).pid, signal.SIGKILL)
            engine.wait(op.job, timeout=PATIENCE)
        case _:
            raise AssertionError(op.verb)


def script(engine: Engine, job: str, text: str, *words: str) -> str:
    """Run a shell script in a job; what it printed. It must succeed, in time."""
    argv = ("/bin/timeout", str(PATIENCE), "/bin/sh", "-ec", text, "sh", *words)
    printed, status = b"", None
    with engine.exec(job, SessionSpec(argv=argv)) as connection:
        for event in connection.events():
            if isinstance(event, Output):
                printed += event.data
            elif isinstance(event, Exit):
                status = event.exit
    assert status == 0, f"{text!r} {words}: status {status}: {printed.decode(errors='replace')}"
    return printed.decode()


def ask(engine: Engine, job: Job) -> tuple[str, dict[str, tuple[str, int]]]:
    """What lies in /dev/shm, and the answer of each agent: its life and its count."""
    mark, *lines = script(engine, job.name, ASK, *job.life.agents).splitlines()
    return mark, {name: (life, int(count)) for name, life, count in map(str.split, lines)}


def copied(engine: Engine, job: str) -> dict[str, object]:
    stream = io.BytesIO()
    engine.copy_out(job, "/w", stream)
    return dict(from_tar(stream.getvalue()))


def reboot(engine: Engine) -> None:
    """As after a power cut with all on the disk: the run directory and every process are gone. Close the engine."""
    for pid in workers(engine):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not workers(engine))
    for group in map(Path, leftovers.cgroups()):
        if group.parent.name.startswith(engine.config.name) and (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
            wait_for(lambda events=group / "cgroup.events": "populated 0" in events.read_text())
            group.rmdir()
    for mount in leftovers.names(os.fspath(engine.config.run / "mounts")):
        launch.unmount(engine.config.run / "mounts" / mount, detach=True, timeout=PATIENCE)
    shutil.rmtree(engine.config.run, ignore_errors=True)
    assert not engine.config.run.exists()


class Child:
    """An engine of its own that does one operation."""

    def __init__(self, root: Path, op: Op, *, fault: str | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.fspath(TESTS), **({"SERAC_FAULT": fault} if fault else {})}
        self.op = op
        self.process = subprocess.Popen(
            [sys.executable, "-m", "soaking.acts", os.fspath(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(op))
        self.process.stdin.close()

    def end(self) -> str:
        """``ok``, the code of an error, or ``killed``."""
        with self.process:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            said, wrong = self.process.stdout.read().decode(), self.process.stderr.read().decode()
            status = self.process.wait(timeout=120)
        if status == -signal.SIGKILL:
            return "killed"
        assert status == 0, f"{self.op}: status {status}\n{wrong}"
        return said.strip().splitlines()[-1]


def main() -> None:
    root, op = Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=Op)
    print("begun", flush=True)
    try:
        with Engine(root, timeout=PATIENCE) as engine:
            perform(engine, op, root.parent)
    except SeracError as error:
        print(f"{op}: {error!r}", file=sys.stderr)
        print(error.code)
    else:
        print("ok")


if __name__ == "__main__":
    main()
