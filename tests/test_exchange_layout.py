"""Image layouts as files: digests, and what the specification wants where."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from exchanges import blob, manifest

from engine.base import layout_and_tag
from engine.exchange import ImageConfig, Process, changes, write_image, write_layer
from engine.tree import merged, open_directory


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(3 << 20))
    blobs = tmp_path / "layout/blobs/sha256"
    blobs.mkdir(parents=True)
    with open_directory(tmp_path / "tree") as top:
        layers = [write_layer(blobs, changes(None, merged([top])))]
    process = Process(env=("A=b",), cmd=("/bin/sh",), labels={"k": "v"})
    config = ImageConfig("amd64", 1_000_000_000.5, process, ["made"], {"serac.snapshot": "x"})
    write_image(tmp_path / "layout", config, layers, tag="v1")
    return tmp_path / "layout"


def test_blobs_have_the_names_of_their_digests(layout: Path) -> None:
    blobs = list((layout / "blobs/sha256").iterdir())
    assert len(blobs) == 3
    assert {path.name for path in blobs} == {hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs}


def test_a_layer_is_described_compressed_and_plain(layout: Path) -> None:
    (layer,) = manifest(layout)["layers"]  # type: ignore[misc, attr-defined]
    packed = (layout / "blobs" / layer["digest"].replace(":", "/")).read_bytes()
    assert (layer["size"], layer["mediaType"]) == (len(packed), "application/vnd.oci.image.layer.v1.tar+gzip")
    assert packed[4:8] == bytes(4), "the header has a time"
    config = blob(layout, manifest(layout)["config"])  # type: ignore[arg-type]
    diff_id = "sha256:" + hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert config["rootfs"] == {"type": "layers", "diff_ids": [diff_id]}


def test_the_config_has_what_there_is_and_no_more(layout: Path) -> None:
    config = blob(layout, manifest(layout)["config"])  # type: ignore[arg-type]
    assert config["config"] == {"Env": ["A=b"], "Cmd": ["/bin/sh"], "Labels": {"k": "v"}}
    assert (config["created"], config["architecture"], config["os"]) == ("2001-09-09T01:46:40Z", "amd64", "linux")
    assert config["history"] == [{"created": config["created"], "created_by": "made"}]


def test_the_index_has_the_tag(layout: Path) -> None:
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("image", "image", "latest"),
        ("image:v1", "image", "v1"),
        ("a:b/image", "a:b/image", "latest"),
        ("a:b/image:v1", "a:b/image", "v1"),
        ("there:v1", "there:v1", "latest"),
    ],
)
def test_a_directory_and_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there:v1").mkdir()
    assert layout_and_tag(text) == (Path(path), tag)
