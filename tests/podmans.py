"""Podman and skopeo, on storage of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from roots import wait_for

LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


def needed(*names: str) -> None:
    """Skip where a program is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: `scripts/setup skopeo podman runc` installs Debian's")


class Podman:
    """In a mount namespace of its own each time, so that it leaves no mounts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._command = ("unshare", "--mount", "podman", "--root", place / "root", "--runroot", place / "run",
                         "--storage-driver", "overlay", "--events-backend", "none", "--runtime", "runc")  # fmt: skip

    def __call__(self, *arguments: str | Path, check: bool = True, env: dict[str, str] | None = None) -> str:
        """What it printed; without ``check`` also what it said when it failed."""
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
        )
        if check and done.returncode:
            pytest.fail(f"podman {' '.join(map(os.fspath, arguments))}\n{done.stderr}", pytrace=False)
        return done.stdout if check else done.stdout + done.stderr

    def run(self, image: str, *command: str) -> str:
        return self("run", "--rm", "--network", "none", *LIMITS, image, *command)


@pytest.fixture
def podman() -> Iterator[Podman]:
    needed("podman", "runc")
    place = Path(tempfile.mkdtemp(prefix="serac-", dir="/var/tmp"))  # its paths may have no more than 50 characters
    yield Podman(place)
    wait_for(lambda: not _at_work(place))
    shutil.rmtree(place)
    for group in Path("/sys/fs/cgroup").glob("*/libpod_parent"):
        with contextlib.suppress(OSError):  # somebody else's Podman is at work
            group.rmdir()


def _at_work(place: Path) -> bool:
    """Whether a program has a command line with the place in it: conmon cleans up after a container by itself."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            if os.fsencode(place) in (process / "cmdline").read_bytes():
                return True
    return False


def skopeo(*arguments: str | Path) -> str:
    needed("skopeo")
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"skopeo {' '.join(map(os.fspath, arguments))}\n{done.stderr}", pytrace=False)
    return done.stdout
