"""A job's processes and what else it holds of the host while it lives: bring up, take down, look whether it lives.

Taking down works from the job's id alone and may be repeated: whatever is there of control groups, veth pair and run
directory goes. Mounts and namespaces need no taking down, they live and die with the processes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from engine import cgroup, launch, layers, network, session, store
from engine.errors import (
    BadPath,
    CommandNotExecutable,
    CommandNotFound,
    InvalidInput,
    ProtocolError,
    WrongState,
)
from engine.kernel import process
from engine.launch import IO_INSIDE, JobSlot
from engine.launch_spec import Birth, JobBirth, JobView, View
from engine.lifecycle import mounting
from engine.lifecycle.root import Root
from engine.model import Address, Job, Layer, SessionSpec
from engine.steps import step

RLIMITS = {"nofile": 65536, "memlock": 8 << 20, "core": 0}
"""A job's soft and hard limits, where the engine's own hard limits allow as much; all others are the engine's."""

TRIES = 100
"""connections to a job that runs which may be lost, each to a pause that failed"""

REFUSED = (CommandNotFound, CommandNotExecutable, BadPath, InvalidInput)
"""What init answers when a session can't be started; then nothing of it ran."""

T = TypeVar("T")


class Init(msgspec.Struct, frozen=True):
    """init.json in the run directory: the pid of a job's init with what tells it from a later process of that pid."""

    pid: int
    start_time: int
    program: str
    """its path in the job, which stays what it was when serac is upgraded"""


def place(root: Root, job: Job) -> Birth:
    """Make the control groups that a job's processes are born in. The run directory comes first: while it is there,
    it is known that there may be more (`engine.lifecycle.recover`)."""
    stage, group = root.stage(job.id), root.group_of(job)
    cgroup.create(root.host, group, job.spec.limits)
    return Birth(
        stage=os.fspath(stage),
        cgroup=group.path,
        cgroup1=group.legacy,
        range=id_range(root, job),
        warm=tuple(f"{root.layers}/{layer}/upper" for layer in job.layers),
    )


@contextlib.contextmanager
def begun(root: Root, job: Job) -> Iterator[JobSlot]:
    """A slot for a job's init. While it makes what needs no layers the caller plans; who takes the job down on an
    error."""
    with JobSlot(job_birth(job, place(root, job)), hold=job.spec.net == "bridge") as slot:
        yield slot


def bring_up(root: Root, job: Job, slot: JobSlot, *, verb: str) -> None:
    """Launch a job's init on its chain and upper; nothing of the job's own runs yet. The caller takes it down again on
    an error."""
    with step(f"{verb}.mount", job=job.id):
        view = job_view(root, job, prepare(root, job))
    with step(f"{verb}.launch", job=job.id):
        _launch(root, job, slot, view)


def prepare(root: Root, job: Job) -> View:
    """Make what a job's processes have for a root: its chain mounted, a work directory."""
    chain = root.catalog.chain(job.layers)
    mounting.mount_chain(root, job.base, chain)
    layers.renew_work(root.layer(upper(job)))
    return view(root, job, chain)


def start(job: Job, connection: session.Connection, sessions: Iterable[SessionSpec], *, verb: str) -> dict[int, str]:
    """Start sessions in a job that was brought up.

    Session 0 must start; others that can't (their directory is gone, say) are returned with the reason."""
    missing = {}
    with step(f"{verb}.start", job=job.id):
        for spec in sessions:
            try:
                connection.start(spec)
            except REFUSED as error:
                if not spec.id:
                    raise
                missing[spec.id] = str(error)
    return missing


def _launch(root: Root, job: Job, slot: JobSlot, view: JobView) -> None:
    def report(pid: int) -> None:
        remember(root, job.id, pid, program=launch.init_inside())
        if job.address is not None:
            network.connect(root.config, job.address, pid=pid)

    slot.launch(view, timeout=root.timeout, report=report)


def view(root: Root, job: Job, chain: Sequence[Layer]) -> View:
    """What the processes of a job have for a root; nothing of it comes from an archive or from inside the job."""
    overlay = layers.overlay(root.layers, root.mounts, job.base, chain, job.upper)
    return View(
        trees=(*overlay.trees, ("io", os.fspath(root.io(job.id)))),
        lowers=overlay.lowers,
        upper=overlay.upper,
        work=overlay.work,
        overlay=overlay.options,
    )


def job_birth(job: Job, birth: Birth) -> JobBirth:
    """What serac-launch is told of a job's first process before it knows its layers."""
    net = "host" if job.spec.net == "host" else "private"
    return JobBirth(**msgspec.structs.asdict(birth), net=net, allow=job.spec.allow)


def job_view(root: Root, job: Job, view: View) -> JobView:
    """And what it is told when it does."""
    return JobView(
        **msgspec.structs.asdict(msgspec.structs.replace(view, binds=(("io", IO_INSIDE),))),
        address=f"{job.address.job}/{job.address.prefix}" if job.address else None,
        gateway=job.address.gateway if job.address else None,
        hostname=job.name,
        rlimits=_rlimits(),
        writes=identity(root, job),
        listen=f"{IO_INSIDE}/init.sock",
    )


def _rlimits() -> tuple[str, ...]:
    def capped(name: str, wanted: int) -> int:
        highest = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
        return wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)

    return tuple(f"{name}:{value}:{value}" for name, value in ((name, capped(name, RLIMITS[name])) for name in RLIMITS))


def identity(root: Root, job: Job) -> tuple[tuple[str, str], ...]:
    """The files that tell a job who and where it is: path and content."""
    address = job.address.job if job.address else "127.0.1.1"
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {job.name}\n"
    files = [("/etc/hostname", f"{job.name}\n"), ("/etc/hosts", hosts)]
    if job.spec.net != "none":
        files.append(("/etc/resolv.conf", network.resolv_conf(network.name_servers(root.config))))
    return tuple(files)


def take_down(root: Root, job: Job) -> None:
    """Kill what lives of a job and give everything of the host back; the job's bytes on disk stay."""
    root.shelf.drop(job.id)
    group = root.group_of(job)
    cgroup.kill(group, timeout=root.timeout)
    cgroup.remove(group)
    pages = root.pages_group(job.id)
    cgroup.kill(pages, timeout=root.timeout)
    cgroup.remove(pages)
    if job.address is not None:
        _disconnect(root, job, job.address)
    for layer in [job.upper] if job.upper is not None else job.layers[-1:]:  # of what it wrote until it was paused
        layers.drop_work(root.layer(layer))
    mounting.let_go(root, job)
    store.remove_tree(root.run_job(job.id))  # last: while it is there, a taking down was not completed


def _disconnect(root: Root, job: Job, address: Address) -> None:
    """When the job's row is gone another one may get the address: first its row has it, then its pair is made."""

    def passed_on() -> bool:
        others = (other for other in root.catalog.jobs(naming=address.interface) if other.id != job.id)
        return any(other.address is not None and other.address.interface == address.interface for other in others)

    network.disconnect(root.config, address, passed_on=passed_on)
    network.release(root.config)


def release_network(root: Root) -> None:
    """Take away what a killed engine may have left of the bridge network; the caller is alone in the root."""
    if network.STATE.exists():
        addresses = (job.address for job in root.catalog.jobs())
        network.release(root.config, known={address.interface for address in addresses if address is not None})


def alive(root: Root, job: Job) -> bool:
    return cgroup.populated(root.group_of(job))


@contextlib.contextmanager
def connected(root: Root, job_id: str) -> Iterator[session.Connection]:
    """A control connection to the job's init."""
    with reached(root, job_id) as connection:
        connection.greet()
        yield connection


def reached(root: Root, job_id: str) -> session.Connection:
    """The same to an init that may just be starting: `Connection.greet` comes first. A context."""
    return session.reach(root.io(job_id), timeout=root.timeout)


def heard(
    root: Root, admitted: Callable[[], Job], ask: Callable[[session.Connection, Job], T]
) -> tuple[session.Connection, T]:
    """A connection to the init of a job that is ``admitted``, and what it answered on it.

    Init hangs up on who comes just when a pause begins, and has done nothing of what it didn't answer: of a session
    with lent files nothing but its start. Then the job is to be admitted again, which waits for the verb."""
    tries = 0
    while True:
        job = admitted()
        try:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(session.connect(root.io(job.id), timeout=root.timeout))
                answer = ask(connection, job)
                stack.pop_all()
                return connection, answer
        except WrongState:
            tries += 1
            if tries == TRIES:
                raise


def signal_init(root: Root, job: Job, signum: signal.Signals) -> None:
    """Send a signal to the job's init from outside; nothing happens when it is gone."""
    with opened_init(root, job.id) as pidfd:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, signum)


def wait_init(root: Root, job: Job, *, timeout: float | None) -> bool:
    """Wait until the job's init is gone, for ``timeout`` seconds (None = for ever); whether it is."""
    with opened_init(root, job.id) as pidfd:
        if pidfd is None:
            return True
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000))


@contextlib.contextmanager
def opened_init(root: Root, job_id: str) -> Iterator[int | None]:
    """A pidfd of the job's init, which can be read when init is gone; None when it is gone already."""
    pidfd = _open_init(_recall(root, job_id))
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def recall(root: Root, job: Job) -> Init:
    """Raises WrongState when the job doesn't run."""
    init = _recall(root, job.id)
    if init is None:
        raise WrongState(f"job {job.name} has ended")
    return init


def _recall(root: Root, job_id: str) -> Init | None:
    try:
        return msgspec.json.decode((root.run_job(job_id) / "init.json").read_bytes(), type=Init)
    except FileNotFoundError:
        return None


def _open_init(init: Init | None) -> int | None:
    if init is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(init.pid)
        # The pid may have gone to another process before it was opened; after that it can't.
        with contextlib.suppress(ProcessLookupError):
            if process.start_time(init.pid) == init.start_time:
                return pidfd
        os.close(pidfd)
    return None


def remember(root: Root, job_id: str, pid: int, *, program: str) -> None:
    """Note which process is the job's init. Raises ProtocolError when it is gone already."""
    try:
        init = Init(pid=pid, start_time=process.start_time(pid), program=program)
    except ProcessLookupError as error:
        raise ProtocolError("the job's init ended at once", hint="`serac doctor`; is the base complete?") from error
    store.write_aside(root.run_job(job_id) / "init.json", msgspec.json.encode(init))


def id_range(root: Root, job: Job) -> tuple[int, int] | None:
    """First host id and count of the job's user namespace; None = the host's."""
    settings = root.config.settings
    return (settings.id_first, settings.id_count) if job.spec.userns == "private" else None


def first_id(root: Root, job: Job) -> int:
    """The host's id of the job's root."""
    ids = id_range(root, job)
    return ids[0] if ids is not None else 0


def capable() -> bool:
    """Whether this process holds CAP_SYS_RESOURCE."""
    return process.has_capability(os.getpid(), 24)


def upper(job: Job) -> str:
    """Raises WrongState when nothing is written for the job now."""
    if job.upper is None:
        raise WrongState(f"job {job.name} has no upper")
    return job.upper
