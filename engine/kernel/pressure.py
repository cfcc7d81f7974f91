"""How short the host is of memory: /proc/pressure/memory (PSI, Documentation/accounting/psi.rst) and /proc/meminfo."""

from __future__ import annotations

import re
from pathlib import Path

PRESSURE = Path("/proc/pressure/memory")


def memory_stall(file: Path = PRESSURE) -> float | None:
    """Per cent of the last ten seconds in which some process waited for memory; None where the kernel doesn't tell.

    A kernel that was booted with psi=0 has the file and answers EOPNOTSUPP."""
    try:
        text = file.read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^some avg10=([0-9.]+)", text, re.MULTILINE)
    return float(found[1]) if found else None


def memory_available() -> float:
    """Per cent of the host's memory that programs could have without swapping."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    total, available = (
        int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("MemTotal", "MemAvailable")
    )
    return 100 * available / total
