"""Work on an overlay that is mounted as a job's is, in a process and a mount namespace of its own.

overlay = overlays.Overlay(lowers=(newer, older), upper=upper, work=work)
done, taken = overlays.inside(overlay, partial(forest.grow, seed=1), partial(census.take, overlaid=True))
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine import layers

TESTS = Path(__file__).resolve().parent


class Mountable(Protocol):
    """Goes by pickle, too."""

    def mount(self, target: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """``lowers`` topmost first. Paths have no comma and no colon in them."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    options: tuple[str, ...] = layers.OPTIONS

    def mount(self, target: Path) -> None:
        lowers = ":".join(map(os.fspath, self.lowers))
        options = [*self.options, f"lowerdir={lowers}", f"upperdir={self.upper}", f"workdir={self.work}"]
        subprocess.run(["mount", "-t", "overlay", "-o", ",".join(options), "overlay", target], check=True)


def inside(overlay: Mountable, *calls: Callable[[Path], Any]) -> list[Any]:
    """What each call gave for the directory where the overlay was mounted, in turn on one mount. Calls and results go
    by pickle: functions of modules here, or `functools.partial` of them."""
    with tempfile.TemporaryDirectory(prefix="serac-test-") as target:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "overlays"],
            input=pickle.dumps((overlay, Path(target), calls)),
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.fspath(TESTS)},
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    results: list[Any] = pickle.loads(done.stdout)
    return results


def main() -> None:
    overlay, target, calls = pickle.load(sys.stdin.buffer)
    overlay.mount(target)
    try:
        results = [call(target) for call in calls]
    finally:
        # Not left to the end of the namespace: what still uses the mount is an error.
        subprocess.run(["umount", target], check=True)
    sys.stdout.buffer.write(pickle.dumps(results))


if __name__ == "__main__":
    # Under its own name, for pickle looks classes up by it.
    import overlays

    overlays.main()
