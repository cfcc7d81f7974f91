"""OCI images as snapshots."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from exchanges import engine, lower_tree, manifest
from podmans import needed, skopeo
from roots import inside, output, until

from engine import Engine
from engine.errors import Damaged, InvalidInput, ToolFailed

__all__ = ["engine", "lower_tree"]  # fixtures

pytestmark = pytest.mark.root


@pytest.fixture
def layout(tmp_path: Path, lower_tree: Path) -> Callable[..., str]:
    """An image that umoci makes of the tree, with a config as asked for."""

    def make(*options: str) -> str:
        path, bundle = tmp_path / "made", tmp_path / "bundle"
        commands = [
            ["init", f"--layout={path}"],
            ["new", f"--image={path}:latest"],
            ["unpack", f"--image={path}:latest", bundle],
            ["repack", f"--image={path}:latest", bundle],
            ["config", f"--image={path}:latest", *options],
        ]
        for command in commands:
            if command[0] == "repack":
                subprocess.run(["cp", "-a", f"{lower_tree}/.", bundle / "rootfs"], check=True)
            subprocess.run(["umoci", *command], check=True, capture_output=True)
        return os.fspath(path)

    return make


def test_an_image_becomes_a_snapshot(engine: Engine, layout: Callable[..., str]) -> None:
    source = layout("--config.entrypoint=/bin/sh", "--config.entrypoint=-c", "--config.cmd=pwd; echo $A; sleep 1000",
                    "--config.env=A=b", "--config.workingdir=/src", "--config.label=mr=42")  # fmt: skip
    snapshot = engine.snapshot_import(source)
    assert (snapshot.mode, snapshot.pinned, snapshot.labels) == ("filesystem", True, {"mr": "42"})
    assert snapshot.spec.argv == ("/bin/sh", "-c", "pwd; echo $A; sleep 1000")
    job = engine.fork(snapshot.id, name="f").job
    until(engine, "f", b"/src\nb\n")
    assert engine.job(job).spec.labels == {"mr": "42"}
    paused = engine.pause("f", mode="filesystem").snapshot
    assert [change.path for change in engine.snapshot_diff(paused) if not change.path.startswith("/etc")] == []
    engine.snapshot_archive(snapshot.id)
    assert engine.snapshot_import(source).base == snapshot.base


def test_an_image_without_a_command_stays_up(engine: Engine, layout: Callable[..., str]) -> None:
    snapshot = engine.snapshot_import(layout())
    assert (snapshot.spec.argv, snapshot.spec.workdir, snapshot.context.sessions) == ((), "/", ())
    engine.fork(snapshot.id, name="f")
    assert inside(engine, "f", "cat /src/lower") == "of the base\n"


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("nobody", "65534:65534", "/"),
        ("nobody:root", "65534:0", "/"),
        ("7:nogroup", "7:65534", "/root"),
        ("1234:9", "1234:9", "/root"),
        ("0", "0:0", "/root"),
    ],
)
def test_the_user_of_an_image(engine: Engine, layout: Callable[..., str], user: str, ids: str, home: str) -> None:
    snapshot = engine.snapshot_import(layout(f"--config.user={user}", "--config.cmd=/bin/sh", "--config.cmd=-c",
                                             "--config.cmd=echo $(id -u):$(id -g) $HOME"))  # fmt: skip
    engine.fork(snapshot.id, name="f")
    assert output(engine, "f") == f"{ids} {home}\n"


@pytest.mark.parametrize("user", ["who", "nobody:who", "70000", "4294967296", "-1"])
def test_a_user_whom_nobody_knows_leaves_nothing(engine: Engine, layout: Callable[..., str], user: str) -> None:
    before = engine.bases()
    with pytest.raises(InvalidInput, match="the image runs as"):
        engine.snapshot_import(layout(f"--config.user={user}", "--config.cmd=/bin/true"))
    assert (engine.bases(), engine.snapshots()) == (before, [])
    assert os.listdir(engine.config.root / "layers") == []


def test_a_config_that_nobody_could_run(engine: Engine, layout: Callable[..., str]) -> None:
    source = layout("--config.workingdir=relative", "--config.cmd=/bin/true")
    with pytest.raises(Damaged, match="the image's config: workdir must be absolute"):
        engine.snapshot_import(source)


def test_layers_that_are_compressed_with_zstd(engine: Engine, tmp_path: Path, layout: Callable[..., str]) -> None:
    """umoci itself takes gzip and none."""
    needed("skopeo")
    source, target = layout("--config.cmd=/bin/true"), tmp_path / "zstd"
    skopeo("copy", "--dest-compress", "--dest-compress-format=zstd", f"oci:{source}:latest", f"oci:{target}:latest")
    layers = manifest(target)["layers"]
    assert [layer["mediaType"][-5:] for layer in layers] == ["+zstd"] * len(layers)  # type: ignore[index, arg-type]
    assert engine.snapshot_import(os.fspath(target)).base == engine.snapshot_import(source).base


def test_a_damaged_layer_of_zstd(engine: Engine, tmp_path: Path, layout: Callable[..., str]) -> None:
    """Another stream under its name: umoci compares what it holds with the config."""
    needed("skopeo")
    source, target = layout("--config.cmd=/bin/true"), tmp_path / "zstd"
    skopeo("copy", "--dest-compress", "--dest-compress-format=zstd", f"oci:{source}:latest", f"oci:{target}:latest")
    digest = manifest(target)["layers"][0]["digest"]  # type: ignore[index]
    empty_tar = subprocess.run(["zstd", "-c"], input=bytes(1024), capture_output=True, check=True).stdout
    (target / "blobs" / digest.replace(":", "/")).write_bytes(empty_tar)
    with pytest.raises(ToolFailed):
        engine.snapshot_import(os.fspath(target))
    assert engine.snapshots() == []
