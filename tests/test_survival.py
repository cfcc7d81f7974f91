"""What the kernel keeps for processes is as it was after a pause in mode process: see the package `survival`.

All probes run in one job, each in a process of its own, and check themselves. They go two ways: pause and resume; and
pause, fork, stacked resume and two rounds more.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from roots import until
from survival import MODULES, probes
from survivors import Check, Group, Outcomes, Place, forked_and_stacked, resumed, taken_through

from engine import Engine
from engine.errors import CannotCheckpoint
from engine.session import Output

pytestmark = pytest.mark.root

PROGRAMS = Path(__file__).parent / "survival"

LOST = {
    "lost.packets_in_a_pipe": "criu-failed",
    "lost.semaphore_eventfd": "eventfd",
    "lost.large_eventfd": "eventfd",
    "lost.process_directory": "process-directory",
    "lost.message_queue": "message-queue",
    "lost.unread_events": "unread-events",
    "lost.deleted_attributes": "deleted-attributes",
    "lost.unread_udp": "unread-datagrams",
}
"""what can't be carried -> the reason that a pause gives"""

CHANGED = ("lost.empty_datagram", "lost.sender_of_a_datagram")
"""what criu changes, and nobody sees from outside that it will"""

APART = ("files.hard_links", "files.hard_links_that_stay")
"""names of one file, which in a layer that is only read go apart at the first write"""

NAMES = probes(*MODULES)


@pytest.fixture(scope="module")
def outcomes(debian_root: Path) -> dict[str, Outcomes]:
    """Of each route."""
    with Engine(debian_root) as engine:
        return {route.__name__: taken_through(engine, route, set_up, NAMES) for route in (resumed, forked_and_stacked)}


def set_up(place: Place, names: list[str]) -> Check:
    place.engine.copy_in(place.job, str(PROGRAMS), "/survival")
    number = place.start("python3", "-S", "-B", "-m", "survival", *names, workdir="/")
    until(place.engine, place.job, b"READY\n", number)

    def check(place: Place) -> Outcomes:
        place.inside(f"echo {place.stood.still} {place.stood.freezing} > /go")
        events = place.engine.follow(place.job, number)
        said = b"".join(event.data for event in events if isinstance(event, Output) and event.stream == 1)
        outcomes: Outcomes = json.loads(said.partition(b"READY\n")[2])
        return outcomes

    return check


@pytest.mark.parametrize("name", NAMES)
def test_it_survives(outcomes: dict[str, Outcomes], name: str) -> None:
    said = {route: found[name] for route, found in outcomes.items()}
    if name in APART:
        assert said.pop("forked_and_stacked") != "OK"
    assert said == dict.fromkeys(said, "OK")


@pytest.mark.parametrize(("name", "reason"), LOST.items())
def test_it_is_refused_with_its_reason(debian: Engine, name: str, reason: str) -> None:
    """And the job runs on with it, unharmed."""
    with Group(debian, set_up, [name]) as group:
        group.set_up()
        with pytest.raises(CannotCheckpoint) as caught:
            group.pause()
        assert caught.value.reason == reason
        group.check(group.place, "after the refusal")
        assert group.outcomes == {name: "OK"}


@pytest.mark.parametrize("name", CHANGED)
def test_it_is_known_to_change(debian: Engine, name: str) -> None:
    """If this fails criu got better, and the README's table has a line too many."""
    assert taken_through(debian, resumed, set_up, [name])[name] != "OK"
