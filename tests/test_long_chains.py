"""Many pauses whose snapshots are all kept, and jobs that work on while their chains are archived and flattened."""

from __future__ import annotations

import subprocess
import sys

import pytest
from roots import inside, shell, wait_for

from engine import Engine, SessionSpec
from engine.lifecycle import background

pytestmark = pytest.mark.root


def work_in_background(engine: Engine) -> None:
    """All there is to do, as the process does it that a pause starts."""
    command = [sys.executable, "-m", background.__name__, str(engine.config.root)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize("pauses", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_chains_stay_short(engine: Engine, pauses: int) -> None:
    depth = engine.config.settings.depth
    engine.run(shell("sleep 1000", name="a"))
    inside(engine, "a", "for n in `seq 0 19`; do echo base > /f$n; done")
    snapshots = []
    for number in range(pauses):
        inside(engine, "a", f"echo {number} > /f{number % 20}; echo {number} >> /log; rm -f /gone; mkdir /gone{number}")
        snapshots.append(engine.pause("a", mode="filesystem", archive="wait").snapshot)
        engine.snapshot_pin(snapshots[-1])
        assert engine.resume("a").strategy == "stack"
        if number % 10 == 9:
            work_in_background(engine)
            assert len(engine.job("a").layers) <= depth
    assert right(engine, "a", pauses)
    engine.remove("a", force=True)
    assert max(len(engine.snapshot(snapshot).layers) for snapshot in snapshots) <= depth
    merged = len(list((engine.config.root / "images").iterdir())) - pauses
    assert merged <= pauses // (depth - 1) + 1
    for number in range(0, pauses, max(1, pauses // 10)):
        assert engine.snapshot_verify(snapshots[number]) == []
        fork = engine.fork(snapshots[number]).job
        assert right(engine, fork, number + 1)
        engine.remove(fork, force=True)
    for snapshot in snapshots:
        engine.snapshot_remove(snapshot)
    engine.collect()
    assert [list((engine.config.root / name).iterdir()) for name in ("layers", "images", "tmp", "jobs")] == [[]] * 4


def right(engine: Engine, ref: str, pauses: int) -> bool:
    """Whether a job has what it had after so many pauses."""
    log, files, directories = inside(
        engine,
        ref,
        'echo `cat /log`; for n in `seq 0 19`; do files="$files `cat /f$n`"; done; echo $files; ls -d /gone* | wc -l',
    ).splitlines()
    newest = {number % 20: str(number) for number in range(pauses)}
    assert log.split() == [str(number) for number in range(pauses)]
    assert files.split() == [newest.get(number % 20, "base") for number in range(20)]
    return int(directories) == pauses


WRITER = """
n=0
while [ ! -e /stop ]; do
    n=$((n + 1)); d=/data/d$((n % 7))
    mkdir -p $d; echo $n >> /data/log; echo $n > $d/new; mv $d/new $d/f$((n % 5)); [ $((n % 11)) = 0 ] && rm -r $d
    cat /old/* | cmp -s - /all || echo wrong
    [ "$(wc -l < /data/log)" = $n ] || echo lost $n
done
echo the end
"""


def test_a_job_works_on_while_its_chain_changes(engine: Engine) -> None:
    engine.run(shell("sleep 1000", name="a"))
    for number in range(4):
        inside(
            engine,
            "a",
            f"mkdir -p /old /data; echo {number} > /old/{number}; rm -f /old/{number - 2}; cat /old/* > /all",
        )
        engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
        assert engine.resume("a").strategy == "stack"
    session = engine.start("a", SessionSpec(argv=("/bin/sh", "-c", WRITER))).id
    before = engine.job("a").layers
    chain_changes(engine, before)
    works_on(engine)
    last = engine.pause("a", mode="process").snapshot
    engine.collect()
    assert {layer.id for layer in engine._root.catalog.layers()}.isdisjoint(before)
    assert not [layer for layer in before if (engine.config.root / "layers" / layer).exists()]
    assert engine.snapshot(last).layers[0] not in before
    engine.resume("a")
    works_on(engine)
    inside(engine, "a", "touch /stop")
    assert session is not None
    assert b"".join(event.data for event in engine.follow("a", session) if hasattr(event, "data")) == b"the end\n"


def chain_changes(engine: Engine, before: tuple[str, ...]) -> None:
    """Below the running job: it is archived, its older snapshots go, it becomes one layer, what is left over goes."""
    for snapshot in engine.snapshots():
        works_on(engine)
        engine.snapshot_archive(snapshot.id)
    engine.collect()
    works_on(engine)
    last = engine.job("a").snapshot or ""
    assert len(engine.snapshot_flatten(last).layers) == 1
    works_on(engine)
    for snapshot in engine.snapshots():
        if snapshot.id != last:
            engine.snapshot_remove(snapshot.id)
    engine.collect()
    works_on(engine)
    job = engine.job("a")
    assert (len(job.layers), job.mounted) == (1, before)


def works_on(engine: Engine) -> None:
    """It gets done some rounds more."""
    rounds = "cat /data/log 2>/dev/null | wc -l"
    before = int(inside(engine, "a", rounds))
    wait_for(lambda: int(inside(engine, "a", rounds)) > before + 10)


def test_there_is_an_end_to_flattening(engine: Engine) -> None:
    """With a depth that no chain keeps within, too."""
    (engine.config.root / "config.json").write_text('{"archive": "never", "depth": 1}')
    engine.run(shell("sleep 1000", name="a"))
    for number in range(3):
        inside(engine, "a", f"echo {number} > /{number}")
        engine.snapshot_pin(engine.pause("a", mode="filesystem").snapshot)
        engine.resume("a")
    work_in_background(engine)
    assert len(engine.job("a").layers) == 1
    assert inside(engine, "a", "cat /0 /1 /2") == "0\n1\n2\n"
