"""What the jobs consist of: the two C programs, a small root filesystem, and what the job's program says."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
BUSYBOX = Path("/bin/busybox")
JOB = "/bin/job"
PATIENCE = 120.0
"""seconds that a job has to say a word"""


class Awake(NamedTuple):
    """What a job wrote when it came to life: CLOCK_REALTIME in nanoseconds of its first instruction, of the moment when
    it had read all of its memory, and of that when it had read its files too."""

    first: int
    last: int
    files: int
    same: bool
    """whether the memory was what it had been"""

    @classmethod
    def read(cls, text: str) -> Awake:
        first, last, files, same = text.split()
        return cls(int(first), int(last), int(files), same == "1")


def compiled(name: str, directory: Path) -> Path:
    """``floor`` or ``job``, static, of all files that are called so."""
    target = directory / name
    flags = ["-std=gnu17", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", target, *HERE.glob(f"{name}*.c")], check=True)
    return target


def small_tree(directory: Path, job: Path) -> Path:
    """A root filesystem of two megabytes with the job's program and a shell."""
    tree = directory / "tree"
    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    tree.chmod(0o755)
    (tree / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    shutil.copy(job, tree / JOB.lstrip("/"))
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    return tree


def hold(
    *, megabytes: int = 5, processes: int = 1, woke: str | None = None, reads: tuple[str, int] | None = None
) -> tuple[str, ...]:
    """The command of a job that has memory and processes, and sleeps. ``reads``: a directory, and of how many of its
    files it reads one."""
    words = (JOB, "hold", str(megabytes), str(processes))
    if woke is None:
        return words
    return (*words, woke) if reads is None else (*words, woke, reads[0], str(reads[1]))


def awake(file: Path) -> Awake:
    """Wait until a job has written ``file``. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            return Awake.read(file.read_text())
        except FileNotFoundError:
            time.sleep(0.0005)
    raise TimeoutError(f"{file}: the job said nothing for {PATIENCE:g} s")
