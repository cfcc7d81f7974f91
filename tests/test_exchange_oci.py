"""Snapshots as OCI images and back, judged by umoci, skopeo and podman."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from podmans import Podman, needed, podman, skopeo
from roots import empty, inside, output, shell, steps, until

from engine import Engine, JobSpec
from engine.base import DirSource, OciSource
from engine.errors import Damaged, InvalidInput, NotFound, ToolFailed
from engine.lifecycle import processes

__all__ = ["podman"]  # fixture

pytestmark = pytest.mark.root

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


def unpacked(layout: Path, tag: str = "latest") -> Path:
    bundle = layout.with_name(f"{layout.name}.bundle")
    subprocess.run(["umoci", "unpack", f"--image={layout}:{tag}", bundle], check=True, capture_output=True)
    return bundle / "rootfs"


def blob(layout: Path, descriptor: dict[str, str]) -> dict[str, object]:
    return dict(json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_text()))


def manifest(layout: Path) -> dict[str, object]:
    return blob(layout, json.loads((layout / "index.json").read_text())["manifests"][0])


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
    source = layout("--config.entrypoint=/bin/sh", "--config.entrypoint=-c", "--config.cmd=pwd; echo $A; exec sleep 9",
                    "--config.env=A=b", "--config.workingdir=/src", "--config.label=mr=42")  # fmt: skip
    snapshot = engine.snapshot_import(source)
    assert (snapshot.mode, snapshot.pinned, snapshot.labels) == ("filesystem", True, {"mr": "42"})
    assert snapshot.spec.argv == ("/bin/sh", "-c", "pwd; echo $A; exec sleep 9")
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
