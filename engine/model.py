"""The domain: every noun that serac knows, as frozen values. No I/O here, no imports of ours.

The glossary, one word an idea:

image     an EROFS filesystem in two files, metadata and data, named by digest
archive   write a layer (and a process image) as an image, so that it can leave the host; a snapshot whose parts all
          are images is archived, and its manifest names them
flatten   make one layer of several
collect   remove what no rule keeps
base      a read-only root filesystem: an image, mounted once per host and shared; a name is a movable tag on a digest
layer     a filesystem diff over its parent: a directory that one job writes (its upper) until it is sealed
upper     the writable layer of one running job
chain     base + layers, oldest to newest, under an upper
job       a workload: spec, state, chain, upper, cgroup, network, process tree
session   a process that was started in a job: the job's command is session 0, each ``exec`` is another
context   what a filesystem resume needs to go on: each session's command, environment and directory, the steps that
          were completed, the caller's own state, labels
snapshot  immutable: base digest + layers + context + labels + reason + times
seal      turn an upper into a layer that nobody writes any more
freeze    stop a job in memory (cgroup v2 freezer); thaw: let it go on
event     something that was done, tried or decided in a root; the journal has them, oldest first
pause     freeze, seal, release compute; resume: mount, start, go on
question  what a process of a job asks of who watches it; it waits for the answer, through a pause too
lease     a process of a job says that the job is not to be paused for being idle
fork      resume a snapshot as a new job; the snapshot stays
request   a call that its caller gave an id, so that it is carried out once
recover   bring the world back in line with the catalog after a crash

Units: times are seconds since the epoch (float) unless a name says ``_ns``; sizes are bytes; ``timings`` are
milliseconds by step.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec

Net = Literal["none", "host", "bridge"]
UserNs = Literal["private", "host"]
Strategy = Literal["reuse", "stack"]
Mode = Literal["auto", "process", "filesystem"]
Memory = Literal["auto", "eager", "lazy"]
Archiving = Literal["background", "wait", "never"]
Durability = Literal["full", "fast"]
Format = Literal["serac", "oci", "podman"]
Outcome = Literal["resumed", "forked", "answered", "refused"]
RequestVerb = Literal["pause", "resume"]

Count = Annotated[int, msgspec.Meta(ge=0)]


class JobState(enum.StrEnum):
    CREATED = "created"
    RUNNING = "running"
    FROZEN = "frozen"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    EXITED = "exited"
    FAILED = "failed"


LIVE = frozenset({JobState.RUNNING, JobState.FROZEN})
"""States in which a job has processes."""

PASSING = frozenset({JobState.CREATED, JobState.PAUSING, JobState.RESUMING})
"""States that a verb passes through: without one at work they are the trace of a crash."""

ENDED = frozenset({JobState.EXITED, JobState.FAILED})


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """The base of all domain values: immutable, compared by content, keyword-only, JSON by msgspec."""


class Step(Value, frozen=True, kw_only=True):
    """A named shell script; a job made of steps goes on at the first one not completed."""

    name: str
    script: str


class Limits(Value, frozen=True, kw_only=True):
    memory: int | None = None
    """bytes"""
    cpus: float | None = None
    """processors, 1.5 = one and a half"""
    pids: int | None = None


class Pool(Value, frozen=True, kw_only=True):
    """How much an engine keeps ready for new jobs: in a control group each a process that waits, with the namespaces of
    a job on no network and in a user namespace of its own. Jobs with other ``limits`` begin without."""

    jobs: int = 0
    """for `run`, and forks from files"""
    forks: int = 0
    """for forks with processes"""
    limits: Limits = Limits()


LIMIT_RANGES: dict[str, tuple[float, float]] = {
    "memory": (4 << 20, 1 << 50),
    "cpus": (0.01, 4096),
    "pids": (8, 1 << 22),
}
"""Lowest and highest value of each: below not even init comes up, above the kernel or good sense refuses."""

DENIALS = (
    "io_uring",
    "landlock",
    "userfaultfd",
    "perf",
    "bpf",
    "keyring",
    "namespaces",
    "fanotify",
    "memfd_secret",
    "devices",
)
"""What ``JobSpec.allow`` may name: groups of system calls that jobs are denied; ``allow`` in native/protocol.h."""


class JobSpec(Value, frozen=True, kw_only=True):
    """What to run, and in what. With neither ``argv`` nor ``steps`` the job stays up for ``exec`` until stopped."""

    base: str
    """a base's name or digest"""
    argv: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    name: str | None = None
    """unique among jobs; default: the job's id"""
    env: dict[str, str] = {}
    workdir: str = "/"
    net: Net = "none"
    userns: UserNs = "private"
    tty: bool = False
    limits: Limits = Limits()
    labels: dict[str, str] = {}
    allow: tuple[str, ...] = ()
    """of ``DENIALS``, those to lift"""
    on_resume: tuple[str, ...] = ()
    """a command to run in the job when its processes have been brought back, for instance to fetch new tokens; its
    environment has the new SERAC_GENERATION"""
    resume_signal: str | None = None
    """a signal, such as ``USR1``, for each session's first process at the same moment"""
    pause_after: float | None = None
    """seconds without activity after which a supervisor pauses it, 0 = never; None = as config.json says"""
    state: Any = None
    """the caller's own JSON value; travels in every snapshot's context"""
    snapshot_on: Literal["failure"] | None = None
    """``failure``: a snapshot stays of a job whose command or step failed"""


class SessionSpec(Value, frozen=True, kw_only=True):
    """A process to start in a job. ``id`` 0 is the job's own command."""

    id: int | None = None
    argv: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    done: tuple[str, ...] = ()
    """names of steps that were completed before"""
    env: dict[str, str] = {}
    workdir: str = ""
    """empty = the job's"""
    tty: tuple[int, int] | None = None
    """rows and columns of the terminal, None = no terminal"""
    keep: bool = False
    """comes back after a filesystem resume"""
    uid: int = 0
    gid: int = 0


class SessionStatus(Value, frozen=True, kw_only=True):
    """What init last wrote of a session."""

    id: int
    running: bool
    pid: int | None = None
    """in the job's pid namespace"""
    exit: int | None = None
    """exit code, or None"""
    signal: int | None = None
    """the signal that ended it, or None"""
    done: tuple[str, ...] = ()
    step: str | None = None
    started: float | None = None
    ended: float | None = None

    @property
    def status(self) -> int | None:
        """As a shell says it: the exit code, or 128 + signal; None while it runs."""
        if self.signal is not None:
            return 128 + self.signal
        return self.exit


class Question(Value, frozen=True, kw_only=True):
    """What a process of a job asks, and waits for the answer. All of it is the job's word."""

    reason: str = ""
    state: Any = None
    """JSON; what it wrote that is none is a text"""
    since: float | None = None
    number: int = 0
    """which one; init counts them, 0 = it doesn't"""


class Answer(Value, frozen=True, kw_only=True):
    """What the asker gets, or got."""

    outcome: Outcome
    value: Any = None
    question: Question
    step: str | None = None
    """that session 0 was at"""
    told: bool = False
    """whether the asker has it; if not, whoever takes the job next sees to that"""


class Failure(Value, frozen=True, kw_only=True):
    """How a job's command failed."""

    status: int
    """as ``SessionStatus.status``"""
    step: str | None = None
    """the one that failed"""
    workdir: str = "/"
    """where the command, or each step, began"""


class Context(Value, frozen=True, kw_only=True):
    """What a filesystem resume starts again."""

    sessions: tuple[SessionSpec, ...] = ()
    ended: tuple[int, ...] | None = None
    """those whose files stay, though they had ended at the cut; None = nobody looked"""
    state: Any = None
    labels: dict[str, str] = {}
    question: Question | None = None
    """that is open: a resume answers it"""
    answers: tuple[Answer, ...] = ()
    """to what the step that is started again had asked, oldest first"""
    failure: Failure | None = None
    """of a job that has ended with it"""
    idle: bool = False
    """whether session 0 was held back, and runs in no process of the snapshot"""


class Address(Value, frozen=True, kw_only=True):
    """A bridge job's place in the configured subnet: a /30 of its own."""

    job: str
    gateway: str
    prefix: int
    interface: str
    """the host's end of the veth pair"""


class Layer(Value, frozen=True, kw_only=True):
    """A directory ``layers/<id>/upper``, an image, or both. Its owner writes it; sealed (no owner) nobody does."""

    id: str
    image: str | None = None
    """digest, once it is archived"""
    directory: bool = True
    """whether the directory is there"""
    edition: str | None = None
    """another one whenever a resume that began to write it again was taken back"""
    parent: str | None = None
    """the layer below, None = the base"""
    owner: str | None = None
    """id of the job whose upper it is"""
    created: float = 0.0


class Loading(Value, frozen=True, kw_only=True):
    """Where the memory of a job comes from that runs already."""

    snapshot: str
    keep: bool = False
    """whether the snapshot stays when all is in"""


class Request(Value, frozen=True, kw_only=True):
    """A call that was carried out and that its caller had given an id."""

    verb: RequestVerb
    id: str
    pauses: int
    """how often the job had been paused before"""


class Job(Value, frozen=True, kw_only=True):
    id: str
    name: str
    spec: JobSpec
    state: JobState
    base: str
    """digest"""
    layers: tuple[str, ...] = ()
    """sealed layers under the upper, oldest first"""
    mounted: tuple[str, ...] = ()
    """those that its overlay was made of, where they have been flattened since"""
    upper: str | None = None
    """the layer that the job writes, None while it is paused"""
    frozen: bool = False
    """while it is ``pausing``: whether it was frozen before"""
    snapshot: str | None = None
    """the snapshot it was last paused to, is being resumed from, or was kept as when it failed"""
    pending: tuple[SessionSpec, ...] = ()
    """sessions that a resume has still to start; not empty only between its commit and its end"""
    loading: Loading | None = None
    """after a lazy resume, until it was seen that all memory is in; with ``failed``, it never came"""
    address: Address | None = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    status: int | None = None
    """as ``SessionStatus.status``, once exited"""
    failure: str | None = None
    """why it is ``failed``, in a line"""
    pauses: int = 0
    requests: tuple[Request, ...] = ()
    """the last that were carried out, oldest first"""
    forked_from: str | None = None
    """snapshot id"""
    answers: tuple[Answer, ...] = ()
    """that its processes were given; the last one may be still to be told"""
    held: SessionSpec | None = None
    """session 0 of a job that was brought back idle: the next start from its files starts it"""
    owes: bool = False
    """whether it has failed, and the snapshot of that is still to be made"""


class HostFacts(Value, frozen=True, kw_only=True):
    """What a host is to a process image: whether one made here can be restored there."""

    criu: str
    """version"""
    kernel: str
    """release"""
    machine: str
    """such as ``x86_64``"""
    cpu: tuple[str, ...] = ()
    """the flags that processes may have come to rely on"""


class Placement(Value, frozen=True, kw_only=True):
    """Of one thread that was placed otherwise than the job's init."""

    thread: int
    """its number in the job"""
    cpus: tuple[int, ...] = ()
    """those that it may run on; () = the same as init"""
    ioprio: int = 0
    """as ioprio_get(2) has it"""


class ProcessImage(Value, frozen=True, kw_only=True):
    """What criu dumped of a job's processes: in ``layers/<id>/image`` of what the pause sealed, or an image of that."""

    digest: str | None = None
    """of the image that it was archived as"""
    host: HostFacts
    init: str
    """path of the init that runs in the job"""
    memory: int
    """bytes of the processes' pages"""
    remaps: tuple[str, ...] = ()
    """paths of files that criu put into the layer, and takes away when it restores them; image/remaps/N is another
    name of each, by its place here"""
    connections: bool = False
    """whether there are TCP connections"""
    address: str | None = None
    """of the job in the bridge's network, to which connections are bound"""
    shm: bool = False
    """whether /dev/shm had anything in it"""
    placements: tuple[Placement, ...] = ()
    """of threads that may not run everywhere, or have an I/O priority: criu forgets both"""
    logs: dict[str, int] = {}
    """what belongs to sessions in the job's io directory at the cut: file -> bytes"""
    range: tuple[int, int] | None = None
    """first host id and count of the job's user namespace, to which criu binds it; None = the host's"""


class Snapshot(Value, frozen=True, kw_only=True):
    """Immutable once written. ``layers`` oldest first; the last one is what the pause sealed."""

    id: str
    job: str
    name: str
    """the job's name when it was taken"""
    spec: JobSpec
    base: str
    layers: tuple[str, ...]
    context: Context
    mode: Literal["filesystem", "process"] = "filesystem"
    reason: str | None = None
    """why not ``process``, machine-readable"""
    image: ProcessImage | None = None
    """present with mode ``process``"""
    labels: dict[str, str] = {}
    parent: str | None = None
    created: float = 0.0
    pinned: bool = False
    due: bool = False
    """whether it is to be archived in the background"""
    archive: str | None = None
    """digest of its manifest, once it is archived"""
    unflushed: str | None = None
    """the boot in which it was made by a ``fast`` pause, as long as not all of it is known to be on the device"""
    expires: float | None = None
    """when it is removed, and the job that is paused to it; None = as the root's policies have it"""


class Digest(Value, frozen=True, kw_only=True):
    """One file of an image."""

    sha256: str
    size: int


class Image(Value, frozen=True, kw_only=True, omit_defaults=False):
    """image.json beside the two files; the image's digest is the SHA-256 of its bytes."""

    format: str = "serac-image/1"
    meta: Digest
    blob: Digest
    piece_size: int = 1 << 20
    pieces: tuple[str, ...] = ()
    """SHA-256 of each piece of the blob, in order"""


class Base(Value, frozen=True, kw_only=True):
    digest: str
    names: tuple[str, ...] = ()
    size: int = 0
    """bytes of both files"""
    source: str = ""
    """how it was built, for people: ``debian:bookworm``, ``tar:rootfs.tar`` ..."""
    created: float = 0.0
    env: dict[str, str] = {}
    """environment that the base brings along (an OCI image's config)"""


class Profile(Value, frozen=True, kw_only=True):
    """What jobs really read of a base."""

    parts: dict[str, tuple[tuple[int, int], ...]] = {}
    """file of the image -> offset and length of each part, in bytes, in order"""

    @property
    def size(self) -> int:
        return sum(length for parts in self.parts.values() for _, length in parts)


class Warmth(Value, frozen=True, kw_only=True):
    """What ``base warm`` did; all in bytes."""

    size: int
    """of what was to be brought in: the base's profile, or all of it"""
    cached_before: int
    cached_after: int


class PauseResult(Value, frozen=True, kw_only=True, omit_defaults=False):
    job: str
    snapshot: str
    mode: str
    reason: str | None
    archive: str | None = None
    """digest of its manifest, when that was waited for"""
    durability: Durability = "full"
    """``fast``: it is lost if the host goes down in the next seconds"""
    timings: dict[str, float]
    sizes: dict[str, int]


class ResumeResult(Value, frozen=True, kw_only=True, omit_defaults=False):
    job: str
    snapshot: str
    strategy: Strategy
    mode: str
    missing: dict[int, str] = {}
    """sessions that could not be started again, with the reason; never session 0"""
    generation: str | None = None
    """what /run/serac/generation says from now on"""
    untold: str | None = None
    """why the job's ``on_resume`` or ``resume_signal`` came to nothing"""
    memory: Literal["eager", "lazy"] | None = None
    """how the memory of processes came back"""
    eager_because: str | None = None
    """why ``auto`` wasn't lazy"""
    timings: dict[str, float] = {}


class Prefetch(Value, frozen=True, kw_only=True, omit_defaults=False):
    """A resume that is announced."""

    job: str
    mode: str
    read: int
    """bytes that the resume will read, in memory now as far as there is room"""
    seconds: float
    """how long the engine keeps ready what it has made"""
    timings: dict[str, float] = {}


class ForkResult(ResumeResult, frozen=True, kw_only=True, omit_defaults=False):
    """The new job, from ``snapshot``."""

    name: str
    strategy: Strategy = "stack"


class TakeResult(Value, frozen=True, kw_only=True, omit_defaults=False):
    """A snapshot of a job that runs on. ``stopped`` in ``timings``: how long it stood still, in milliseconds."""

    job: str
    snapshot: str
    archive: str | None = None
    """as of a PauseResult"""
    durability: Durability = "full"
    generation: str | None
    memory: Literal["eager", "lazy"] | None = None
    eager_because: str | None = None
    timings: dict[str, float]
    sizes: dict[str, int]


class Finding(Value, frozen=True, kw_only=True):
    """One line of ``doctor``: what was looked for, whether it is there, and the remedy where not."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    required: bool = True


class SnapshotSource(Value, frozen=True, kw_only=True):
    """A base built from a snapshot: its whole chain, flattened into one image."""

    snapshot: str


class Policy(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the snapshots are kept that bear some labels; see `engine.retention`."""

    labels: dict[str, str] = {}
    """all of these; none = every snapshot"""
    ttl: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """seconds, None = no more than ``keep_last`` says"""
    keep_last: Count | None = None
    """so many, the newest, stay whatever their age"""
    per: Literal["job", "policy"] = "job"
    """whether the newest are those of each job, or of all that the policy speaks of"""


class Quota(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a root may hold of snapshots; None = no limit. Those that are pinned count, and stay."""

    bytes: Count | None = None
    """of their layers and processes, each counted once"""
    snapshots: Count | None = None
    paused: Count | None = None
    """jobs that are paused"""


class Verdict(Value, frozen=True, kw_only=True):
    """Whether a snapshot is kept."""

    snapshot: str
    job: str | None = None
    """the job that is paused to it, and goes with it"""
    keep: bool
    held: bool = False
    """whether nothing could take it: it is pinned, or in use"""
    reason: str


class Collected(Value, frozen=True, kw_only=True):
    """Something that ``gc`` removes."""

    kind: Literal["job", "snapshot", "layer", "image", "directory"]
    """``job``: one that is paused, with its snapshot; ``directory``: of a layer that is an image too"""
    id: str
    reason: str


class Violation(Value, frozen=True, kw_only=True):
    """Something in a root that isn't as it must be."""

    subject: str
    """such as ``layer 4f0c2a91b3d7``"""
    what: str
    mends: bool = False
    """whether a repair puts it right and loses nothing"""


class Check(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What a check found; after a repair, what is left."""

    violations: tuple[Violation, ...] = ()
    unseen: tuple[str, ...] = ()
    """what could not be looked at, because somebody is at work on it"""
    repaired: tuple[str, ...] = ()
    """what was wrong before, and what a repair has to say of it"""


class Event(Value, frozen=True, kw_only=True):
    """A line of a root's journal."""

    time: float
    kind: str
    """a verb, such as ``pause``, or what was decided, such as ``retention.remove``"""
    job: str | None = None
    """id"""
    name: str | None = None
    """the job's name then"""
    snapshot: str | None = None
    """id"""
    outcome: str = "ok"
    """or the code of the error that it ended with"""
    reason: str | None = None
    """why, for people, in a line"""
    ms: float | None = None
    """how long it took"""
    facts: dict[str, Any] = {}
    """more of it, by names that go with the kind"""


class FileChange(Value, frozen=True, kw_only=True, omit_defaults=False):
    """A path on which two trees differ."""

    path: str
    """absolute; what is no UTF-8 in it as `os.fsdecode` has it"""
    kind: Literal["added", "deleted", "modified", "attributes", "type"]
    """``attributes``: mode, owner, extended attributes or time alone"""
    type: str
    """``file``, ``directory``, ``link``, ``fifo``, ``socket`` or ``device``; of what is there after, or was there"""
    before: int | None = None
    after: int | None = None
    """bytes, of files"""
    attributes: tuple[str, ...] = ()
    """of ``mode``, ``owner``, ``xattrs``, ``mtime``, those that changed"""
