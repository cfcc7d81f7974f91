"""retain: snapshots that the root's policies give up go, and paused jobs with theirs; a part of gc.

What is to go is decided in `engine.retention`, from rows alone. Each goes as by ``rm`` (`engine.lifecycle.remove` has
the steps and the commit), if it still may when it is its turn: it may have been pinned, resumed or forked since, and
what is being archived has its lock.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from engine import retention, store, tools
from engine.archive import BLOB, META
from engine.errors import Busy, InUse, NotFound, ToolFailed, WrongState
from engine.kernel import process
from engine.lifecycle import archiving, remove
from engine.lifecycle.root import Root, now
from engine.model import Collected, Layer, Snapshot, Verdict


def verdicts(root: Root, *, note: bool = False) -> list[Verdict]:
    """What becomes of each snapshot, oldest first. ``note``: what the clocks are, for the next time (clock.json)."""
    clock = _clock(root, note=note)
    settings, catalog = root.config.settings, root.catalog
    snapshots = catalog.snapshots()
    sizes = _sizes(root, snapshots) if settings.quota.bytes is not None else {}
    rules = retention.Rules(settings.retention, settings.quota)
    moment = clock.wall if clock.wall >= clock.trusted else None
    return retention.judge(snapshots, catalog.jobs(), rules, sizes=sizes, now=moment)


def _clock(root: Root, *, note: bool) -> retention.Clock:
    """The clocks now, judged by what they were the last time."""
    file = root.config.root / "clock.json"
    try:
        before = msgspec.json.decode(file.read_bytes(), type=retention.Clock)
    except (FileNotFoundError, msgspec.DecodeError):
        before = None
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    clock = retention.ticked(before, retention.Clock(wall=now(), up=up, boot=process.boot_id()))
    if not note:
        return clock
    if before is not None and clock.trusted > max(before.trusted, clock.wall):
        root.journal.add("retention.clock", reason="the clock was set forward: ages don't count for a day")
    with contextlib.suppress(OSError):  # on a full disk gc is needed most; the next one finds the older note
        store.write_aside(file, msgspec.json.encode(clock))
    return clock


def entry(verdict: Verdict) -> Collected:
    kind, which = ("snapshot", verdict.snapshot) if verdict.job is None else ("job", verdict.job)
    return Collected(kind=kind, id=which, reason=verdict.reason)  # type: ignore[arg-type]


def execute(root: Root, verdict: Verdict) -> bool:
    """Whether it is gone; it may have come to use since it was judged."""
    try:
        if verdict.job is None:
            _remove_snapshot(root, verdict.snapshot)
        else:
            _remove_job(root, verdict.job, verdict.snapshot)
    except (Busy, InUse, NotFound, WrongState):
        return False
    root.journal.add("retention.remove", job=verdict.job, snapshot=verdict.snapshot, reason=verdict.reason)
    return True


def _remove_snapshot(root: Root, snapshot_id: str) -> None:
    with archiving.alone(root, root.catalog.snapshot(snapshot_id), timeout=0):
        remove.remove_snapshot(root, snapshot_id, pinned=False)


def _remove_job(root: Root, job_id: str, snapshot_id: str) -> None:
    with root.locked(job_id, timeout=0) as job:
        snapshot = root.catalog.snapshot(snapshot_id)
        if job.snapshot != snapshot_id or snapshot.pinned:
            raise InUse(f"job {job.name} isn't paused to snapshot {snapshot_id} any more")
        with archiving.alone(root, snapshot, timeout=0):
            remove.remove(root, job, force=False)


def _sizes(root: Root, snapshots: list[Snapshot]) -> dict[str, int]:
    """Bytes of each layer, with the processes that lie with it."""
    sizes = {layer.id: _size(root, layer) for layer in root.catalog.layers()}
    for snapshot in snapshots:
        if snapshot.image is not None and snapshot.image.digest is not None:
            top = snapshot.layers[-1]
            sizes[top] = sizes.get(top, 0) + _image_size(root.images / snapshot.image.digest)
    return sizes


def _size(root: Root, layer: Layer) -> int:
    size = _image_size(root.images / layer.image) if layer.image is not None else 0
    if layer.directory:
        with contextlib.suppress(FileNotFoundError, ToolFailed):  # it is written, or goes, while it is looked at
            size += tools.disk_usage(root.layer(layer.id))
    return size


def _image_size(directory: Path) -> int:
    size = 0
    for name in (META, BLOB):
        with contextlib.suppress(FileNotFoundError):
            size += (directory / name).stat().st_size
    return size
