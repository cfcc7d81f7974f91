"""serac is upgraded while jobs are paused: what was dumped goes on with the init that it had."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from roots import inside, shell, until

from engine import Engine, JobSpec, archive, base, launch
from engine.archive.image import encode_image
from engine.model import Base, Digest, Image

pytestmark = pytest.mark.root

COUNTER = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another build of serac-init, which does the same; it is what jobs get from the moment it is asked for."""
    newer = tmp_path / "serac-init"
    shutil.copy(launch.program("serac-init"), newer)
    with newer.open("ab") as file:
        file.write(b"another build")
    old = launch.program

    def program(name: str) -> Path:
        return newer if name == "serac-init" else old(name)

    monkeypatch.setattr(launch, "program", program)
    monkeypatch.setattr(launch, "init_inside", launch.init_inside.__wrapped__)
    return newer


def running(engine: Engine, ref: str) -> str:
    """What init executes, by its path in the job."""
    return inside(engine, ref, "readlink /proc/1/exe").strip()


def test_a_dumped_init_stays_what_it_was(engine: Engine, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    engine.run(shell(COUNTER, name="a"))
    until(engine, "a", b"line 3\n")
    before = running(engine, "a")
    snapshot = engine.pause("a", mode="process").snapshot
    request.getfixturevalue("upgraded")
    assert launch.init_inside() != before
    engine.fork(snapshot, name="b")
    engine.resume("a", mode="process")
    for ref in ("a", "b"):
        assert running(engine, ref) == before
        engine.copy_out(ref, "/etc/hostname", os.fspath(tmp_path / ref))  # by that init's own packer
        assert (tmp_path / ref).read_text() == f"{ref}\n"
    engine.pause("a", mode="process")
    engine.resume("a")
    assert running(engine, "a") == before


def test_a_start_from_the_files_takes_the_new_one(engine: Engine, request: pytest.FixtureRequest) -> None:
    engine.run(shell(COUNTER, name="a"))
    before = running(engine, "a")
    engine.pause("a", mode="process")
    request.getfixturevalue("upgraded")
    engine.resume("a", mode="filesystem")
    assert running(engine, "a") == launch.init_inside() != before


MKFS = "/usr/local/lib/serac/bin/mkfs.erofs"
OPTIONS = ("--quiet", "--chunksize=4096", "-Eforce-inode-extended", f"-U{'0' * 8}-0000-0000-0000-{'0' * 12}", "-T0")


def test_bases_that_mkfs_wrote_serve_on(engine: Engine, small_tree: Path, tmp_path: Path) -> None:
    """Earlier versions had their images from there; a digest is all that names a base."""
    digest = planted_by_mkfs(engine, small_tree, tmp_path)
    engine.run(JobSpec(base=digest, name="a"))
    inside(engine, "a", "echo changed > /src/lower; mkdir /new")
    snapshot = engine.pause("a", archive="wait").snapshot
    kinds = {change.path: change.kind for change in engine.snapshot_diff(snapshot)}
    assert (kinds["/src/lower"], kinds["/new"]) == ("modified", "added")
    engine.resume("a")
    assert inside(engine, "a", "cat /src/lower") == "changed\n"


def planted_by_mkfs(engine: Engine, small_tree: Path, tmp_path: Path) -> str:
    """A base as it was built before: its digest."""
    tree, image = tmp_path / "tree", tmp_path / "image"
    shutil.copytree(small_tree, tree, symlinks=True)
    base.prepare(tree)
    image.mkdir()
    meta, blob = image / "meta.erofs", image / "data.blob"
    subprocess.run([MKFS, *OPTIONS, "--mkfs-time", f"--blobdev={blob}", meta, tree], check=True)
    content = blob.read_bytes()
    pieces = [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)]
    described = Image(
        meta=Digest(sha256=sha256(meta.read_bytes()), size=meta.stat().st_size),
        blob=Digest(sha256=sha256(content), size=len(content)),
        pieces=tuple(map(sha256, pieces)),
    )
    (image / "image.json").write_bytes(encode_image(described))
    digest = archive.image_digest(image)
    image.rename(engine.config.root / "bases" / digest)
    with engine._root.catalog.transaction() as transaction:
        transaction.put_base(Base(digest=digest))
    return digest


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
