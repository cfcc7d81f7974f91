"""Copies: each life of a job has a generation of its own, and so has each fork."""

from __future__ import annotations

import os
import threading

import pytest
from counters import counter, counts, counts_on, generation
from roots import inside, shell, until
from witness import small_tree, witness

from engine import Engine

__all__ = ["small_tree"]  # a fixture

pytestmark = pytest.mark.root


def test_each_life_has_a_generation_of_its_own(engine: Engine) -> None:
    counter(engine)
    seen = [generation(engine, "a")]
    for _ in range(2):
        engine.pause("a", mode="process")
        result = engine.resume("a", mode="process")
        seen.append(generation(engine, "a"))
        assert result.generation == seen[-1]
    snapshot = engine.pause("a", mode="process").snapshot
    forks = [engine.fork(snapshot, name=name, mode="process") for name in ("b", "c")]
    seen += [generation(engine, name) for name in ("b", "c")]
    assert [fork.generation for fork in forks] == seen[-2:]
    assert len(set(seen)) == len(seen) == 5
    assert all(len(word) == 12 for word in seen)


def test_a_program_sees_its_generation_change(engine: Engine) -> None:
    watch = (
        "while :; do new=$(cat /run/serac/generation); test $new = $old || echo new $new; old=$new; sleep 0.02; done"
    )
    engine.run(shell(f"old=$(cat /run/serac/generation); echo ready; {watch}", name="a"))
    until(engine, "a", b"ready\n")
    engine.pause("a", mode="process")
    result = engine.resume("a", mode="process")
    until(engine, "a", f"new {result.generation}\n".encode())


@pytest.mark.parametrize("spoil", ["rm G; mkdir G; touch G/x", "rm G; ln -s /etc/passwd G", "rm G"])
def test_a_job_that_spoils_its_generation_file_gets_a_new_one(engine: Engine, spoil: str) -> None:
    counter(engine)
    inside(engine, "a", spoil.replace("G", "/run/serac/generation"))
    engine.pause("a", mode="process")
    assert engine.resume("a", mode="process").generation == generation(engine, "a")
    assert inside(engine, "a", "head -c 5 /etc/passwd") == "root:"


# forks


def test_a_fork_has_the_log_up_to_the_cut_and_goes_on_for_itself(engine: Engine) -> None:
    counter(engine)
    snapshot = engine.pause("a", mode="process").snapshot
    cut = counts(engine, "a")
    engine.snapshot_pin(snapshot)
    engine.resume("a", mode="process")
    counts_on(engine, "a")
    result = engine.fork(snapshot, name="b", mode="process")
    assert (result.mode, result.strategy, result.snapshot) == ("process", "stack", snapshot)
    counts_on(engine, "b")
    assert counts(engine, "b")[: len(cut)] == cut
    engine.remove("b", force=True)
    counts_on(engine, "a")


def test_what_init_writes_again_is_no_part_of_a_snapshot(engine: Engine) -> None:
    """A full disk makes it write a status in place."""
    job = engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.snapshot_take("a").snapshot
    kept = engine.config.root / "layers" / engine.snapshot(snapshot).layers[-1] / "image/io/0.status"
    now = engine.config.root / "jobs" / job.id / "io/0.status"
    assert kept.read_bytes() == now.read_bytes()
    assert not kept.samefile(now)


def test_a_fork_of_a_fork_and_a_pause_of_each(engine: Engine) -> None:
    one = witness(engine)
    snapshot = engine.pause("a", mode="process").snapshot
    for parent, name in (("a", "b"), ("b", "c"), ("c", "d")):
        engine.fork(snapshot, name=name, mode="process")
        copy = one.copied(name)
        copy.goes_on()
        snapshot = engine.pause(name, mode="process").snapshot
        assert engine.snapshot(snapshot).parent == engine.job(name).forked_from, parent
    for name in ("a", "b", "c", "d"):
        engine.resume(name, mode="process")
    for name in ("a", "b", "c", "d"):
        one.copied(name).goes_on()


def test_a_fork_gets_an_environment_for_what_is_started_in_it(engine: Engine) -> None:
    counter(engine, env={"WHO": "first", "KEPT": "yes"})
    snapshot = engine.pause("a", mode="process").snapshot
    engine.fork(snapshot, name="b", mode="process", env={"WHO": "second"})
    assert inside(engine, "b", "echo $WHO $KEPT $SERAC_JOB") == "second yes b\n"
    counts_on(engine, "b")


def test_twenty_forks_at_once(engine: Engine) -> None:
    one = witness(engine, children=1, kib=16)
    snapshot = engine.pause("a", mode="process").snapshot
    names = [f"f{number}" for number in range(20)]
    generations: dict[str, str | None] = {}

    def fork(name: str) -> None:
        with Engine(engine.config.root, timeout=120) as other:
            generations[name] = other.fork(snapshot, name=name, mode="process").generation

    threads = [threading.Thread(target=fork, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generations.keys() == set(names)
    assert len(set(generations.values())) == 20
    for name in names:
        one.copied(name).goes_on(patience=120)
        assert generation(engine, name) == generations[name]
    assert engine.resume("a", mode="process").strategy == "stack"
    one.goes_on()


def test_the_last_job_on_an_image_leaves_no_mount(engine: Engine) -> None:
    """Its layers' rows go with its own, and it is still known what it had mounted."""
    engine.run(shell("sleep 1000", name="a"))
    snapshot = engine.pause("a", mode="filesystem", archive="wait").snapshot
    engine.snapshot_pin(snapshot)
    engine.remove("a")
    engine.collect()
    bases = {base.digest for base in engine.bases()}
    engine.fork(snapshot, name="b")
    assert len(set(os.listdir(engine.config.run / "mounts")) - bases) == 1
    engine.snapshot_remove(snapshot)
    engine.remove("b", force=True)
    assert set(os.listdir(engine.config.run / "mounts")) == bases
