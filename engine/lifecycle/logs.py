"""What sessions have in a job's io directory, on its way through a pause: kept, put back, copied, cleared."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from engine import session, store
from engine.archive.manifest import LOG_MAX
from engine.errors import from_os
from engine.lifecycle import sessions
from engine.model import Context

_NUMBERED = re.compile(r"[0-9]{1,9}(?=\.)")
FILES_MAX = 4 * (1024 + 64)
"""of the sessions that may live at once, and of the ended ones that init keeps"""


def keep(io: Path, kept: Path) -> dict[str, int]:
    """Keep what belongs to sessions, and its sizes at the cut. What isn't what init writes is passed over."""
    kept.mkdir()
    sizes: dict[str, int] = {}
    names = filter(session.files.WRITTEN.fullmatch, os.listdir(io))
    for name in sorted(names, key=lambda name: int(name.partition(".")[0])):
        status = (io / name).lstat()
        size_max = session.files.FILE_MAX if name.endswith(".status") else LOG_MAX
        if stat.S_ISREG(status.st_mode) and status.st_size <= size_max and len(sizes) < FILES_MAX:
            _place(io / name, kept / name, status.st_size)
            sizes[name] = status.st_size
    return sizes


def put_back(io: Path, kept: Path, sizes: Mapping[str, int]) -> None:
    """The io directory is again as it was at the cut: a life that came to nothing may have taken files away, put others
    there, and written on in logs, whose init goes on at the end that it knows."""
    for name, size in sizes.items():
        with contextlib.suppress(OSError):  # the job could put anything there: criu finds out
            if _lost(kept / name, io / name):
                (io / name).unlink(missing_ok=True)
                _place(kept / name, io / name, size)
            if name.endswith(".log"):
                _shorten(io / name, size)


def _place(source: Path, target: Path, size: int) -> None:
    """By a link where that will do, for a log only grows. A status is written in place when the disk is full."""
    if not source.name.endswith(".status"):
        try:
            os.link(source, target, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:  # the image is mounted
                raise
    store.copy_head(source, target, size)


def _lost(kept: Path, there: Path) -> bool:
    """Whether it isn't what was kept; of a log that was archived since, whether it is too short to be."""
    was = kept.lstat()
    try:
        found = there.lstat()
    except FileNotFoundError:
        return True
    if kept.name.endswith(".status"):
        same = stat.S_ISREG(found.st_mode) and found.st_size == was.st_size
        return not same or kept.read_bytes() != there.read_bytes()
    return found.st_ino != was.st_ino if found.st_dev == was.st_dev else found.st_size < was.st_size


def _shorten(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def copy(io: Path, kept: Path, sizes: Mapping[str, int]) -> None:
    """Give a fork what its sessions had in the io directory, as it was at the cut."""
    try:
        for name, size in sizes.items():
            store.copy_head(kept / name, io / name, size)
    except OSError as error:
        raise from_os(error, "copy logs") from error


def clear(io: Path, context: Context, away: Callable[[Path], None]) -> None:
    """Leave the next init what it may go on with: logs, what is known of sessions that had ended at the cut, and the
    highest number that a session has had, for it goes on behind the numbers that it finds: ``N.used`` where nothing
    else has it. The job could write here, so that anything may lie in the way; so may files of a life that came to
    nothing."""
    coming, ended = context.sessions, context.ended
    if ended is None:
        ended = sessions.ended(session.statuses(io), coming)
    entries = list(os.scandir(io))
    last = max((_number(entry.name) for entry in entries), default=0)
    kept = {f"{number}.{kind}" for number in ended for kind in ("status", "spec", "log", "log.old")}
    kept |= {f"{spec.id}.{kind}" for spec in coming for kind in ("log", "log.old")} | {f"{last}.used"}
    stay = {entry.name for entry in entries if entry.name in kept and entry.is_file(follow_symlinks=False)}
    if last > max(map(_number, stay), default=0):
        away(io / f"{last}.used")
        store.write_aside(io / f"{last}.used", b"", mode=0o644)
        stay.add(f"{last}.used")
    for entry in entries:
        if entry.name not in stay:
            away(Path(entry.path))


def _number(name: str) -> int:
    """That init takes a file for one of, as it does."""
    match = _NUMBERED.match(name)
    return int(match[0]) if match else 0
