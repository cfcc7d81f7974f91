"""Whether processes that were dumped on one host may go on on another."""

from __future__ import annotations

import os

import msgspec
import pytest

from engine.checkpoint import REASONS, host_facts, judge_restore
from engine.checkpoint.hostfacts import DISK_LEFT, relevant
from engine.model import HostFacts

HOST = HostFacts(criu="4.2.1", kernel="6.18.44-amd64", machine="x86_64", cpu=("avx", "avx2", "fpu", "sse2", "xsave"))
ROOM = {"memory": 100 << 20, "available": 200 << 20, "disk_free": 1 << 30, "lazy": False}


def verdict(image: HostFacts, here: HostFacts, **room: int) -> list[str]:
    return [obstacle.reason for obstacle in judge_restore(image, here, **{**ROOM, **room})]  # type: ignore[arg-type]


def like(host: HostFacts, **changes: object) -> HostFacts:
    return msgspec.structs.replace(host, **changes)


def test_the_same_host() -> None:
    assert verdict(HOST, HOST) == []


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"machine": "aarch64"}, ["machine"]),
        ({"criu": "4.1.9"}, ["older-criu"]),
        ({"criu": "4.2"}, []),
        ({"criu": "4.10"}, []),
        ({"kernel": "6.1.0-18-amd64"}, ["older-kernel"]),
        ({"kernel": "6.18.3"}, []),
        ({"kernel": "7.0.1"}, []),
        ({"cpu": ("avx", "fpu", "sse2", "xsave")}, ["cpu"]),
        ({"cpu": (*HOST.cpu, "vaes")}, []),
        ({"cpu": (*HOST.cpu, "avx512f")}, ["cpu"]),
        ({"cpu": (), "kernel": "5.10", "criu": "3.17"}, ["cpu", "older-criu", "older-kernel"]),
    ],
)
def test_another_host(changes: dict[str, object], reasons: list[str]) -> None:
    assert verdict(HOST, like(HOST, **changes)) == reasons


def test_what_the_processor_lacks_is_named() -> None:
    (found,) = judge_restore(HOST, like(HOST, cpu=("fpu", "sse2", "xsave")), **ROOM)  # type: ignore[arg-type]
    assert found.detail == "the processors differ in avx avx2"
    assert found.remedy == REASONS["cpu"].remedy


def test_room() -> None:
    assert verdict(HOST, HOST, memory=300 << 20) == ["no-memory"]
    assert verdict(HOST, HOST, memory=300 << 20, lazy=True) == []
    assert verdict(HOST, HOST, disk_free=DISK_LEFT - 1) == ["no-space"]


def test_flags_that_programs_can_tell() -> None:
    assert relevant("fpu vme de sse2 sse4_1 pni nx smap avx512_vbmi2 amx_tile ibrs") == (
        *("amx_tile", "avx512_vbmi2", "fpu", "pni", "sse2", "sse4_1"),
    )
    assert relevant("fp asimd evtstrm aes") == ("aes", "asimd", "evtstrm", "fp")


def test_this_host() -> None:
    here = host_facts()
    assert here == host_facts()
    assert here.kernel == os.uname().release
    assert here.criu
    assert here.cpu
    assert verdict(here, here) == []
