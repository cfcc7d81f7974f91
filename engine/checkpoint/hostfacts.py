"""What this host is to a process image, and whether one that was made elsewhere can be restored here.

A process may have come to rely on every instruction, system call and size of saved state that it found. So a host may
have more than the one it comes from, never less; of the processor's state not even more, for programs keep the size of
a signal's frame. Source: cpu.c of criu's arch/x86 (its --cpu-cap=fpu,ins), which looks at less than this.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine import tools
from engine.checkpoint.obstacles import Obstacle, obstacle
from engine.model import HostFacts

_STATE = frozenset({"xsave", "avx", "mpx", "avx512f", "pku", "ospke", "amx_tile", "user_shstk"})
"""flags of an x86 processor that make its saved state larger"""

_INSTRUCTIONS = re.compile(
    r"fpu|tsc|cx8|cx16|sep|cmov|clflush\w*|clwb|mmx\w*|fxsr|p?ni|s?sse\w*|misalignsse|syscall|rdtscp|3dnow\w*|rep_good"
    r"|nopl|pclmulqdq|monitor|movbe|popcnt|aes|xsave\w*|xgetbv1|avx\w*|f16c|fma4?|rdrand|rdseed|rdpid|abm|xop|tbm"
    r"|fsgsbase|bmi[12]|hle|rtm|erms|fsrm|mpx|adx|sha\w*|gfni|vaes|vpclmulqdq|tme|clzero|amx_\w*|pku|ospke|movdir\w*"
    r"|serialize|waitpkg|enqcmd|cldemote|user_shstk|lahf_lm|cmpccxadd|sm[34]"
)
"""flags of an x86 processor that programs can tell; all others are the kernel's"""


def host_facts() -> HostFacts:
    """Cheap after the first call in a process. Raises ToolMissing without a criu."""
    here = os.uname()
    return HostFacts(criu=tools.find("criu").version, kernel=here.release, machine=here.machine, cpu=_cpu())


@functools.cache
def _cpu() -> tuple[str, ...]:
    text = Path("/proc/cpuinfo").read_text()
    return relevant(match[1]) if (match := re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)) else ()


def relevant(flags: str) -> tuple[str, ...]:
    """Of a line of /proc/cpuinfo what programs can come to rely on, sorted: all of it on other machines than x86."""
    found = set(flags.split())
    return tuple(sorted(flag for flag in found if "fpu" not in found or _INSTRUCTIONS.fullmatch(flag)))


def judge_restore(
    image: HostFacts, here: HostFacts, *, memory: int, available: int, disk_free: int, lazy: bool
) -> tuple[Obstacle, ...]:
    """What stands in the way of restoring an image; () = nothing. Pure.

    ``memory`` are the bytes that the image brings, ``available`` and ``disk_free`` those that this host has. ``lazy``
    memory comes as it is touched, and only then must there be room."""
    if image.machine != here.machine:
        return (obstacle("machine", f"the processes ran on {image.machine}, this is {here.machine}"),)
    return (*_judge_programs(image, here), *_judge_room(memory, available, disk_free, lazy=lazy))


def _judge_programs(image: HostFacts, here: HostFacts) -> Iterator[Obstacle]:
    missing = set(image.cpu) - set(here.cpu) | (_STATE & (set(image.cpu) ^ set(here.cpu)))
    if missing:
        yield obstacle("cpu", f"the processors differ in {' '.join(sorted(missing))}")
    if _numbers(here.criu) < _numbers(image.criu):
        yield obstacle("older-criu", f"the processes were dumped by criu {image.criu}, this is {here.criu}")
    if _numbers(here.kernel) < _numbers(image.kernel):
        yield obstacle("older-kernel", f"the processes ran on Linux {image.kernel}, this is {here.kernel}")


def _numbers(version: str) -> tuple[int, ...]:
    """The first two: what comes after them changes no interface."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


DISK_LEFT = 16 << 20
"""bytes of disk that a restore wants for what it puts back into the job's files"""


def _judge_room(memory: int, available: int, disk_free: int, *, lazy: bool) -> Iterator[Obstacle]:
    if memory > available and not lazy:
        yield obstacle("no-memory", f"the processes need {memory >> 20} MiB of memory, {available >> 20} MiB are free")
    if disk_free < DISK_LEFT:
        yield obstacle("no-space", f"{disk_free >> 20} MiB of disk are free, {DISK_LEFT >> 20} MiB are needed")
