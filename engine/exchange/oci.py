"""Images as OCI image layouts: ``oci-layout``, ``index.json`` and blobs by digest.

    blobs = layout / "blobs" / "sha256"
    layers = [write_layer(blobs, changes(None, base)), write_layer(blobs, changes(base, tree))]
    write_image(layout, config, layers, tag="latest")

The same trees give the same bytes: nothing here knows what time it is.

Source: image-layout.md, image-index.md, manifest.md, config.md and layer.md of the OCI image specification 1.0.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.exchange.changes import Entry
from engine.exchange.tar import Tar
from engine.kernel.write import write_all
from engine.store import sync_directory, sync_file
from engine.tree import PIECE

LEVEL = 1
"""of the compression: a layer is written once, and whoever pushes it far compresses it as they like"""
AHEAD = 4
"""pieces that wait to be compressed"""

_MEDIA = "application/vnd.oci.image."
_GZIP = 16 + zlib.MAX_WBITS
"""zlib's way to write a gzip header, which has no time in it"""


class Process(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """``config`` of an image: what is run, and how."""

    user: str = ""
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    labels: dict[str, str] = {}


class ImageConfig(NamedTuple):
    architecture: str
    """as Go calls it: ``amd64``"""
    created: float
    process: Process
    history: Sequence[str]
    """of each layer, how it came to be"""
    annotations: Mapping[str, str]
    """of the manifest"""


class Layer(NamedTuple):
    digest: str
    size: int
    """bytes of the blob"""
    diff_id: str
    """digest of the stream that isn't compressed"""
    contents: int = 0
    """bytes of it"""


def write_layer(blobs: Path, entries: Iterable[Entry], *, tick: Callable[[int], None] | None = None) -> Layer:
    """Raises InvalidInput for what no layer can hold, OSError, and what the trees raise."""
    with _Compressed(blobs / f".{secrets.token_hex(4)}") as out:
        tar = Tar(out, tick=tick)
        tar.add(entries)
        tar.finish()
        return out.finish()


def write_image(layout: Path, config: ImageConfig, layers: Sequence[Layer], *, tag: str) -> None:
    """What says what the layers in a layout are. Raises OSError."""
    blobs = layout / "blobs" / "sha256"
    described = _blob(blobs, "config.v1+json", _config(config, layers))
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}manifest.v1+json",
        "config": described,
        "layers": [
            {"mediaType": f"{_MEDIA}layer.v1.tar+gzip", "digest": f"sha256:{layer.digest}", "size": layer.size}
            for layer in layers
        ],
        "annotations": dict(config.annotations),
    }
    named = _blob(blobs, "manifest.v1+json", manifest)
    platform = {"architecture": config.architecture, "os": "linux"}
    named |= {"annotations": {"org.opencontainers.image.ref.name": tag}, "platform": platform}
    _write(layout / "oci-layout", msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))
    _write(layout / "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": [named]}))
    for directory in (blobs, blobs.parent, layout):
        sync_directory(directory)


def _config(config: ImageConfig, layers: Sequence[Layer]) -> dict[str, object]:
    created = stamp(config.created)
    return {
        "created": created,
        "architecture": config.architecture,
        "os": "linux",
        "config": config.process,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": created, "created_by": how} for how in config.history],
    }


def stamp(moment: float) -> str:
    """RFC 3339, in whole seconds of UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _blob(blobs: Path, media: str, content: Mapping[str, object]) -> dict[str, object]:
    encoded = msgspec.json.encode(content, order="sorted")
    digest = hashlib.sha256(encoded).hexdigest()
    _write(blobs / digest, encoded)
    return {"mediaType": _MEDIA + media, "digest": f"sha256:{digest}", "size": len(encoded)}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync_file(path)


class _Compressed:
    """A blob that is being written; a thread of its own compresses it. A context that closes the file."""

    def __init__(self, aside: Path) -> None:
        self._aside = aside
        self._file = open(aside, "xb", buffering=0)  # noqa: SIM115 - closed at the context's end
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._buffer = bytearray()
        self._gzip = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
        self._whole, self._packed = hashlib.sha256(), hashlib.sha256()
        self._contents = self._size = 0

    def __enter__(self) -> _Compressed:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def write(self, data: bytes, /) -> None:
        self._buffer += data
        if len(self._buffer) >= PIECE:
            self._send()

    def finish(self) -> Layer:
        """Name it by its digest."""
        self._send()
        while self._waiting:
            self._waiting.popleft().result()
        self._put(self._gzip.flush())
        layer = Layer(self._packed.hexdigest(), self._size, self._whole.hexdigest(), self._contents)
        os.fsync(self._file.fileno())
        self._aside.rename(self._aside.with_name(layer.digest))
        return layer

    def _send(self) -> None:
        piece = bytes(self._buffer)
        self._buffer.clear()
        self._whole.update(piece)
        self._contents += len(piece)
        self._waiting.append(self._thread.submit(self._compress, piece))
        if len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def _compress(self, piece: bytes) -> None:
        self._put(self._gzip.compress(piece))

    def _put(self, packed: bytes) -> None:
        write_all(self._file, packed)
        self._packed.update(packed)
        self._size += len(packed)
