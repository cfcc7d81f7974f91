"""What serac-launch is told: specs, and how they are written (native/protocol.h)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.errors import InvalidInput
from engine.model import Value


class Birth(Value, frozen=True, kw_only=True):
    """Where processes are born, before it is known what they have for a root: the head of a spec; the fields are the
    keys of native/protocol.h."""

    stage: str
    cgroup: str | None = None
    cgroup1: tuple[str, ...] = ()
    range: tuple[int, int] | None = None
    """first host id and count; None = the host's user namespace"""
    warm: tuple[str, ...] = ()
    """layers of the root to come, read ahead where they are many"""


class JobBirth(Birth, frozen=True, kw_only=True):
    """Of a job's first process."""

    net: str = "private"
    allow: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class CriuBirth(Birth, frozen=True, kw_only=True):
    """Of a criu, which sees the job's root at /run/root."""

    program: str
    args: tuple[str, ...]
    kdat: str | None = None
    """where criu's knowledge of this kernel is kept"""
    preload: str | None = None
    pidfile: tuple[int, str] | None = None
    """given: criu doesn't die with the engine, and keeps this descriptor open; the file tells of both"""


class View(Value, frozen=True, kw_only=True):
    """What processes have for a root, the body of a spec; nothing, for a criu that dumps."""

    trees: tuple[tuple[str, str], ...] = ()
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    overlay: tuple[str, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    shm: int | None = None
    """bytes of /dev/shm"""


class JobView(View, frozen=True, kw_only=True):
    """And what else a job's first process finds."""

    address: str | None = None
    gateway: str | None = None
    hostname: str | None = None
    rlimits: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    listen: str | None = None


class NetworkSpec(Value, frozen=True, kw_only=True):
    """What is done to a network namespace; the lock and the guests stay until the hold on it ends."""

    lock: bool = True
    """no packet passes but criu's own"""
    guests: tuple[str, ...] = ()
    """addresses on lo, for sockets to be bound to that the namespace has no more"""
    address: str | None = None
    """of eth0, with the prefix's length"""
    gateway: str | None = None
    up: bool = False
    """bring lo up"""
    close: bool = False
    """connections that lead outside end with the hold"""
    hostname: str | None = None
    """a new name of the host, when the hold has ended"""


_PAIRS = {"trees": "tree", "binds": "bind", "writes": "write"}
_LISTS = {
    "cgroup1": "cgroup1",
    "lowers": "lower",
    "overlay": "overlay",
    "rlimits": "rlimit",
    "allow": "allow",
    "args": "arg",
    "guests": "guest",
    "warm": "warm",
}
"""Fields that become several records, and their keys; every other field is one record of its own name."""


def records_of(spec: Birth | View | NetworkSpec) -> Iterator[tuple[str, str]]:
    for field in spec.__struct_fields__:
        value = getattr(spec, field)
        if field in _PAIRS:
            yield from ((_PAIRS[field], f"{key}={text}") for key, text in value)
        elif field in _LISTS:
            yield from ((_LISTS[field], text) for text in value)
        elif field in ("range", "pidfile") and value is not None:
            yield field, f"{value[0]}:{value[1]}"
        elif value is True:
            yield field, "1"
        elif value is not None and value is not False:
            yield field, str(value)


def encoded(records: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(record(*pair) for pair in (("serac-launch", "1"), *records))


def record(key: str, value: str) -> bytes:
    if "\0" in value:
        raise InvalidInput(f"{key} holds a NUL byte")
    return f"{key}={value}".encode(errors="surrogateescape") + b"\0"
