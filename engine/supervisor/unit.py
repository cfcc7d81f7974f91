"""The systemd unit of a supervisor: `serac.service` beside this file, filled in for a command and a root."""

from __future__ import annotations

import os
from pathlib import Path

TEMPLATE = Path(__file__).with_name("serac.service")


def unit(command: Path, root: Path) -> str:
    """``command``: the absolute path of ``serac``."""
    words = (os.fspath(command), "--root", os.fspath(root), "supervise")
    return TEMPLATE.read_text(encoding="utf-8").replace("@COMMAND@", " ".join(map(_quoted, words)))


def _quoted(word: str) -> str:
    """As systemd.service(5) and systemd.syntax(7) read it: specifiers and variables are none here."""
    text = word.replace("%", "%%").replace("$", "$$")
    if all(letter.isalnum() or letter in "/._-" for letter in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
