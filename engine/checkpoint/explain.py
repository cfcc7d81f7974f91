"""What criu's log says of a failure. Pure."""

from __future__ import annotations

import re

from engine.checkpoint.obstacles import REASONS, Obstacle, obstacle
from engine.checkpoint.preflight import plain

_LINES = 3

_TELLING: tuple[tuple[str, str], ...] = (
    ("no-space", r"No space left on device|Disk quota exceeded"),
    ("no-memory", r"Cannot allocate memory|Out of memory"),
    ("io-uring", r"\[io_uring\]"),
    ("memfd-secret", r"/secretmem"),
    ("large-deleted-file", r"Can't dump ghost file"),
    ("watch", r"fsnotify: .*Can't dump that handle"),
    ("unix-in-flight", r"in-flight socket|In-flight connection on|Control messages in queue|2nd SCM_RIGHTS|1 SCM is"),
    (
        "outside-socket",
        (
            r"External socket is used|unreachable peer|Unix socket \d+ without peer|Dangling connection"
            r"|half of stream unix|name-less external|socket from an external network"
        ),
    ),
    ("terminal", r"ctty inheritance|dangling tty|Found slave peer|queued data overflow"),
    ("unread-datagrams", r"netlink: The socket has data|corked dgram"),
    ("mptcp", r"Unsupported proto 262|multipathtcp"),
    (
        "socket",
        (
            r"Unsupported proto|Only stream, dgram and raw|Unknown socket collected|Unknown inet socket"
            r"|are not collected|Unknown pair family|more than 32 groups|but not to portid|Unsupported socket"
        ),
    ),
    ("device", r"Can't dump file .*\((chr|blk) "),
    ("descriptor", r"Can't dump file \d+ of that type|PIDFD_THREAD|not a part of process tree"),
    ("bpf", r"BPF map type"),
    ("mapping", r"Unknown shit|Strange file mapped|non-regular mapping|Unsupported mapping|mapfile link"),
    ("long-path", r"File name too long|is too long|ink .*too long"),
    ("outside-file", r"Can't lookup mount=|on overmounted mounts|Unaccessible path"),
    ("namespace", r"Can't dump nested|target user namespace|Nested mount namespaces"),
    ("shared-memory", r"Can't make (VM|IO|FILES) id"),
    ("shared-directories", r"Can't make FS id"),
    ("leaderless", r"Zombies with threads|Zombie thread"),
    ("other-user", r"Can't get rlimit"),
    ("session", r"session leader .* outside|find a session leader|figure out which sid"),
    ("epoll", r"Escaped/closed fd|Dump eventpoll"),
    ("file-lock", r"file locks are hold|Unresolved lock"),
    ("thread-timer", r"Can't create posix timer"),
    ("tcp-in-flight", r"Unable to set window parameters"),
    ("changed-file", r"has bad (size|mode|build-ID)|Can't open file .*No such file"),
    ("address", r"Address already in use|Cannot assign requested address"),
    ("cpu", r"^(CPU|FPU) |cpu: "),
    ("damaged-image", r"Magic doesn't match|Corrupted|corrupted|Unexpected EOF|No entry for reg-file|Can't read .*img"),
    ("unstoppable", r"Timeout reached|Unseizable|Unable to freeze|found while seizing|stopped threads"),
)
"""reason -> what a line of the log must have; the first that any line has is the one"""

_NOISE = re.compile(r"RLIMIT_NOFILE|action.scripts? failed|script error|Dumping FAILED|Restoring FAILED|cgroupd: recv")


def explain(log: str) -> Obstacle:
    """The reason of a failed dump or restore, as far as criu's log (of any level) tells it; else ``criu-failed``, with
    the log's first errors."""
    errors = [_said(line) for line in log.splitlines() if "Error" in line and not _NOISE.search(line)]
    for reason, pattern in _TELLING:
        for line in errors:
            if re.search(pattern, line):
                return obstacle(reason, f"a process {REASONS[reason].what} (criu: {line})")
    said = " | ".join(dict.fromkeys(errors[:_LINES]))
    return obstacle("criu-failed", f"criu failed: {said}" if said else "criu failed without a word")


def _said(line: str) -> str:
    """A line of the log without time, pid and place in criu's source."""
    return plain(re.sub(r"^.*?Error \([^)]*\):\s*", "", line.strip()))
