"""The manifest: what a snapshot is when it leaves its host. It names images by digest, and nothing of one host.

JSON in UTF-8 with sorted keys and no spaces, in the one form that `encode` gives it: the SHA-256 of these bytes is the
snapshot's digest, and other bytes that mean the same are refused. All of these are there; within them what has its
default is left out:

    format          ``serac-snapshot/1``
    id              of the snapshot, the same on every host
    job, name       of the job that it is of; the name is what a fork of it may be called after
    spec            what the job was told to run, `engine.model.JobSpec`; its ``base`` is a name, for people
    base            ``digest`` and ``size`` (bytes of the two files) of the base's image, and ``env``, the environment
                    that the base brings along
    layers          oldest first: ``digest`` of each one's image, and its ``size``
    overlay         the options of overlayfs that decide what a layer means, see `engine.layers.MEANING`
    mode            ``process`` or ``filesystem``; ``reason``: why not ``process``
    processes       with mode ``process``: `engine.model.ProcessImage`; ``digest`` is that of an image of criu's files
    processes_size  bytes of the two files of that image; 0 without one
    context         what a start from the files begins with, `engine.model.Context`
    labels          what the caller has written on the snapshot
    parent          the snapshot that the job had been resumed from, by its id
    created         seconds since the epoch

Written history: serac-snapshot/1, the first. A reader takes every version up to its own and refuses newer ones. Since
then spec may have ``snapshot_on``, and context ``question``, ``answers``, ``failure`` and ``idle``; a reader that
doesn't know them refuses a manifest that has any.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from engine.errors import Damaged
from engine.model import Context, JobSpec, ProcessImage, Value

FORMAT = "serac-snapshot/1"
MANIFEST_MAX = 16 << 20
"""bytes"""
SIZE_MAX = 1 << 50
"""bytes of an image"""
CREATED_MAX = 250_000_000_000
"""seconds since the epoch: there are dates until then"""
LOG_MAX = 256 << 20
"""bytes of a session's log, as init has it"""
TEXT_MAX = 256
"""characters of what describes a host"""
CPUS_MAX = 1 << 16
_CLASS, _REAL_TIME, _IDLE = 13, 1, 3
"""of an I/O priority: where its class begins, and the first and last of them"""
_VERSION = 1
_FORMAT = re.compile(r"serac-snapshot/([1-9][0-9]{0,5})")
_DIGEST, _ID = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{12}")
_LOG = re.compile(r"[0-9]{1,9}\.(spec|status|log|log\.old)")


class Part(Value, frozen=True, kw_only=True):
    """An image."""

    digest: str
    size: int
    """bytes of its two files"""


class BaseRecord(Part, frozen=True, kw_only=True):
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
    return msgspec.json.encode(_plain(manifest), order="sorted")


def _plain(value: object) -> object:
    """For JSON. msgspec itself leaves out a default when it is the same object, which an equal value need not be."""
    if isinstance(value, msgspec.Struct):
        fields = {field.name: (getattr(value, field.name), _default(field)) for field in msgspec.structs.fields(value)}
        every = not value.__struct_config__.omit_defaults
        return {name: _plain(held) for name, (held, default) in fields.items() if every or held != default}
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def digest(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def decode(encoded: bytes) -> Manifest:
    """Raises Damaged for what is no manifest, or a newer one; nothing in it is more than checked for its form."""
    try:
        _check_version(msgspec.json.decode(encoded, type=_Head).format)
        manifest = msgspec.json.decode(encoded, type=Manifest)
        canonical = encode(manifest) == encoded
    except (msgspec.DecodeError, UnicodeError, OverflowError, RecursionError) as error:
        raise Damaged(f"the manifest: {error}") from error
    wrong = next(_nonsense(manifest), None if canonical else "it isn't in the form in which serac writes it")
    if wrong:
        raise Damaged(f"the manifest: {wrong}")
    return manifest


class _Head(msgspec.Struct):
    format: str


def _check_version(form: str) -> None:
    known = _FORMAT.fullmatch(form)
    if not known:
        raise Damaged("it is no manifest of a snapshot")
    if int(known[1]) > _VERSION:
        raise Damaged(f"it was written by a newer serac ({form})", hint="upgrade serac")


def parts(manifest: Manifest) -> tuple[Part, ...]:
    """The images that it names but for the base: layers, oldest first, then the processes."""
    processes = manifest.processes
    if processes is None or processes.digest is None:
        return manifest.layers
    return (*manifest.layers, Part(digest=processes.digest, size=manifest.processes_size))


def _nonsense(manifest: Manifest) -> Iterator[str]:
    ids = [ref for ref in (manifest.id, manifest.job, manifest.parent) if ref is not None]
    if not all(map(_ID.fullmatch, ids)):
        yield "an id is none"
    if not 0 <= manifest.created < CREATED_MAX:
        yield "it was created at no time"
    images, sizes = (manifest.base, *parts(manifest)), dict[str, int]()
    if not all(_DIGEST.fullmatch(part.digest) for part in images):
        yield "a digest is none"
    if not manifest.layers or not all(0 < part.size <= SIZE_MAX for part in images):
        yield "impossible sizes"
    if any(sizes.setdefault(part.digest, part.size) != part.size for part in images):
        yield "an image has two sizes"
    if manifest.base.digest in {part.digest for part in parts(manifest)}:
        yield "its base is one of its layers"
    processes = manifest.processes
    if (manifest.mode == "process") != (processes is not None):
        yield "it has processes, or not"
    if processes is not None:
        yield from _nonsense_in(processes, private=manifest.spec.userns == "private")
    elif manifest.processes_size:
        yield "there are no processes that have a size"


def _nonsense_in(processes: ProcessImage, *, private: bool) -> Iterator[str]:
    """``private``: whether the job has a user namespace of its own."""
    if processes.digest is None or not 0 <= processes.memory <= SIZE_MAX:
        yield "its processes have no image"
    if private != (processes.range is not None):
        yield "its processes have another user namespace than its job"
    if not all(_LOG.fullmatch(name) and 0 <= size <= LOG_MAX for name, size in processes.logs.items()):
        yield "a log has a name or a size that can't be"
    if not processes.init.startswith("/") or not all(map(_inside, (processes.init[1:], *processes.remaps))):
        yield "a path leads out of the job"
    if processes.address is not None and not _is_address(processes.address):
        yield "its address is none"
    for placement in processes.placements:
        lowest = _REAL_TIME + private  # who has no rights on the host can't have that one
        if placement.ioprio and not lowest <= placement.ioprio >> _CLASS <= _IDLE:
            yield "a thread has a priority that jobs can't have"
        if placement.thread <= 0 or not all(0 <= cpu < CPUS_MAX for cpu in placement.cpus):
            yield "a thread is placed where it can't be"
    host = processes.host
    if any(len(text) > TEXT_MAX for text in (host.criu, host.kernel, host.machine)):
        yield "its host has a name that is none"


def _inside(path: str) -> bool:
    return "\0" not in path and not {"", ".", ".."}.intersection(path.split("/"))


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False
