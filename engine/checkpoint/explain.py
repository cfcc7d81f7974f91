"""What criu's log says of a failure. Pure."""

from __future__ import annotations

import re

from engine.checkpoint.obstacles import REASONS, Obstacle, obstacle

_LINES = 3
_LINE = 300
"""characters of a line that are worth repeating"""

_TELLING: tuple[tuple[str, str], ...] = (("no-space", r"No space left on device|Disk quota exceeded"),)
"""reason -> what a line must match; the first that matches any line is taken"""


def explain(log: str) -> Obstacle:
    """The reason of a failed dump or restore, as far as criu's log (any level) tells it; else ``criu-failed``, with
    the log's last errors."""
    errors = [line for line in log.splitlines() if "Error" in line]
    for reason, pattern in _TELLING:
        for line in errors:
            if re.search(pattern, line):
                return obstacle(reason, f"{REASONS[reason].what}: {_plain(line)}")
    said = " | ".join(_plain(line) for line in errors[:_LINES])
    return obstacle("criu-failed", f"criu failed: {said}" if said else "criu failed without a word")


def _plain(line: str) -> str:
    """A line of the log without time, pid and place in the source."""
    return re.sub(r"^(\([\d.]+\)\s*)?(\s*\d+: )?Error \([^)]*\):\s*", "", line.strip())[:_LINE]
