"""The manifest: what a snapshot is when it leaves its host. It names images by digest, and nothing of one host.

JSON with sorted keys and every field, in UTF-8; the SHA-256 of these bytes is the snapshot's digest:

    format     ``serac-snapshot/1``
    id         of the snapshot, the same on every host
    job, name  of the job that it is of; the name is what a fork of it may be called after
    spec       what the job was told to run, `engine.model.JobSpec`; its ``base`` is a name, for people
    base       digest of the base's image, and the environment that the base brings along
    layers     oldest first: digest of each one's image, and the bytes of its two files
    overlay    the options of overlayfs that decide what a layer means, see `engine.layers.OPTIONS`
    mode       ``process`` or ``filesystem``; ``reason``: why not ``process``
    processes  with mode ``process``: `engine.model.ProcessImage`, its ``digest`` is that of an image of criu's files
    context    what a start from the files begins with, `engine.model.Context`
    labels, parent (a snapshot's id), created (seconds since the epoch)

Written history: serac-snapshot/1, the first. A reader takes every version up to its own and refuses newer ones.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import msgspec

from engine.errors import Damaged
from engine.model import Context, JobSpec, ProcessImage, Value

FORMAT = "serac-snapshot/1"
MANIFEST_MAX = 16 << 20
"""bytes"""
SIZE_MAX = 1 << 50
"""bytes of an image"""
_FORMAT = re.compile(r"serac-snapshot/([0-9]{1,6})")
_DIGEST, _ID = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{12}")
_LOG = re.compile(r"[0-9]{1,9}\.(spec|status|log|log\.old)")


class Part(Value, frozen=True, kw_only=True):
    """An image."""

    digest: str
    size: int
    """bytes of its two files"""


class BaseRecord(Value, frozen=True, kw_only=True):
    digest: str
    env: dict[str, str] = msgspec.field(default_factory=dict)


class Manifest(Value, frozen=True, kw_only=True, omit_defaults=False):
    format: str = FORMAT
    id: str
    job: str
    name: str
    spec: JobSpec
    base: BaseRecord
    layers: tuple[Part, ...]
    overlay: dict[str, str]
    mode: Literal["filesystem", "process"]
    reason: str | None = None
    processes: ProcessImage | None = None
    processes_size: int = 0
    """bytes of the two files of their image"""
    context: Context
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    parent: str | None = None
    created: float


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")


def digest(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def decode(encoded: bytes) -> Manifest:
    """Raises Damaged for what is no manifest, or a newer one; nothing in it is more than checked for its form."""
    try:
        known = _FORMAT.fullmatch(msgspec.json.decode(encoded, type=_Head).format)
        if not known:
            raise Damaged("it is no manifest of a snapshot")
        if int(known[1]) > 1:
            raise Damaged(f"it was written by a newer serac ({known[0]})", hint="upgrade serac")
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the manifest: {error}") from error
    wrong = _nonsense(manifest)
    if wrong:
        raise Damaged(f"the manifest: {wrong}")
    return manifest


class _Head(msgspec.Struct):
    format: str


def parts(manifest: Manifest) -> tuple[Part, ...]:
    """The images that it names but for the base: layers, oldest first, then the processes."""
    processes = manifest.processes
    if processes is None or processes.digest is None:
        return manifest.layers
    return (*manifest.layers, Part(digest=processes.digest, size=manifest.processes_size))


def _nonsense(manifest: Manifest) -> str | None:
    if not all(map(_ID.fullmatch, (manifest.id, manifest.job))):
        return "an id is none"
    if not all(_DIGEST.fullmatch(digest) for digest in (manifest.base.digest, *(p.digest for p in parts(manifest)))):
        return "a digest is none"
    if not manifest.layers or not all(0 < part.size <= SIZE_MAX for part in parts(manifest)):
        return "impossible sizes"
    processes = manifest.processes
    if (manifest.mode == "process") != (processes is not None):
        return "it has processes, or not"
    if processes is not None and (processes.digest is None or processes.memory < 0):
        return "its processes have no image"
    if processes is not None and not all(_LOG.fullmatch(name) and size >= 0 for name, size in processes.logs.items()):
        return "a log has a name that can't be"
    return None
