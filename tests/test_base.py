"""Bases: each source gives the tree it holds, a hostile one nothing beyond it, and every tree becomes fit for jobs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import base
from engine.base import DebianSource, DirSource, OciSource, TarSource, debian, skeleton
from engine.errors import Damaged, InvalidInput, Timeout, ToolFailed

Snapshot = dict[str, tuple[object, ...]]


def listing(tree: Path) -> Snapshot:
    """What must survive the way into a tree, by path."""
    return {str(path.relative_to(tree)): facts(path) for path in [tree, *tree.rglob("*")]}


def facts(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    return (status.st_mode, status.st_uid, status.st_gid, links, status.st_mtime_ns, xattrs, content)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A small root filesystem with something of everything."""
    tree = tmp_path / "rootfs"
    (tree / "etc").mkdir(parents=True)
    (tree / "bin").mkdir()
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "bin/su").write_bytes(b"\x7fELF" + bytes(5000))
    os.chown(tree / "bin/su", 12, 70_000)
    (tree / "bin/su").chmod(0o4751)
    os.setxattr(tree / "bin/su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(tree / "etc", "user.note", b"kept")
    os.setxattr(tree / "etc", "trusted.note", b"kept")
    os.link(tree / "bin/su", tree / "bin/sudo")
    os.symlink("/bin/su", tree / "bin/absolute")
    (tree / os.fsdecode(b"caf\xe9")).touch()
    tree.chmod(0o751)
    return tree


def pack(tree: Path, archive: Path, *options: str) -> Path:
    keep = ["--xattrs", "--xattrs-include=*", "--acls", "--format=posix", "--sort=name"]
    subprocess.run(["tar", *keep, *options, "-cf", archive, "-C", tree, "."], check=True)
    return archive


@pytest.mark.root
@pytest.mark.parametrize("option", ["", "--gzip", "--bzip2", "--xz", "--zstd"])
def test_a_tar_file_of_any_compression(rootfs: Path, tmp_path: Path, option: str) -> None:
    archive = pack(rootfs, tmp_path / "rootfs.tar", *filter(None, [option]))
    told: list[tuple[int, int]] = []
    source = TarSource(path=archive)
    assert base.unpack(source, tmp_path / "tree", progress=lambda *progress: told.append(progress)) == {}
    assert listing(tmp_path / "tree") == listing(rootfs)
    assert told[-1] == (archive.stat().st_size,) * 2


@pytest.mark.root
def test_a_stream(rootfs: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        ["tar", "--xattrs", "--xattrs-include=*", "--format=posix", "-c", "-C", rootfs, "."], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        base.unpack_stream(process.stdout.fileno(), tmp_path / "tree")
    assert listing(tmp_path / "tree") == listing(rootfs)


Member = tuple[str, bytes, str]
"""name, tarfile type, and what it links to, or its content"""

HOSTILE: dict[str, list[Member]] = {
    "dots": [("../../outside/new", tarfile.REGTYPE, "evil")],
    "dots inside": [("a/../../../outside/new", tarfile.REGTYPE, "evil")],
    "absolute": [("{outside}/new", tarfile.REGTYPE, "evil")],
    "link, then through it": [("d", tarfile.SYMTYPE, "{outside}"), ("d/new", tarfile.REGTYPE, "evil")],
    "relative link, then through it": [
        ("d", tarfile.SYMTYPE, "../../outside"),
        ("d/victim", tarfile.REGTYPE, "evil"),
    ],
    "two links": [
        ("a", tarfile.DIRTYPE, ""),
        ("a/b", tarfile.SYMTYPE, ".."),
        ("c", tarfile.SYMTYPE, "a/b/../../outside"),
        ("c/new", tarfile.REGTYPE, "evil"),
    ],
    "link over a directory, its mode set later": [
        ("d", tarfile.DIRTYPE, ""),
        ("d", tarfile.SYMTYPE, "{outside}"),
        ("d", tarfile.DIRTYPE, ""),
    ],
    "link over a file": [
        ("f", tarfile.SYMTYPE, "{outside}/victim"),
        ("f", tarfile.REGTYPE, "evil"),
    ],
    "hard link out": [("h", tarfile.LNKTYPE, "{outside}/victim"), ("h", tarfile.REGTYPE, "evil")],
    "hard link up": [("h", tarfile.LNKTYPE, "../../outside/victim"), ("h", tarfile.REGTYPE, "evil")],
    "hard link through a link": [
        ("s", tarfile.SYMTYPE, "{outside}"),
        ("h", tarfile.LNKTYPE, "s/victim"),
        ("h", tarfile.REGTYPE, "evil"),
    ],
}


def forge(path: Path, members: list[Member], outside: Path) -> Path:
    """A tar file that tar itself wouldn't write."""
    with tarfile.open(path, "w") as archive:
        for name, kind, value in members:
            info = tarfile.TarInfo(name.format(outside=outside))
            info.type, info.mode, text = kind, 0o777, value.format(outside=outside)
            content = text.encode() if kind == tarfile.REGTYPE else b""
            info.linkname, info.size = ("" if content else text), len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.root
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_cannot_leave_the_tree(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "victim").write_text("good")
    (tmp_path / "in").mkdir()
    before = listing(outside)
    archive = forge(tmp_path / "hostile.tar", HOSTILE[name], outside)
    with contextlib.suppress(ToolFailed):
        base.unpack(TarSource(path=archive), tmp_path / "in/tree")
        base.prepare(tmp_path / "in/tree")
    assert listing(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["hostile.tar", "in", "outside"]
    assert os.listdir(tmp_path / "in") == ["tree"]


@pytest.mark.root
def test_what_is_no_tar_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a tar file" * 100)
    with pytest.raises(ToolFailed, match="does not look like a tar archive"):
        base.unpack(TarSource(path=tmp_path / "text"), tmp_path / "tree")
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InvalidInput) as caught:
            base.unpack(TarSource(path=path), tmp_path / "tree2")
        assert "tar file" in caught.value.hint


@pytest.mark.root
def test_a_cut_archive_is_refused(rootfs: Path, tmp_path: Path) -> None:
    archive = pack(rootfs, tmp_path / "rootfs.tar.gz", "--gzip")
    os.truncate(archive, archive.stat().st_size - 50)
    with pytest.raises(ToolFailed):
        base.unpack(TarSource(path=archive), tmp_path / "tree")


@pytest.mark.root
def test_a_directory_is_copied_and_stays_as_it_was(rootfs: Path, tmp_path: Path) -> None:
    before = listing(rootfs)
    assert base.unpack(DirSource(path=rootfs), tmp_path / "tree") == {}
    assert listing(tmp_path / "tree") == before
    base.prepare(tmp_path / "tree")
    (tmp_path / "tree/bin/su").write_bytes(b"changed")
    assert listing(rootfs) == before


@pytest.mark.root
def test_a_directory_that_holds_the_tree_is_refused(rootfs: Path) -> None:
    os.symlink(rootfs, rootfs.parent / "alias")
    for path in (rootfs, rootfs.parent / "alias", Path("/")):
        with pytest.raises(InvalidInput, match="serac's own root"):
            base.unpack(DirSource(path=path), rootfs / "tree")
        (rootfs / "tree").rmdir()


@pytest.mark.parametrize("name", ["file", "nothing"])
def test_what_is_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="is not a directory"):
        base.unpack(DirSource(path=tmp_path / name), tmp_path / "tree")


def test_a_tree_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    with pytest.raises(InvalidInput, match="is not empty"):
        base.unpack(DirSource(path=tmp_path), tmp_path / "tree")


# OCI image layouts, made by umoci and then changed by hand


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


# What every tree becomes


@pytest.mark.root
def test_prepared_trees(rootfs: Path) -> None:
    before = listing(rootfs)
    base.prepare(rootfs)
    dev = rootfs / "dev"
    nodes = {path.name: path.lstat() for path in dev.iterdir() if stat.S_ISCHR(path.lstat().st_mode)}
    assert {name: (os.major(node.st_rdev), os.minor(node.st_rdev)) for name, node in nodes.items()} == skeleton.NODES
    assert {(stat.S_IMODE(node.st_mode), node.st_uid, node.st_gid) for node in nodes.values()} == {(0o666, 0, 0)}
    assert {path.name: os.readlink(path) for path in dev.iterdir() if path.is_symlink()} == skeleton.LINKS
    modes = {name: stat.S_IMODE((rootfs / name).lstat().st_mode) for name in skeleton.DIRECTORIES}
    assert modes == skeleton.DIRECTORIES
    assert (rootfs / "etc/machine-id").read_bytes() == b""
    assert (rootfs / "etc/hosts").read_bytes() == skeleton.HOSTS
    after = listing(rootfs)
    for path in ("bin/su", "bin/absolute", "etc/passwd", "caf\udce9"):
        assert after[path] == before[path]


@pytest.mark.root
def test_preparing_twice_changes_nothing(rootfs: Path) -> None:
    base.prepare(rootfs)
    (rootfs / "etc/hosts").write_text("mine")
    once = {path: (*value[:4], *value[5:]) for path, value in listing(rootfs).items()}
    base.prepare(rootfs)
    assert {path: (*value[:4], *value[5:]) for path, value in listing(rootfs).items()} == once


@pytest.mark.root
def test_devices_that_a_source_brings_are_removed(rootfs: Path) -> None:
    (rootfs / "dev").mkdir()
    (rootfs / "srv/deep").mkdir(parents=True)
    os.mknod(rootfs / "dev/vda", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    os.mknod(rootfs / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    os.mknod(rootfs / "dev/console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    for number in range(2000):
        os.mknod(rootfs / f"srv/deep/{number}", stat.S_IFCHR | 0o666, os.makedev(1, number % 256))
    os.mkfifo(rootfs / "srv/deep/fifo")
    base.prepare(rootfs)
    assert sorted(os.listdir(rootfs / "dev")) == sorted([*skeleton.NODES, *skeleton.LINKS, "pts", "shm"])
    assert (rootfs / "dev/null").stat().st_rdev == os.makedev(1, 3)
    assert os.listdir(rootfs / "srv/deep") == ["fifo"]


@pytest.mark.root
@pytest.mark.parametrize("name", ["dev", "etc", "dev/pts", "run", "run/serac", "tmp"])
def test_a_link_in_place_of_a_directory_is_refused_and_not_followed(rootfs: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if name == "etc":
        shutil.rmtree(rootfs / name)
    (rootfs / name).parent.mkdir(exist_ok=True)
    os.symlink(outside, rootfs / name)
    with pytest.raises(InvalidInput, match=f"/{name} in the base is not a directory"):
        base.prepare(rootfs)
    assert os.listdir(outside) == []


@pytest.mark.root
def test_a_machine_id_that_is_a_link_is_replaced(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "host-id").write_text("host")
    for name in ("machine-id", "hosts"):
        (rootfs / "etc" / name).unlink(missing_ok=True)
        os.symlink(tmp_path / "host-id", rootfs / "etc" / name)
    base.prepare(rootfs)
    assert (tmp_path / "host-id").read_text() == "host"
    assert (rootfs / "etc/machine-id").lstat().st_size == 0
    assert (rootfs / "etc/hosts").is_symlink()


@pytest.mark.root
def test_a_tree_too_deep_for_recursion(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.mknod("disk", stat.S_IFBLK, 0, dir_fd=fd)
    base.prepare(tree)
    assert os.listdir(fd) == []
    os.close(fd)
    subprocess.run(["rm", "-r", tree], check=True)


def test_warm_counts_and_reads(tmp_path: Path) -> None:
    size = (20 << 20) + 4321
    (tmp_path / "data.blob").write_bytes(os.urandom(size))
    (tmp_path / "meta.erofs").write_bytes(bytes(8192))
    (tmp_path / "empty").touch()
    with drained(tmp_path / "data.blob"):
        told: list[tuple[int, int]] = []
        first = base.warm(tmp_path, progress=lambda *progress: told.append(progress))
    assert (first.size, first.cached_after) == (size + 8192, size + 8192)
    assert first.cached_before <= 8192
    assert told[-1] == (first.size, first.size)
    assert base.warm(tmp_path).cached_before == first.size


@contextlib.contextmanager
def drained(path: Path) -> Iterator[None]:
    """None of the file in the page cache: written back first, for dirty pages can't be dropped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield


# Debian


@pytest.mark.parametrize("suite", ["--mode=chroot", "bookworm main", "", "Bookworm", "../etc"])
def test_what_is_no_suite(tmp_path: Path, suite: str) -> None:
    with pytest.raises(InvalidInput, match="is no Debian suite"):
        base.unpack(DebianSource(suite=suite), tmp_path / "tree")


@pytest.mark.parametrize("package", ["", "git,gcc", "--essential-hook=id", "a b", "git;id"])
def test_what_is_no_package(tmp_path: Path, package: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a Debian package"):
        base.unpack(DebianSource(suite="bookworm", include=(package,)), tmp_path / "tree")


def test_sources_have_updates_where_a_suite_has_them() -> None:
    mirrors = {"Debian": "http://mirror.test/debian/", "Debian-Security": "http://mirror.test/security/"}
    start = f"deb [signed-by={debian.KEYRING}] http://mirror.test"
    assert debian._sources("trixie", mirrors) == [
        f"{start}/debian/ trixie main",
        f"{start}/debian/ trixie-updates main",
        f"{start}/security/ trixie-security main",
    ]
    assert debian._sources("sid", mirrors) == [f"{start}/debian/ sid main"]


@pytest.mark.root
@pytest.mark.slow
def test_a_debian_base(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tmp_path.chmod(0o700)
    base.unpack(DebianSource(suite="bookworm", include=("git",)), tree)
    base.prepare(tree)
    assert (tree / "usr/bin/git").exists()
    assert "signed-by" in (tree / "etc/apt/sources.list").read_text()
    for path in debian._OF_THE_BUILD:
        assert not (tree / path).exists()
    assert os.listdir(tree / "var/cache/apt/archives") in ([], ["lock"], ["partial"], ["lock", "partial"])
    version = subprocess.run(["chroot", tree, "git", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("git version")


@pytest.mark.root
@pytest.mark.slow
def test_a_build_that_is_ended_halfway_leaves_no_mount(tmp_path: Path) -> None:
    """Ended as soon as dpkg is configuring, when /proc and others are mounted in the tree."""
    tree = tmp_path / "tree"
    with pytest.raises(Timeout):
        base.unpack(DebianSource(suite="bookworm"), tree, timeout=11)
    assert (tree / "var/lib/dpkg/status").stat().st_size > 0
    shutil.rmtree(tree)


@pytest.mark.root
def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="nonsense"):
        base.unpack(DebianSource(suite="nonsense"), tmp_path / "tree")
