"""The verbs of snapshots, a part of `engine.engine.Engine`: take, list, pin and remove them, archive them and let them
travel, collect what nobody needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, get_args

import msgspec

from engine.config import Config
from engine.errors import Busy, InvalidInput, translated
from engine.lifecycle import background, records, recover, remove
from engine.lifecycle.root import Root
from engine.model import (
    Archiving,
    Collected,
    Durability,
    FileChange,
    Format,
    JobState,
    PauseResult,
    Snapshot,
    TakeResult,
    Verdict,
)
from engine.steps import step
from engine.verbs import verb

if TYPE_CHECKING:
    from engine.lifecycle.archiving import Progress

_Result = TypeVar("_Result", PauseResult, TakeResult)


class Snapshots:
    """What needs an opened root and no more."""

    config: Config
    _root: Root

    def snapshot_take(
        self,
        ref: str,
        *,
        labels: Mapping[str, str] | None = None,
        state: Any | msgspec.UnsetType = msgspec.UNSET,
        archive: Archiving | None = None,
        ttl: float | None = None,
        durability: Durability = "full",
        progress: Progress | None = None,
    ) -> TakeResult:
        """Make a snapshot of a running job, with its processes, and let it run on: it stands still for as long as a
        pause and a resume take. Raises CannotCheckpoint, and the job runs on; after any error of the resume it is
        paused to the snapshot. ``archive``, ``ttl`` and ``durability``: as of `pause`."""
        how = self._archiving(archive)
        result = self._take(ref, labels=labels or {}, state=state, archive=how, ttl=ttl, durability=durability)
        return self._archived(result, how, progress)

    @verb("snapshot.take")
    def _take(self, ref: str, **how: Any) -> TakeResult:
        from engine.lifecycle import take

        with recover.taken(self._root, ref) as job:
            return take.take(self._root, job, **how)

    def snapshots(self, job: str | None = None) -> list[Snapshot]:
        wanted = self._root.catalog.job(job).id if job is not None else None
        found = [entry for entry in self._root.catalog.snapshots() if wanted is None or entry.job == wanted]
        return sorted(found, key=lambda entry: entry.created)

    def snapshot(self, ref: str) -> Snapshot:
        return self._root.catalog.snapshot(ref)

    @verb("snapshot.pin")
    def snapshot_pin(self, ref: str, *, pinned: bool = True) -> Snapshot:
        """A pinned snapshot outlives its job, and the job's resume stacks on it instead of writing its layer again."""
        with (
            self._root.intent("pin") as intent,
            step("pin.commit"),
            self._root.catalog.transaction(durable=True) as transaction,
        ):
            intent.undone()  # but for a crash
            snapshot = msgspec.structs.replace(self._root.snapshot(ref), pinned=pinned)
            if any(job.upper == snapshot.layers[-1] for job in self._root.catalog.jobs_in(JobState.RESUMING)):
                raise Busy(f"snapshot {snapshot.id} is being resumed", hint="pin it before the resume")
            records.keep_snapshot(self._root, snapshot)
            transaction.put_snapshot(snapshot)
        return snapshot

    @verb("snapshot.remove")
    def snapshot_remove(self, ref: str) -> None:
        """Raises InUse for the snapshot that a job is paused to."""
        with translated("remove snapshot"):
            remove.remove_snapshot(self._root, ref)

    # archives

    @verb("snapshot.archive")
    def snapshot_archive(self, ref: str, *, progress: Progress | None = None) -> Snapshot:
        """Make images of a snapshot's layers and processes, of those that aren't images yet. Raises NotFound when it is
        removed or its job writes its layer again meanwhile; NoSpace, Damaged; what was begun goes on the next time."""
        from engine.lifecycle import archiving

        with translated("archive"):
            return archiving.archive_snapshot(self._root, ref, progress=progress)

    def archiving(self) -> dict[str, tuple[int, int]]:
        """Snapshots that are being archived now: bytes done, and in all (0 = unknown)."""
        from engine.lifecycle import archiving

        return archiving.under_way(self._root)

    @verb("snapshot.verify", told=False)
    def snapshot_verify(self, ref: str, *, progress: Progress | None = None) -> list[str]:
        """Read every byte of an archived snapshot and its base, and compare it with the digests: what is wrong, a line
        for each file and piece. Raises WrongState when it isn't archived."""
        from engine.lifecycle import archiving

        return archiving.verify(self._root, ref, progress=progress)

    @verb("snapshot.flatten")
    def snapshot_flatten(self, ref: str) -> Snapshot:
        """Make one layer of a snapshot's chain, which shows the same; jobs run on. Raises Busy, NoSpace."""
        from engine.lifecycle import flatten

        with translated("flatten"):
            return flatten.flatten_snapshot(self._root, ref)

    @verb("demote")
    def demote(self, ref: str, *, progress: Progress | None = None) -> list[Collected]:
        """Leave only images of what a paused job is paused to, which is archived first if it isn't: it takes no more
        room than its archive, and its resume stacks. What went. Raises WrongState, InUse, Busy, NoSpace, Damaged."""
        from engine.lifecycle import demote

        return demote.demote(self._root, ref, progress=progress)

    def snapshot_diff(self, ref: str, other: str | None = None) -> Iterator[FileChange]:
        """What is different from a snapshot to another, or from its base to it; by path, as it is found."""
        from engine.lifecycle import diff

        return diff.diff(self._root, ref, other)

    @verb("snapshot.export")
    def snapshot_export(
        self,
        ref: str,
        target: str | BinaryIO,
        *,
        format: Format = "serac",  # noqa: A002 - the option's name
        with_base: bool = False,
        progress: Progress | None = None,
    ) -> Snapshot:
        """Write a snapshot to a file (whole or not at all) or into a stream: in serac's own format, archived first if
        it isn't; with ``oci`` into a new directory, ``DIR[:TAG]``, as an image layout that has the base and the files;
        with ``podman`` as a checkpoint archive of its processes. Raises InvalidInput, NotFound, NoSpace, Damaged."""
        from engine.lifecycle import exports

        return exports.export(self._root, ref, target, format=format, with_base=with_base, progress=progress)

    @verb("snapshot.import")
    def snapshot_import(
        self, source: str | BinaryIO, *, trust: bool = False, progress: Progress | None = None
    ) -> Snapshot:
        """Take a snapshot that was exported, from a file or a stream, when every byte is verified; it is pinned. The
        same one again is no error. ``trust``: take privileges that it asks for, and devices in it. Raises Damaged,
        NotFound (its base), NameTaken, InvalidInput, NoSpace, Busy; nothing is changed then.

        ``DIR[:TAG]``, an OCI image layout, becomes a base without a name and a snapshot over it that has changed
        nothing; each time a new one. Raises ToolMissing and ToolFailed too."""
        from engine.lifecycle import imports, oci_import

        if isinstance(source, str) and (image := oci_import.layout(source)) is not None:
            return oci_import.import_image(self._root, image)
        return imports.import_snapshot(self._root, source, trust=trust, progress=progress)

    def collect(self, *, dry_run: bool = False) -> list[Collected]:
        """Remove the snapshots that the root's policies give up (config.json: ``retention``, ``quota``), and the jobs
        that are paused to them; what no job or snapshot needs then; and directories of layers whose images are all that
        is needed. What was removed, or with ``dry_run`` would be, with the reasons."""
        from engine.lifecycle import collect

        return collect.collect(self._root, dry_run=True) if dry_run else self._collect()

    @verb("collect")
    def _collect(self) -> list[Collected]:
        from engine.lifecycle import collect

        with translated("collect"):
            return collect.collect(self._root)

    def verdicts(self) -> list[Verdict]:
        """Whether each snapshot would be kept by `collect` now, and why; oldest first."""
        from engine.lifecycle import retain

        return retain.verdicts(self._root)

    def _archiving(self, archive: Archiving | None) -> Archiving:
        """Raises InvalidInput."""
        how = archive or self.config.settings.archive
        if how not in get_args(Archiving):
            raise InvalidInput(f"no way {how!r} to archive", hint="background, wait or never")
        return how

    def _archived(self, result: _Result, how: Archiving, progress: Progress | None) -> _Result:
        """What a pause left due is done now, or begun."""
        if how == "wait":
            archived = self.snapshot_archive(result.snapshot, progress=progress)
            return msgspec.structs.replace(result, archive=archived.archive)
        if how == "background" or result.durability == "fast":
            background.start(self._root)
        return result
