"""Completions for bash and zsh: verbs and options from the parser (shtab), names asked live."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from engine.cli.parser import build

LISTS = {"jobs": "ps --all", "bases": "base ls", "snapshots": "snapshot ls"}
"""what can be completed, and the verb that lists it with --quiet"""

NAMES = {"job": "jobs", "jobs": "jobs", "what": "jobs", "base": "bases", "bases": "bases"}
NAMES |= {"snapshot": "snapshots", "snapshots": "snapshots"}
PATHS = {"tar": shtab.FILE, "dir": shtab.DIRECTORY, "oci": shtab.DIRECTORY, "root": shtab.DIRECTORY}


def script(shell: str) -> str:
    """The completion script of one shell."""
    parser = build()
    for action in _actions(parser):
        if action.dest in NAMES:
            function = f"_serac_{NAMES[action.dest]}"
            action.complete = {"bash": function, "zsh": function}  # type: ignore[attr-defined]
        elif action.dest in PATHS:
            action.complete = PATHS[action.dest]  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell, preamble=_functions(shell))
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


FUNCTIONS = {
    "bash": '_serac_{0}() {{ compgen -W "$(serac {1} --quiet 2>/dev/null)" -- "$1"; }}',
    "zsh": '_serac_{0}() {{ compadd -- ${{(f)"$(serac {1} --quiet 2>/dev/null)"}} }}',
}


def _functions(shell: str) -> str:
    return "\n".join(FUNCTIONS[shell].format(name, verb) for name, verb in LISTS.items())
