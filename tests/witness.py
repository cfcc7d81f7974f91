"""A job whose processes notice when something of theirs is lost: programs/witness.c, in the base ``small``."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from roots import wait_for

from engine import Engine, JobSpec

SOURCE = Path(__file__).parent / "programs" / "witness.c"
ROUNDS = 5
"""more of them, and of alarms, are proof enough that everything goes on"""


@pytest.fixture(scope="session")
def small_tree(small_tree: Path) -> Path:
    """The tree of the base ``small``, with the witness in it."""
    flags = ["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run(["gcc", *flags, os.fspath(SOURCE), "-o", os.fspath(small_tree / "bin/witness")], check=True)
    return small_tree


class Witness:
    """``told``: the rounds and the alarms that a job's witness had counted when it was last asked, never fewer;
    ``born``: what tells its life from another one."""

    def __init__(self, engine: Engine, ref: str, told: tuple[int, int] = (0, 0), born: str = "") -> None:
        self.engine = engine
        self.ref = ref
        self.told = told
        self.born = born

    def says(self) -> tuple[int, int]:
        """Fails when it says that something is lost, or to have begun again."""
        said = self.report()
        assert not said.startswith("wrong"), said
        if said:
            rounds, alarms, born = said.split()
            assert born == (self.born or born), "this is another life"
            assert int(rounds) >= self.told[0]
            assert int(alarms) >= self.told[1]
            self.told, self.born = (int(rounds), int(alarms)), born
        return self.told

    def report(self) -> str:
        upper = self.engine._root.catalog.job(self.ref).upper
        assert upper is not None
        path = self.engine.config.root / "layers" / upper / "upper/report"
        return path.read_text().partition("\n")[0] if path.exists() else ""

    def goes_on(self, patience: float = 20.0) -> None:
        """Wait until everything of it has moved."""
        rounds, alarms = self.says()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            now = self.says()
            if now[0] >= rounds + ROUNDS and now[1] >= alarms + ROUNDS:
                return
            time.sleep(0.02)
        pytest.fail(f"the witness of {self.ref} stands still at {self.told}")

    def stands_still(self) -> None:
        before = self.says()
        time.sleep(0.1)
        assert self.says() == before

    def copied(self, ref: str) -> Witness:
        """Its copy in a fork."""
        return Witness(self.engine, ref, self.told, self.born)

    def seen_by(self, engine: Engine) -> Witness:
        return Witness(engine, self.ref, self.told, self.born)

    def begins_again(self, ref: str) -> None:
        """See another life of it in a job that has its files."""
        again = Witness(self.engine, ref)
        wait_for(lambda: again.report() and again.report().split()[2] != self.born)
        again.goes_on()


def witness(engine: Engine, name: str = "a", *, children: int = 2, kib: int = 64, **fields: object) -> Witness:
    """Run a job of ``children`` + 3 processes with ``kib`` kibibytes in each child, and see it begin."""
    argv = ("/bin/witness", "/report", str(children), str(kib))
    engine.run(JobSpec(base="small", argv=argv, name=name, **fields))  # type: ignore[arg-type]
    begun = Witness(engine, name)
    begun.goes_on()
    return begun
