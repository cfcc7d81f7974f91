"""What holds of a root and its host whenever no verb is under way: the invariants of the catalog, read from outside.

    invariants.hold(engine)

The rows come from SQLite, the rest from the disk, /proc and the control groups; the engine itself is asked nothing but
where its root is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import leftovers
from remains import holders

from engine import Engine

LIVE = {"running", "frozen"}
STATES = LIVE | {"paused", "exited", "failed"}
"""between verbs"""

Row = dict[str, Any]


class Rows(NamedTuple):
    """By id; fields that have their default are missing, as in the documents."""

    base: dict[str, Row]
    layer: dict[str, Row]
    job: dict[str, Row]
    snapshot: dict[str, Row]


def rows(root: Path) -> Rows:
    connection = sqlite3.connect(f"file:{root / 'catalog.sqlite'}?mode=ro", uri=True)
    with contextlib.closing(connection):
        return Rows(*(dict(_documents(connection, table)) for table in Rows._fields))


def _documents(connection: sqlite3.Connection, table: str) -> Iterator[tuple[str, Row]]:
    for name, document in connection.execute(f"SELECT id, document FROM {table}"):
        yield name, json.loads(document)


def hold(engine: Engine) -> None:
    found = broken(engine)
    assert not found, "\n".join(found)


def broken(engine: Engine) -> list[str]:
    """A line for each invariant that does not hold; when the engine has removed what it had taken aside."""
    engine._root.await_removals()
    root, found = engine.config.root, rows(engine.config.root)
    return [
        *_strange(root, found),
        *_images(root, found),
        *_layers(root, found),
        *_snapshots(root, found),
        *(line for job in found.job.values() for line in _job(engine, found, job)),
        *_host(engine, found),
    ]


def _strange(root: Path, found: Rows) -> Iterator[str]:
    """What lies in the root has a row, and nothing is half done. Images stay until they are collected."""
    for place, known in (("layers", found.layer), ("jobs", found.job), ("bases", found.base), ("tmp", ())):
        yield from (f"{place}/{name} is strange" for name in os.listdir(root / place) if name not in known)
        yield from (f"{place}/{name} is gone" for name in known if not (root / place / name).is_dir())


def _images(root: Path, found: Rows) -> Iterator[str]:
    """Every image is complete, and so is every base; every digest that a row has is there."""
    wanted = {row["image"] for row in found.layer.values() if row.get("image")}
    wanted |= {row["image"]["digest"] for row in found.snapshot.values() if (row.get("image") or {}).get("digest")}
    yield from (f"images/{digest} is gone" for digest in wanted if not (root / "images" / digest).is_dir())
    for place in ("images", "bases"):
        for directory in (root / place).iterdir():
            yield from (f"{place}/{directory.name}: {what}" for what in _damages(directory))


def _damages(directory: Path) -> Iterator[str]:
    try:
        index = (directory / "image.json").read_bytes()
        if hashlib.sha256(index).hexdigest() != directory.name:
            yield "another image.json"
        for kind, name in (("meta", "meta.erofs"), ("blob", "data.blob")):
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != json.loads(index)[kind]["sha256"]:
                yield f"{name} is not what was written"
    except (OSError, ValueError) as error:
        yield str(error)


def _layers(root: Path, found: Rows) -> Iterator[str]:
    """A layer that is a directory has it; one that is written belongs to the job that writes it, and to nobody else."""
    uppers = {job["upper"]: job["id"] for job in found.job.values() if job.get("upper")}
    for name, row in found.layer.items():
        directory = root / "layers" / name
        if row.get("directory", True) != (directory / "upper").is_dir():
            yield f"layer {name} should{'' if row.get('directory', True) else ' not'} have a directory"
        if row.get("directory", True) is False and not row.get("image"):
            yield f"layer {name} is nowhere"
        if row.get("owner") != uppers.get(name):
            yield f"layer {name} is owned by {row.get('owner')} and written by {uppers.get(name)}"
        if row.get("owner") and (directory / "snapshot.json").exists():
            yield f"layer {name} is written and has a manifest"
        extra = set(os.listdir(directory)) - {"upper", "work", "image", "snapshot.json", "manifest.json", "layer.json"}
        yield from (f"layer {name} has {entry} in it" for entry in extra)


def _snapshots(root: Path, found: Rows) -> Iterator[str]:
    uppers = {job.get("upper") for job in found.job.values()}
    for name, row in found.snapshot.items():
        if row["base"] not in found.base:
            yield f"the base of snapshot {name} is gone"
        yield from (f"layer {layer} of snapshot {name} is gone" for layer in row["layers"] if layer not in found.layer)
        yield from (f"layer {layer} of snapshot {name} is written" for layer in row["layers"] if layer in uppers)
        top = root / "layers" / row["layers"][-1]
        processes = row.get("image")
        if processes and not processes.get("digest") and not (top / "image" / "inventory.img").exists():
            yield f"the processes of snapshot {name} are gone"
        if row.get("archive"):
            manifest = top / "manifest.json"
            if not manifest.exists() or hashlib.sha256(manifest.read_bytes()).hexdigest() not in row["archive"]:
                yield f"the archive's manifest of snapshot {name} is not there"


def _job(engine: Engine, found: Rows, job: Row) -> Iterator[str]:
    what, run = f"job {job['name']} ({job['state']})", engine.config.run / "jobs" / job["id"]
    yield from (f"layer {layer} of {what} is gone" for layer in job.get("layers", ()) if layer not in found.layer)
    if job["base"] not in found.base:
        yield f"the base of {what} is gone"
    if job["state"] not in STATES:
        yield f"{what} is in the middle of something"
    if job.get("pending"):
        yield f"{what} has sessions that were never started"
    if job["state"] == "paused" and (job.get("snapshot") not in found.snapshot or job.get("upper")):
        yield f"{what} is paused to nothing"
    if job["state"] == "paused" and found.snapshot[job["snapshot"]]["layers"] != list(job["layers"]):
        yield f"{what} has another chain than its snapshot"
    members = _members(engine, job["id"])
    if job["state"] in LIVE:
        yield from _alive(what, run, members)
        return
    if members or run.exists():
        yield f"{what} still holds {sorted(members)} {os.listdir(run) if run.exists() else ''}"
    yield from (f"{what} has the control group {path}" for path in _groups(engine) if job["id"] in path)
    if job.get("upper") and (engine.config.root / "layers" / job["upper"] / "work").exists():
        yield f"{what} has a work directory"


def _alive(what: str, run: Path, members: set[int]) -> Iterator[str]:
    """Its init is in its group, and so is every process of its pid namespace."""
    try:
        init = json.loads((run / "init.json").read_bytes())["pid"]
        space = os.readlink(f"/proc/{init}/ns/pid")
    except OSError as error:
        yield f"{what} has no init: {error}"
        return
    if init not in members:
        yield f"the init of {what} is not in its control group"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while it is looked at
            if os.readlink(process / "ns/pid") == space and run.name not in (process / "cgroup").read_text():
                yield f"process {process.name} of {what} is not in its control group"
    if (run / "criu.pid").exists():
        yield f"{what} still has a criu"


def _members(engine: Engine, job: str) -> set[int]:
    """The processes in a job's control groups, of every hierarchy."""
    found = set()
    for path in _groups(engine):
        if f"/{job}" in path:
            with contextlib.suppress(OSError):
                found |= set(map(int, Path(path, "cgroup.procs").read_text().split()))
    return found


def _groups(engine: Engine) -> list[str]:
    tags = (f"/{engine.config.name}/", f"/{engine.config.name}.pages/")
    return [path for path in leftovers.cgroups() if any(tag in path for tag in tags)]


def _host(engine: Engine, found: Rows) -> Iterator[str]:
    """No job that isn't there has anything of the host; what is mounted has a row; nobody holds what lies in the root
    but the processes of its jobs."""
    for path in _groups(engine):
        if not any(job in path for job in found.job):
            yield f"the control group {path} is nobody's"
    run = os.fspath(engine.config.run)
    images = {row.get("image") for row in found.layer.values()}
    for mount in leftovers.mounts():
        target, kind = mount.split()[:2]
        name = target.removeprefix(f"{run}/mounts/")
        if target.startswith(run) and (name == target or name.partition(".")[0] not in {*found.base, *images}):
            yield f"{target} ({kind}) is mounted for nobody"
    for name in os.listdir(engine.config.run / "jobs") if (engine.config.run / "jobs").is_dir() else ():
        if name not in found.job:
            yield f"the run directory of job {name} is nobody's"
    members = {pid for job in found.job for pid in _members(engine, job)}
    yield from (
        f"{line.strip()} holds the root open" for line in holders(engine) if int(line.split()[0]) not in members
    )


def sealed(engine: Engine) -> dict[str, str]:
    """A digest of each layer that nobody may write, by id: of all names, modes, owners, times and contents."""
    found = rows(engine.config.root)
    uppers = {job.get("upper") for job in found.job.values()}
    layers = [name for name, row in found.layer.items() if row.get("directory", True) and name not in uppers]
    return {name: _digest(engine.config.root / "layers" / name / "upper") for name in layers}


def _digest(top: Path) -> str:
    lines = []
    for directory, folders, files in os.walk(top):
        for name in (".", *folders, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content = b""
            if stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.fsencode(os.readlink(path))
            facts = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev)
            lines.append(f"{path} {facts} {hashlib.sha256(content).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()
