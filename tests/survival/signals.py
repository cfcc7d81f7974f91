"""Signals: pending, blocked, handled, ignored; processes that are stopped."""

from __future__ import annotations

import os
import signal
import threading

from survival import Probe, holds, libc, same
from survival.processes import status

FIELDS = ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")


def pending() -> Probe:
    """Blocked and pending: an ordinary one once, real-time ones in their order with their values."""
    first, second = signal.SIGRTMIN + 3, signal.SIGRTMIN + 4
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, first, second])
    for value in (3, 1, 2):
        libc.sigqueue(os.getpid(), first, value)
    libc.sigqueue(os.getpid(), second, 9)
    os.kill(os.getpid(), signal.SIGUSR1)
    yield
    taken = [libc.take_signal(first, second) for _ in range(4)]
    same(taken, [(first, 3), (first, 1), (first, 2), (second, 9)], "queued signals")
    same(libc.take_signal(signal.SIGUSR1)[0], signal.SIGUSR1)
    same(signal.sigpending(), set())


def pending_for_a_thread() -> Probe:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    go, ready = threading.Event(), threading.Event()
    found: list[object] = []

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        ready.set()
        go.wait()
        found.extend([set(signal.sigpending()), libc.take_signal(signal.SIGUSR2)[0]])

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    yield
    same(signal.sigpending(), set(), "what is pending for the first thread")
    go.set()
    thread.join()
    same(found, [{signal.SIGUSR2}, signal.SIGUSR2])


def handlers_and_masks() -> Probe:
    caught: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signo, _: caught.append(signo))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.siginterrupt(signal.SIGUSR1, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGRTMIN + 5])
    before = status(*FIELDS)
    yield
    same(status(*FIELDS), before)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    same(caught, [signal.SIGUSR1], "signals that came to the handler")


def alternate_stack() -> Probe:
    memory = libc.ctypes.create_string_buffer(65536)
    wanted = libc.ctypes.addressof(memory).to_bytes(8, "little") + bytes(8) + (65536).to_bytes(8, "little")
    libc.call("sigaltstack", wanted, None)
    yield
    found = libc.ctypes.create_string_buffer(24)
    libc.call("sigaltstack", None, found)
    same((found.raw[:8], found.raw[16:]), (wanted[:8], wanted[16:]), "the alternate stack")


def stopped() -> Probe:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    yield
    holds(status("State", pid=child)["State"].startswith("T"), "the child is stopped")
    os.kill(child, signal.SIGCONT)
    os.waitid(os.P_PID, child, os.WCONTINUED)
    os.kill(child, signal.SIGTERM)
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -signal.SIGTERM)


def suspended() -> Probe:
    """sigsuspend: the mask that it holds while it waits, and the one that it goes back to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        libc.ctypes.CDLL(None).sigsuspend(libc.sigset(signal.SIGUSR2))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        os._exit(7 if blocked == {signal.SIGUSR1} else 1)
    while status("SigBlk", pid=child)["SigBlk"] != f"{1 << (signal.SIGUSR2 - 1):016x}":
        os.sched_yield()
    yield
    os.kill(child, signal.SIGUSR1)
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7, "status after sigsuspend")
