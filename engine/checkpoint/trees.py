"""Whether criu can make a process tree's sessions again. Pure.

A process gets into a session by being born into it: criu forks each one from a parent that is in that session at the
time. It makes up for a leader that is gone, but only among the children of init, whose orphans they are.
Source: prepare_pstree_ids of criu's pstree.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Member(NamedTuple):
    pid: int
    parent: int
    """0 for init"""
    session: int


def without_leader(members: Sequence[Member]) -> frozenset[int]:
    """The pids of those that criu couldn't put into their session again; ``members`` are a job's, init first."""
    tree = {member.pid: member for member in members}
    born: dict[int, int] = {}
    """process -> the session that it had when it forked"""
    return frozenset(member.pid for member in members if not _has_way(member, tree, members[0], born))


def _has_way(member: Member, tree: dict[int, Member], init: Member, born: dict[int, int]) -> bool:
    if not member.session:
        return False
    if member.session == member.pid or member.parent in (0, init.pid) or member.parent not in tree:
        return True
    parent = tree[member.parent]
    if parent.session == member.session:
        return True
    while parent.pid != member.session:
        if born.setdefault(parent.pid, member.session) != member.session:
            return False
        if parent.parent == init.pid and parent.session == member.session:
            return True
        if parent.parent not in tree:
            return False
        parent = tree[parent.parent]
    return True
