"""What every base has, whatever it was built from: mount points, a static /dev, no identity of its own.

A job's root is one overlay, and a layer holds plain files only. So the device nodes lie in the base (a tmpfs in /dev
would have to be carried along by every snapshot), and no job can make more: the nodes here are all that there are. A
source may have brought others along, a disk's for one; all of them go.

Nothing here trusts the tree: each directory is opened through its parent, never through a link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine import tools
from engine.errors import InvalidInput, from_os

DIRECTORIES = {
    "proc": 0o755,
    "sys": 0o755,
    "dev": 0o755,
    "dev/pts": 0o755,
    "dev/shm": 0o1777,
    "run": 0o755,
    "run/serac": 0o755,
    "tmp": 0o1777,
    "etc": 0o755,
}
"""made where they are missing, with these modes"""

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
"""character devices in /dev, mode 0666: those of the containers' runtime specification"""

LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def prepare(tree: Path) -> None:
    """Make a root filesystem ready to be a base. Raises InvalidInput when one of the directories is something else.

    What it adds bears no date, and directories keep theirs: the same tree gives the same base on any day."""
    try:
        for path, mode in DIRECTORIES.items():
            with _directory(tree, os.path.dirname(path)) as parent:
                _make_directory(parent, path, mode)
        with _directory(tree, "dev") as dev:
            _remove_devices(tree)
            _fill_dev(dev)
        with _directory(tree, "etc") as etc:
            _fill_etc(etc)
    except OSError as error:
        raise from_os(error, "prepare base") from error


def _remove_devices(tree: Path) -> None:
    """find(1), because a tree may be deeper than Python's recursion and its paths longer than PATH_MAX."""
    tools.run(["find", ".", "-xdev", "(", "-type", "b", "-o", "-type", "c", ")", "-delete"], cwd=tree)


@contextlib.contextmanager
def _directory(tree: Path, path: str) -> Iterator[int]:
    """A descriptor of a directory in the tree that is reached through directories only; its times stay."""
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in filter(None, path.split("/")):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
        before = os.fstat(fd)
        yield fd
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)


def _make_directory(parent: int, path: str, mode: int) -> None:
    name = os.path.basename(path)
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError as error:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise InvalidInput(f"/{path} in the base is not a directory", hint="make it one in the source") from error
    else:
        os.chmod(name, mode, dir_fd=parent)
        _undate(parent, name)


def _undate(parent: int, name: str) -> None:
    os.utime(name, (0, 0), dir_fd=parent, follow_symlinks=False)


def _fill_dev(dev: int) -> None:
    for name, device in NODES.items():
        _clear(dev, name)
        os.mknod(name, stat.S_IFCHR, os.makedev(*device), dir_fd=dev)
        os.chmod(name, 0o666, dir_fd=dev)
        _undate(dev, name)
    for name, target in LINKS.items():
        _clear(dev, name)
        os.symlink(target, name, dir_fd=dev)
        _undate(dev, name)


def _fill_etc(etc: int) -> None:
    _clear(etc, "machine-id")
    _write(etc, "machine-id", b"", 0o444)
    with contextlib.suppress(FileExistsError):
        _write(etc, "hosts", HOSTS, 0o644)


def _clear(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError as error:
        raise InvalidInput(f"{name} in the base's /dev or /etc is a directory") from error


def _write(parent: int, name: str, content: bytes, mode: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(content)
    _undate(parent, name)
