"""The steps of all verbs, as the engine's source names them."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "engine"


def steps_of_the_source() -> set[str]:
    """The names of all steps, ``{verb}`` and the like spelled out."""
    found: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "step":
                found |= _spelled_out(node.args[0])
    return found


def _spelled_out(name: ast.expr) -> set[str]:
    if isinstance(name, ast.Constant):
        return {str(name.value)}
    text = ast.unparse(name)[2:-1]
    for field, values in (("{verb}", ("run", "resume")), ("{job.state}", ("created", "pausing", "resuming"))):
        if field in text:
            return {text.replace(field, value) for value in values}
    raise AssertionError(f"step({text}): what names can it have?")
