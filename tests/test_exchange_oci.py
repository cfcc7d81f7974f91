"""Snapshots as OCI images, judged by umoci, skopeo and podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from exchanges import blob, change, engine, idle, inventory, job_root, lower_tree, manifest
from podmans import Podman, needed, podman, skopeo
from roots import shell, steps, until

from engine import Engine, JobSpec
from engine.base import OciSource
from engine.errors import InvalidInput, NotFound

__all__ = ["engine", "lower_tree", "podman"]  # fixtures

pytestmark = pytest.mark.root


def unpacked(layout: Path, tag: str = "latest") -> Path:
    bundle = layout.with_name(f"{layout.name}.bundle")
    subprocess.run(["umoci", "unpack", f"--image={layout}:{tag}", bundle], check=True, capture_output=True)
    return bundle / "rootfs"


def config(layout: Path) -> dict[str, object]:
    return dict(blob(layout, manifest(layout)["config"])["config"])  # type: ignore[arg-type, call-overload]


def names(layout: Path, number: int) -> list[str]:
    """What is in a layer."""
    digest = manifest(layout)["layers"][number]["digest"]  # type: ignore[index]
    with tarfile.open(layout / "blobs" / digest.replace(":", "/")) as archive:
        return archive.getnames()


def test_umoci_unpacks_what_the_job_saw(engine: Engine, tmp_path: Path) -> None:
    """From a chain of two layers, in the second of which more is replaced, renamed and deleted."""
    root = idle(engine)
    change(root)
    first = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_pin(first)
    engine.resume("j")
    root = job_root(engine)
    os.rename(root / "renamed", root / "kept/again")
    shutil.rmtree(root / "replaced")
    (root / "twice/sub").rename(root / "replaced")
    (root / "added/first").unlink()
    (root / "deleted").mkdir()
    seen = inventory(root)
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image"), format="oci")
    assert inventory(unpacked(tmp_path / "image")) == seen
    engine.snapshot_export(first, os.fspath(tmp_path / "first:v1"), format="oci")
    assert (unpacked(tmp_path / "first", "v1") / "added/first").read_bytes() == b"linked"


def test_one_snapshot_is_one_image(engine: Engine, tmp_path: Path) -> None:
    """To the byte, be it a directory or images, of one layer or two."""
    change(idle(engine))
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_pin(snapshot)
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "one"), format="oci")
    engine.snapshot_archive(snapshot)
    engine.remove("j")
    engine.collect()
    assert not (engine.config.root / "layers" / engine.snapshot(snapshot).layers[0] / "upper").exists()
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "two"), format="oci")
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()


def test_a_layer_has_changes_and_explicit_whiteouts(engine: Engine, tmp_path: Path) -> None:
    root = idle(engine)
    (root / "nothing-below").touch()
    (root / "nothing-below").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "deleted/file").touch()
    shutil.rmtree(root / "deleted")
    os.rename(root / "moved", root / "renamed")
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image"), format="oci")
    found = [name for name in names(tmp_path / "image", 1) if not name.startswith("etc")]
    assert found == [
        ".", ".wh.deleted", ".wh.moved", "renamed", "renamed/deep", "renamed/deep/file", "replaced",
        "replaced/.wh.sub",
    ]  # fmt: skip
    assert not [name for name in names(tmp_path / "image", 0) if ".wh." in name or ".serac" in name]


def test_the_config_says_what_is_run(engine: Engine, tmp_path: Path) -> None:
    idle(engine, env={"A": "b=c"}, workdir="/src", labels={"mr": "42"})
    snapshot = engine.pause("j", mode="filesystem", labels={"more": "x"}).snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image:v1"), format="oci")
    found = config(tmp_path / "image")
    assert (found["Cmd"], found["WorkingDir"], found["Env"]) == (["/bin/sleep", "1000"], "/src", ["A=b=c"])
    assert "User" not in found
    assert found["Labels"].items() >= {"mr": "42", "more": "x", "serac.snapshot": snapshot}.items()  # type: ignore[attr-defined]
    assert manifest(tmp_path / "image")["annotations"]["serac.base"] == engine.base("small").digest  # type: ignore[index]


def test_steps_that_are_left_are_the_command(engine: Engine, tmp_path: Path) -> None:
    scripts = steps(one="echo one", two="echo two; exit $WRONG", three="echo three; exec sleep 1000")
    engine.run(JobSpec(base="small", name="j", steps=scripts))
    until(engine, "j", b"three\n")
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image"), format="oci")
    command = config(tmp_path / "image")["Cmd"]
    assert command[4:] == ["echo three; exec sleep 1000"]  # type: ignore[index]
    run = [*command[:4], "echo one", "exit $WRONG", "echo three"]  # type: ignore[index]
    for wrong, said in (("0", "one\nthree\n"), ("5", "one\n")):
        done = subprocess.run(run, env={"WRONG": wrong}, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == (said, int(wrong))


def test_names_of_whiteouts_are_refused(engine: Engine, tmp_path: Path) -> None:
    (idle(engine) / "src/.wh.mine").touch()
    snapshot = engine.pause("j", mode="filesystem").snapshot
    with pytest.raises(InvalidInput, match=r"'/src/\.wh\.mine'"):
        engine.snapshot_export(snapshot, os.fspath(tmp_path / "image"), format="oci")
    assert os.listdir(tmp_path) == []


def test_the_target_is_new_or_an_empty_directory(engine: Engine, tmp_path: Path) -> None:
    idle(engine)
    snapshot = engine.pause("j", mode="filesystem").snapshot
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    for target in ("full", "full/file", "absent/image"):
        with pytest.raises(InvalidInput):
            engine.snapshot_export(snapshot, os.fspath(tmp_path / target), format="oci")
    with pytest.raises(InvalidInput, match="directory, not a stream"), open(os.devnull, "wb") as stream:
        engine.snapshot_export(snapshot, stream, format="oci")
    with pytest.raises(InvalidInput, match="no format 'tar'"):
        engine.snapshot_export(snapshot, os.fspath(tmp_path / "x"), format="tar")  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        engine.snapshot_export("0123456789ab", os.fspath(tmp_path / "x"), format="oci")
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "empty"), format="oci")
    assert sorted(os.listdir(tmp_path)) == ["empty", "full"]


def test_names_that_criu_gave_are_left_out(engine: Engine, tmp_path: Path) -> None:
    script = "exec 5>/src/open; ln /src/open /src/x; rm /src/open /src/x; echo ready; exec sleep 1000"
    engine.run(shell(script, name="j"))
    until(engine, "j", b"ready")
    snapshot = engine.pause("j", mode="process").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image"), format="oci")
    assert not [name for name in names(tmp_path / "image", 1) if "link_remap" in name]


def test_skopeo_takes_it(engine: Engine, tmp_path: Path) -> None:
    needed("skopeo")
    idle(engine)
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image:v1"), format="oci")
    found = json.loads(skopeo("inspect", f"oci:{tmp_path}/image:v1"))
    assert (found["Os"], len(found["Layers"])) == ("linux", 2)
    for target in ("oci:{}/copy:v1", "docker-archive:{}/docker.tar:x:1", "dir:{}/dir"):
        skopeo("copy", f"oci:{tmp_path}/image:v1", target.format(tmp_path))
    assert inventory(unpacked(tmp_path / "copy", "v1")) == inventory(unpacked(tmp_path / "image", "v1"))


def test_podman_runs_it_and_what_it_saves_comes_back(engine: Engine, tmp_path: Path, podman: Podman) -> None:
    root = idle(engine, argv=("/bin/sh", "-c", "cat /renamed/deep/new; exec sleep 1000"))
    change(root)
    seen = inventory(root)
    snapshot = engine.pause("j", mode="filesystem").snapshot
    engine.snapshot_export(snapshot, os.fspath(tmp_path / "image:v1"), format="oci")
    podman("tag", podman("pull", "--quiet", f"oci:{tmp_path}/image:v1").strip(), "localhost/image:latest")
    script = "cat /renamed/deep/new; ls -d /deleted /moved /replaced/sub /partly/file; ls /replaced /partly"
    command = ("/bin/sh", "-c", f"({script}) 2>/dev/null; :")
    assert podman.run("localhost/image", *command) == "in a renamed directory/partly:\n\n/replaced:\nnew\n"
    podman("save", "--format", "oci-dir", "-o", tmp_path / "saved", "localhost/image")

    base = engine.base_build("again", OciSource(path=tmp_path / "saved"))
    taken = engine.snapshot_import(os.fspath(tmp_path / "saved:latest"))
    assert taken.base == base.digest
    assert taken.labels["serac.snapshot"] == snapshot
    engine.remove("j")
    engine.run(JobSpec(base="again", name="j", userns="host", argv=("/bin/sleep", "1000")))
    assert without_jobs_own(inventory(job_root(engine))) == without_jobs_own(seen)
    engine.fork(taken.id, name="forked")
    until(engine, "forked", b"in a renamed directory")


def without_jobs_own(seen: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Without what serac writes when a job begins, or a base is made."""
    own = (b".", b"etc", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"etc/machine-id")
    return {path: facts for path, facts in seen.items() if path not in own}
