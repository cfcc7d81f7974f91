"""``serac`` as its users have it, for tests: one root, one call a verb."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, JobSpec


class Command:
    """``serac`` on one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.words(*words), check=False, input=given, capture_output=True, timeout=120)

    @contextlib.contextmanager
    def begun(self, *words: str, text: bool = True, stdin: int | None = None) -> Iterator[subprocess.Popen[Any]]:
        """A call that is under way. One that isn't over when the block ends, for a test that failed say, is killed."""
        with subprocess.Popen(
            self.words(*words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "engine.cli", "--root", os.fspath(self.root), *words]

    def good(self, *words: str, given: bytes = b"") -> str:
        done = self(*words, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def json(self, *words: str) -> Any:
        return json.loads(self.good("--json", *words))

    def error(self, *words: str) -> tuple[int, list[str]]:
        """Status and lines of an error; nothing else may have been printed."""
        done = self(*words)
        assert done.stdout == b""
        return done.returncode, done.stderr.decode().splitlines()


@pytest.fixture
def serac(engine: Engine) -> Command:
    return Command(engine.config.root)


@pytest.fixture
def up(engine: Engine) -> str:
    """A job that stays up, and its name."""
    return engine.run(JobSpec(base="small", name="up")).name
