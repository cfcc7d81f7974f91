"""check: whether all of a root is as it must be, and repair: that it is so again, as far as nothing is lost by it.

A check changes nothing. A repair: 1 makes the catalog anew, where it is missing or damaged (`engine.lifecycle.rebuild`,
with its commit); 2 mends every job as the next verb would; 3 corrects rows that say less than the disk has; 4 writes
records anew; 5 removes what no row speaks of, as the sweep does. Each may be interrupted and done again.

What can't be mended without losing something is named and left: a layer or an image whose bytes are gone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine import catalog, cgroup, store
from engine.config import Config
from engine.lifecycle import invariants, rebuild, records, recover
from engine.lifecycle.root import Places, Root
from engine.model import PASSING, Check, JobState, Violation
from engine.steps import step


def check(config: Config, *, timeout: float, repair: bool = False) -> Check:
    """Raises Busy when a repair can't be alone in the root, Damaged for a newer serac's."""
    places = Places(config)
    if not config.root.exists():
        return Check()
    why = catalog.trouble(places.catalog_file) if places.catalog_file.exists() or places.in_use() else None
    if why is not None and not repair:
        lost = Violation(subject="the catalog", what=why, mends=True)
        return Check(violations=(lost,), unseen=("all else, which the catalog would tell",))
    done = _rebuilt(places, why, timeout=timeout) if why is not None else []
    root = Root(config, timeout=timeout)
    try:
        if why is not None:
            _settle(root)  # it has all that are not paused as running
        if repair:
            before = _found(root).violations
            _repair(root)
        after = _found(root)
        if repair:
            done += [f"{entry.subject}: {entry.what}" for entry in before if entry not in after.violations]
            root.journal.add("repair", facts={"repaired": done, "left": len(after.violations)})
        return msgspec.structs.replace(after, repaired=tuple(done))
    finally:
        root.close()


def _found(root: Root) -> Check:
    unseen: list[str] = []
    found = tuple(invariants.violations(root, unseen=unseen))
    return Check(violations=found, unseen=tuple(unseen))


def _settle(root: Root) -> None:
    for job in root.catalog.jobs():
        recover.look(root, job)


def _repair(root: Root) -> None:
    _settle(root)
    with store.locked(root.tmp, timeout=root.timeout):
        with step("check.rows"):
            _correct(root)
        with step("check.records"):
            invariants.recorded(root)
        with step("check.sweep"):
            swept = recover.sweep(root)
        if swept:
            for marker in root.tmp.iterdir():
                store.remove_tree(marker)


def _correct(root: Root) -> None:
    with root.catalog.transaction(durable=True) as transaction:
        for layer in root.catalog.layers():
            if layer.directory and layer.image is not None and not (root.layer(layer.id) / "upper").is_dir():
                root.layer(layer.id).mkdir(exist_ok=True)
                transaction.put_layer(msgspec.structs.replace(layer, directory=False))
        for snapshot in root.catalog.snapshots():
            if snapshot.archive is not None and not invariants.has_manifest(root, snapshot):
                transaction.put_snapshot(msgspec.structs.replace(snapshot, archive=None, due=True))
    for job in root.catalog.jobs():
        if job.state not in PASSING:
            root.io(job.id).mkdir(mode=0o755, parents=True, exist_ok=True)


def _rebuilt(places: Places, why: str, *, timeout: float) -> list[str]:
    """What was done, a line each."""
    places.tmp.mkdir(mode=0o700, exist_ok=True)
    with store.locked(places.tmp, timeout=timeout):
        made = rebuild.plan(records.found(places), dict(_living(places)))
        lost = places.config.root / "lost" / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        with tempfile.TemporaryDirectory(dir=places.tmp) as new:
            with step("rebuild.write"):
                rebuild.write(made, Path(new, places.catalog_file.name))
            rebuild.place(places, Path(new), lost)
        return [f"the catalog: {why}", *made.lost, *rebuild.set_aside(places, made, lost)]


def _living(places: Places) -> Iterator[tuple[str, JobState]]:
    for job_id in cgroup.leftover(places.host, places.config.name):
        group = cgroup.everywhere(places.host, places.config.name, job_id)
        if cgroup.populated(group):
            yield job_id, JobState.FROZEN if cgroup.standing(group) else JobState.RUNNING
