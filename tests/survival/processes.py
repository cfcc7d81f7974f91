"""Trees, threads, what a process is and may."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from survival import Probe, holds, libc, same


class Child:
    """A forked process that prepares, waits, and answers: ``answer() -> bytes`` runs in it when it is asked."""

    def __init__(self, prepare: Callable[[], Callable[[], object]]) -> None:
        ask_read, self._ask = os.pipe()
        self._reply, reply = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ask)
            status = 1
            try:
                answer = prepare()
                os.write(reply, b"+")
                if os.read(ask_read, 1):
                    os.write(reply, pickle.dumps(answer()))
                    status = 0
            finally:
                os._exit(status)
        os.close(ask_read)
        os.close(reply)
        holds(os.read(self._reply, 1) == b"+", "the child got ready")

    def ask(self) -> Any:
        """What its answer gives; then it is gone."""
        os.write(self._ask, b"?")
        with open(self._reply, "rb") as reply:
            said = pickle.loads(reply.read())
        os.close(self._ask)
        _, status = os.waitpid(self.pid, 0)
        same(status, 0, "status of the child")
        return said


def status(*fields: str, pid: int | str = "self") -> dict[str, str]:
    """Fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {field: found[field].strip() for field in fields}


def keeps(prepare: Callable[[], object], look: Callable[[], object]) -> Probe:
    """A child prepares itself; what ``look`` sees in it is the same after as before."""

    def prepared() -> Callable[[], object]:
        prepare()
        before = look()
        return lambda: (before, look())

    child = Child(prepared)
    yield
    before, after = child.ask()
    same(after, before)


def tree() -> Probe:
    """Four generations, two children each: everybody's parent, and everybody's status."""
    gate, opener = os.pipe()
    names, name = os.pipe()

    def grow(depth: int) -> int:
        children = []
        for number in range(2 if depth else 0):
            pid = os.fork()
            if pid == 0:
                os._exit(grow(depth - 1) * 2 + number)
            children.append(pid)
        parent = os.getppid()
        os.write(name, b"x")
        os.read(gate, 1)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        return (os.getppid() == parent) * (1 + sum(each // 2 for each in statuses) if statuses else 1)

    root = os.fork()
    if root == 0:
        os.close(opener)
        os._exit(grow(4))
    os.close(name)
    ready = b""
    while len(ready) < 31:
        ready += os.read(names, 31)
    yield
    os.write(opener, b"g" * 31)
    same(os.waitstatus_to_exitcode(os.waitpid(root, 0)[1]), 31, "members of the tree that are right")


def threads_200() -> Probe:
    go, kept = threading.Event(), threading.local()
    ready = threading.Barrier(201)
    before: dict[int, tuple[int, str]] = {}
    after: dict[int, tuple[int, str]] = {}

    def work(number: int) -> None:
        kept.number = number
        libc.call("prctl", libc.PR_SET_NAME, f"thread {number}".encode(), 0, 0, 0)
        before[number] = (threading.get_native_id(), f"thread {number}")
        ready.wait()
        go.wait()
        name = Path("/proc/thread-self/comm").read_text().strip()
        after[kept.number] = (int(os.readlink("/proc/thread-self").split("/")[-1]), name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    ready.wait()
    yield
    go.set()
    for thread in threads:
        thread.join()
    same(after, before, "thread ids and names")


def threads_differ() -> Probe:
    """Credentials, capabilities and masks are a thread's own for the kernel: one differs from the rest."""
    go, ready = threading.Event(), threading.Event()
    seen: list[dict[str, str]] = []
    fields = ("Uid", "CapEff", "SigBlk", "Seccomp", "NoNewPrivs")

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        libc.call("syscall", 117, -1, 1234, -1)  # setresuid, of this thread alone
        tid = threading.get_native_id()
        seen.append(status(*fields, pid=tid))
        ready.set()
        go.wait()
        seen.append(status(*fields, pid=tid))

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    mine = status(*fields)
    yield
    go.set()
    thread.join()
    same(seen[1], seen[0], "the other thread")
    holds(seen[0]["Uid"] != mine["Uid"], "the other thread has a uid of its own")
    same(status(*fields), mine, "the first thread")


def sessions_and_groups() -> Probe:
    def ids() -> tuple[int, int, int]:
        return os.getpid(), os.getpgid(0), os.getsid(0)

    leader = keeps(os.setsid, ids)
    group = keeps(lambda: os.setpgid(0, 0), ids)
    next(leader)
    next(group)
    yield
    for probe in (leader, group):
        finish(probe)


def session_with_members() -> Probe:
    """A leader, a group of its own in its session, and a member of that group."""

    def prepare() -> Callable[[], object]:
        os.setsid()
        one = Child(lambda: (os.setpgid(0, 0), lambda: (os.getpgid(0), os.getsid(0)))[1])
        two = Child(lambda: (os.setpgid(0, one.pid), lambda: (os.getpgid(0), os.getsid(0)))[1])
        return lambda: (os.getpid(), one.pid, one.ask(), two.ask())

    child = Child(prepare)
    yield
    leader, first, one, two = child.ask()
    same(leader, child.pid)
    same((one, two), ((first, leader), (first, leader)), "group and session of both")


def finish(probe: Probe) -> None:
    for _ in probe:
        raise AssertionError("yields twice")


def zombies() -> Probe:
    exited, killed = os.fork(), 0
    if exited == 0:
        os._exit(42)
    killed = os.fork()
    if killed == 0:
        signal.pause()
    os.kill(killed, signal.SIGKILL)
    for pid in (exited, killed):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield
    for pid, expected in ((exited, 42), (killed, -signal.SIGKILL)):
        holds(status("State", pid=pid)["State"].startswith("Z"), f"{pid} is a zombie")
        same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), expected, "status of the zombie")


def reparented() -> Probe:
    """An orphan of the pause's own time ends up where orphans go; one of before stays there."""

    def prepare() -> Callable[[], object]:
        read, write = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                while os.getppid() != 1:
                    os.sched_yield()
                os.write(write, str(os.getpid()).encode())
                signal.pause()
            os._exit(0)
        os.wait()
        orphan = int(os.read(read, 20))
        return lambda: (status("PPid", pid=orphan)["PPid"], os.kill(orphan, signal.SIGKILL))[0]

    child = Child(prepare)
    yield
    same(child.ask(), "1", "parent of the orphan")


def credentials() -> Probe:
    def prepare() -> None:
        os.setgroups([7, 8, 4000])
        os.setresgid(100, 200, 300)
        os.setresuid(1000, 1001, 1002)

    return keeps(prepare, lambda: (os.getresuid(), os.getresgid(), os.getgroups(), status("Uid", "Gid")))


def capabilities() -> Probe:
    """A bounding set without two, an effective set of two, one inheritable."""

    def prepare() -> None:
        for capability in (1, 27):  # CAP_DAC_OVERRIDE, CAP_MKNOD
            libc.call("prctl", libc.PR_CAPBSET_DROP, capability, 0, 0, 0)
        head = struct.pack("II", 0x20080522, 0)
        chown, kill, setuid = 1 << 0, 1 << 5, 1 << 7
        libc.call("capset", head, struct.pack("6I", kill | chown, kill | chown | setuid, kill, 0, 0, 0))

    fields = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return keeps(prepare, lambda: status(*fields))


def seccomp() -> Probe:
    """A filter that answers getpriority with EDOM still does; the rest passes."""

    def prepare() -> None:
        load, equal, give = (0x20, 0, 0, 0), (0x15, 0, 1, 140), (0x06, 0, 0, 0x00050000 | 33)
        program = b"".join(struct.pack("HBBI", *line) for line in (load, equal, give, (0x06, 0, 0, 0x7FFF0000)))
        buffer = libc.ctypes.create_string_buffer(program, len(program))
        libc.call("prctl", libc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        fprog = struct.pack("HxxxxxxQ", 4, libc.ctypes.addressof(buffer))
        libc.call("prctl", libc.PR_SET_SECCOMP, 2, fprog)

    def look() -> tuple[object, ...]:
        try:
            os.getpriority(os.PRIO_PROCESS, 0)
        except OSError as error:
            return error.errno, status("Seccomp", "Seccomp_filters", "NoNewPrivs")
        return (0,)

    probe = keeps(prepare, look)
    next(probe)
    yield
    finish(probe)


def nice() -> Probe:
    return keeps(lambda: os.nice(7), lambda: os.getpriority(os.PRIO_PROCESS, 0))


def scheduling() -> Probe:
    def prepare() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    return keeps(prepare, lambda: (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))


def scheduling_idle() -> Probe:
    return keeps(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)), lambda: os.sched_getscheduler(0))


def affinity() -> Probe:
    one = {min(os.sched_getaffinity(0))}
    return keeps(lambda: os.sched_setaffinity(0, one), lambda: os.sched_getaffinity(0))


def oom_score() -> Probe:
    path = Path("/proc/self/oom_score_adj")
    return keeps(lambda: path.write_text("500"), path.read_text)


def rlimits() -> Probe:
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, 5 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 41))
        resource.setrlimit(resource.RLIMIT_NPROC, (700, 800))

    return keeps(prepare, lambda: [resource.getrlimit(getattr(resource, name)) for name in names])


def place() -> Probe:
    """Working directory, umask, environment, arguments, name, root directory."""
    os.makedirs("/tmp/place/root/sub", exist_ok=True)

    def prepare() -> None:
        os.environ["KEPT"] = "yes \N{SNOWMAN}"
        os.umask(0o37)
        os.chdir("/tmp/place/root/sub")
        libc.call("prctl", libc.PR_SET_NAME, b"named", 0, 0, 0)

    def look() -> tuple[object, ...]:
        mask = os.umask(0)
        os.umask(mask)
        words = [Path(f"/proc/self/{name}").read_bytes() for name in ("cmdline", "environ", "comm", "auxv")]
        return os.getcwd(), mask, dict(os.environ), words, os.readlink("/proc/self/exe"), sys.argv

    return keeps(prepare, look)


def changed_root() -> Probe:
    os.makedirs("/tmp/cage/in", exist_ok=True)
    Path("/tmp/cage/in/file").write_text("caged")

    def prepare() -> None:
        os.chroot("/tmp/cage")
        os.chdir("/in")

    return keeps(prepare, lambda: (os.getcwd(), os.listdir("/"), Path("/in/file").read_text()))


def removed_directory() -> Probe:
    os.makedirs("/tmp/removed/sub", exist_ok=True)

    def prepare() -> None:
        os.chdir("/tmp/removed/sub")
        os.rmdir("/tmp/removed/sub")

    return keeps(prepare, lambda: (os.readlink("/proc/self/cwd"), os.listdir("."), os.stat(".").st_nlink))


def process_controls() -> Probe:
    """What prctl(2) sets."""

    def prepare() -> None:
        libc.call("prctl", libc.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.call("prctl", libc.PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
        libc.call("prctl", libc.PR_SET_DUMPABLE, 0, 0, 0, 0)

    def look() -> tuple[int, ...]:
        found = []
        for get in (libc.PR_GET_CHILD_SUBREAPER, libc.PR_GET_PDEATHSIG):
            value = libc.ctypes.c_int(-1)
            libc.call("prctl", get, libc.ctypes.byref(value), 0, 0, 0)
            found.append(value.value)
        return (*found, libc.call("prctl", libc.PR_GET_DUMPABLE, 0, 0, 0, 0))

    return keeps(prepare, look)
