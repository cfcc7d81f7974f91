"""Where a base can come from: plain values."""

from __future__ import annotations

from pathlib import Path

import msgspec


class DebianSource(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh minimal Debian, from the mirror that the host's own apt uses."""

    suite: str
    """``bookworm``, ``trixie``, ``sid`` ..."""
    include: tuple[str, ...] = ()
    """more packages"""


class TarSource(msgspec.Struct, frozen=True, kw_only=True):
    """A root filesystem in a tar file, plain or compressed (gzip, bzip2, xz, zstd, lz4)."""

    path: Path


class OciSource(msgspec.Struct, frozen=True, kw_only=True):
    """An image in an OCI image layout."""

    path: Path
    tag: str = "latest"


class DirSource(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that holds a root filesystem; what is mounted below it isn't taken."""

    path: Path


Source = DebianSource | TarSource | OciSource | DirSource


def layout_and_tag(text: str) -> tuple[Path, str]:
    """Of ``DIR[:TAG]``, where a tag can't hold a slash and a directory may hold a colon."""
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag or Path(text).is_dir():
        return Path(text), "latest"
    return Path(path), tag
