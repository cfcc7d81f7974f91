"""A Debian base with real programs, for tests that need more than busybox: built once a run, in a root that all of
the run's tests share, and only when a test asks for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from roots import configure, empty

from engine import Engine, JobSpec
from engine.base import DebianSource

SUITE = "bookworm"
PACKAGES = (
    "ecj",
    "gcc",
    "git",
    "less",
    "libc6-dev",
    "make",
    "ninja-build",
    "nodejs",
    "openjdk-17-jre-headless",
    "postgresql",
    "procps",
    "python3",
    "python3-pytest",
    "redis-server",
    "tmux",
    "vim-tiny",
)


@pytest.fixture(scope="session")
def debian_root() -> Iterator[Path]:
    """A root whose base ``debian`` has PACKAGES.

    With SERAC_TEST_DEBIAN in the environment it is the root that is named there, which must have that base."""
    ready = os.environ.get("SERAC_TEST_DEBIAN")
    if ready:
        yield Path(ready)
        return
    before = leftovers.count()
    path = Path(tempfile.mkdtemp(prefix="serac-test-debian-", dir="/var/tmp"))
    try:
        configure(path / "root")
        with Engine(path / "root", timeout=60) as engine:
            engine.base_build("debian", DebianSource(suite=SUITE, include=PACKAGES))
            engine.remove(engine.run(JobSpec(base="debian")).id, force=True)  # now it is mounted, and stays so
        yield path / "root"
        with Engine(path / "root", timeout=60) as engine:
            empty(engine)
    finally:
        shutil.rmtree(path)
    found = leftovers.difference(before, leftovers.settled(before))
    assert not found, "\n".join(found)


@pytest.fixture
def debian(debian_root: Path) -> Iterator[Engine]:
    """An engine on that root. A test removes what it makes there."""
    with Engine(debian_root, timeout=60) as engine:
        yield engine
