"""The README's table of reasons is the engine's."""

from __future__ import annotations

import re
from pathlib import Path

from engine.checkpoint.obstacles import LOG, PREFLIGHT, REASONS, RESTORE


def test_the_readme_has_every_reason_with_its_remedy() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    table = readme.partition("| reason | the process | remedy |")[2].partition("\n\n")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| ([a-z][a-z-]*) \| (.*) \| (.*) \|$", table, re.MULTILINE)}
    assert rows == {name: (reason.what, reason.remedy) for name, reason in REASONS.items()}


def test_a_reason_is_of_one_kind() -> None:
    assert len(REASONS) == len(PREFLIGHT) + len(LOG) + len(RESTORE)
