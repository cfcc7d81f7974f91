"""Mappings of every kind, with what is in them and what may be done to them."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import signal
from pathlib import Path

from survival import Probe, holds, libc, same
from survival.processes import Child

PAGE = mmap.PAGESIZE
BRK = 12
"""the number of brk(2) on x86-64"""
NOISE = random.Random(7).randbytes(1 << 20)


def maps(start: int, end: int) -> list[str]:
    """Rights of the mappings in a range, page by page."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        first, last = (int(each, 16) for each in words[0].split("-"))
        found += [words[1]] * ((min(last, end) - max(first, start)) // PAGE)
    return found


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def faults(where: int) -> bool:
    """Whether a read there kills; tried in a child."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(where, 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


def private() -> Probe:
    """32 MiB that differ in every page; a digest says whether they still do."""
    memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(memory), PAGE):
        memory[at : at + 8] = at.to_bytes(8, "little")
    memory[: len(NOISE)] = NOISE
    before = hashlib.sha256(memory).digest()
    yield
    same(hashlib.sha256(memory).digest(), before)


def copied_on_write() -> Probe:
    """Parent and child share pages and have changed some of them, each its own."""
    memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(NOISE)] = NOISE

    def prepare() -> object:
        memory[0:5] = b"child"
        return lambda: (bytes(memory[:5]), bytes(memory[PAGE : PAGE + 6]), bytes(memory[5 : len(NOISE)]))

    child = Child(prepare)  # type: ignore[arg-type]
    memory[PAGE : PAGE + 6] = b"parent"
    yield
    same(child.ask(), (b"child", NOISE[PAGE : PAGE + 6], NOISE[5:]), "the child's")
    same((bytes(memory[:5]), bytes(memory[PAGE : PAGE + 6])), (NOISE[:5], b"parent"), "the parent's")


def shared() -> Probe:
    """Anonymous and shared with a child: one writes, the other reads."""
    memory = mmap.mmap(-1, 1 << 20)
    memory[:] = NOISE
    child = Child(lambda: lambda: (hashlib.sha256(memory).digest(), memory.__setitem__(slice(0, 5), b"child"))[0])
    yield
    memory[-6:] = b"parent"
    same(child.ask(), hashlib.sha256(NOISE[:-6] + b"parent").digest(), "what the child saw")
    same(bytes(memory[:6]), b"child" + NOISE[5:6], "what the child wrote")


def shared_file() -> Probe:
    """Written through the mapping: in the file, before and after."""
    Path("/tmp/mapped").write_bytes(NOISE)
    with open("/tmp/mapped", "r+b") as file:
        memory = mmap.mmap(file.fileno(), len(NOISE))
    memory[0:6] = b"before"
    yield
    memory[PAGE : PAGE + 5] = b"after"
    changed = b"before" + NOISE[6:PAGE] + b"after" + NOISE[PAGE + 5 :]
    same(bytes(memory), changed, "the mapping")
    same(Path("/tmp/mapped").read_bytes(), changed, "the file")
    Path("/tmp/mapped").write_bytes(NOISE)
    same(bytes(memory[:16]), NOISE[:16], "the mapping after the file was written")


def private_file() -> Probe:
    Path("/tmp/mapped-private").write_bytes(NOISE)
    with open("/tmp/mapped-private", "r+b") as file:
        memory = mmap.mmap(file.fileno(), len(NOISE), flags=mmap.MAP_PRIVATE)
    memory[0:4] = b"mine"
    yield
    same(bytes(memory), b"mine" + NOISE[4:], "the mapping")
    same(Path("/tmp/mapped-private").read_bytes(), NOISE, "the file")


def removed_file() -> Probe:
    """Mapped, shared with a child, and unlinked."""
    with open("/tmp/mapped-removed", "w+b") as file:
        file.write(NOISE)
        file.flush()
        memory = mmap.mmap(file.fileno(), len(NOISE))
    os.unlink("/tmp/mapped-removed")
    child = Child(lambda: lambda: memory.__setitem__(slice(0, 5), b"child"))
    yield
    child.ask()
    same(bytes(memory), b"child" + NOISE[5:])


def rights() -> Probe:
    """Guard pages, read-only, executable, locked; names and places of all mappings."""
    memory = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    start = address(memory)
    libc.call("mprotect", ctypes.c_void_p(start + PAGE), PAGE, 0)
    libc.call("mprotect", ctypes.c_void_p(start + 2 * PAGE), PAGE, mmap.PROT_READ)
    libc.call("mprotect", ctypes.c_void_p(start + 3 * PAGE), PAGE, mmap.PROT_READ | mmap.PROT_EXEC)
    libc.call("mlock", ctypes.c_void_p(start + 4 * PAGE), PAGE)
    before = maps(start, start + len(memory))
    yield
    same(maps(start, start + len(memory)), before, "mappings")
    same((faults(start), faults(start + PAGE)), (False, True), "the guard page")
    same(locked(start + 4 * PAGE), True, "the locked page")


def locked(where: int) -> bool:
    """By the flag "lo" of its mapping in /proc/self/smaps."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and ":" not in words[0]:
            first, last = (int(each, 16) for each in words[0].split("-"))
            found = first <= where < last
        elif found and words[0] == "VmFlags:":
            return "lo" in words
    return False


def advice() -> Probe:
    """MADV_DONTFORK and MADV_WIPEONFORK are seen by a child that is forked after."""
    kept, wiped, hidden = (mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(3))
    for memory in (kept, wiped, hidden):
        memory[:4] = b"data"
    wiped.madvise(18)  # MADV_WIPEONFORK
    hidden.madvise(mmap.MADV_DONTFORK)
    where = address(hidden)
    yield
    child = Child(lambda: lambda: (bytes(kept[:4]), bytes(wiped[:4])))
    same(child.ask(), (b"data", bytes(4)), "what a child sees")
    same(faults(where), True, "what a child doesn't have")


def heap() -> Probe:
    """The break: memory below it, and that it goes on growing from where it was. By steps that leave malloc room."""
    top = libc.call("syscall", BRK, 0) + (1 << 20)
    place = top - 16 * PAGE
    libc.call("syscall", BRK, top)
    ctypes.memmove(place, NOISE[: 16 * PAGE], 16 * PAGE)
    yield
    holds(libc.call("syscall", BRK, 0) >= top, "the break is where it was, or malloc went on from there")
    same(ctypes.string_at(place, 16 * PAGE), NOISE[: 16 * PAGE], "what is there")
    higher = libc.call("syscall", BRK, 0) + (1 << 20)
    same(libc.call("syscall", BRK, higher), higher, "the break after it grew")
