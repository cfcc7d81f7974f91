"""Clocks, timers and sleeps. A pause takes no time of the monotonic clocks; the wall clock goes on meanwhile.

What is known for sure of any pause: how long the job certainly stood (the yield's value). So the checks are of sums,
not of speed: a timer's remainder fell by no more than the job's own time went on."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

from survival import Probe, Stood, holds, libc, same

LONG = 5000.0
COARSE = 6
"""CLOCK_MONOTONIC_COARSE"""
SLACK = 0.01
"""seconds between two looks at clocks, where nothing else is known"""


def monotonic() -> Probe:
    """It doesn't go back, and the pause is not in it."""
    clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, COARSE)
    before = [time.clock_gettime(clock) for clock in clocks]
    real = time.time()
    stood = yield
    gone = time.time() - real
    for clock, then in zip(clocks, before, strict=True):
        passed = time.clock_gettime(clock) - then
        holds(passed >= 0, f"clock {clock} doesn't go back ({passed})")
        holds(passed <= gone - stood.still + SLACK, f"{passed} of {gone} s passed by clock {clock}, which {stood}")


def realtime() -> Probe:
    before = time.time()
    stood = yield
    holds(time.time() - before >= stood.still, "the wall clock went on")


class Remainder:
    """What a timer has left, before and after. Its loss is the job's own time, and that of a freeze at most: criu
    notes the clock at its beginning, and the timers when it comes to them."""

    def __init__(self, left: float) -> None:
        self.left, self.at = left, time.monotonic()

    def check(self, left: float, stood: Stood, what: str) -> None:
        own = time.monotonic() - self.at
        lost = self.left - left
        holds(-SLACK <= lost <= own + stood.freezing + SLACK, f"{what} lost {lost} s, {own} passed in the job: {stood}")


def timers() -> Probe:
    """timer_create on the clocks that stand still, one shot and periodic."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
    handles = [libc.timer(clock, signal.SIGRTMIN, libc.itimerspec(LONG, 9)) for clock in clocks]
    before = [Remainder(libc.timer_left(handle)[0]) for handle in handles]
    stood = yield
    for clock, handle, remainder in zip(clocks, handles, before, strict=True):
        left, interval = libc.timer_left(handle)
        remainder.check(left, stood, f"timer of clock {clock}")
        same(interval, 9.0)
        libc.call("timer_settime", handle, 0, libc.itimerspec(0.001), None)
        libc.call("sigwaitinfo", libc.sigset(signal.SIGRTMIN), None)


def timers_of_the_wall_clock() -> Probe:
    """timer_create with CLOCK_REALTIME, relative."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    handle = libc.timer(time.CLOCK_REALTIME, signal.SIGRTMIN, libc.itimerspec(LONG))
    remainder = Remainder(libc.timer_left(handle)[0])
    stood = yield
    remainder.check(libc.timer_left(handle)[0], stood, "relative timer of the wall clock")


def timerfds() -> Probe:
    clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)
    fds = [libc.timerfd(clock, libc.itimerspec(LONG)) for clock in clocks]
    before = [Remainder(libc.timerfd_left(fd)[0]) for fd in fds]
    stood = yield
    for clock, fd, remainder in zip(clocks, fds, before, strict=True):
        remainder.check(libc.timerfd_left(fd)[0], stood, f"timerfd of clock {clock}")


def timerfd_absolute() -> Probe:
    """An absolute time of the monotonic clock."""
    end = time.monotonic() + LONG
    fd = libc.timerfd(time.CLOCK_MONOTONIC, libc.itimerspec(end), libc.TIMER_ABSTIME)
    remainder = Remainder(libc.timerfd_left(fd)[0])
    stood = yield
    remainder.check(libc.timerfd_left(fd)[0], stood, "absolute timerfd")


def interval_timers() -> Probe:
    signal.setitimer(signal.ITIMER_REAL, LONG, 3)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONG, 4)
    signal.setitimer(signal.ITIMER_PROF, LONG, 5)
    remainder = Remainder(signal.getitimer(signal.ITIMER_REAL)[0])
    stood = yield
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    remainder.check(left, stood, "ITIMER_REAL")
    same(interval, 3.0)
    for which, wanted in ((signal.ITIMER_VIRTUAL, 4.0), (signal.ITIMER_PROF, 5.0)):
        left, interval = signal.getitimer(which)
        holds(LONG - 60 < left <= LONG + 1, f"timer {which} has its remainder, not {left}")
        same(interval, wanted)


class Sleeper:
    """A child that sleeps by ``sleep`` and says how long, by its own monotonic clock, and what the call gave."""

    def __init__(self, sleep: object) -> None:
        self.read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.write(write, b"+")
            start = time.monotonic()
            try:
                given = sleep()  # type: ignore[operator]
            except OSError as error:
                given = error.strerror
            os.write(write, f"{time.monotonic() - start} {given}".encode())
            os._exit(0)
        os.close(write)
        os.read(self.read, 1)

    def end(self) -> tuple[float, str]:
        said = os.read(self.read, 100).decode().split(" ", 1)
        os.waitpid(self.pid, 0)
        return float(said[0]), said[1]


NAP = 1.5
"""seconds; a pause may come at any time of it"""


def absolute_sleep() -> int:
    end = libc.timespec(time.monotonic() + NAP)
    return libc.call("clock_nanosleep", time.CLOCK_MONOTONIC, libc.TIMER_ABSTIME, end, None)


def sleeps() -> Probe:
    """Ways to sleep, asleep at the time of the pause: none ends early, none with an error."""
    event = threading.Event()
    sleepers = {
        "python": Sleeper(lambda: time.sleep(NAP)),
        "absolute": Sleeper(absolute_sleep),
        "select": Sleeper(lambda: select.select([], [], [], NAP)),
        "epoll": Sleeper(lambda: select.epoll().poll(NAP)),
        "futex": Sleeper(lambda: event.wait(NAP)),
    }
    stood = yield
    said = {name: sleeper.end() for name, sleeper in sleepers.items()}
    short = {name: slept for name, (slept, _) in said.items() if slept < NAP - stood.freezing - SLACK}
    same(short, {}, "those who slept too little")
    expected = {"python": "None", "absolute": "0", "select": "([], [], [])", "epoll": "[]", "futex": "False"}
    same({name: given for name, (_, given) in said.items()}, expected, "what it gave")


def interrupted_sleeps() -> Probe:
    """nanosleep and clock_nanosleep by a time span may end with EINTR; then they say what is left."""

    def nanosleep() -> float:
        left = libc.ctypes.create_string_buffer(16)
        try:
            libc.call("nanosleep", libc.timespec(NAP), left)
        except InterruptedError:
            return libc.seconds(bytes(16) + left.raw)[0]
        return 0.0

    def clock_nanosleep() -> float:
        left = libc.ctypes.create_string_buffer(16)
        error = libc.call("clock_nanosleep", time.CLOCK_MONOTONIC, 0, libc.timespec(NAP), left)
        return libc.seconds(bytes(16) + left.raw)[0] if error else 0.0

    sleepers = [Sleeper(nanosleep), Sleeper(clock_nanosleep)]
    stood = yield
    for sleeper in sleepers:
        slept, left = sleeper.end()
        holds(slept + float(left) > NAP - stood.freezing, f"{slept} slept and {left} left make up {NAP}")


def interrupted_poll() -> Probe:
    """poll with a limit of time may end with EINTR, as after any signal; it never says that the time was over when
    it wasn't."""
    sleeper = Sleeper(lambda: libc.call("poll", None, 0, int(NAP * 1000)))
    stood = yield
    slept, given = sleeper.end()
    holds(given == "Interrupted system call" or slept >= NAP - stood.freezing - SLACK, f"{given!r} after {slept}")


def timers_at_a_time_of_day() -> Probe:
    """Absolute times of the wall clock: these timers keep their remainder too, and so are late by the pause's length;
    timerfds to the second, for criu drops the fraction."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    due = time.time() + LONG
    spec = libc.itimerspec(due)
    handle = libc.timer(time.CLOCK_REALTIME, signal.SIGRTMIN, spec, libc.TIMER_ABSTIME)
    flags = (libc.TIMER_ABSTIME, libc.TIMER_ABSTIME | libc.TFD_TIMER_CANCEL_ON_SET)
    fds = [libc.timerfd(time.CLOCK_REALTIME, spec, each) for each in flags]
    stood = yield
    left = {"timer": libc.timer_left(handle)[0], "timerfd": libc.timerfd_left(fds[0])[0]}
    left["cancellable timerfd"] = libc.timerfd_left(fds[1])[0]
    for name, remainder in left.items():
        late = time.time() + remainder - due
        holds(
            stood.still - 1 - SLACK <= late <= stood.still + stood.freezing + SLACK,
            f"{name} is late by {late}: {stood}",
        )
