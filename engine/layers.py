"""Chains and how they are mounted: descriptions and decisions, and the few directory operations on a layer.

A layer lives its whole life in ``layers/<id>``: ``upper/`` (its content) and, while a job writes it, ``work/``. Sealing
moves nothing: the layer loses its owner and gains a manifest, ``snapshot.json``, so that what is sealed can be told
from the disk alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from engine.errors import Damaged, InvalidInput, from_os
from engine.model import Job, Layer, Snapshot, Strategy, Value
from engine.store import remove_tree, write_aside
from engine.tree import OVERLAY, Node

DEPTH_MAX = 400
"""layers in a chain; the kernel's own limit is 500 (OVL_MAX_STACK)"""

OPTIONS = ("index=off", "metacopy=off", "nfs_export=off", "redirect_dir=on", "xino=on", "uuid=null", "volatile")
"""Overlay options of every job, part of what a layer means: a layer made with other values of index, metacopy or
redirect_dir may not be mounted with these. redirect_dir=on keeps rename(2) of directories of lower layers working, also
after a resume; xino=on keeps st_dev and st_ino steady; volatile because a pause flushes once, at the cut."""


MEANING = {"index": "off", "metacopy": "off", "redirect_dir": "on"}
"""Of these options those that decide what a layer means; a manifest has them."""


class Overlay(Value, frozen=True, kw_only=True):
    """What serac-launch mounts as a job's root: ``trees`` are names for directories of the host, all else is relative
    to one of them. ``lowers`` topmost first."""

    trees: tuple[tuple[str, str], ...]
    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    options: tuple[str, ...] = OPTIONS


def overlay(layers: Path, mounts: Path, base: str, chain: Sequence[Layer], upper: str | None) -> Overlay:
    """The overlay of ``upper`` over ``chain`` (oldest first) over the base of that digest; no upper = read-only.

    ``mounts`` has the base and the layers that are images alone, see `mount_names`."""
    names = mount_names(chain)
    trees = {"base": mounts / base, "layers": layers}
    lowers = ["base"]
    for number, layer in enumerate(chain):
        if layer.id in names:
            trees[f"image{number}"] = mounts / names[layer.id]
        lowers.append(f"image{number}" if layer.id in names else f"layers/{layer.id}/upper")
    places = tuple((name, os.fspath(path)) for name, path in trees.items())
    described = Overlay(trees=places, lowers=tuple(reversed(lowers)))
    if upper is None:
        return described
    return msgspec.structs.replace(described, upper=f"layers/{upper}/upper", work=f"layers/{upper}/work")


def mount_names(chain: Iterable[Layer]) -> dict[str, str]:
    """Under which names the layers of a chain that are images alone are mounted, by their ids.

    The name is the image's digest. overlayfs doesn't take a directory twice: an image that is there more than once, as
    that of an empty layer may be, is mounted as often."""
    names: dict[str, str] = {}
    for layer in chain:
        if layer.image is not None and not layer.directory:
            again = sum(name.startswith(layer.image) for name in names.values())
            names[layer.id] = f"{layer.image}.{again}" if again else layer.image
    return names


def choose_strategy(
    job: Job, snapshot: Snapshot, top: Layer, *, snapshots: Iterable[Snapshot], jobs: Iterable[Job]
) -> Strategy:
    """Reuse the snapshot's top layer as the job's upper again when it is the job's own newest, a directory, and wanted
    by nobody else."""
    if not top.directory or job.snapshot != snapshot.id or snapshot.pinned or snapshot.job != job.id:
        return "stack"
    wanted = any(top.id in other.layers for other in snapshots if other.id != snapshot.id)
    wanted = wanted or any(
        top.id in (*other.layers, *other.mounted) or top.id == other.upper for other in jobs if other.id != job.id
    )
    return "stack" if wanted else "reuse"


def check_depth(snapshot: Snapshot) -> None:
    """Raises InvalidInput when nothing can be stacked on the snapshot any more."""
    if len(snapshot.layers) >= DEPTH_MAX:
        raise InvalidInput(
            f"the chain of snapshot {snapshot.id} is {len(snapshot.layers)} layers deep",
            hint=f"make a base of it: `serac base build NAME --snapshot {snapshot.id}`",
        )


def unreferenced(layers: Iterable[Layer], *, snapshots: Iterable[Snapshot], jobs: Iterable[Job]) -> list[str]:
    """Ids of the layers that no snapshot, no chain and no upper needs."""
    needed: set[str] = set()
    for snapshot in snapshots:
        needed.update(snapshot.layers)
    for job in jobs:
        needed.update(job.layers, job.mounted)
        if job.upper is not None:
            needed.add(job.upper)
    return [layer.id for layer in layers if layer.id not in needed]


def create(directory: Path, *, like: Node) -> None:
    """Make an empty layer for a job to write. The overlay's root shows the upper's own owner, mode, times and xattrs:
    they are taken from ``like``, the root directory of what lies below."""
    try:
        (directory / "upper").mkdir(parents=True)
        (directory / "work").mkdir()
        _copy_attributes(like, directory / "upper")
    except OSError as error:
        raise from_os(error, "create layer") from error


def _copy_attributes(source: Node, target: Path) -> None:
    os.chown(target, source.uid, source.gid)
    os.chmod(target, stat.S_IMODE(source.mode))
    for name, value in source.xattrs().items():
        if not name.startswith(OVERLAY):
            os.setxattr(target, name, value)
    os.utime(target, ns=(source.mtime_ns, source.mtime_ns))


def renew_work(directory: Path) -> None:
    """Give a layer an empty work directory: a used one refuses the mount (``incompat/volatile``)."""
    try:
        remove_tree(directory / "work")
        (directory / "work").mkdir()
    except OSError as error:
        raise from_os(error, "renew work directory") from error


def drop_work(directory: Path) -> None:
    remove_tree(directory / "work")


def image(directory: Path) -> Path:
    """Where the process image of the pause that sealed a layer lies: criu's files, io/ and shm/."""
    return directory / "image"


def make_image(directory: Path, *, reader: int) -> Path:
    """Make an empty place for a process image, in the stead of one that a killed engine may have left.

    What is restored reads it as root of the host first and then of its user namespace: ``reader`` is the group of all
    files, the host's id of that root. Nobody else gets here, for the layers' own directory is closed."""
    images = image(directory)
    try:
        remove_tree(images)
        images.mkdir(mode=0o700)
        os.chown(images, 0, reader)
        images.chmod(0o2750)
    except OSError as error:
        raise from_os(error, "make place for the processes") from error
    return images


def keep_files(directory: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Give files of the upper another name in image/remaps; ``names`` as they are. Raises OSError."""
    kept = image(directory) / "remaps"
    if names:
        kept.mkdir()
    for place, name in enumerate(names):
        with _parent(directory / "upper", name) as parent:
            os.link(os.path.basename(name), kept / str(place), src_dir_fd=parent, follow_symlinks=False)
    return tuple(names)


def put_back(directory: Path, names: Sequence[str]) -> None:
    """Give the files of image/remaps, as far as it has them, the names that they had in the upper, where those are
    gone. Raises OSError."""
    for place, name in enumerate(names):
        with _parent(directory / "upper", name) as parent, contextlib.suppress(FileExistsError, FileNotFoundError):
            kept = image(directory) / "remaps" / str(place)
            os.link(kept, os.path.basename(name), dst_dir_fd=parent, follow_symlinks=False)


def drop_remaps(directory: Path) -> None:
    """Take the second names of files away, which the job would count."""
    remove_tree(image(directory) / "remaps")


@contextlib.contextmanager
def _parent(top: Path, name: str) -> Iterator[int]:
    """A descriptor of the directory of ``name``, which no link leads to: the upper is the job's."""
    with contextlib.ExitStack() as stack:
        fd = -1
        for part in (os.fspath(top), *os.path.dirname(name).split("/")):
            if part:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(part, flags, dir_fd=fd if fd >= 0 else None)
                stack.callback(os.close, fd)
        yield fd


def drop_directory(directory: Path) -> None:
    """Of a layer that is an image: what else is there of it, and of its process image, goes."""
    remove_tree(directory / "upper")
    remove_tree(image(directory))


def drop_image(directory: Path) -> None:
    remove_tree(image(directory))


def seal(directory: Path, snapshot: Snapshot) -> None:
    """Write the manifest of the snapshot that this layer tops. It becomes durable with the flush that follows."""
    try:
        write_aside(directory / "snapshot.json", msgspec.json.encode(snapshot))
    except OSError as error:
        raise from_os(error, "seal layer") from error


def manifest(directory: Path) -> Snapshot | None:
    """The snapshot that a sealed layer tops; None where there is no manifest. Raises Damaged."""
    file = directory / "snapshot.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Snapshot)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Damaged(f"{file}: {error}") from error


_MANIFESTS = ("snapshot.json", "manifest.json")


def unseal(directory: Path) -> None:
    """Of a layer that is written again, or that tops no snapshot any more: the manifests go."""
    for name in _MANIFESTS:
        (directory / name).unlink(missing_ok=True)


def take_apart(directory: Path, away: Callable[[Path], None]) -> None:
    """Of a layer that is written again: all that made a snapshot of it goes away."""
    drop_remaps(directory)
    for path in (*(directory / name for name in _MANIFESTS), image(directory)):
        away(path)


def forget_snapshot(directory: Path) -> None:
    """The snapshot that it topped is gone, and its processes with it."""
    unseal(directory)
    drop_image(directory)
