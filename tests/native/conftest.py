"""The programs under test, and a place to launch jobs from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import launches
import pytest
from launches import Place


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """static: from ``SERAC_BIN_DIR``, else built; dynamic: for LD_PRELOAD; probe, older: tests/native/launch_*.c."""
    build = tmp_path_factory.mktemp("launch")
    installed, program = os.environ.get("SERAC_BIN_DIR"), build / "serac-launch"
    return {
        "static": Path(installed) / "serac-launch" if installed else launches.compile_launch(program, "-static"),
        "dynamic": launches.compile_launch(build / "dynamic"),
        "probe": launches.compile_c(build / "probe", [launches.PROBES / "launch_probe.c"], "-static"),
        "older": launches.compile_c(build / "older.so", [launches.PROBES / "launch_older.c"], "-shared", "-fPIC"),
    }


@pytest.fixture
def place(tmp_path: Path, programs: dict[str, Path]) -> Iterator[Place]:
    tmp_path.chmod(0o700)  # nothing on the way to the layers needs to be open to the job
    with launches.place(tmp_path, programs["probe"]) as made:
        yield made


@pytest.fixture(params=["static", "sanitized"])
def program(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Path:
    if request.param == "static":
        return programs["static"]
    sanitized: Path = request.getfixturevalue("sanitized")
    return sanitized / "serac-launch"


@pytest.fixture
def launcher(programs: dict[str, Path]) -> Path:
    return programs["static"]
