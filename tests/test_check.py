"""check names what doesn't hold of a root, and repair puts it right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import Command, serac
from remains import killed
from roots import shell, wait_for
from worlds import checked, killed_repair, rows, whole, world

from engine import Engine, store
from engine.model import Check

pytestmark = pytest.mark.root

__all__ = ["serac", "world"]


def test_a_whole_root_has_no_violation(world: Engine) -> None:
    whole(world)
    before = rows(world)
    assert checked(world, repair=True) == Check()
    assert rows(world) == before


def row(engine: Engine, table: str, value: Any) -> None:
    with engine._root.catalog.transaction() as transaction:
        getattr(transaction, f"put_{table}")(value)


def paused(engine: Engine, mode: Any = "filesystem") -> str:
    engine.run(shell("sleep 1000", name="a"))
    return engine.pause("a", mode=mode).snapshot


def no_layer(engine: Engine) -> str:
    snapshot = engine.snapshot(paused(engine))
    shutil.rmtree(engine.config.root / "layers" / snapshot.layers[0])
    return "its directory is gone"


def no_base(engine: Engine) -> str:
    paused(engine)
    digest = engine.base("small").digest
    place = engine.config.root / "bases" / digest
    place.rename(engine.config.root / "tmp-base")
    return f"{place}"


def written_layer(engine: Engine) -> str:
    snapshot = engine.snapshot(paused(engine))
    engine.snapshot_pin(snapshot.id)
    engine.resume("a")
    job = engine.job("a")
    row(engine, "snapshot", msgspec.structs.replace(snapshot, pinned=True, layers=(*snapshot.layers, str(job.upper))))
    return f"job a writes its layer {job.upper}"


def no_snapshot(engine: Engine) -> str:
    snapshot = paused(engine)
    with engine._root.catalog.transaction() as transaction:
        transaction.remove_snapshot(snapshot)
    return "its snapshot isn't there"


def no_processes(engine: Engine) -> str:
    snapshot = engine.snapshot(paused(engine, "process"))
    shutil.rmtree(engine.config.root / "layers" / snapshot.layers[0] / "image")
    return "its processes are gone"


def cut_image(engine: Engine) -> str:
    snapshot = engine.snapshot_pin(paused(engine))
    engine.snapshot_archive(snapshot.id)
    (layer,) = engine._root.catalog.chain(snapshot.layers)
    blob = engine.config.root / "images" / str(layer.image) / "data.blob"
    os.truncate(blob, blob.stat().st_size - 1)
    return "bytes instead of"


def strayed_process(engine: Engine) -> str:
    engine.run(shell("sleep 1000", name="a"))
    pid = next(iter(pids(engine)))
    (group,) = Path(engine._root.host.unified, "serac", engine.config.name).glob(f"{engine.job('a').id}")
    top = next(place for place in (group, *group.parents) if (place.parent / "cgroup.procs").exists() is False)
    (top / "cgroup.procs").write_text(str(pid))
    return f"its process {pid} is in another control group"


def pids(engine: Engine) -> list[int]:
    (kill,) = Path(engine._root.host.unified, "serac", engine.config.name).glob("*/cgroup.kill")
    return [int(pid) for pid in (kill.parent / "cgroup.procs").read_text().split()][-1:]


UNMENDABLE = [no_layer, no_base, written_layer, no_snapshot, no_processes, cut_image, strayed_process]


@pytest.mark.parametrize("spoil", UNMENDABLE)
def test_what_only_people_can_mend_is_named_and_left(engine: Engine, spoil: Callable[[Engine], str]) -> None:
    what = spoil(engine)
    for repair in (False, True):
        found = checked(engine, repair=repair)
        assert any(what in entry.what and not entry.mends for entry in found.violations), found
    back = engine.config.root / "tmp-base"
    if back.exists():
        back.rename(engine.config.root / "bases" / engine.base("small").digest)
    if spoil is strayed_process:
        engine.stop("a", grace=0)


def strange_directories(engine: Engine) -> set[str]:
    for place in ("layers", "images", "bases", "jobs", "tmp"):
        (engine.config.root / place / "strange").mkdir()
    (engine.config.run / "jobs" / "strange").mkdir(parents=True)
    return {
        f"{kind} strange" for kind in ("layer", "image", "base", "job", "scratch directory", "run directory of job")
    }


def strange_group(engine: Engine) -> set[str]:
    engine.run(shell("sleep 1000", name="a"))
    (kill,) = Path(engine._root.host.unified, "serac", engine.config.name).glob("*/cgroup.kill")
    (kill.parent.parent / "0123456789ab").mkdir()
    return {"control group of job 0123456789ab"}


def no_record(engine: Engine) -> set[str]:
    snapshot = engine.snapshot(paused(engine))
    (engine.config.root / "layers" / snapshot.layers[0] / "snapshot.json").unlink()
    return {f"snapshot {snapshot.id}"}


def no_manifest(engine: Engine) -> set[str]:
    snapshot = engine.snapshot_pin(paused(engine))
    engine.snapshot_archive(snapshot.id)
    (engine.config.root / "layers" / snapshot.layers[0] / "manifest.json").write_text("{}")
    return {f"snapshot {snapshot.id}"}


def no_logs(engine: Engine) -> set[str]:
    paused(engine)
    shutil.rmtree(engine.config.root / "jobs" / engine.job("a").id / "io")
    return {"job a"}


def died_in_a_pause(engine: Engine) -> set[str]:
    engine.run(shell("sleep 1000", name="a"))
    engine.close()
    killed(engine, "engine.pause('a', mode='filesystem')", "pause.commit:before")
    return {"job a", *(f"scratch directory {entry.name}" for entry in (engine.config.root / "tmp").iterdir())}


def died_after_a_pause(engine: Engine) -> set[str]:
    engine.run(shell("sleep 1000", name="a"))
    engine.close()
    killed(engine, "engine.pause('a', mode='filesystem')", "pause.commit:after")
    return {"job a", *(f"scratch directory {entry.name}" for entry in (engine.config.root / "tmp").iterdir())}


def died(engine: Engine) -> set[str]:
    engine.run(shell("sleep 1000", name="a"))
    (kill,) = Path(engine._root.host.unified, "serac", engine.config.name).glob("*/cgroup.kill")
    kill.write_text("1")
    wait_for(lambda: "populated 0" in (kill.parent / "cgroup.events").read_text())
    return {"job a"}


def directory_of_an_image(engine: Engine) -> set[str]:
    snapshot = engine.snapshot_pin(paused(engine))
    engine.snapshot_archive(snapshot.id)
    shutil.rmtree(engine.config.root / "layers" / snapshot.layers[0] / "upper")
    return {f"layer {snapshot.layers[0]}"}


MENDABLE = [
    strange_directories, strange_group, no_record, no_manifest, no_logs, died_in_a_pause, died_after_a_pause, died,
    directory_of_an_image,
]  # fmt: skip


@pytest.mark.parametrize("spoil", MENDABLE)
def test_what_a_repair_mends(engine: Engine, spoil: Callable[[Engine], set[str]], serac: Command) -> None:
    subjects = spoil(engine)
    found = checked(engine)
    assert {entry.subject for entry in found.violations} == subjects
    assert all(entry.mends for entry in found.violations)
    assert json.loads(serac("--json", "check").stdout)["violations"][0]["subject"] in subjects
    repaired = checked(engine, repair=True)
    assert repaired.violations == ()
    assert len(repaired.repaired) >= len(subjects)
    whole(engine)


def test_who_is_at_work_is_left_alone(engine: Engine) -> None:
    """A verb that is under way is no violation, and isn't disturbed."""
    engine.run(shell("sleep 1000", name="a"))
    job = engine.job("a")
    with store.locked(engine.config.root / "jobs" / job.id, timeout=0), engine._root.intent("at-work"):
        found = checked(engine)
        assert found.violations == ()
        assert len(found.unseen) == 2
    whole(engine)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    where = tmp_path / "none"
    assert Engine.check(where) == Check()
    assert not where.exists() or not any(where.rglob("*.sqlite"))


@pytest.mark.parametrize("step", ["check.rows", "check.records", "check.sweep"])
def test_a_sweep_that_is_killed_is_done_again(engine: Engine, step: str) -> None:
    engine.run(shell("sleep 1000", name="a"))
    engine.pause("a", mode="filesystem")
    (engine.config.root / "layers" / "strange").mkdir()
    engine.close()
    killed_repair(engine, f"{step}:after")
    assert checked(engine, repair=True).violations == ()
    whole(engine)
