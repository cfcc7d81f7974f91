"""Bases from OCI image layouts, which umoci makes and the tests then change by hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rootfs import HOSTILE, forge, listing, planted

from engine import base
from engine.base import OciSource
from engine.errors import Damaged, InvalidInput, ToolFailed


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return planted(tmp_path / "rootfs")


@pytest.fixture
def layout(rootfs: Path, tmp_path: Path) -> Path:
    """An image with two layers, the second of which removes a file, and an environment."""
    path, bundle = tmp_path / "layout", tmp_path / "bundle"
    umoci("init", f"--layout={path}")
    umoci("new", f"--image={path}:v1")
    umoci("unpack", f"--image={path}:v1", bundle)
    shutil.rmtree(bundle / "rootfs")
    subprocess.run(["cp", "-a", rootfs, bundle / "rootfs"], check=True)
    (bundle / "rootfs/etc/gone").touch()
    umoci("repack", f"--image={path}:v1", bundle)
    shutil.rmtree(bundle)
    umoci("unpack", f"--image={path}:v1", bundle)
    (bundle / "rootfs/etc/gone").unlink()
    (bundle / "rootfs/etc/new").write_text("second layer")
    umoci("repack", f"--image={path}:v1", bundle)
    umoci("config", f"--image={path}:v1", "--config.env=LANG=C.UTF-8", "--config.env=ODD=a=b c")
    return path


def umoci(*arguments: str | Path) -> None:
    subprocess.run(["umoci", *arguments], check=True, capture_output=True)


def index(layout: Path) -> dict[str, list[dict[str, object]]]:
    return dict(json.loads((layout / "index.json").read_text()))


@pytest.mark.root
def test_an_image_layout(layout: Path, tmp_path: Path) -> None:
    before = listing(layout)
    env = base.unpack(OciSource(path=layout, tag="v1"), tmp_path / "tree")
    assert env.items() >= {"LANG": "C.UTF-8", "ODD": "a=b c"}.items()
    assert (tmp_path / "tree/etc/new").read_text() == "second layer"
    assert not (tmp_path / "tree/etc/gone").exists()
    assert (tmp_path / "tree/bin/su").stat().st_ino == (tmp_path / "tree/bin/sudo").stat().st_ino
    assert os.readlink(tmp_path / "tree/bin/absolute") == "/bin/su"
    assert listing(layout) == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.root
def test_an_image_without_a_tag_is_the_latest(layout: Path, tmp_path: Path) -> None:
    changed = index(layout)
    del changed["manifests"][0]["annotations"]
    (layout / "index.json").write_text(json.dumps(changed))
    base.unpack(OciSource(path=layout), tmp_path / "tree")
    assert (tmp_path / "tree/etc/new").exists()


def add_blob(layout: Path, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


@pytest.mark.root
def test_an_image_for_several_platforms(layout: Path, tmp_path: Path) -> None:
    manifest = index(layout)["manifests"][0] | {"annotations": {}}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    variants = [
        manifest | {"digest": "sha256:" + "0" * 64, "platform": {"architecture": "s390x", "os": "linux"}},
        manifest | {"platform": {"architecture": machine, "os": "linux"}},
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    for known in (variants, variants[:1]):
        nested = add_blob(layout, json.dumps({"schemaVersion": 2, "manifests": known}).encode())
        tagged = nested | {"mediaType": kind, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
        if known is variants:
            base.unpack(OciSource(path=layout), tmp_path / "tree")
            assert (tmp_path / "tree/etc/new").exists()
    with pytest.raises(InvalidInput, match=f"no variant for linux/{machine}"):
        base.unpack(OciSource(path=layout), tmp_path / "tree2")


@pytest.mark.root
def test_a_wrong_tag_names_the_right_ones(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no image tagged v2") as caught:
        base.unpack(OciSource(path=layout, tag="v2"), tmp_path / "tree")
    assert caught.value.hint == "its tags: v1"


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no OCI image layout"):
        base.unpack(OciSource(path=tmp_path), tmp_path / "tree")


@pytest.mark.root
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_layer_cannot_leave_the_tree(tmp_path: Path, name: str) -> None:
    outside, path = tmp_path / "outside", tmp_path / "layout"
    outside.mkdir(mode=0o700)
    (outside / "victim").write_text("good")
    (tmp_path / "in").mkdir()
    before = listing(outside)
    umoci("init", f"--layout={path}")
    umoci("new", f"--image={path}:latest")
    umoci("raw", "add-layer", f"--image={path}:latest", forge(tmp_path / "layer.tar", HOSTILE[name], outside))
    with contextlib.suppress(ToolFailed):
        base.unpack(OciSource(path=path), tmp_path / "in/tree")
    assert listing(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["in", "layer.tar", "layout", "outside"]
    assert os.listdir(tmp_path / "in") in (["tree"], [])


def spoil_index(layout: Path) -> None:
    (layout / "index.json").write_text('{"manifests": 7}')


def spoil_manifest(layout: Path) -> None:
    spoil(layout, str(index(layout)["manifests"][0]["digest"]))


def spoil_layer(layout: Path) -> None:
    manifest = json.loads(blob(layout, str(index(layout)["manifests"][0]["digest"])).read_bytes())
    spoil(layout, manifest["layers"][0]["digest"])


def spoil_digest(layout: Path) -> None:
    changed = index(layout)
    changed["manifests"][0]["digest"] = "sha256:../../../../etc/passwd"
    (layout / "index.json").write_text(json.dumps(changed))


def remove_manifest(layout: Path) -> None:
    blob(layout, str(index(layout)["manifests"][0]["digest"])).unlink()


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def spoil(layout: Path, digest: str) -> None:
    content = bytearray(blob(layout, digest).read_bytes())
    content[len(content) // 2] ^= 1
    blob(layout, digest).chmod(0o644)
    blob(layout, digest).write_bytes(content)


@pytest.mark.root
@pytest.mark.parametrize("change", [spoil_index, spoil_manifest, spoil_digest, remove_manifest, spoil_layer])
def test_a_damaged_layout(layout: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(layout)
    with pytest.raises(ToolFailed if change is spoil_layer else Damaged):
        base.unpack(OciSource(path=layout, tag="v1"), tmp_path / "tree")
