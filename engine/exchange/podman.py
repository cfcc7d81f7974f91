"""A snapshot with processes as the checkpoint archive that ``podman container checkpoint --export`` writes.

    spec.dump              the job as an OCI runtime specification
    config.dump            what Podman knows of a container
    network.status         of its networks: none
    checkpoint/            criu's images, and for runc what the first process has as 0, 1 and 2
    rootfs-diff.tar        what the job added and changed over the base; a tar without whiteouts
    deleted.files          what it deleted: absolute paths, a JSON array; restorers take them away last
    devshm-checkpoint.tar  what lay in /dev/shm, if anything did

Names and fields: Podman's libpod/container_internal_common.go and the metadata package of checkpointctl, which tells
the engine by the annotation ``io.container.manager``. The archive is a plain tar, as ``--compress none`` makes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.errors import InvalidInput
from engine.exchange.changes import Entry, changes
from engine.exchange.oci import stamp
from engine.exchange.tar import Sink, Tar
from engine.tree import PIECE, Merged, Node, merged

MANAGER = "libpod"
"""the engine whose archive it is to be read as"""
RUNTIME = "runc"


class Container(NamedTuple):
    """A job as a container: ``base`` names the image that it is to be restored over."""

    id: str
    name: str
    base: str
    image: str
    created: float
    checkpointed: float
    args: Sequence[str]
    env: Sequence[str]
    workdir: str
    uid: int
    gid: int
    labels: Mapping[str, str]


def write_checkpoint(
    out: Sink,
    container: Container,
    *,
    before: Merged,
    after: Merged,
    but: frozenset[bytes],
    processes: Node,
    scratch: Path,
    tick: Callable[[int], None] | None = None,
) -> None:
    """``processes``: the tree of the process image. What is written aside lies in the directory ``scratch``. Raises
    InvalidInput, OSError, and what the trees raise."""
    tar = Tar(out, tick=tick)
    when = int(container.checkpointed)

    def json(name: str, value: object) -> None:
        encoded = msgspec.json.encode(value, order="sorted")
        tar.file(name, len(encoded), [encoded], mtime=when)

    json("spec.dump", _spec(container))
    json("config.dump", _config(container))
    json("network.status", {})
    tar.directory("checkpoint", mtime=when)
    json("checkpoint/descriptors.json", ["/dev/null"] * 3)
    for name, node in processes.children():
        if node.is_file:
            tar.file(f"checkpoint/{os.fsdecode(name)}", node.size, node.read(0, node.size), mtime=when)
    gone = _diff(tar, before, after, but, scratch / "rootfs-diff.tar", when)
    if gone:
        json("deleted.files", [_text(path) for path in gone])
    shm = processes.child(b"shm")
    if shm is not None:
        _apart(tar, changes(None, merged([shm])), scratch / "devshm-checkpoint.tar", when)
    tar.finish()


def _diff(tar: Tar, before: Merged, after: Merged, but: frozenset[bytes], aside: Path, when: int) -> list[bytes]:
    """What there is of the job is in the archive then; what is gone is returned."""
    gone: list[bytes] = []

    def there() -> Iterator[Entry]:
        for entry in changes(before, after, but=but):
            if entry.node is None:
                gone.append(entry.path)
            else:
                yield entry

    _apart(tar, there(), aside, when)
    return gone


def _apart(tar: Tar, entries: Iterable[Entry], aside: Path, when: int) -> None:
    """A tar within the archive, whose size has to be known before."""
    with open(aside, "x+b") as file:
        inner = Tar(file)
        inner.add(entries, whiteouts=False)
        inner.finish()
        size = file.tell()
        file.seek(0)
        tar.file(aside.name, size, iter(lambda: file.read(PIECE), b""), mtime=when)
    aside.unlink()


def _text(path: bytes) -> str:
    try:
        return "/" + path.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"/{os.fsdecode(path)[:200]!r} was deleted, whose name isn't UTF-8: the archive can't say so",
            hint="use --format serac",
        ) from error


def _config(container: Container) -> dict[str, object]:
    return {
        "id": container.id,
        "name": container.name,
        "rootfsImageName": container.base,
        "rootfsImage": container.base,
        "rootfsImageRef": container.image,
        # Podman wants one, and takes a name as well.
        "rootfsImageID": container.base,
        "runtime": RUNTIME,
        "createdTime": stamp(container.created),
        "checkpointedTime": stamp(container.checkpointed),
        "restored": False,
        "command": list(container.args),
        "labels": dict(container.labels),
    }


def _spec(container: Container) -> dict[str, object]:
    """What a runtime would have been asked to run."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": container.uid, "gid": container.gid},
            "args": list(container.args),
            "env": list(container.env),
            "cwd": container.workdir,
        },
        "root": {"path": "rootfs"},
        "hostname": container.name,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "nodev", "noexec"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        "annotations": {
            "io.container.manager": MANAGER,
            "org.criu.checkpoint.container.name": container.name,
            "org.criu.checkpoint.engine.name": "serac",
            "org.criu.checkpoint.rootfsImageName": container.base,
        },
    }
