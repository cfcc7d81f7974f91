"""Bases from an OCI image layout: the descriptors are chosen and checked here, umoci unpacks the layers.

umoci gets a layout of its own, with the one chosen manifest and a link to the blobs: it locks and writes into the
layout that it works on, and it knows no image without a tag nor one for several platforms.

umoci knows no layers that are compressed with zstd, either: those are decompressed into that layout, where umoci
compares them with the config's digests of what they hold.

Source: image-layout.md, image-index.md, manifest.md, config.md and layer.md of the OCI image specification.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from engine import tools
from engine.base.source import OciSource
from engine.errors import Damaged, InvalidInput

JSON_MAX = 4 << 20
"""bytes of an index, a manifest or a config"""

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_TAG = "org.opencontainers.image.ref.name"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x"}
_NESTED_MAX = 4
_ZSTD = "+zstd"
_T = TypeVar("_T")


class _Platform(msgspec.Struct, kw_only=True):
    architecture: str
    os: str


class _Descriptor(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None


class _Index(msgspec.Struct, kw_only=True, rename="camel"):
    schema_version: int = 2
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct, kw_only=True, rename="camel"):
    schema_version: int = 2
    config: _Descriptor
    layers: list[_Descriptor] = []


class OciConfig(msgspec.Struct, kw_only=True, rename="pascal", frozen=True):
    """``config`` of an image: what its containers run, and how."""

    user: str | None = None
    """``USER[:GROUP]``, names or numbers"""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None


class _Config(msgspec.Struct, kw_only=True):
    config: OciConfig | None = None


class _Image(NamedTuple):
    layout: Path
    descriptor: _Descriptor
    manifest: _Manifest
    config: OciConfig


def unpack(source: OciSource, tree: Path, *, timeout: float | None) -> dict[str, str]:
    """Fill the tree and return the environment of the image's config. Raises InvalidInput, Damaged, ToolFailed."""
    image = _image(source)
    with tempfile.TemporaryDirectory(prefix=f".{tree.name}.", dir=tree.parent) as name:
        own = _own_layout(Path(name), image, timeout)
        tools.run(["umoci", "raw", "unpack", f"--image={own}:base", tree], timeout=timeout)
    return _environment(image.config)


def image_config(source: OciSource) -> OciConfig:
    """What an image says of how it is to be run. Raises InvalidInput, Damaged."""
    return _image(source).config


def architecture() -> str:
    """This machine's, as images have it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _image(source: OciSource) -> _Image:
    layout = Path(os.path.realpath(source.path))
    if not (layout / "oci-layout").is_file() or not (layout / "index.json").is_file():
        raise InvalidInput(f"{source.path} is no OCI image layout", hint="it has the files oci-layout and index.json")
    index = _parse(_read(layout / "index.json"), _Index, "index.json")
    chosen = _for_this_machine(layout, _tagged(index, source), _NESTED_MAX)
    manifest = _parse(_blob(layout, chosen), _Manifest, "the manifest")
    config = _parse(_blob(layout, manifest.config), _Config, "the config").config
    return _Image(layout, chosen, manifest, config or OciConfig())


def _tagged(index: _Index, source: OciSource) -> _Descriptor:
    """By the whole reference or its tag alone: Podman writes ``HOST/NAME:TAG``, most others a tag."""
    tags = [(manifest.annotations or {}).get(_TAG) for manifest in index.manifests]
    named = [tag.rpartition("/")[2].rpartition(":")[2] if tag else None for tag in tags]
    for names in (tags, named):
        if names.count(source.tag) == 1:
            return index.manifests[names.index(source.tag)]
    if tags == [None] and source.tag == "latest":
        return index.manifests[0]
    there = ", ".join(sorted(tag for tag in tags if tag)) or "none"
    raise InvalidInput(f"{source.path} has no image tagged {source.tag}", hint=f"its tags: {there[:200]}")


def _for_this_machine(layout: Path, descriptor: _Descriptor, depth: int) -> _Descriptor:
    """Down through indexes to the one manifest that this machine can run."""
    if descriptor.media_type not in _INDEX_TYPES:
        return descriptor
    wanted = _Platform(architecture=architecture(), os="linux")
    index = _parse(_blob(layout, descriptor), _Index, "an index")
    for manifest in index.manifests if depth else ():
        if manifest.platform is None or manifest.platform == wanted:
            return _for_this_machine(layout, manifest, depth - 1)
    raise InvalidInput(f"the image has no variant for linux/{wanted.architecture}")


def _own_layout(own: Path, image: _Image, timeout: float | None) -> Path:
    descriptor = image.descriptor
    if any(layer.media_type.endswith(_ZSTD) for layer in image.manifest.layers):
        descriptor = _decompressed(own / "blobs" / "sha256", image, timeout)
    else:
        (own / "blobs").symlink_to(image.layout / "blobs")
    tagged = msgspec.structs.replace(descriptor, annotations={_TAG: "base"}, platform=None)
    (own / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    (own / "index.json").write_bytes(msgspec.json.encode(_Index(manifests=[tagged])))
    return own


def _decompressed(blobs: Path, image: _Image, timeout: float | None) -> _Descriptor:
    """Fill ``blobs`` with the image, its layers plain where umoci can't read them; the new manifest."""
    blobs.mkdir(parents=True)
    layers = []
    for number, layer in enumerate((image.manifest.config, *image.manifest.layers)):
        source = _blob_path(image.layout, layer)
        if layer.media_type.endswith(_ZSTD):
            plain = blobs / f"{number}.tar"
            tools.run(["zstd", "--decompress", "--quiet", "-o", plain, "--", source], timeout=timeout)
            layers.append(_placed(plain, layer.media_type.removesuffix(_ZSTD)))
        else:
            (blobs / source.name).unlink(missing_ok=True)
            (blobs / source.name).symlink_to(source)
            layers.append(layer)
    config, *layers = layers
    (blobs / "manifest").write_bytes(msgspec.json.encode(_Manifest(config=config, layers=layers)))
    return _placed(blobs / "manifest", image.descriptor.media_type)


def _placed(blob: Path, media_type: str) -> _Descriptor:
    """A blob under its digest."""
    with open(blob, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    blob.rename(blob.with_name(digest))
    size = blob.with_name(digest).stat().st_size
    return _Descriptor(media_type=media_type, digest=f"sha256:{digest}", size=size)


def _blob_path(layout: Path, descriptor: _Descriptor) -> Path:
    match = _DIGEST.fullmatch(descriptor.digest)
    if not match:
        raise Damaged(f"the image layout names a blob {descriptor.digest[:80]!r}")
    algorithm, digest = (part for part in match.groups() if part)
    return layout / "blobs" / algorithm / digest


def _blob(layout: Path, descriptor: _Descriptor) -> bytes:
    path = _blob_path(layout, descriptor)
    content = _read(path)
    if hashlib.new(path.parent.name, content).hexdigest() != path.name:
        raise Damaged(f"blob {descriptor.digest} of the image layout is damaged")
    return content


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(JSON_MAX + 1)
    except OSError as error:
        raise Damaged(f"the image layout lacks {path.name}: {error.strerror}") from error
    if len(content) > JSON_MAX:
        raise Damaged(f"{path.name} of the image layout is larger than {JSON_MAX} bytes")
    return content


def _parse(content: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{what} of the image layout: {error}") from error


def _environment(config: OciConfig) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in config.env or [])
    return {key: value for key, _, value in pairs if key and "\0" not in key + value}
