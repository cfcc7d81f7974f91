"""Bytes on disk that must survive: written aside and renamed, locked, swept. Knows directories, no domain types.

Locks are flock(2) on the directory that they protect, so there are no lock files to leave behind; they hold between
processes and between threads (every taking opens the directory anew).

Whoever makes or removes directories of a root, or writes records in them, does it inside `intent`: a shared lock on
``tmp/`` and a marker in it. A marker that nobody holds is the trace of a crash, and tells the next engine to sweep
(`sweeping`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import Busy, from_os

log = logging.getLogger("serac")

SHALLOW, DEPTH = 256, 4
"""entries of a directory, and directories below each other, that are removed one by one; a used work directory of an
overlay is of that kind"""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}")
_POLL = 0.005
"""seconds between two tries to get a lock: flock has no timeout of its own"""


def new_id() -> str:
    """Twelve hex digits; 48 bits, so that the ids of one host don't meet."""
    return secrets.token_hex(6)


def write_aside(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make ``path`` hold ``content``, whole or not at all, for readers of this boot. Who needs it to outlast a power
    cut flushes the filesystem afterwards."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_asides(directory: Path) -> None:
    """What `write_aside` left in a directory, if that is there, when it was killed. Nobody may be writing there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(directory):
            if _ASIDE.fullmatch(name):
                (directory / name).unlink(missing_ok=True)


def copy_head(source: Path, target: Path, size: int) -> None:
    """A new file with the first ``size`` bytes of another, its owner and its mode. Raises OSError."""
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(reading, "rb") as original:
        status = os.fstat(reading)
        with open(target, "xb") as copy:
            os.fchown(copy.fileno(), status.st_uid, status.st_gid)
            os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode))
            done = 0
            while done < size and (sent := os.sendfile(copy.fileno(), original.fileno(), done, size - done)):
                done += sent


def reserve(path: Path, size: int) -> None:
    """A file that takes ``size`` bytes of the disk, so that removing it gives them back. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
        flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, directory, patience=timeout)
        if not _same(fd, directory):
            raise FileNotFoundError(2, "removed meanwhile", os.fspath(directory))
        yield
    finally:
        os.close(fd)


def held(directory: Path) -> bool:
    """Whether somebody has the lock of ``directory`` for himself; nobody has where it isn't there. Who looks at the
    same time hasn't."""
    try:
        with locked(directory, timeout=0, shared=True):
            return False
    except FileNotFoundError:
        return False
    except Busy:
        return True


def flock(fd: int, how: int, path: Path, *, patience: float) -> None:
    """Take an flock(2) within ``patience`` seconds. Raises Busy."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise Busy(f"{path.name} is in use by another engine") from error
        time.sleep(_POLL)


def _same(fd: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(directory))
    except FileNotFoundError:
        return False


class Intent:
    """A marker in ``tmp/`` and the scratch directory that it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open = True
        """whether a failure of the block leaves something that only a sweep puts right"""
        self.taken = 0
        """how much was taken away"""

    def mark(self, *, needed: bool = False) -> None:
        """Make the marker, which a full disk has no room for. Raises NoSpace then if it is ``needed``."""
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            if needed or error.errno not in _FULL:
                raise from_os(error, "begin") from error

    def undone(self) -> None:
        """What the block began is undone: its failure needs no sweep."""
        self.open = False

    def away(self, path: Path) -> None:
        """Take a file or a directory of the same filesystem away at once, if it is there; it is removed when the block
        is over. To rename costs a tenth of what it costs to free a file's blocks. Raises OSError."""
        try:
            path.rename(self.path / f"away.{self.taken}")
            self.taken += 1
        except FileNotFoundError:
            if not self.path.exists():  # no marker: the disk is full
                remove(path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            remove(path)


@contextlib.contextmanager
def intent(
    tmp: Path,
    name: str,
    *,
    timeout: float,
    scratch: bool = False,
    marked: bool = True,
    later: Callable[[Path], None] | None = None,
) -> Iterator[Intent]:
    """Work on directories that the catalog doesn't know yet, or no more.

    The marker goes at the end, and stays with its contents removed when the block failed and nobody said `undone`.
    On a full disk there is no marker, because removals must work there most of all; what is half done is then found
    by the sweep that the next marker calls for. ``scratch``: the block can't do without the directory. ``marked``: else
    the block says when (`Intent.mark`), for what it makes before is known by something else. ``later`` gets a marker to
    remove that something was taken away into."""
    with locked(tmp, timeout=timeout, shared=True):
        marker = Intent(tmp / f"{name}.{secrets.token_hex(4)}")
        if marked:
            marker.mark(needed=scratch)
        try:
            yield marker
        except BaseException:
            for left in marker.path.iterdir() if marker.path.is_dir() else ():
                remove(left)
            if not marker.open:
                remove_tree(marker.path)
            raise
        if later is not None and marker.taken:
            later(marker.path)
        else:
            remove_tree(marker.path)


class Sweep:
    """``markers``: the traces of crashes; ``due``: whether there is something to sweep, and nobody at work;
    ``complete``: whether the markers may go."""

    def __init__(self, markers: list[Path], *, due: bool) -> None:
        self.markers = markers
        self.due = due
        self.complete = False


@contextlib.contextmanager
def sweeping(tmp: Path, *, anyway: bool = False) -> Iterator[Sweep]:
    """The markers of crashes, while nobody is at work; none when there was no crash, or when somebody is. ``anyway``: a
    sweep is due without one."""
    with contextlib.ExitStack() as stack:
        markers = list(tmp.iterdir())
        due = bool(markers) or anyway
        try:
            if due:
                stack.enter_context(locked(tmp, timeout=0))
                markers = list(tmp.iterdir())
        except Busy:
            markers, due = [], False
        sweep = Sweep(markers, due=due and bool(markers or anyway))
        yield sweep
        for marker in markers if sweep.complete else ():
            try:
                remove_tree(marker)
            except OSError as error:  # it calls for the next sweep
                log.warning("sweep: %s", error)


def remove(path: Path) -> None:
    """Remove a file, or a directory as `remove_tree`; nothing happens when it isn't there."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; nothing happens when it isn't there.

    Never follows links nor crosses into another filesystem: a mount that was forgotten is an error and not a loss.
    rm(1) does it, because a job's tree may be deeper than Python's recursion and longer than PATH_MAX."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        with contextlib.suppress(OSError):  # more is in it, or it isn't ours to remove: the other program finds out
            _remove_shallow(path, DEPTH, os.lstat(path).st_dev)
        if os.path.lexists(path):
            _remove_full(path)


def _remove_shallow(path: str | Path, depth: int, device: int) -> None:
    """What holds a few files, and a few directories of the kind on the same device, goes without another program."""
    with os.scandir(path) as entries:
        some = list(itertools.islice(entries, SHALLOW))
    for entry in some:
        if entry.is_dir(follow_symlinks=False):
            if depth and entry.stat(follow_symlinks=False).st_dev == device:
                _remove_shallow(entry.path, depth - 1, device)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def _remove_full(path: Path) -> None:
    command = ["rm", "-rf", "--one-file-system", "--", os.fspath(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"rm ended with status {done.returncode}"]
        raise OSError(errno.EBUSY, lines[-1], os.fspath(path))
