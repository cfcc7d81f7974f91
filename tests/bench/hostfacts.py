"""On what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

from bench.peers import missing
from engine import tools
from engine.errors import SeracError

Facts = dict[str, str]


def facts(directory: Path) -> Facts:
    """``directory``: on whose filesystem the roots lie."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": f"{os.cpu_count()} x {_after(Path('/proc/cpuinfo'), 'model name')}",
        "memory": f"{int(_after(Path('/proc/meminfo'), 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": f"Linux {platform.release()}",
        "system": _after(Path("/etc/os-release"), "PRETTY_NAME", sign="=").strip('"'),
        "filesystem": _filesystem(directory),
        "python": platform.python_version(),
        "serac": _said("git", "-C", os.fspath(Path(__file__).parent), "-c", "safe.directory=*", "describe", "--always"),
        "criu": _criu(),
        "podman": _said("podman", "--version"),
        "runc": _said("runc", "--version"),
        "load before": load(),
    }


def load() -> str:
    """Processes that wanted to run in the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _after(file: Path, name: str, *, sign: str = ":") -> str:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(sign)
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _filesystem(directory: Path) -> str:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [line for line in lines if directory.is_relative_to(line[1])]
    deepest = max(above, key=lambda line: len(line[1]))
    return deepest[2]


def _criu() -> str:
    try:
        return tools.find("criu").version
    except SeracError as error:
        return str(error)


def _said(program: str, *words: str) -> str:
    if missing(program):
        return "not installed"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    first, *_ = [*done.stdout.splitlines(), "unknown"]
    return first.removeprefix(f"{program} ").removeprefix("version ")
