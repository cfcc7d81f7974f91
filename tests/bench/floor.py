"""Driving the floor, tests/bench/floor.c, with what serac left of a paused job: its image, its layers, its base.

The floor gets an upper of its own on top of them, so that the snapshot stays what it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import interrupts
from bench.measure import Sample
from bench.serac import Subject
from bench.workloads import JOB, awake
from engine import cgroup, checkpoint, layers, tools

_NAMELESS = {"images_dir_fd", "work_dir_fd", "log_file", "notify_scripts", "manage_cgroups_mode"}
"""options that are given otherwise on the command line, or have no meaning there"""
_FIXED = {
    "manage_cgroups": ("--manage-cgroups=ignore",),
    "empty_ns": ("--empty-ns", "net"),
    "tcp_skip_in_flight": ("--skip-in-flight",),
}
_NAMES = {"pid": "tree", "irmap_scan_paths": "irmap-scan-path"}


def criu_flags(options: Mapping[str, Any], *, restore: bool) -> list[str]:
    """What the engine asks criu for, in the words of its command line."""
    words: list[str] = []
    for name, value in options.items():
        if name in _NAMELESS or value is False:
            continue
        flag = "--" + _NAMES.get(name, name).replace("_", "-")
        if name == "network_lock":
            words += [] if restore else [flag, "skip"]
        elif name == "log_level":
            words.append(f"-v{value}")
        elif name in _FIXED:
            words += _FIXED[name]
        elif value is True:
            words.append(flag)
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [word for one in values for word in (flag, str(one))]
    return words


class Floor:
    """The floor for one job at a time, which must be paused; a context manager that leaves nothing behind."""

    def __init__(self, program: Path, directory: Path, subject: Subject) -> None:
        config = subject.engine.config
        self._program = program
        self._subject = subject
        self._layers = config.root / "layers"
        self._layer = self._layers / "floor"
        self._work = directory / "floor-work"
        self._images = self._layers / "floor-image"
        self.group = Path(cgroup.hierarchies().unified) / "serac-bench-floor"
        self._criu = os.fspath(tools.find("criu").path)

    def __enter__(self) -> Floor:
        self._work.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with interrupts.put_off():
            if self.group.exists():
                group = cgroup.Group(path=os.fspath(self.group))
                cgroup.kill(group, timeout=60)
                cgroup.remove(group)
            self._clear()
            shutil.rmtree(self._work)

    def restore(self) -> Mapping[str, Sample]:
        """By verb, as `Subject.resume` has them; the processes run when criu has ended."""
        image = self._layers / self._snapshot().layers[-1] / "image"
        options = checkpoint.restore_options(images=0, work=0)
        words = ["restore", "--restore-detached", "--pidfile", self._pidfile(), *self._places(image, "restore.log")]
        Path(self._pidfile()).unlink(missing_ok=True)
        self._subject.forget()
        began = time.time_ns()
        sample = self._run("restore", self._criu, *words, *criu_flags(options, restore=True))
        word = awake(self._subject.io / "woke")
        return {"resume": sample, "first instruction": Sample((word.first - began) / 1e6)}

    def run(self) -> Mapping[str, Sample]:
        return {"resume": self._run("run", JOB, "init", JOB, "answer")}

    def stop(self, *, dump: bool) -> Mapping[str, Sample]:
        with self._dump_words(dump=dump) as words:
            sample = self._run("stop", *words)
        self._clear()
        return {"pause": sample}

    @contextlib.contextmanager
    def _dump_words(self, *, dump: bool) -> Iterator[list[str]]:
        if not dump:
            yield []
            return
        self._images.mkdir()
        options = checkpoint.dump_options(
            images=0, work=0, pid=int(Path(self._pidfile()).read_text()), cgroup=os.fspath(self.group), timeout=600
        )
        yield [self._criu, "dump", *self._places(self._images, "dump.log"), *criu_flags(options, restore=False)]

    def _places(self, images: Path, log: str) -> list[str]:
        return ["--images-dir", os.fspath(images), "--work-dir", os.fspath(self._work), "--log-file", log]

    def _pidfile(self) -> str:
        return os.fspath(self._work / "pid")

    def _snapshot(self) -> Any:
        return self._subject.engine.snapshot(self._subject.snapshot)

    def _run(self, verb: str, *words: str) -> Sample:
        command = [os.fspath(self._program), verb, *self._keys(), *(["--", *words] if words else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            logs = "".join(log.read_text(errors="replace")[-2000:] for log in self._work.glob("*.log"))
            raise RuntimeError(f"floor {verb} ended with status {done.returncode}\n{logs}")
        steps = {name: int(micros) / 1000 for name, micros in map(str.split, done.stdout.splitlines())}
        return Sample(sum(steps.values()), steps)

    def _keys(self) -> list[str]:
        engine, snapshot = self._subject.engine, self._snapshot()
        first, count = engine.config.settings.id_first, engine.config.settings.id_count
        lowers = ":".join([*(f"layers/{layer}/upper" for layer in reversed(snapshot.layers)), "base"])
        own = "upperdir=layers/floor/upper,workdir=layers/floor/work"
        kdat = next(engine.config.run.glob("criu-*.kdat"), Path("/nonexistent"))
        return [
            f"cgroup={self.group}",
            f"base={engine.config.run / 'mounts' / snapshot.base}",
            f"layers={self._layers}",
            f"io={self._subject.io}",
            f"layer={self._layer}",
            f"overlay=lowerdir={lowers},{own},{','.join(layers.OPTIONS)}",
            f"ids={first}:{count}",
            f"kdat={kdat}",
            f"pid={self._pidfile()}",
        ]

    def _clear(self) -> None:
        for path in (self._layer, self._images):
            shutil.rmtree(path, ignore_errors=not path.exists())
