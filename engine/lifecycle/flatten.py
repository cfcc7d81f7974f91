"""flatten: several layers of a chain become one, which is an image, while jobs go on running on them.

1 write the image of the merged layers aside, digested on its way; 2 place it; 3 COMMIT: a new layer's row, and in one
transaction every snapshot and job whose chain begins with the merged layers has it in their stead; 4 what nobody needs
any more of the merged layers goes.

| killed | leaves | put right by |
| --- | --- | --- |
| before 3 | a scratch directory, or an image that no row speaks of, and a marker in tmp/ | the sweep |
| after 3 | directories that the catalog doesn't know | the same |

A job that runs keeps what its overlay was made of until it is paused or has ended (``Job.mounted``). A snapshot that a
merged layer is the top of keeps its chain, unless it is the one that was to be flattened: its job may want to write
that layer again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from engine import archive, store
from engine.errors import Busy, NotFound, from_os
from engine.lifecycle import archiving, images, records, remove, trees
from engine.lifecycle.root import Root, now
from engine.model import LIVE, PASSING, Job, Layer, Snapshot
from engine.steps import step
from engine.tree import flattened


def flatten_snapshot(root: Root, ref: str) -> Snapshot:
    """The snapshot with a chain of one layer. Its job's resume stacks from then on. Raises NotFound, NoSpace."""
    snapshot = root.snapshot(ref)
    if len(snapshot.layers) > 1:
        if snapshot.image is not None:
            # Where its process image lies goes with its top layer.
            snapshot = archiving.archive_snapshot(root, snapshot.id)
        _flatten(root, snapshot.base, snapshot.layers, whole=snapshot.id)
    return root.catalog.snapshot(snapshot.id)


def due(root: Root, *, but: Collection[tuple[str, ...]] = ()) -> tuple[str, ...] | None:
    """The layers that are to be merged, the lowest of the deepest chain, if there are any ``but`` these.

    Of a snapshot's chain its top layer stays as it is; of a job's chain all is below its upper. No more layers than
    are too many, for they are what other chains that are too deep most likely have in common with this one."""
    if not root.config.settings.depth:
        return None
    depth = max(root.config.settings.depth, 2)
    chains = [snapshot.layers[:-1] for snapshot in root.catalog.snapshots()]
    chains += [job.layers for job in root.catalog.jobs() if job.upper is not None]
    deepest = max((chain for chain in chains if chain[:depth] not in but), key=len, default=())
    return deepest[:depth] if len(deepest) >= depth else None


def flatten_chain(root: Root, chain: Sequence[str]) -> None:
    """Merge the layers of which ``chain`` is the beginning of other chains. Raises NotFound when they are gone."""
    snapshots = [entry for entry in root.catalog.snapshots() if entry.layers[: len(chain)] == tuple(chain)]
    jobs = [job for job in root.catalog.jobs() if job.layers[: len(chain)] == tuple(chain)]
    if not snapshots and not jobs:
        raise NotFound("the chain is gone")
    _flatten(root, (snapshots or jobs)[0].base, tuple(chain), whole=None)


def _flatten(root: Root, base: str, chain: tuple[str, ...], *, whole: str | None) -> None:
    layer = Layer(id=store.new_id(), directory=False, created=now())
    with root.intent(f"flatten-{layer.id}", scratch=True) as intent:
        aside = intent.path / "image"
        try:
            with step("flatten.write"), trees.opened_chain(root, chain) as parts:
                archive.build_image(flattened(parts), aside)
        except BaseException:
            intent.undone()
            raise
        # From here on a failure leaves what the sweep takes away.
        digest = archive.image_digest(aside)
        with contextlib.ExitStack() as held:
            with step("flatten.place"):
                held.enter_context(images.placed(aside, root.images / digest, timeout=root.timeout))
            locked = held.enter_context(_at_rest(root, base, chain, whole))
            with step("flatten.commit"):
                _make(root, layer.id)
                gone = _commit(root, base, chain, msgspec.structs.replace(layer, image=digest), whole, locked)
        with step("flatten.remove"):
            gone.remove(root)


@contextlib.contextmanager
def _at_rest(root: Root, base: str, chain: tuple[str, ...], whole: str | None) -> Iterator[frozenset[str]]:
    """The jobs whose chain is about to change, locked: no verb is in the middle of one of them. Raises Busy."""
    with contextlib.ExitStack() as stack:
        ids = sorted(job.id for job in _users(root, base, chain, whole).jobs)
        for job_id in ids:
            with contextlib.suppress(FileNotFoundError):  # it was removed
                stack.enter_context(store.locked(root.jobs / job_id, timeout=root.timeout))
        yield frozenset(ids)


def _make(root: Root, layer_id: str) -> None:
    try:
        root.layer(layer_id).mkdir()
        store.sync_directory(root.layers)
    except OSError as error:
        raise from_os(error, "make layer") from error


class _Users(NamedTuple):
    snapshots: list[Snapshot]
    jobs: list[Job]


def _commit(
    root: Root, base: str, chain: tuple[str, ...], layer: Layer, whole: str | None, locked: frozenset[str]
) -> remove.Gone:
    with root.catalog.transaction(durable=True) as transaction:
        users = _users(root, base, chain, whole)
        if not users.snapshots and not users.jobs:
            raise NotFound("the chain was removed meanwhile")
        if not locked.issuperset(job.id for job in users.jobs):
            raise Busy("a job was begun on the chain meanwhile", hint="try again")
        records.keep_layer(root, layer)
        transaction.put_layer(layer)
        for snapshot in users.snapshots:
            changed = _with(snapshot, chain, layer.id)
            archiving.manifest_file(root, changed).unlink(missing_ok=True)
            records.keep_snapshot(root, changed)
            transaction.put_snapshot(changed)
        for job in users.jobs:
            records.keep_job(root, _on(job, chain, layer.id))
            transaction.put_job(_on(job, chain, layer.id))
        return remove.Gone(remove.forget_unreferenced(root, transaction), [])


def _users(root: Root, base: str, chain: tuple[str, ...], whole: str | None) -> _Users:
    """Whose chain begins with the merged layers. ``whole``: the snapshot all of whose layers they are."""
    snapshots = [
        snapshot
        for snapshot in root.catalog.snapshots()
        if snapshot.base == base
        and snapshot.layers[: len(chain)] == chain
        and (len(snapshot.layers) > len(chain) or snapshot.id == whole)
    ]
    kept = {snapshot.id for snapshot in root.catalog.snapshots()} - {snapshot.id for snapshot in snapshots}
    jobs = [job for job in root.catalog.jobs() if job.base == base and job.layers[: len(chain)] == chain]
    # A job that is paused has its snapshot's chain.
    return _Users(snapshots, [job for job in jobs if job.upper is not None or job.snapshot not in kept])


def _with(snapshot: Snapshot, chain: tuple[str, ...], merged: str) -> Snapshot:
    """Its manifest names other images then: it is to be archived again, if it was."""
    due = snapshot.due or snapshot.archive is not None
    return msgspec.structs.replace(snapshot, layers=(merged, *snapshot.layers[len(chain) :]), due=due, archive=None)


def _on(job: Job, chain: tuple[str, ...], merged: str) -> Job:
    mounted = (job.mounted or job.layers) if job.state in LIVE | PASSING else ()
    return msgspec.structs.replace(job, layers=(merged, *job.layers[len(chain) :]), mounted=mounted)
