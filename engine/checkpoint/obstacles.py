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
    """completes "the process holds" or "the process is": what can't be carried"""
    remedy: str
    passing: bool = False
    """a moment later it may be gone by itself: trying again is worth it"""


_STOP = "stop it before the pause, or use --mode filesystem"
_FALL_BACK = "use --mode filesystem"
_OWN = "don't allow it (--allow), so that programs do without, or use --mode filesystem"

REASONS: dict[str, Reason] = {
    "aio": Reason(what="has asynchronous reads or writes under way", remedy="try again", passing=True),
    "bpf": Reason(what="holds a BPF map or program", remedy=_OWN),
    "descriptor": Reason(what="holds a descriptor of a kind that criu doesn't know", remedy=_STOP),
    "device": Reason(what="holds a device open", remedy=_STOP),
    "fanotify": Reason(what="watches files by fanotify", remedy=_OWN),
    "host-network": Reason(what="is in the host's network", remedy="run the job with --net none or bridge"),
    "io-uring": Reason(what="holds an io_uring", remedy=_OWN),
    "landlock": Reason(what="holds a Landlock ruleset, or may have bound itself by one", remedy=_OWN),
    "large-deleted-file": Reason(
        what="holds a file open that is deleted and larger than 512 MiB", remedy="close it, or use --mode filesystem"
    ),
    "memfd-secret": Reason(what="holds secret memory (memfd_secret)", remedy=_OWN),
    "message-queue": Reason(what="holds a POSIX message queue", remedy=_STOP),
    "mptcp": Reason(what="holds a multipath TCP socket", remedy="switch it off; in Go: GODEBUG=multipathtcp=0"),
    "namespace": Reason(what="is in a namespace of its own", remedy=_OWN),
    "other-user": Reason(
        what="is another user's, on a host that doesn't let serac read its limits (CAP_SYS_RESOURCE)",
        remedy="run the job with --userns private, or serac with CAP_SYS_RESOURCE",
    ),
    "outside-file": Reason(what="holds a file open that lies outside the job", remedy="close it"),
    "perf-event": Reason(what="holds a performance counter", remedy=_OWN),
    "seccomp-listener": Reason(what="listens to a seccomp filter's notifications", remedy=_STOP),
    "session": Reason(
        what="is in a session that can't be made again, for its leader is gone or is not among its parents",
        remedy="start it with setsid(1), or use --mode filesystem",
    ),
    "socket": Reason(what="holds a socket of a kind that criu doesn't know", remedy=_STOP),
    "tcp-unaccepted": Reason(what="has TCP connections to accept", remedy="try again", passing=True),
    "traced": Reason(what="is being traced", remedy="end strace or the debugger"),
    "udp-unread": Reason(what="has UDP datagrams to read", remedy="try again", passing=True),
    "userfaultfd": Reason(what="handles its own page faults (userfaultfd)", remedy=_OWN),
    # What only criu, or its log, tells.
    "criu-failed": Reason(what="criu failed", remedy=_FALL_BACK),
    "no-space": Reason(what="the disk is full", remedy="free some space: `serac rm`, `serac snapshot rm`"),
}


def obstacle(reason: str, detail: str) -> Obstacle:
    return Obstacle(reason=reason, detail=detail, remedy=REASONS[reason].remedy)
