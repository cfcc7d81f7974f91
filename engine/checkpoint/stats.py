"""What criu measured: ``stats-dump`` and ``stats-restore`` in the image directory (criu's images/stats.proto)."""

from __future__ import annotations

import struct
from pathlib import Path

from engine.checkpoint.rpc import CriuGone, Fields, decoded

_HEAD = struct.Struct("<III")
"""two magic numbers, then the size of the one entry"""

_DUMP = {1: "criu-freezing", 2: "criu-frozen", 3: "criu-memdump", 4: "criu-memwrite"}
_RESTORE = {3: "criu-forking", 4: "criu-restore"}


def dump_times(images: Path) -> dict[str, float]:
    """Milliseconds by name; empty when criu left none."""
    return _times(images / "stats-dump", 1, _DUMP)


def restore_times(images: Path) -> dict[str, float]:
    return _times(images / "stats-restore", 2, _RESTORE)


def _times(path: Path, kind: int, names: dict[int, str]) -> dict[str, float]:
    entry = _entry(path, kind)
    return {name: value / 1000 for number, name in names.items() if isinstance(value := entry.get(number), int)}


def _entry(path: Path, kind: int) -> Fields:
    try:
        content = path.read_bytes()
        size = _HEAD.unpack_from(content)[2]
        entry = decoded(content[_HEAD.size : _HEAD.size + size]).get(kind)
        return decoded(entry) if isinstance(entry, bytes) else {}
    except (OSError, struct.error, CriuGone):
        return {}
