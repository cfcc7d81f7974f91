"""Bases: from a source to a tree, from a tree to one that jobs can run over.

    env = unpack(DebianSource(suite="bookworm"), tree)      # the tree as its source has it
    prepare(tree)                                           # mount points, static device nodes, no machine-id
    with engine.tree.open_directory(tree) as root:
        engine.archive.build_image(root, into)              # and it is an image
    warm(into)                                              # its files in the page cache

Each source has a room of its own; nothing that a source brings along can write outside of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.base import debian, oci, trees
from engine.base.oci import OciConfig, architecture, image_config
from engine.base.skeleton import NODES, prepare
from engine.base.source import DebianSource, DirSource, OciSource, Source, TarSource, layout_and_tag
from engine.base.warming import forget, resident, warm
from engine.errors import InvalidInput, from_os

__all__ = [
    "NODES",
    "DebianSource",
    "DirSource",
    "OciConfig",
    "OciSource",
    "Source",
    "TarSource",
    "architecture",
    "forget",
    "image_config",
    "layout_and_tag",
    "prepare",
    "resident",
    "unpack",
    "unpack_stream",
    "warm",
]

Progress = Callable[[int, int], None]
"""called with bytes done and bytes in all"""


def unpack(
    source: Source, tree: Path, *, progress: Progress | None = None, timeout: float | None = None
) -> dict[str, str]:
    """Fill the directory ``tree``, which is made and must be empty, and return the environment that the source names.

    Needs root rights and room in the parent directory of ``tree``. Only a tar file tells its progress. Raises
    InvalidInput for a source that isn't what it should be, ToolMissing, ToolFailed, HostLacks, NoSpace, Timeout; the
    tree is the caller's to remove then.
    """
    try:
        _begin(tree)
        match source:
            case DebianSource():
                debian.unpack(source, tree, timeout=timeout)
            case TarSource():
                trees.unpack_tar(source, tree, progress=progress, timeout=timeout)
            case DirSource():
                trees.copy_directory(source, tree, timeout=timeout)
            case OciSource():
                return oci.unpack(source, tree, timeout=timeout)
    except OSError as error:
        raise from_os(error, "unpack base") from error
    return {}


def unpack_stream(stream: int, tree: Path, *, timeout: float | None = None) -> None:
    """Fill the directory ``tree`` from an uncompressed tar stream that can be read from a descriptor; as `unpack`."""
    try:
        _begin(tree)
        trees.extract(stream, tree, timeout=timeout)
    except OSError as error:
        raise from_os(error, "unpack base") from error


def _begin(tree: Path) -> None:
    """An empty directory with the mode that a root has where its source doesn't say."""
    tree.mkdir(exist_ok=True)
    if any(tree.iterdir()):
        raise InvalidInput(f"{tree} is not empty")
    tree.chmod(0o755)
