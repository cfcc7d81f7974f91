"""criu: what it is asked, in its own protocol, what stands in its way, and what it says of a failure.

This room knows criu and /proc; how criu is started, and what else belongs to a pause, is `engine.lifecycle`'s.
"""

from engine.checkpoint.explain import explain
from engine.checkpoint.hostfacts import host_facts, judge_restore
from engine.checkpoint.obstacles import REASONS, Obstacle, obstacle
from engine.checkpoint.options import dump_options, restore_options
from engine.checkpoint.placing import place
from engine.checkpoint.preflight import Seen, judge, look
from engine.checkpoint.remaps import link_remaps
from engine.checkpoint.rpc import DUMP, RESTORE, Conversation, CriuGone, Refused, settle
from engine.checkpoint.stats import dump_times, restore_times
from engine.checkpoint.timers import keep_running

__all__ = [
    "DUMP",
    "REASONS",
    "RESTORE",
    "Conversation",
    "CriuGone",
    "Obstacle",
    "Refused",
    "Seen",
    "dump_options",
    "dump_times",
    "explain",
    "host_facts",
    "judge",
    "judge_restore",
    "keep_running",
    "link_remaps",
    "look",
    "obstacle",
    "place",
    "restore_options",
    "restore_times",
    "settle",
]
