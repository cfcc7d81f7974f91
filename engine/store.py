"""Bytes on disk that must survive: written aside and renamed, locked, swept. Knows directories, no domain types.

Locks are flock(2) on the directory that they protect, so there are no lock files to leave behind; they hold between
processes and between threads (every taking opens the directory anew).

Whoever makes or removes directories of a root does it inside `intent`: a shared lock on ``tmp/`` and a marker in it.
A marker that nobody holds is the trace of a crash, and tells the next engine to sweep (`sweeping`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from engine.errors import Busy

_POLL = 0.005
"""seconds between two tries to get a lock: flock has no timeout of its own"""


def new_id() -> str:
    """Twelve hex digits; 48 bits, so that the ids of one host don't meet."""
    return secrets.token_hex(6)


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make ``path`` hold ``content``, whole or not at all, also after a power cut."""
    write_aside(path, content, mode=mode, flush=True)
    sync_directory(path.parent)


def write_aside(path: Path, content: bytes, *, mode: int = 0o600, flush: bool = False) -> None:
    """The same for readers of this boot only, unless ``flush``: the caller flushes the whole filesystem later."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(fd)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(directory: Path, *, timeout: float, shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``directory``. Raises Busy after ``timeout`` seconds (0 = one try), FileNotFoundError when the
    directory isn't there or went away while it was waited for."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, directory, time.monotonic() + timeout)
        if not _same(fd, directory):
            raise FileNotFoundError(2, "removed meanwhile", os.fspath(directory))
        yield
    finally:
        os.close(fd)


def _flock(fd: int, how: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise Busy(f"{directory.name} is in use by another engine") from error
        time.sleep(_POLL)


def _same(fd: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(directory))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def intent(tmp: Path, name: str, *, timeout: float) -> Iterator[Path]:
    """Work on directories that the catalog doesn't know yet, or no more: yields a scratch directory of one's own.

    It is removed at the end, with what was left in it."""
    with locked(tmp, timeout=timeout, shared=True):
        scratch = tmp / f"{name}.{secrets.token_hex(4)}"
        scratch.mkdir(mode=0o700)
        try:
            yield scratch
        finally:
            remove_tree(scratch)


@contextlib.contextmanager
def sweeping(tmp: Path) -> Iterator[bool]:
    """Yields whether a sweep is due and nobody is at work: then everything in ``tmp`` is the trace of a crash."""
    if not any(tmp.iterdir()):
        yield False
        return
    try:
        with locked(tmp, timeout=0):
            yield True
            for leftover in tmp.iterdir():
                remove_tree(leftover)
    except Busy:
        yield False


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; nothing happens when it isn't there.

    Never follows links nor crosses into another filesystem: a mount that was forgotten is an error and not a loss.
    rm(1) does it, because a job's tree may be deeper than Python's recursion and longer than PATH_MAX."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        _remove_full(path)


def _remove_full(path: Path) -> None:
    command = ["rm", "-rf", "--one-file-system", "--", os.fspath(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise OSError(errno.EBUSY, done.stderr.strip().splitlines()[-1], os.fspath(path))
