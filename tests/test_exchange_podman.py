"""Checkpoint archives: that they are made as Podman's, and how far Podman gets with one."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from podmans import Podman, podman
from roots import shell, until

from engine import Engine
from engine.errors import InvalidInput
from engine.tools import SETUP_BIN

__all__ = ["podman"]  # fixture

pytestmark = pytest.mark.root

INVENTORY = 0x58313116
"""criu's magic number of inventory.img"""
SCRIPT = """
mv /src/lower /src/moved; rm -r /root; mkdir /root; echo new >/root/file; mkdir /src/d; ln /src/moved /src/d/second
echo shared >/dev/shm/note; echo ready; exec sleep 1000
"""


@pytest.fixture
def archive(engine: Engine, tmp_path: Path) -> Path:
    engine.run(shell(SCRIPT, name="j", env={"A": "b"}, workdir="/src", labels={"mr": "42"}))
    until(engine, "j", b"ready")
    snapshot = engine.pause("j", mode="process").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "checkpoint.tar"), format="podman")
    return tmp_path / "checkpoint.tar"


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]


def test_the_parts_of_an_archive(archive: Path) -> None:
    assert archive.stat().st_mode & 0o777 == 0o600
    found = contents(archive)
    images = {name for name in found if name.startswith("checkpoint/")}
    assert set(found) - images == {
        "config.dump", "deleted.files", "devshm-checkpoint.tar", "network.status", "rootfs-diff.tar", "spec.dump",
    }  # fmt: skip
    assert images > {f"checkpoint/{name}" for name in ("inventory.img", "pstree.img", "pages-1.img", "files.img")}
    assert struct.unpack_from("<I", found["checkpoint/inventory.img"]) == (INVENTORY,)
    assert json.loads(found["deleted.files"]) == ["/src/lower"]


def test_the_files_of_an_archive(archive: Path) -> None:
    found = contents(archive)
    with tarfile.open(fileobj=io.BytesIO(found["rootfs-diff.tar"])) as diff:
        members = {info.name: info for info in diff}
    assert not [name for name in members if ".wh." in name or ".serac" in name]
    assert members["src/moved"].linkname == "src/d/second" or members["src/d/second"].linkname == "src/moved"
    assert "root/file" in members
    with tarfile.open(fileobj=io.BytesIO(found["devshm-checkpoint.tar"])) as shm:
        assert shm.extractfile("note").read() == b"shared\n"  # type: ignore[union-attr]


def test_what_an_archive_says_of_the_container(archive: Path) -> None:
    """The fields that checkpointctl and Podman read."""
    found = contents(archive)
    config, spec = json.loads(found["config.dump"]), json.loads(found["spec.dump"])
    assert (config["name"], config["runtime"], config["labels"]) == ("j", "runc", {"mr": "42"})
    assert len(config["id"]) == 64
    assert config["rootfsImageName"].startswith("localhost/serac-base:")
    assert spec["annotations"]["io.container.manager"] == "libpod"
    assert spec["process"]["args"] == ["/bin/sh", "-c", SCRIPT]
    assert (spec["process"]["cwd"], "A=b" in spec["process"]["env"]) == ("/src", True)


def test_an_archived_snapshot_gives_the_same(engine: Engine, archive: Path, tmp_path: Path) -> None:
    (snapshot,) = engine.snapshots()
    engine.snapshot_archive(snapshot.id)
    with open(tmp_path / "again.tar", "wb") as out:
        engine.snapshot_export(snapshot.id, out, format="podman")
    first, again = contents(archive), contents(tmp_path / "again.tar")
    assert first.keys() == again.keys()
    assert {name for name in first if first[name] != again[name]} <= {"devshm-checkpoint.tar"}


def test_a_snapshot_without_processes_is_no_checkpoint(engine: Engine, tmp_path: Path) -> None:
    engine.run(shell("exec sleep 1000", name="j"))
    snapshot = engine.pause("j", mode="filesystem").snapshot
    with pytest.raises(InvalidInput, match="has no processes"):
        engine.snapshot_export(snapshot, os.fspath(tmp_path / "x.tar"), format="podman")
    assert os.listdir(tmp_path) == []


def test_podman_imports_it_and_criu_stops_at_its_mounts(
    archive: Path, podman: Podman, small_tree: Path, tmp_path: Path
) -> None:
    """As far as another engine gets: the container is made over the base's image and gets its files, and runc lets criu
    read the processes. criu then wants the mounts that serac-launch had made."""
    name = json.loads(contents(archive)["config.dump"])["rootfsImageName"]
    subprocess.run(["tar", "-C", small_tree, "-cf", tmp_path / "base.tar", "."], check=True)
    podman("import", "--quiet", tmp_path / "base.tar", name)
    with_criu = {"PATH": f"{SETUP_BIN}:{os.environ['PATH']}"}
    said = podman("container", "restore", "--keep", "--import", archive, "--name", "back", check=False, env=with_criu)
    assert "criu failed" in said
    (log,) = podman.place.rglob("restore.log")
    assert "mnt: No mapping for" in log.read_text()
    podman("rm", "--force", "back")
