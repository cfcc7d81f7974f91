"""base build, warm and rm, and the mounts that all jobs share.

Build: 1 unpack the source into a scratch tree; 2 prepare it (device nodes, mount points); 3 make the image in the
scratch directory, digested and flushed; 4 rename it to ``bases/<digest>``; 5 COMMIT: row and tag in one transaction.

| killed | leaves | put right by |
| --- | --- | --- |
| before 4 | a scratch directory | the sweep of the next engine |
| between 4 and 5 | an image that the catalog doesn't know | the same sweep, or the next such build takes it |

Removal: 1 COMMIT: the row and its tags go; 2 unmount; 3 the bytes go. Killed after 1: the sweep does 2 and 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from engine import archive, base, session, store, tools
from engine.base import Source
from engine.errors import InUse, NotFound, ToolFailed, from_os
from engine.lifecycle import chains, images, mounting, observe, processes, records, run
from engine.lifecycle.remove import remove as remove_job
from engine.lifecycle.root import Root, check_name, now
from engine.model import LIVE, PASSING, Base, Job, JobSpec, Profile, SnapshotSource, Warmth
from engine.steps import step
from engine.tree import open_directory

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much (0 = unknown)"""


def build(root: Root, name: str | None, source: Source | SnapshotSource, *, progress: Progress | None = None) -> Base:
    """``name`` None: the base has none, unless it was there before."""
    if name is not None:
        check_name(name)
    with root.intent(f"base-{name or store.new_id()}", scratch=True) as intent:
        image = intent.path / "image"
        try:
            env = _make_image(root, source, image, progress)
        except BaseException:
            intent.undone()
            raise
        digest = archive.image_digest(image)
        with contextlib.ExitStack() as stack:
            with step("base.place"):
                stack.enter_context(images.placed(image, root.bases / digest, timeout=root.timeout))
            with step("base.commit"), root.catalog.transaction(durable=True) as transaction:
                size = _size(root.bases / digest)
                transaction.put_base(Base(digest=digest, size=size, source=describe(source), created=now(), env=env))
                if name is not None:
                    transaction.put_tag(name, digest)
                records.keep_bases(root)
    return root.catalog.base(digest)


def _make_image(root: Root, source: Source | SnapshotSource, image: Path, progress: Progress | None) -> dict[str, str]:
    """Steps 1 to 3; the environment that the source brings along."""
    tree = image.with_name("tree")
    with step("base.unpack"):
        _tell(progress, "unpack")
        _make_directory(tree, mode=0o755)
        env = _unpack(root, source, tree)
    with step("base.image"):
        base.prepare(tree)
        _make_directory(image, mode=0o700)
        _write_image(tree, image, progress)
    return env


def _write_image(tree: Path, image: Path, progress: Progress | None) -> None:
    total = tools.disk_usage(tree)
    tick = None if progress is None else lambda done: progress("image", min(done, total), total)
    with open_directory(tree) as root:
        archive.build_image(root, image, tick=tick)


def _make_directory(path: Path, *, mode: int) -> None:
    try:
        path.mkdir(mode=mode)
    except OSError as error:
        raise from_os(error, "build base") from error


def describe(source: Source | SnapshotSource) -> str:
    """``debian:bookworm``: where a base comes from, for people."""
    kind = type(source).__name__.removesuffix("Source").lower()
    values = [getattr(source, field) for field in source.__struct_fields__]
    return ":".join([kind, *(",".join(value) if isinstance(value, tuple) else str(value) for value in values if value)])


def _unpack(root: Root, source: Source | SnapshotSource, tree: Path) -> dict[str, str]:
    if not isinstance(source, SnapshotSource):
        return base.unpack(source, tree)
    snapshot = root.catalog.snapshot(source.snapshot)
    with chains.packed(root, snapshot.base, snapshot.layers, "/.") as stream:
        base.unpack_stream(stream.fileno(), tree)
    store.remove_tree(tree / ".serac")
    return {**root.catalog.base(snapshot.base).env, **snapshot.spec.env}


def _size(directory: Path) -> int:
    image = archive.load_image(directory)
    return image.meta.size + image.blob.size


def warm(root: Root, ref: str, *, whole: bool) -> Warmth:
    """``whole``: not only what its profile says. Raises NotFound."""
    found = root.catalog.base(ref)
    return base.warm(root.bases / found.digest, None if whole else profile(root, found.digest))


def warm_profiled(root: Root, digest: str) -> Warmth | None:
    """What jobs read of a base, where that is known."""
    known = profile(root, digest)
    return None if known is None else base.warm(root.bases / digest, known)


def profile(root: Root, digest: str) -> Profile | None:
    """What jobs read of a base, where that was recorded. One that can't be read is none."""
    try:
        return msgspec.json.decode((root.bases / digest / "profile.json").read_bytes(), type=Profile)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def record(root: Root, spec: JobSpec) -> Profile:
    """Run a job on a base of which nothing is in memory, and note what is there when it has ended.

    Raises InUse while another job is on the base, ToolFailed when it doesn't end well; nothing is noted then."""
    found = root.catalog.base(spec.base)
    directory = root.bases / found.digest
    _cool(root, found)
    job = run.run(root, spec, terminal=None)
    try:
        while not processes.wait_init(root, job, timeout=root.timeout):
            pass
        with root.locked(job.id) as ended:
            _check_status(root, observe.settle(root, ended))
        noted = base.resident(directory)
        with root.intent("profile") as intent:
            intent.undone()  # but for a crash
            store.write_aside(directory / "profile.json", msgspec.json.encode(noted))
    except OSError as error:
        raise from_os(error, "note what the job reads") from error
    finally:
        with root.locked(job.id) as left:
            remove_job(root, left, force=True)
    return noted


def _cool(root: Root, found: Base) -> None:
    """Nobody has it mounted, and nothing of it is in memory."""
    with _held(root, found.digest):
        living = [job.name for job in root.catalog.jobs() if job.base == found.digest and job.state in LIVE | PASSING]
        if living:
            raise InUse(f"base {found.names[0] if found.names else found.digest[:12]} is used by job {living[0]}")
        mounting.unmount(root, found.digest)
        try:
            base.forget(root.bases / found.digest)
        except OSError as error:
            raise from_os(error, "forget base") from error


def _check_status(root: Root, job: Job) -> None:
    if job.status != 0:
        said = b"".join(
            event.data for event in session.read_log(root.io(job.id), 0) if isinstance(event, session.Output)
        )
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise ToolFailed(f"the command ended with status {job.status}: {last[0]}")


def remove(root: Root, ref: str) -> None:
    """Remove a name; with the last name the image too, unless a job or snapshot needs it (InUse)."""
    found = root.catalog.base(ref)
    root.give_way()
    with root.intent(f"rm-{found.digest[:12]}") as intent, _held(root, found.digest):
        try:
            with step("base.forget"):
                stays = _forget(root, ref, found.digest)
        except InUse:
            intent.undone()
            raise
        if stays:
            return
        with step("base.unmount"):
            mounting.unmount(root, found.digest)
        with step("base.remove"):
            images.remove(root, root.bases / found.digest)


@contextlib.contextmanager
def _held(root: Root, digest: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # its bytes are lost: its row can go all the same
            stack.enter_context(store.locked(root.bases / digest, timeout=root.timeout))
        yield


def _forget(root: Root, ref: str, digest: str) -> bool:
    """The name's row goes, or the base's; whether the base stays."""
    with root.catalog.transaction(durable=True) as transaction:
        found = root.catalog.base(ref)  # again, for the name may have gone or moved since
        if found.digest != digest:
            raise NotFound(f"{ref} means another base meanwhile")
        if ref in found.names and len(found.names) > 1:
            transaction.remove_tag(ref)
            records.keep_bases(root)
            return True
        _refuse_used(root, found)
        transaction.remove_base(digest)
        return False


def _refuse_used(root: Root, found: Base) -> None:
    jobs = [job.name for job in root.catalog.jobs() if job.base == found.digest]
    snapshots = [snapshot.id for snapshot in root.catalog.snapshots() if snapshot.base == found.digest]
    if jobs or snapshots:
        users = ", ".join([*(f"job {name}" for name in jobs), *(f"snapshot {name}" for name in snapshots)][:5])
        raise InUse(f"base {found.names[0] if found.names else found.digest[:12]} is used by {users}")


def _tell(progress: Progress | None, what: str) -> None:
    if progress is not None:
        progress(what, 0, 0)
