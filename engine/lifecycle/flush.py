"""flush: layers and processes are on the device, so that they outlast the host.

A pause waits for that before its commit. A ``fast`` one doesn't: its snapshot bears the id of the boot in which it was
made, until this verb, which each process in the background begins with, has 1 flushed all and 2 COMMITTED that. Killed
before 2: the next one does it again. A snapshot that bears another boot's id may not be whole.
"""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec

from engine.errors import Damaged, NotFound, SeracError, from_os
from engine.kernel import process
from engine.kernel.filesystem import syncfs
from engine.lifecycle import processes, records
from engine.lifecycle.root import Root
from engine.model import Job, Snapshot
from engine.steps import step


def through(root: Root, *, job: Job | None = None) -> None:
    """All that was written in the root so far is on the device when this returns. Raises NoSpace and the like.

    ``job``: whose layer must be. The disk tells only once that it has lost something, and perhaps told the pause of
    another job; the job's overlay remembers it for as long as it is mounted."""
    try:
        syncfs(root.layers)
        if job is not None:
            syncfs(Path(f"/proc/{processes.recall(root, job).pid}/root"))
    except OSError as error:
        if error.errno == errno.EIO:
            raise SeracError(
                "the disk has lost what was written since the job was begun or resumed",
                hint="the kernel's log says why; `serac cp` copies out of the job what can still be read",
            ) from error
        raise from_os(error, "flush layer") from error


def flush(root: Root) -> None:
    """What fast pauses of this boot have left. Those of another boot stay as they are: it is too late."""
    boot = process.boot_id()
    due = [snapshot.id for snapshot in root.catalog.snapshots() if snapshot.unflushed == boot]
    if not due:
        return
    with step("flush.flush"):
        through(root)
    for snapshot_id in due:
        with (
            root.intent("flush") as intent,
            step("flush.commit"),
            root.catalog.transaction(durable=True) as transaction,
        ):
            intent.undone()  # but for a crash
            try:
                snapshot = root.catalog.snapshot(snapshot_id)
            except NotFound:  # it was removed, or its job writes it again
                continue
            if snapshot.unflushed is None:  # another process was quicker
                continue
            flushed = msgspec.structs.replace(snapshot, unflushed=None)
            records.keep_snapshot(root, flushed)
            transaction.put_snapshot(flushed)


def is_lost(snapshot: Snapshot) -> bool:
    """Whether the host went down before all of it was on the device, for all that is known."""
    return snapshot.unflushed is not None and snapshot.unflushed != process.boot_id()


def check(snapshot: Snapshot) -> None:
    """Raises Damaged."""
    if is_lost(snapshot):
        raise Damaged(
            f"snapshot {snapshot.id} was made with --durability fast, and the host went down before it was on the disk",
            hint="--mode filesystem takes its files as they are",
        )
