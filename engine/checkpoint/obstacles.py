"""Why a job's processes can't be checkpointed or restored: every reason, what it is, and what to do about it.

The README's table is this one.
"""

from __future__ import annotations

from engine.model import Value


class Obstacle(Value, frozen=True, kw_only=True):
    """One thing that stands in the way."""

    reason: str
    """for programs: a key of `REASONS`"""
    detail: str
    """for people, one line: which process, and which of its descriptors"""
    remedy: str


class Reason(Value, frozen=True, kw_only=True):
    what: str
    """what can't be carried; goes on after "the process" """
    remedy: str
    passing: bool = False
    """a moment later it may be gone by itself: trying again is worth it"""


_STOP = "stop it before the pause, or use --mode filesystem"
_CLOSE = "close it before the pause, or use --mode filesystem"
_DENY = "don't allow it (--allow), so that programs do without, or use --mode filesystem"
_AGAIN = "try again, or use --mode filesystem"
_ELSEWHERE = "resume it on a host like the one it was paused on, or with --mode filesystem"
_FILES = "resume it with --mode filesystem"

PREFLIGHT = {
    "deleted-attributes": Reason(what="holds a deleted file that has extended attributes", remedy=_CLOSE),
    "device": Reason(what="holds a device open", remedy=_CLOSE),
    "eventfd": Reason(what="holds an eventfd that is a semaphore, or has counted to 2^32", remedy=_CLOSE),
    "host-network": Reason(what="is in the host's network", remedy="run the job with --net none or bridge"),
    "keyring": Reason(what="may have keys in a keyring", remedy=_DENY),
    "landlock": Reason(what="holds a Landlock ruleset, or may be bound by one", remedy=_DENY),
    "leaderless": Reason(what="goes on though its first thread has ended", remedy=_STOP),
    "long-path": Reason(what="has a file or directory open whose path is too long", remedy=_CLOSE),
    "memfd-program": Reason(what="executes a program that lies in memory (memfd)", remedy="start it from a file"),
    "message-queue": Reason(what="holds a POSIX message queue", remedy=_CLOSE),
    "mptcp": Reason(what="holds a multipath TCP socket", remedy="switch it off; in Go: GODEBUG=multipathtcp=0"),
    "multicast": Reason(what="has joined the multicast group", remedy=_CLOSE),
    "other-user": Reason(
        what="is another user's, and this host doesn't let serac read its limits",
        remedy="run the job with --userns private, or serac with CAP_SYS_RESOURCE",
    ),
    "outside-socket": Reason(what="has a unix socket that leads out of the job", remedy=_CLOSE, passing=True),
    "perf-event": Reason(what="holds a performance counter", remedy=_DENY),
    "process-directory": Reason(
        what="holds a directory /proc/PID open, or works in it", remedy="leave it, or use --mode filesystem"
    ),
    "seccomp-listener": Reason(what="listens to a seccomp filter's notifications", remedy=_CLOSE),
    "shared-directories": Reason(what="has its directories in common with its parent (CLONE_FS)", remedy=_STOP),
    "thread-apart": Reason(what="has a thread with descriptors or directories of its own", remedy=_STOP),
    "thread-timer": Reason(what="has a timer that signals one thread (SIGEV_THREAD)", remedy="use a timerfd"),
    "traced": Reason(what="is being traced", remedy="end strace or the debugger"),
    "userfaultfd": Reason(what="handles page faults itself (userfaultfd)", remedy=_DENY),
    "bpf": Reason(what="holds a BPF map or program", remedy=_DENY),
    "descriptor": Reason(what="holds a descriptor of a kind that criu doesn't know", remedy=_CLOSE),
    "io-uring": Reason(what="holds an io_uring", remedy=_DENY),
    "large-deleted-file": Reason(what="holds a deleted file of more than 512 MiB", remedy=_CLOSE),
    "memfd-secret": Reason(what="holds secret memory (memfd_secret)", remedy=_DENY),
    "namespace": Reason(what="is in a namespace of its own", remedy=_DENY),
    "outside-file": Reason(what="holds a file that lies outside the job", remedy=_CLOSE),
    "session": Reason(
        what="is in a session that can't be made again: its leader is gone and isn't among its parents",
        remedy="start it by setsid(1), or use --mode filesystem",
    ),
    "shared-memory": Reason(
        what="has its memory in common with its parent (vfork, CLONE_VM)", remedy=_AGAIN, passing=True
    ),
    "socket": Reason(what="holds a socket of a kind or in a state that criu doesn't know", remedy=_CLOSE),
    "tcp-in-flight": Reason(
        what="has a TCP connection that is being opened, accepted or closed", remedy=_AGAIN, passing=True
    ),
    "unread-events": Reason(
        what="has events of watched files to read, which a checkpoint would drop", remedy=_AGAIN, passing=True
    ),
    "unread-datagrams": Reason(
        what="has datagrams to read, which a checkpoint would drop", remedy=_AGAIN, passing=True
    ),
}
"""what the preflight sees: most of it criu would refuse too, some it would lose in silence"""

LOG = {
    "address": Reason(what="has a socket whose address is taken or not of this host", remedy=_FILES),
    "changed-file": Reason(what="has a file open that isn't as it was", remedy=_FILES),
    "criu-failed": Reason(what="can't be carried by criu", remedy="use --mode filesystem"),
    "criu-killed": Reason(what="lost its criu, which was killed or has crashed", remedy="try again"),
    "host": Reason(what="can't be checkpointed on this host: no criu, or no nf_tables", remedy="see `serac doctor`"),
    "damaged-image": Reason(what="has an image that criu can't read", remedy=_FILES),
    "epoll": Reason(what="waits by epoll for what it has closed and another process holds", remedy=_CLOSE),
    "file-lock": Reason(what="has a file lock in common with somebody outside the job", remedy=_CLOSE),
    "mapping": Reason(what="has something mapped that criu doesn't know", remedy=_STOP),
    "no-memory": Reason(what="needs more memory than there is", remedy="stop other jobs, or use --mode filesystem"),
    "no-space": Reason(what="needs more disk space", remedy="free some: `serac rm`, `serac snapshot rm`"),
    "terminal": Reason(what="holds a terminal in a way that criu doesn't know", remedy=_STOP),
    "unix-in-flight": Reason(
        what="has unix socket connections to accept, or messages that carry more than data",
        remedy=_AGAIN,
        passing=True,
    ),
    "unstoppable": Reason(what="doesn't stop for criu", remedy=_AGAIN, passing=True),
    "watch": Reason(what="watches a file that is deleted (inotify, fanotify)", remedy=_CLOSE),
}
"""what criu's log tells, when a dump or a restore has failed"""

RESTORE = {
    "id-range": Reason(
        what="has ids of another range than the jobs of this host",
        remedy="set id_first in config.json, or resume it with --mode filesystem",
    ),
    "no-image": Reason(what="was not written: it is a snapshot of the files", remedy=_FILES),
    "cpu": Reason(what="may use what this processor hasn't", remedy=_ELSEWHERE),
    "machine": Reason(what="is of another kind of machine", remedy=_ELSEWHERE),
    "pager": Reason(what="got no memory, for what brings it in could not", remedy="try --eager"),
    "older-criu": Reason(what="was dumped by a newer criu", remedy="install that criu, or see scripts/setup"),
    "older-kernel": Reason(what="ran on a newer kernel", remedy=_ELSEWHERE),
}
"""what is judged before a restore, with ``no-memory`` and ``no-space``"""

REASONS = {**PREFLIGHT, **LOG, **RESTORE}


def obstacle(reason: str, detail: str) -> Obstacle:
    return Obstacle(reason=reason, detail=detail, remedy=REASONS[reason].remedy)
