"""The journal of a root: many who write, files that are renamed under them, who reads on, and what goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import counters
from engine.errors import Busy, CannotCheckpoint
from engine.journal import Journal, Tail, about
from engine.model import Event

WRITER = """
import sys
from pathlib import Path
import engine.journal
from engine.journal import Journal
engine.journal.PATIENCE = 60.0
root, name, size_max, burst = sys.argv[1:]
journal, number = Journal(Path(root), size_max=int(size_max)), 0
while sys.stdin.readline():
    for _ in range(int(burst)):
        journal.add("test", name=name, facts={"number": number, "padding": "x" * (number * 37 % 900)})
        number += 1
"""
"""writes a burst of events for each line that comes"""
LONG_WRITER = """
import itertools, sys
from pathlib import Path
from engine.journal import Journal
journal = Journal(Path(sys.argv[1]), size_max=1 << 40)
for number in itertools.count():
    journal.add("long", facts={"number": number, "padding": "x" * 200_000})
    if number == 0:
        print(end="x", flush=True)
"""


def kinds(journal: Journal, **how: float) -> list[str]:
    return [event.kind for event in journal.read(**how)]  # type: ignore[arg-type]


@contextlib.contextmanager
def writers(root: Path, count: int, *, burst: int, size_max: int) -> Iterator[Callable[[], None]]:
    """Processes that write a burst whenever what this gives is called; they have ended when the block has."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, root, f"p{number}", str(size_max), str(burst)],
                    stdin=subprocess.PIPE,
                    bufsize=0,
                )
            )
            for number in range(count)
        ]

        def write() -> None:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"\n")

        yield write
    assert [process.returncode for process in processes] == [0] * count


def names_and_numbers(events: Iterator[Event] | list[Event]) -> list[tuple[str | None, int]]:
    return [(event.name, event.facts["number"]) for event in events]


def test_events_come_back_as_they_were_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("pause", job="j", name="build", snapshot="s", reason="why", ms=1.5, facts={"a": {"b": [1, None]}})
    (event,) = journal.read()
    assert event == Event(
        time=event.time, kind="pause", job="j", name="build", snapshot="s", reason="why", ms=1.5,
        facts={"a": {"b": [1, None]}},
    )  # fmt: skip
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_since_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for kind in ("one", "two"):
        journal.add(kind)
    one, two = journal.read()
    assert kinds(journal, since=one.time) == ["one", "two"]
    assert kinds(journal, since=two.time + 1) == []


@contextlib.contextmanager
def threads(journal: Journal, count: int, events: int, *, first: int = 0) -> Iterator[None]:
    """Threads that write so many events each while the block runs."""

    def write(name: str) -> None:
        for number in range(first, first + events):
            journal.add("test", name=name, facts={"number": number})

    running = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(count)]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join()


BURST, ROUNDS = 5, 12


@pytest.mark.parametrize("size_max", [40_000, 8 << 20])
def test_many_writers_tear_and_double_nothing(tmp_path: Path, size_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes and threads at once. Who follows has every event once, each writer's in its order; the files that are
    kept hold the last ones, whole. A round is less than a file, so that no event goes before it is read."""
    monkeypatch.setattr("engine.journal.PATIENCE", 60.0)  # no event is dropped because the host is busy
    journal, tail, seen = Journal(tmp_path, size_max=size_max), Journal(tmp_path).tail(), list[Event]()
    renamed = set()
    with writers(tmp_path, 3, burst=BURST, size_max=size_max) as write:
        for number in range(1, ROUNDS + 1):
            write()
            with threads(journal, 3, BURST, first=BURST * (number - 1)):
                while len(seen) < 6 * BURST * number:
                    seen += tail.more()
            renamed |= {path.stat().st_ino for path in tmp_path.glob("events.1.jsonl")}
        assert tail.more() == []
    tail.close()
    found, kept = names_and_numbers(seen), names_and_numbers(journal.read())
    for name in ("p0", "p1", "p2", "t0", "t1", "t2"):
        assert [number for other, number in found if other == name] == list(range(BURST * ROUNDS))
    assert found[-len(kept) :] == kept
    assert lines(tmp_path) == len(kept)
    assert bool(renamed) == (size_max == 40_000)


def test_many_writers_to_files_of_one_event(tmp_path: Path) -> None:
    """Every event is the one that makes the file too long."""
    journal = Journal(tmp_path, size_max=1)
    with writers(tmp_path, 3, burst=50, size_max=1) as write, threads(journal, 3, 50):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["events.1.jsonl"]
    assert (lines(tmp_path), len(list(journal.read()))) == (1, 1)


def lines(directory: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in directory.iterdir())


def test_a_renamed_file_is_read_to_its_end(tmp_path: Path) -> None:
    """In every order of writing, renaming and reading, one step at a time."""
    journal = Journal(tmp_path, size_max=200)
    tail, seen = journal.tail(), list[int]()
    for number in range(40):
        journal.add("test", facts={"number": number})
        if number % 3 == 0:
            while found := tail.more():
                seen += [event.facts["number"] for event in found]
    tail.close()
    assert seen == list(range(40))


def test_whoever_was_away_too_long_goes_on_with_what_is_kept(tmp_path: Path) -> None:
    journal, tail = Journal(tmp_path, size_max=1), Journal(tmp_path).tail()
    journal.add("first")
    assert [event.kind for event in tail.more()] == ["first"]
    for number in range(5):
        journal.add(f"later-{number}")
    assert [event.kind for event in tail.more()] == ["later-4"]
    assert tail.more() == []
    tail.close()


def test_follow_gives_what_comes(tmp_path: Path) -> None:
    journal = Journal(tmp_path, size_max=300)
    journal.add("first")
    following = journal.read(follow=True, poll_interval=0.01)
    assert next(following).kind == "first"
    threading.Timer(0.05, lambda: [journal.add(f"e{number}") for number in range(5)]).start()
    assert [next(following).kind for _ in range(5)] == [f"e{number}" for number in range(5)]
    following.close()  # type: ignore[attr-defined]


def test_a_torn_line_costs_no_other_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("before")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time":1.0,"kind":"to')
    assert kinds(journal) == ["before"]
    journal.add("after")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'\n{"time":1.0,"kind":"newer","beyond":1}\n{"kind":3}\n\xff\n')
    journal.add("last")
    assert kinds(journal) == ["before", "after", "newer", "last"]


def test_text_that_is_no_utf_8(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("copy", reason=os.fsdecode(b"no \xff"), facts={"path": [os.fsdecode(b"/\xfe")], "at": Path("/a")})
    (event,) = journal.read()
    assert (event.reason, event.facts) == ("no \\udcff", {"path": ["/\\udcfe"], "at": "/a"})


@pytest.mark.parametrize("trouble", ["gone", "directory", "link", "held"])
def test_a_journal_that_cant_be_written_fails_nobody(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, file = Journal(tmp_path / "root"), tmp_path / "root/events.jsonl"
    if trouble != "gone":
        file.parent.mkdir()
    if trouble == "directory":
        file.mkdir()
    if trouble == "link":
        file.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("engine.journal.PATIENCE", 0.01)
    before = counters.read().events_dropped
    if trouble == "held":
        with Journal(file.parent)._opened():
            journal.add("pause")
    else:
        journal.add("pause")
    assert counters.read().events_dropped == before + 1
    assert "journal: " in caplog.text
    assert not (tmp_path / "elsewhere").exists()


def test_no_room_fails_nobody(tmp_path: Path) -> None:
    """What had room of an event is passed over, and the next one has a line of its own."""
    journal, dropped = Journal(tmp_path), counters.read().events_dropped
    journal.add("before")
    with room(journal._file.stat().st_size + 10):
        journal.add("half")
        journal.add("none")
    journal.add("after")
    assert kinds(journal) == ["before", "after"]
    assert counters.read().events_dropped == dropped + 2


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file becomes longer while the block runs: a write ends in the middle, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.005, 0.02])
def test_a_writer_that_is_killed_costs_no_other_event(tmp_path: Path, moment: float) -> None:
    """It writes long events as fast as it can; wherever it is killed, its lock is free and the others go on."""
    journal = Journal(tmp_path)
    command = [sys.executable, "-c", LONG_WRITER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(moment)
        process.kill()
    journal.add("after")
    *before, last = journal.read()
    assert last.kind == "after"
    assert [event.facts["number"] for event in before] == list(range(len(before)))


def test_no_descriptor_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, size_max=100)
    open_before = os.listdir("/proc/self/fd")
    tail = journal.tail()
    for _ in range(10):
        journal.add("test")
        tail.more()
    tail.close()
    assert len(list(journal.read())) > 0
    assert os.listdir("/proc/self/fd") == open_before


def test_a_journal_that_cant_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(Exception, match="read the journal") as caught:
        Tail(tmp_path / "events.jsonl", tmp_path / "events.1.jsonl", since=None).more()
    assert caught.value.code == "error"  # type: ignore[attr-defined]


# verbs


def test_a_verb_is_told_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from engine.steps import step

    caplog.set_level(logging.DEBUG, logger="serac")
    journal, before = Journal(tmp_path), tally("verb", "test", "ok")
    with journal.telling("test") as event:
        about(job="j1", name="build")
        about(job="j2", snapshot="s")
        with step("test.work", job="j1"):
            event["facts"] = {"mode": "process"}
    (told,) = journal.read()
    assert (told.kind, told.job, told.name, told.snapshot, told.outcome) == ("test", "j1", "build", "s", "ok")
    assert told.facts["mode"] == "process"
    assert told.ms is not None
    assert 0 <= told.facts["timings"]["work"] <= told.ms
    assert tally("verb", "test", "ok") == before + 1
    of_step, of_verb = caplog.records
    assert (of_step.levelname, of_step.step, of_step.job, of_step.outcome) == ("DEBUG", "test.work", "j1", "ok")  # type: ignore[attr-defined]
    assert (of_verb.levelname, of_verb.verb, of_verb.job, of_verb.snapshot) == ("INFO", "test", "j1", "s")  # type: ignore[attr-defined]
    assert (of_verb.outcome, of_verb.reason, of_verb.ms) == ("ok", None, told.ms)  # type: ignore[attr-defined]
    assert of_verb.getMessage() == f"verb=test job=j1 ms={told.ms:.3f} outcome=ok"


def test_a_verb_that_fails_is_told_with_its_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from engine.steps import step

    caplog.set_level(logging.INFO, logger="serac")
    journal, before = Journal(tmp_path), tally("step", "test.work", "cannot-checkpoint")
    with pytest.raises(CannotCheckpoint), journal.telling("test"), step("test.work"):
        raise CannotCheckpoint("it holds a socket", reason="socket")
    with pytest.raises(KeyboardInterrupt), journal.telling("test"):
        raise KeyboardInterrupt
    failed, interrupted = journal.read()
    assert (failed.outcome, failed.reason, failed.facts) == (
        "cannot-checkpoint", "it holds a socket", {"why": "socket"},
    )  # fmt: skip
    assert interrupted.outcome == "KeyboardInterrupt"
    assert tally("step", "test.work", "cannot-checkpoint") == before + 1
    assert [record.outcome for record in caplog.records] == [  # type: ignore[attr-defined]
        "cannot-checkpoint", "cannot-checkpoint", "KeyboardInterrupt",
    ]  # fmt: skip


def test_a_verb_that_isnt_told_is_counted(tmp_path: Path) -> None:
    before = tally("verb", "look", "busy")
    with pytest.raises(Busy), Journal(tmp_path).telling("look", told=False):
        raise Busy("not now")
    assert list(tmp_path.iterdir()) == []
    assert tally("verb", "look", "busy") == before + 1


def tally(kind: str, name: str, outcome: str) -> int:
    found = counters.read()
    names = found.verbs if kind == "verb" else found.steps
    return names[name][outcome].count if outcome in names.get(name, {}) else 0


def test_counters_count_in_every_thread() -> None:
    def count() -> None:
        for _ in range(1000):
            counters.add("verb", "threads", "ok", 0.5)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.read().verbs["threads"]["ok"] == counters.Tally(count=8000, seconds=4000.0)


def test_counters_as_text() -> None:
    one = {"pause": {"ok": counters.Tally(count=2, seconds=0.5), "busy": counters.Tally(count=1, seconds=60.0)}}
    text = counters.prometheus(counters.Counters(verbs=one, steps={}, events_dropped=3))
    assert text.endswith("serac_events_dropped_total 3\n")
    assert [line for line in text.splitlines() if line.startswith("serac_verb")] == [
        'serac_verb_seconds_sum{verb="pause",outcome="ok"} 0.5',
        'serac_verb_seconds_count{verb="pause",outcome="ok"} 2',
        'serac_verb_seconds_sum{verb="pause",outcome="busy"} 60.0',
        'serac_verb_seconds_count{verb="pause",outcome="busy"} 1',
    ]
    form = re.compile(r"# (HELP|TYPE) serac_\w+ .+|serac_\w+({\w+=\"[\w.-]+\",outcome=\"[\w-]+\"})? [\d.e+-]+")
    assert all(form.fullmatch(line) for line in text.splitlines())
