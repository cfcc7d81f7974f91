"""What makes a method a verb: it is counted, logged and, if it changes something, told to the root's journal.

    @verb("pause")
    def pause(self, ref: str, ...) -> PauseResult:

The event has the verb's outcome, its time and the times of its steps, what it was about (`engine.journal.about`), and
what is worth knowing of its result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from engine.lifecycle.root import Root
from engine.model import Base, Job, PauseResult, ResumeResult, Snapshot, TakeResult


class _Opened(Protocol):
    _root: Root


Method = TypeVar("Method", bound=Callable[..., Any])


def verb(kind: str, *, told: bool = True) -> Callable[[Method], Method]:
    """``told``: whether the journal has it, as ``kind``; else it is only counted and logged under that name."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def call(self: _Opened, *args: Any, **named: Any) -> Any:
            with self._root.journal.telling(kind, told=told) as event:
                result = method(self, *args, **named)
                event.update(described(result))
                return result

        return cast("Method", call)

    return decorate


_ELSEWHERE = {"job", "name", "snapshot", "reason", "timings"}
"""what an event has a place of its own for"""


def described(result: object) -> dict[str, Any]:
    """The fields of an event that a verb's result fills. Pure."""
    match result:
        case Job():
            facts = {"state": result.state, **({"status": result.status} if result.status is not None else {})}
            return {"job": result.id, "name": result.name, "facts": facts}
        case Snapshot():
            return {"job": result.job, "name": result.name, "snapshot": result.id}
        case Base():
            return {"facts": {"base": result.digest, "names": result.names}}
        case PauseResult() | ResumeResult() | TakeResult():
            fields = {name: getattr(result, name) for name in result.__struct_fields__}
            facts = {
                name: value for name, value in fields.items() if name not in _ELSEWHERE and value not in (None, {})
            }
            known = {name: fields[name] for name in ("job", "name", "snapshot", "reason") if fields.get(name)}
            return {**known, "facts": facts}
        case list():
            return {"facts": {"count": len(result)}}
    return {}
