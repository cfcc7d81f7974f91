"""What tests of images share: a base with something in it to replace, jobs that do, and what a root has then."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from roots import empty

from engine import Engine, JobSpec
from engine.base import DirSource
from engine.lifecycle import processes

SPECIAL = {".serac", "dev", "proc", "run", "sys"}
"""of a root, where a job sees something else than what lies there"""
ACL = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture(scope="session")
def lower_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base, and in it what jobs can replace, rename and delete."""
    tree = tmp_path_factory.mktemp("lower") / "tree"
    shutil.copytree(small_tree, tree, symlinks=True)
    tree.chmod(0o755)
    for name in ("moved/deep", "replaced/sub", "deleted/sub", "partly", "into-file/sub", "kept/sub", "twice/sub"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file").write_text(f"{name} of the base\n")
    for name in ("file", "link", "into-directory", "chmod", "touched", "grown", "one"):
        (tree / name).write_text(f"{name}\n")
    os.link(tree / "one", tree / "other")
    os.setxattr(tree / "kept/sub/file", "user.base", b"\0\xff")
    os.setxattr(tree / "kept/sub/file", "security.capability", CAPABILITY)
    os.chown(tree / "kept", 1000, 4_000_000_000)
    return tree


@pytest.fixture
def engine(root_directory: Path, lower_tree: Path) -> Iterator[Engine]:
    with Engine(root_directory, timeout=30) as engine:
        try:
            engine.base_build("small", DirSource(path=lower_tree))
            yield engine
        finally:
            clear(engine)


def clear(engine: Engine) -> None:
    """`empty`, and bases without names."""
    for job in engine.jobs(ended=True):
        engine.remove(job.id, force=True)
    for snapshot in engine.snapshots():
        engine.snapshot_remove(snapshot.id)
    for base in engine.bases():
        if not base.names:
            engine.base_remove(base.digest)
    empty(engine)


def idle(engine: Engine, **fields: object) -> Path:
    """The root of a new job ``j`` that does nothing, with ids as they are on disk."""
    fields = {"argv": ("/bin/sleep", "1000"), **fields}
    engine.run(JobSpec(base="small", name="j", userns="host", **fields))  # type: ignore[arg-type]
    return job_root(engine)


def job_root(engine: Engine) -> Path:
    return Path(f"/proc/{processes.recall(engine._root, engine.job('j')).pid}/root")


def change(root: Path) -> None:
    """One of everything that a job can do to a tree."""
    os.rename(root / "moved", root / "renamed")
    (root / "renamed/deep/new").write_text("in a renamed directory")
    (root / "renamed/deep/file").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir(mode=0o711)
    (root / "replaced/new").write_text("new")
    shutil.rmtree(root / "deleted")
    (root / "partly/file").unlink()
    shutil.rmtree(root / "into-file")
    (root / "into-file").write_text("now a file")
    (root / "into-directory").unlink()
    (root / "into-directory").mkdir()
    (root / "link").unlink()
    (root / "link").symlink_to("/file")
    (root / "chmod").chmod(0o6750)
    os.chown(root / "touched", 70_000, 4_000_000_000)
    os.utime(root / "touched", ns=(0, 1_234_567_890_123_456_789))
    with open(root / "grown", "ab") as file:
        file.write(b"x" * 3_000_000)
    os.link(root / "one", root / "kept/sub/another")
    add(root)


def add(root: Path) -> None:
    (root / "added/deep").mkdir(parents=True)
    (root / "added/first").write_bytes(b"linked")
    os.link(root / "added/first", root / "added/deep/second")
    (root / "added" / ("n" * 255)).touch()
    Path(os.fsdecode(os.fsencode(root) + b"/added/caf\xe9\n\x01")).write_bytes(b"no UTF-8")
    (root / "added/dangling").symlink_to("t" * 300)
    os.mkfifo(root / "added/fifo")
    os.utime(root / "added/fifo", ns=(0, 7))
    with open(root / "added/sparse", "wb") as file:
        file.truncate(5_000_000)
        file.seek(2_000_000)
        file.write(b"middle")
    os.setxattr(root / "added/first", "user.any", b"\0\xff\n")
    os.setxattr(root / "added/deep", "trusted.mine", b"1")
    os.setxattr(root / "added/deep", "system.posix_acl_default", ACL)
    os.utime(root / "added/deep", ns=(0, 5_000_000_001))


def inventory(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All of a root but what is `SPECIAL`. Which names are one file is told by the first of them."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    for directory, folders, files in os.walk(os.fsencode(root) + b"/."):
        if directory == os.fsencode(root) + b"/.":
            folders[:] = [name for name in folders if os.fsdecode(name) not in SPECIAL]
        folders.sort()
        for name in (b".", *sorted((*folders, *files))):
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, os.fsencode(root) + b"/.")
            found[shown] = described(path, shown, first)
    return found


def described(path: bytes, shown: bytes, first: dict[int, bytes]) -> tuple[object, ...]:
    status = os.lstat(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        content = (content, first.setdefault(status.st_ino, shown))
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    return (stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs, content)


def blob(layout: Path, descriptor: dict[str, str]) -> dict[str, object]:
    return dict(json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_text()))


def manifest(layout: Path) -> dict[str, object]:
    return blob(layout, json.loads((layout / "index.json").read_text())["manifests"][0])
