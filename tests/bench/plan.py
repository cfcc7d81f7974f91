"""How much is measured."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    rounds: int
    """of what takes less than a second"""
    few: int
    """rounds of what takes longer"""
    sizes: tuple[int, ...]
    """megabytes in the upper"""
    files: tuple[int, ...]
    """files in the upper"""
    memory: tuple[int, ...]
    """megabytes of memory"""
    processes: tuple[int, ...]
    chain: tuple[int, ...]
    """layers"""
    forks: tuple[int, ...]
    """at once"""
    paused: int
    """jobs that are paused at the same time"""
    diffs: tuple[int, ...]
    """megabytes in the upper, beside the peers"""
    base: int
    """megabytes of a base that is warmed; a job reads an eighth of them"""
    caches: tuple[str, ...] = ("warm", "cold")


FULL = Plan(
    rounds=30,
    few=5,
    sizes=(10, 100, 1000, 10000),
    files=(1000, 100_000),
    memory=(5, 50, 500, 2000),
    processes=(1, 10, 100),
    chain=(1, 10, 50),
    forks=(1, 10, 50),
    paused=100,
    diffs=(0, 100, 1000, 3000),
    base=160,
)

QUICK = Plan(
    rounds=6,
    few=2,
    sizes=(10, 200),
    files=(1000, 10_000),
    memory=(5, 50, 300),
    processes=(1, 10),
    chain=(1, 10),
    forks=(1, 10),
    paused=10,
    diffs=(0, 100),
    base=64,
)
