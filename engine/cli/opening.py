"""How every verb gets its engine. The engine is imported here, late, so that ``--help`` and wrong usage are quick."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.engine import Engine


def open_engine(args: Namespace) -> Engine:
    """A context manager, like the engine itself."""
    from engine.engine import Engine

    return Engine(args.root, timeout=args.timeout)
