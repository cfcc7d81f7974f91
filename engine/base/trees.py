"""Bases from a tar file or a directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from engine import tools
from engine.base.source import DirSource, TarSource
from engine.errors import InvalidInput

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
"""first bytes of a compressed file -> the program that unpacks it"""

_KEEP_ALL = ("--numeric-owner", "--same-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "--acls")


def unpack_tar(
    source: TarSource, tree: Path, *, progress: Callable[[int, int], None] | None, timeout: float | None
) -> None:
    fd = _open_file(source.path)
    try:
        total = os.fstat(fd).st_size

        def tick() -> None:
            # tar reads from this very descriptor, so its position is ours.
            if progress:
                progress(min(os.lseek(fd, 0, os.SEEK_CUR), total), total)

        extract(fd, tree, program=_compression(fd), timeout=timeout, tick=tick)
        if progress:
            progress(total, total)
    finally:
        os.close(fd)


def extract(
    stream: int,
    tree: Path,
    *,
    program: str | None = None,
    timeout: float | None,
    tick: Callable[[], None] | None = None,
) -> None:
    """Extract a tar stream, compressed with ``program``, with everything that it says of each file.

    GNU tar refuses names with `..`, strips leading slashes, and makes links that lead out last: nothing is written
    through them.
    """
    unpacker = [f"--use-compress-program={tools.find(program).path}"] if program else []
    argv = ["tar", "--extract", "--file=-", *unpacker, *_KEEP_ALL, "--warning=no-timestamp"]
    tools.run(argv, cwd=tree, stdin=stream, timeout=timeout, tick=tick)


def _open_file(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", hint="--tar takes a tar file") from error
    if not path.is_file():
        os.close(fd)
        raise InvalidInput(f"{path} is not a file", hint="--tar takes a tar file, --dir a directory")
    return fd


def _compression(fd: int) -> str | None:
    head = os.pread(fd, 8, 0)
    return next((program for magic, program in _COMPRESSIONS.items() if head.startswith(magic)), None)


def copy_directory(source: DirSource, tree: Path, *, timeout: float | None) -> None:
    """With everything that the filesystem knows of each file; blocks are shared where the filesystem can."""
    if not source.path.is_dir():
        raise InvalidInput(f"{source.path} is not a directory")
    inside = os.path.realpath(tree)
    if os.path.commonpath([inside, origin := os.path.realpath(source.path)]) == origin:
        raise InvalidInput(f"{source.path} holds serac's own root, {inside}", hint="choose a --root outside of it")
    argv = ["cp", "--archive", "--reflink=auto", "--one-file-system", "--", f"{origin}/.", inside]
    tools.run(argv, timeout=timeout)
