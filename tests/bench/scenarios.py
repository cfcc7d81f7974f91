"""All that can be measured. Each scenario stands for itself."""

from __future__ import annotations

from collections.abc import Callable

from bench import against_floor, against_peers, ahead, building, crowds, growth, prewarming, verbs
from bench.measure import Outcome
from bench.place import Place

Scenario = Callable[[Place], Outcome]

SCENARIOS: dict[str, Scenario] = {
    "floor": against_floor.small_job,
    "size": growth.size,
    "files": growth.files,
    "memory": growth.memory,
    "processes": growth.processes,
    "chain": growth.chain,
    "forks": crowds.forks,
    "command": verbs.command,
    "thaw": verbs.thaw,
    "paused": crowds.paused,
    "warm": prewarming.warm,
    "ahead": ahead.ahead,
    "peers": against_peers.peers,
    "build": building.build,
}
SLOW = {"build"}
"""not with --quick, unless they are asked for: a Debian base takes a minute"""
