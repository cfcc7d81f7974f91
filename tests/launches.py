"""Driving serac-launch from outside, for tests: specs, places on disk, control groups, a job that answers questions.

with launches.place(tmp_path, probe) as place:
    done = place.launch(program, ["read /proc/1/status"])
    assert done.answers[0].startswith("Name:")
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).resolve().parents[1] / "native"
PROBES = Path(__file__).resolve().parent / "native"
RANGE = 200000
Record = tuple[str, str]


def compile_c(target: Path, sources: Sequence[Path], *flags: str) -> Path:
    warnings = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *warnings, *map(os.fspath, sources), *flags, "-o", os.fspath(target)], check=True)
    return target


def compile_launch(target: Path, *flags: str) -> Path:
    """serac-launch, as native/CMakeLists.txt has it."""
    printer, header = target.with_name("filter-print"), target.with_name("filter_ready.h")
    if not header.exists():
        compile_c(printer, [NATIVE / "filter.c", NATIVE / "filter_print.c"], "-lseccomp")
        header.write_bytes(subprocess.run([printer], stdout=subprocess.PIPE, check=True).stdout)
    sources = [*sorted(NATIVE.glob("launch*.c")), NATIVE / "records.c"]
    return compile_c(target, sources, f"-I{header.parent}", *flags)


def encode(records: Sequence[Record]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in records)


def decode(report: bytes) -> list[Record]:
    assert not report or report.endswith(b"\0")
    pairs = [record.decode().partition("=") for record in report.split(b"\0")[:-1]]
    return [(key, value) for key, _, value in pairs]


def hierarchy(kind: str, controller: str = "") -> Path | None:
    """Where a cgroup2 hierarchy, or the v1 one of a controller, is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target, (found, _, options) = line.split()[4], line.partition(" - ")[2].split()
        if found == kind and (not controller or controller in options.split(",")):
            return Path(target)
    return None


@dataclass
class Done:
    """What a launch came to; ``failure`` is (step, errno, path) or None."""

    status: int
    report: list[Record]
    answers: list[str]
    stderr: str

    @property
    def failure(self) -> tuple[str, int, str] | None:
        found = dict(self.report)
        return (found["step"], int(found["errno"]), found["path"]) if "step" in found else None


@dataclass
class Place:
    """``base/ job/{upper,work} io/ stage/`` below ``root``, a v2 control group, and a v1 one where the host has any."""

    root: Path
    probe: Path
    cgroup: Path
    cgroup1: Path | None

    def spec(
        self,
        questions: Sequence[str] = (),
        *,
        init: int = 0,
        net: str = "private",
        userns: bool = True,
        layers: Sequence[Record] = (("lower", "base"), ("upper", "job/upper"), ("work", "job/work")),
        without: Sequence[str] = (),
        more: Sequence[Record] = (),
    ) -> list[Record]:
        records = [
            ("serac-launch", "1"),
            ("cgroup", f"{self.cgroup}"),
            *([("cgroup1", f"{self.cgroup1}")] if self.cgroup1 else []),
            *([("range", f"{RANGE}:65536")] if userns else []),
            ("stage", f"{self.root}/stage"),
            *(("tree", f"{name}={self.root}/{name}") for name in ("base", "job", "io")),
            *layers,
            ("overlay", "index=off"),
            ("overlay", "metacopy=off"),
            ("bind", "io=/io"),
            ("net", net),
            ("init", f"{init}:/.serac/init"),
            *(("arg", question) for question in questions),
        ]
        return [*(record for record in records if record[0] not in without), *more]

    def launch(self, program: Path, questions: Sequence[str] = (), **how: Any) -> Done:
        """Launch, wait until the job has answered and ended. ``how`` as for :meth:`spec` and :meth:`started`."""
        with self.started(program, questions, **how) as running:
            return running.finish()

    @contextlib.contextmanager
    def started(
        self,
        program: Path,
        questions: Sequence[str] = (),
        *,
        fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        more: Sequence[Record] = (),
        **how: Any,
    ) -> Iterator[Running]:
        """Launch; afterwards the job is killed. A question `wait` is answered when :meth:`Running.finish` is called."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.kill)
            init = stack.enter_context(self.probe.open("rb")).fileno()
            answers, into, stdin, hold = (
                stack.enter_context(os.fdopen(fd, "rb", 0)) for fd in (*os.pipe(), *os.pipe())
            )
            given = [("stdin", f"{stdin.fileno()}"), ("stdout", f"{into.fileno()}")]
            records = self.spec(questions, init=init, more=[*given, *more], **how)
            process = subprocess.Popen(
                [program, "run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[init, into.fileno(), stdin.fileno(), *fds],
                env={**os.environ, **(env or {})},
            )
            into.close()
            stdin.close()
            stack.enter_context(process)
            assert process.stdin
            process.stdin.write(encode(records))
            process.stdin.close()
            yield Running(process, answers, hold)

    def kill(self) -> None:
        (self.cgroup / "cgroup.kill").write_text("1")
        self.await_empty()

    def await_empty(self) -> None:
        """Until nothing lives in the group: cgroup.events tells."""
        with (self.cgroup / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in events.read():
                assert poll.poll(30_000), "the job lives on"
                events.seek(0)


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    answers: FileIO
    hold: FileIO
    """while it is open, the job's standard input is"""

    def pid(self) -> int:
        """The job's pid as soon as it is reported."""
        assert self.process.stdout
        record = b""
        while not record.endswith(b"\0"):
            piece = os.read(self.process.stdout.fileno(), 1)
            assert piece, f"no pid: {record!r}"
            record += piece
        assert record.startswith(b"pid="), record
        return int(record[4:-1])

    def report(self) -> list[Record]:
        """The rest of the report, to its end."""
        assert self.process.stdout
        return decode(self.process.stdout.read())

    def answer(self) -> str:
        """The next answer, as soon as it is given."""
        answer = b""
        while not answer.endswith(b"\0"):
            piece = self.answers.read(1)
            assert piece, f"no answer: {answer!r}"
            answer += piece
        return answer[:-1].decode()

    def finish(self) -> Done:
        assert self.process.stderr
        report = self.report()
        self.hold.close()
        texts = [answer.decode() for answer in self.answers.readall().split(b"\0")[:-1]]
        return Done(self.process.wait(), report, texts, self.process.stderr.read().decode())


@contextlib.contextmanager
def place(root: Path, probe: Path) -> Iterator[Place]:
    for name in ("proc", "sys", "dev/pts", "dev/shm", "io", "etc", "tmp"):
        (root / "base" / name).mkdir(parents=True)
    for name in ("job/upper", "job/work", "io", "stage"):
        (root / name).mkdir(parents=True)
    os.mknod(root / "base/dev/null", 0o20666, os.makedev(1, 3))
    (root / "base/dev/null").chmod(0o666)
    (root / "base/etc/layer").write_text("base")
    unified, pids = hierarchy("cgroup2"), hierarchy("cgroup", "pids")
    assert unified, "no cgroup2 hierarchy"
    groups = [unified / f"serac-test-{os.getpid()}", *([pids / f"serac-test-{os.getpid()}"] if pids else [])]
    with contextlib.ExitStack() as stack:
        for group in groups:
            group.mkdir()
            stack.callback(group.rmdir)
        yield Place(root, probe, groups[0], groups[1] if pids else None)
