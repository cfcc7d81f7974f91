"""Work that nobody waits for: flushing what fast pauses left, archiving, flattening chains, collecting.

A verb that leaves such work starts a process for it (`start`), which does all there is in its root and ends (`main`).
It flushes first, for until then a host that goes down takes a snapshot along. What can wait has a low priority, so that
jobs don't feel it: one process is at that in a root at a time, and one more may wait to look whether there is more; any
others end at once. Killed, it leaves what the verbs that it calls leave; what is still due is done by the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from engine import store, tools
from engine.config import Config
from engine.errors import Busy, SeracError
from engine.lifecycle.root import Root

log = logging.getLogger("serac")

NICENESS = 19
PATIENCE = 24 * 3600.0
"""seconds that the second one waits for the first"""


def start(root: Root) -> None:
    """Start the process. It outlives this one, and isn't its child."""
    command = ["setsid", "--fork", sys.executable, "-m", "engine.lifecycle.background", os.fspath(root.config.root)]
    with contextlib.suppress(OSError):  # what is due stays due
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=tools.environment({"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}),
            check=False,
        )


def main(root_directory: str) -> None:
    from engine.lifecycle import flush

    root = Root(Config.load(root_directory), timeout=60.0)
    try:
        _attempt(root, "flush", partial(flush.flush, root), told=False)
        os.nice(NICENESS)
        with _turn(root) as ours:
            if ours:
                _work(root)
    finally:
        root.close()


@contextlib.contextmanager
def _turn(root: Root) -> Iterator[bool]:
    """Whether it is this process that has to work; perhaps after a wait."""
    with contextlib.ExitStack() as work:
        try:
            with store.locked(root.layers, timeout=0):  # the place of the one who waits
                work.enter_context(store.locked(root.images, timeout=PATIENCE))
        except Busy:
            yield False
            return
        yield True


def _work(root: Root) -> None:
    from engine.lifecycle import archiving, collect, flatten

    tried: set[tuple[str, ...]] = set()
    while chain := flatten.due(root, but=tried):
        tried.add(chain)
        _attempt(root, "flatten", partial(flatten.flatten_chain, root, chain))
    while snapshot := archiving.due(root, but=tried):
        tried.add((snapshot,))
        archive = partial(archiving.archive_snapshot, root, snapshot, progress=_untold)
        _attempt(root, "snapshot.archive", archive)
    # What it removes are events; that it looked is none.
    _attempt(root, "collect", partial(collect.collect, root), told=False)


def _attempt(root: Root, kind: str, work: Callable[[], object], *, told: bool = True) -> None:
    """What fails stays due for the next process. ``told``: also when it doesn't."""
    try:
        with root.journal.telling(kind) as event:
            event["facts"] = {"background": True}
            work()
            event["told"] = told
    except SeracError as error:
        log.warning("in the background: %s", error)


def _untold(_done: int, _total: int) -> None:
    """Nobody looks at this process; how far it is lies in the scratch directory."""


if __name__ == "__main__":
    main(sys.argv[1])
