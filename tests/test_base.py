"""Bases: each source gives the tree it holds, a hostile one nothing beyond it, and every tree becomes fit for jobs."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rootfs import HOSTILE, forge, listing, planted

from engine import base
from engine.base import DebianSource, DirSource, TarSource, debian, skeleton
from engine.errors import InvalidInput, ToolFailed
from engine.model import Profile, Warmth


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return planted(tmp_path / "rootfs")


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
    with drained(tmp_path / "data.blob"):
        told: list[tuple[int, int]] = []
        first = base.warm(tmp_path, progress=lambda *progress: told.append(progress))
    assert (first.size, first.cached_after) == (size + 8192, size + 8192)
    assert first.cached_before <= 8192
    assert told[-1] == (first.size, first.size)
    assert base.warm(tmp_path).cached_before == first.size


def test_a_profile_is_what_is_there(tmp_path: Path) -> None:
    grain = 64 << 10
    (tmp_path / "data.blob").write_bytes(os.urandom(40 * grain + 4321))
    (tmp_path / "meta.erofs").write_bytes(bytes(100))
    with drained(tmp_path / "data.blob"), drained(tmp_path / "meta.erofs"):
        assert base.resident(tmp_path).size == 0
        read(tmp_path / "data.blob", 3 * grain + 5, 1)
        read(tmp_path / "data.blob", 4 * grain, 1)
        read(tmp_path / "data.blob", 40 * grain, 1)
        found = base.resident(tmp_path)
    assert found.parts == {"meta.erofs": (), "data.blob": ((3 * grain, 2 * grain), (40 * grain, 4321))}
    base.forget(tmp_path)
    assert base.resident(tmp_path).size == 0
    assert base.warm(tmp_path, found) == Warmth(size=found.size, cached_before=0, cached_after=found.size)
    assert base.warm(tmp_path, Profile(parts={"data.blob": ((1 << 40, 5), (0, 1 << 40))})).size == 40 * grain + 4321


def read(path: Path, offset: int, length: int) -> None:
    """Without bringing in more than these pages."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, length, offset)
    os.close(fd)


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


BUILD = """
import sys
from pathlib import Path
from engine import base
base.unpack(base.DebianSource(suite="bookworm"), Path(sys.argv[1]))
"""


def until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.root
@pytest.mark.slow
def test_a_build_that_is_killed_halfway_leaves_neither_mounts_nor_processes(tmp_path: Path) -> None:
    """Killed when dpkg has begun, so that /proc and others are mounted for its scripts."""
    tree = tmp_path / "tree"
    status = tree / "var/lib/dpkg/status"
    command = [sys.executable, "-c", BUILD, str(tree)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        until(lambda: status.exists() and status.stat().st_size > 0, 120)
        process.kill()
    until(lambda: not any(str(tree).encode() in text for text in command_lines()), 10)
    assert str(tree) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(tree)


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield path.read_bytes()


@pytest.mark.root
def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="nonsense"):
        base.unpack(DebianSource(suite="nonsense"), tmp_path / "tree")
