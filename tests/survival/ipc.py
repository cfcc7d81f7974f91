"""System V and POSIX objects between processes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import threading
from multiprocessing import shared_memory

from survival import Probe, holds, libc, same
from survival.processes import Child


def shm_segment() -> Probe:
    """One that is attached by two, one that nobody has attached, one that is removed and still attached."""
    ids = [libc.call("shmget", key, 1 << 20, libc.IPC_CREAT | 0o640) for key in (0x5E0, 0x5E1, 0x5E2)]
    places = [libc.call("shmat", each, None, 0) for each in ids]
    for number, place in enumerate(places):
        ctypes.memmove(place, f"segment {number}".encode(), 9)
    libc.call("shmdt", ctypes.c_void_p(places[1]))
    libc.call("shmctl", ids[2], libc.IPC_RMID, None)
    child = Child(lambda: lambda: ctypes.memmove(places[0], b"by child!", 9) and None)
    yield
    child.ask()
    same(ctypes.string_at(places[0], 9), b"by child!", "attached")
    same(libc.call("shmget", 0x5E1, 1 << 20, 0), ids[1], "id of the key")
    same(ctypes.string_at(libc.call("shmat", ids[1], None, 0), 9), b"segment 1", "not attached")
    same(ctypes.string_at(places[2], 9), b"segment 2", "removed")
    libc.call("shmctl", ids[0], libc.IPC_RMID, None)
    libc.call("shmctl", ids[1], libc.IPC_RMID, None)


def take_two(ident: int) -> int:
    while True:
        with contextlib.suppress(InterruptedError):
            libc.call("semop", ident, struct.pack("Hhh", 1, -2, 0), 1)
            return 3


def semaphores() -> Probe:
    """Values of a set, and a process that waits in semop: which a stop ends with EINTR, as semop(2) says."""
    ident = libc.call("semget", 0x5E3, 3, libc.IPC_CREAT | 0o600)
    for number, value in enumerate((5, 0, 32767)):
        libc.call("semctl", ident, number, libc.SETVAL, value)
    waiter = os.fork()
    if waiter == 0:
        os._exit(take_two(ident))
    yield
    same([libc.call("semctl", ident, number, libc.GETVAL) for number in range(3)], [5, 0, 32767], "values")
    libc.call("semop", ident, struct.pack("Hhh", 1, 2, 0), 1)
    same(os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]), 3, "the waiter")
    libc.call("semctl", ident, 0, libc.IPC_RMID)


def messages() -> Probe:
    """Types, order, and what they hold."""
    ident = libc.call("msgget", 0x5E4, libc.IPC_CREAT | 0o600)
    for kind, text in ((2, b"second"), (1, b"first"), (2, b"third")):
        libc.call("msgsnd", ident, struct.pack("l", kind) + text, len(text), 0)
    yield
    buffer = ctypes.create_string_buffer(100)
    found = []
    for kind in (1, 0, 0):
        size = libc.call("msgrcv", ident, buffer, 90, kind, libc.IPC_NOWAIT)
        found.append((struct.unpack_from("l", buffer.raw)[0], buffer.raw[8 : 8 + size]))
    same(found, [(1, b"first"), (2, b"second"), (2, b"third")])
    libc.call("msgctl", ident, libc.IPC_RMID, None)


def posix_shm() -> Probe:
    """Named in /dev/shm, mapped by two; and one whose name is gone."""
    memory = shared_memory.SharedMemory("kept", create=True, size=1 << 20)
    gone = shared_memory.SharedMemory("gone", create=True, size=4096)
    memory.buf[:4] = b"kept"
    gone.buf[:4] = b"gone"
    gone.unlink()
    child = Child(lambda: lambda: memory.buf.__setitem__(slice(4, 9), b"child"))
    yield
    child.ask()
    other = shared_memory.SharedMemory("kept")
    same((bytes(memory.buf[:9]), bytes(other.buf[:9])), (b"keptchild", b"keptchild"), "by both mappings")
    same(bytes(gone.buf[:4]), b"gone", "without a name")
    holds(not os.path.exists("/dev/shm/gone"), "its name is gone")
    other.close()
    memory.unlink()


def posix_semaphore() -> Probe:
    """A named one with a value and a process that waits for another one."""
    lib = ctypes.CDLL(None)
    lib.sem_open.restype = ctypes.c_void_p
    free = ctypes.c_void_p(lib.sem_open(b"/free", os.O_CREAT, 0o600, 3))
    taken = ctypes.c_void_p(lib.sem_open(b"/taken", os.O_CREAT, 0o600, 0))
    waiter = os.fork()
    if waiter == 0:
        os._exit(4 if lib.sem_wait(taken) == 0 else 1)
    yield
    value = ctypes.c_int()
    lib.sem_getvalue(free, ctypes.byref(value))
    same(value.value, 3)
    lib.sem_post(taken)
    same(os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]), 4, "the waiter")
    lib.sem_unlink(b"/free")
    lib.sem_unlink(b"/taken")


def shared_mutex() -> Probe:
    """A robust pthread mutex in shared memory: held by a child, waited for by another; then its owner dies."""
    lib, memory = ctypes.CDLL(None), mmap.mmap(-1, 4096)
    attributes = ctypes.create_string_buffer(64)
    mutex = ctypes.byref(ctypes.c_char.from_buffer(memory))
    lib.pthread_mutexattr_init(attributes)
    lib.pthread_mutexattr_setpshared(attributes, 1)
    lib.pthread_mutexattr_setrobust(attributes, 1)
    lib.pthread_mutex_init(mutex, attributes)
    owner = Child(lambda: (lib.pthread_mutex_lock(mutex), os.getpid)[1])
    waiter = Child(lambda: lambda: lib.pthread_mutex_lock(mutex))
    yield
    same(lib.pthread_mutex_trylock(mutex), 16, "EBUSY while it is held")
    owner.ask()
    same(waiter.ask(), 130, "EOWNERDEAD for who takes it")


def futexes() -> Probe:
    """Threads in the middle of a condition, a barrier and a queue."""
    condition, barrier = threading.Condition(), threading.Barrier(3)
    woken: list[int] = []
    inside = threading.Semaphore(0)

    def wait(number: int) -> None:
        with condition:
            inside.release()
            condition.wait()
            woken.append(number)
        barrier.wait()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        inside.acquire()
    yield
    with condition:
        condition.notify_all()
    barrier.wait()
    for thread in threads:
        thread.join()
    same(sorted(woken), [0, 1])
