"""Streams of snapshots, taken apart and put together again with digests that are right: what a forger would send.

Nothing of the engine's is used for it, so that reader and writer are not judged by themselves."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lz4.frame

PIECE = 1 << 20
END = bytes(1024)
MANIFEST = "serac-snapshot/" + "0" * 64 + ".json"
"""of the length of a manifest's name"""


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pieces(content: bytes) -> list[bytes]:
    return [content[at : at + PIECE] for at in range(0, len(content), PIECE)]


class Files(NamedTuple):
    """An image. ``forged``: an index that isn't the one that it should have."""

    meta: bytes
    blob: bytes
    forged: bytes = b""

    @property
    def index(self) -> bytes:
        facts = {
            "blob": {"sha256": sha256(self.blob), "size": len(self.blob)},
            "format": "serac-image/1",
            "meta": {"sha256": sha256(self.meta), "size": len(self.meta)},
            "piece_size": PIECE,
            "pieces": [sha256(piece) for piece in pieces(self.blob)],
        }
        return self.forged or canonical(facts)

    @property
    def digest(self) -> str:
        return sha256(self.index)

    @property
    def part(self) -> dict[str, Any]:
        """As a manifest names it."""
        return {"digest": self.digest, "size": len(self.meta) + len(self.blob)}

    def write(self, below: Path) -> Path:
        """The directory that the image is in."""
        directory = below / self.digest
        directory.mkdir()
        (directory / "image.json").write_bytes(self.index)
        (directory / "meta.erofs").write_bytes(self.meta)
        (directory / "data.blob").write_bytes(self.blob)
        return directory

    @classmethod
    def read(cls, directory: Path) -> Files:
        return cls((directory / "meta.erofs").read_bytes(), (directory / "data.blob").read_bytes())

    def members(self) -> Iterator[tuple[str, bytes]]:
        yield f"{self.digest}/image.json", self.index
        for name, content in (("meta.erofs", self.meta), ("data.blob", self.blob)):
            for number, piece in enumerate(pieces(content)):
                yield f"{self.digest}/{name}/{number}.lz4", lz4.frame.compress(piece)


def header(name: str, size: int, **fields: Any) -> bytes:
    """Of a member; ``fields`` are those of a TarInfo."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def member(name: str, content: bytes, **fields: Any) -> bytes:
    return header(name, len(content), **fields) + content + bytes(-len(content) % 512)


class Bundle:
    """A snapshot: its manifest, and the images of the stream in their order."""

    def __init__(self, manifest: dict[str, Any], images: list[Files]) -> None:
        self.manifest = manifest
        self.images = images

    @classmethod
    def of(cls, stream: bytes) -> Bundle:
        files: dict[str, dict[str, bytes]] = {}
        with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as tar:
            members = iter(tar)
            manifest = json.loads(_content(tar, next(members)))
            for info in members:
                digest, name, *_ = info.name.split("/")
                found = files.setdefault(digest, {"meta.erofs": b"", "data.blob": b"", "image.json": b""})
                content = _content(tar, info)
                found[name] += content if name == "image.json" else lz4.frame.decompress(content)
        return cls(manifest, [Files(found["meta.erofs"], found["data.blob"]) for found in files.values()])

    @property
    def encoded(self) -> bytes:
        return canonical(self.manifest)

    def members(self) -> list[tuple[str, bytes]]:
        """Each image once, as in a stream that is right."""
        images = dict.fromkeys(self.images)
        manifest = (f"serac-snapshot/{sha256(self.encoded)}.json", self.encoded)
        return [manifest, *(entry for image in images for entry in image.members())]

    def stream(self) -> bytes:
        return b"".join(member(name, content) for name, content in self.members()) + END

    def image(self, digest: str) -> Files:
        (found,) = (image for image in self.images if image.digest == digest)
        return found

    def replace(self, old: str, new: Files) -> None:
        """Another image in the place of one, wherever it is named."""
        self.images = [new if image.digest == old else image for image in self.images]
        self.manifest["layers"] = [new.part if part["digest"] == old else part for part in self.manifest["layers"]]
        if self.manifest["base"]["digest"] == old:
            self.manifest["base"] |= new.part
        processes = self.manifest["processes"]
        if processes is not None and processes["digest"] == old:
            processes["digest"] = new.digest
            self.manifest["processes_size"] = new.part["size"]


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def described(layers: list[Files], *, base: Files, processes: Files | None = None, **fields: Any) -> dict[str, Any]:
    """A manifest, as the engine would write it."""
    manifest = {
        "base": base.part,
        "context": {},
        "created": 1764100000.5,
        "format": "serac-snapshot/1",
        "id": "0123456789ab",
        "job": "ba9876543210",
        "labels": {},
        "layers": [layer.part for layer in layers],
        "mode": "filesystem" if processes is None else "process",
        "name": "job",
        "overlay": {"index": "off", "metacopy": "off", "redirect_dir": "on"},
        "parent": None,
        "processes": None,
        "processes_size": 0,
        "reason": None,
        "spec": {"base": "small"},
    }
    if processes is not None:
        host = {"criu": "4.1", "kernel": "6.18.0", "machine": "x86_64"}
        image = {"digest": processes.digest, "host": host, "init": "/init", "memory": 4096, "range": [100000, 65536]}
        manifest |= {"processes": image, "processes_size": processes.part["size"]}
    return manifest | fields


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


BASE = Files(content(1, 5000), content(2, 3000))
LOWER = Files(content(3, 4096), content(4, 2 * PIECE + 777))
EMPTY = Files(content(5, 4096), b"")
PROCESSES = Files(content(6, PIECE + 4096), b"same" * (PIECE // 4) * 2)
ALL = [BASE, LOWER, EMPTY, PROCESSES]


def bundle(*, with_base: bool = True) -> Bundle:
    layers = [LOWER, EMPTY, LOWER]
    manifest = described(layers, base=BASE, processes=PROCESSES, name="caf\u00e9")
    return Bundle(manifest, [*([BASE] if with_base else []), *layers, PROCESSES])


def small() -> Bundle:
    """Little enough to be read some hundred times."""
    images = [Files(content(number, 600), content(number + 5, 700)) for number in range(2)]
    return Bundle(described(images, base=BASE), images)


def rebuilt(members: list[tuple[str, bytes]]) -> bytes:
    return b"".join(member(name, packed) for name, packed in members) + END


def with_piece(packed: bytes, *, at: int = 2) -> bytes:
    """`small`, with another piece in one's place."""
    members = small().members()
    assert members[at][0].endswith(".lz4")
    return rebuilt([*members[:at], (members[at][0], packed), *members[at + 1 :]])
