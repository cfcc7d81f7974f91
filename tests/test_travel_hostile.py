"""Streams whose digests are right and whose maker means harm: refused by name, with nothing changed, or harmless."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import Bundle, Files
from roots import inside
from travels import exported, imported, paused, refused

from engine import Engine, archive, checkpoint
from engine.errors import CannotRestore, Damaged, InvalidInput
from engine.model import DENIALS
from engine.tree import open_directory

pytestmark = pytest.mark.root


@pytest.fixture
def bundle(engine: Engine) -> Bundle:
    """Of a snapshot that isn't here any more, though its base is."""
    snapshot = paused(engine, "echo content > /file")
    data = exported(engine, snapshot)
    for job in engine.jobs(ended=True):
        engine.remove(job.id, force=True)
    engine.collect()
    assert engine.snapshots() == []
    return Bundle.of(data)


Plant = Callable[[Path], object]


def planted(below: Path, plant: Plant) -> Files:
    """An image of a tree."""
    tree, image = below / "tree", below / "image"
    tree.mkdir(parents=True)
    plant(tree)
    with open_directory(tree) as root:
        archive.build_image(root, image)
    return Files.read(image)


def top(bundle: Bundle) -> str:
    digest: str = bundle.manifest["layers"][-1]["digest"]
    return digest


# what a manifest asks for


PRIVILEGES: dict[str, dict[str, Any]] = {
    "the host's user namespace": {"userns": "host"},
    "the host's network": {"net": "host"},
    "the system calls of bpf": {"allow": list(DENIALS)},
}


def test_privileges_need_trust(engine: Engine, bundle: Bundle) -> None:
    right = bundle.manifest
    for number, (said, asked) in enumerate(PRIVILEGES.items()):
        bundle.manifest = right | {"spec": right["spec"] | asked, "id": f"{number:012x}"}
        with refused(engine, InvalidInput, said) as error:
            imported(engine, bundle)
        assert "--trust" in str(error.value.hint)  # type: ignore[attr-defined]
        job = engine.fork(imported(engine, bundle, trust=True).id).job
        assert inside(engine, job, "cat /file") == "content\n"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def session(**fields: Any) -> dict[str, Any]:
    return {"sessions": [{"id": 0, "argv": ["true"], "workdir": "/", **fields}]}


VALUES: list[tuple[str, Any]] = [
    ("spec", {"argv": ["a\0b"]}),
    ("spec", {"argv": ["true"], "steps": [{"name": "a", "script": "true"}]}),
    ("spec", {"steps": [{"name": "a", "script": "1"}, {"name": "a", "script": "2"}]}),
    ("spec", {"workdir": "src"}),
    ("spec", {"env": {"A=B": "c"}}),
    ("spec", {"name": "../../x"}),
    ("spec", {"name": "0123456789ab"}),
    ("spec", {"limits": {"memory": 1}}),
    ("spec", {"limits": {"memory": 1 << 80}}),
    ("spec", {"limits": {"cpus": 1e300}}),
    ("spec", {"allow": ["everything"]}),
    ("spec", {"resume_signal": "NOSUCH"}),
    ("spec", {"on_resume": ["a\0b"]}),
    ("spec", {"state": nested(200)}),
    ("spec", {"labels": {"a\0": "b"}}),
    ("context", {"state": nested(900)}),
    ("context", {"labels": {"a": "\0"}}),
    ("context", session(argv=["a\0uid=0"])),
    ("context", session(steps=[{"name": "a\0b", "script": "true"}])),
    ("context", session(steps=[{"name": "a", "script": "true\0uid=0"}])),
    ("context", session(done=["\0"])),
    ("context", session(env={"": "x"})),
    ("context", session(workdir="/\0")),
    ("context", session(uid=-1)),
    ("context", session(gid=(1 << 32) - 1)),
    ("context", session(uid=1 << 80)),
    ("context", session(tty=[0, -1])),
    ("context", session(tty=[1 << 40, 1])),
    ("context", session(id=-1)),
    ("context", session(id=1 << 40)),
    ("context", {"sessions": [{"argv": ["true"]}]}),
    ("context", {"sessions": [{"id": 1, "argv": ["true"]}, {"id": 1, "argv": ["false"]}]}),
    ("base", {"env": {"A\0": "b"}}),
    ("overlay", {"metacopy": "on"}),
    ("overlay", {"upperdir": "/etc"}),
    ("name", "../../x"),
    ("name", "a\nb"),
    ("name", ""),
    ("labels", {"\0": "x"}),
]


def test_values_that_no_engine_would_have_written(engine: Engine, bundle: Bundle) -> None:
    right = bundle.manifest
    for field, value in VALUES:
        old = right[field]
        bundle.manifest = right | {field: old | value if isinstance(old, dict) else value}
        with refused(engine, Damaged, "", str((field, value))[:80]):
            imported(engine, bundle, trust=True)


def test_chains_that_are_too_long(engine: Engine, bundle: Bundle) -> None:
    part = bundle.manifest["layers"][0]
    bundle.manifest["layers"] = [part] * 401
    with refused(engine, Damaged, "401 layers, 400 are the most"):
        imported(engine, bundle)
    bundle.manifest["layers"] = [part] * 40
    imported(engine, bundle)
    engine.fork(bundle.manifest["id"], name="b")
    assert inside(engine, "b", "cat /file") == "content\n"


# layers


DEVICES: dict[str, tuple[int, int]] = {
    "a disk": (0o600 | stat.S_IFBLK, os.makedev(8, 0)),
    "the memory": (0o600 | stat.S_IFCHR, os.makedev(1, 1)),
    "fuse": (0o600 | stat.S_IFCHR, os.makedev(10, 229)),
    "a disk that has null's numbers": (0o600 | stat.S_IFBLK, os.makedev(1, 3)),
}


def test_devices_need_trust(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    for number, (name, (mode, device)) in enumerate(DEVICES.items()):

        def plant(tree: Path, mode: int = mode, device: int = device) -> None:
            (tree / "deep").mkdir()
            os.mknod(tree / "deep/x", mode, device)

        bundle.replace(top(bundle), planted(tmp_path / str(number), plant))
        bundle.manifest["id"] = f"{number:012x}"
        with refused(engine, Damaged, r"it has a device, b'x'", name):
            imported(engine, bundle)
        imported(engine, bundle, trust=True)


def test_what_every_base_has_is_fine(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    def plant(tree: Path) -> None:
        (tree / "dev").mkdir()
        os.mknod(tree / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(tree / "whiteout", stat.S_IFCHR, 0)
        os.mkfifo(tree / "fifo")
        (tree / "suid").write_bytes(b"x")
        (tree / "suid").chmod(0o6755)
        os.setxattr(tree / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.symlink("/../../../../etc/passwd", tree / "link")
        tree.chmod(0o7777)

    bundle.replace(top(bundle), planted(tmp_path, plant))
    imported(engine, bundle)
    engine.fork(bundle.manifest["id"], name="b")
    assert inside(engine, "b", "stat -c %a /suid /; cat /link").splitlines()[:2] == ["6755", "7777"]


def test_redirects_stay_in_the_chain(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    def plant(tree: Path) -> None:
        for number, target in enumerate(("/../../../../etc", "..", "/", "/src", "x/../..")):
            (tree / str(number)).mkdir()
            os.setxattr(tree / str(number), "trusted.overlay.redirect", target.encode())
            os.setxattr(tree / str(number), "trusted.overlay.metacopy", b"")

    bundle.replace(top(bundle), planted(tmp_path, plant))
    imported(engine, bundle)
    engine.fork(bundle.manifest["id"], name="b")
    assert inside(engine, "b", "ls /0 /1 /2 /4 2>/dev/null | grep -c shadow").strip() == "0"


def test_nobody_owns_the_root(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    """chown(2) has no such id: the next upper could not be made."""
    files = planted(tmp_path, lambda tree: os.chown(tree, 0x7FFF0001, 0x7FFF0002))
    for mark in (0x7FFF0001, 0x7FFF0002):
        old = mark.to_bytes(4, "little")
        assert files.meta.count(old) == 1
        bundle.replace(top(bundle), files._replace(meta=files.meta.replace(old, b"\xff" * 4)))
        with refused(engine, Damaged, "nobody can own"):
            imported(engine, bundle)


def test_what_is_no_filesystem(engine: Engine, bundle: Bundle) -> None:
    whole = bundle.image(top(bundle))
    for meta in (b"x", bytes(9000), b"\xff" * 9000, whole.meta[:100], whole.meta[:2000], whole.blob):
        bundle.replace(top(bundle), Files(meta, whole.blob))
        with refused(engine, Damaged):
            imported(engine, bundle)


def test_a_filesystem_that_is_damaged_with_care(engine: Engine, bundle: Bundle) -> None:
    """It is refused, or it is one that the kernel takes; nothing else happens."""
    whole, random_ = bundle.image(top(bundle)), random.Random(3)
    taken = 0
    for number in range(60):
        meta = bytearray(whole.meta)
        for _ in range(random_.choice((1, 1, 4))):
            meta[random_.randrange(1024, len(meta))] = random_.choice((0, 1, 0xFF, random_.randrange(256)))
        bundle.replace(top(bundle), Files(bytes(meta), whole.blob))
        bundle.manifest["id"] = f"{number:012x}"
        try:
            imported(engine, bundle)
            taken += 1
        except Damaged:
            continue
    assert 0 < taken < 60
    assert len(engine.snapshots()) == taken


# processes


def with_processes(engine: Engine, bundle: Bundle, files: Files, **fields: Any) -> Bundle:
    """The same with an image that is said to be criu's."""
    host, settings = checkpoint.host_facts(), engine.config.settings
    facts = {"criu": host.criu, "kernel": host.kernel, "machine": host.machine, "cpu": list(host.cpu)}
    image = {
        "digest": files.digest, "host": facts, "init": "/.serac/init", "memory": 0,
        "range": [settings.id_first, settings.id_count], **fields,
    }  # fmt: skip
    said = {"mode": "process", "processes": image, "processes_size": files.part["size"]}
    return Bundle(bundle.manifest | said, [*bundle.images, files])


def link_io(tree: Path) -> None:
    os.symlink("/etc", tree / "io")


def link_log(tree: Path) -> None:
    (tree / "io").mkdir()
    os.symlink("/etc/shadow", tree / "io/0.log")


def directory_in_io(tree: Path) -> None:
    (tree / "io/0.log").mkdir(parents=True)


PROCESSES: dict[str, Plant] = {
    "io is a link": link_io,
    "a log is a link": link_log,
    "a log is a directory": directory_in_io,
    "io is a fifo": lambda tree: os.mkfifo(tree / "io"),
    "shm is a link": lambda tree: os.symlink("/etc", tree / "shm"),
    "an image is a link": lambda tree: os.symlink("/etc/shadow", tree / "core-1.img"),
    "an image is a directory": lambda tree: (tree / "pages-1.img").mkdir(),
    "an image is a fifo": lambda tree: os.mkfifo(tree / "pages-1.img"),
    "an image is a socket": lambda tree: os.mknod(tree / "x", 0o600 | stat.S_IFSOCK),
    "an image is a device": lambda tree: os.mknod(tree / "x", 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "an image is a disk": lambda tree: os.mknod(tree / "x", 0o600 | stat.S_IFBLK, os.makedev(8, 0)),
    "a whiteout": lambda tree: os.mknod(tree / "x", stat.S_IFCHR, 0),
    "remaps": lambda tree: (tree / "remaps").mkdir(),
}


def test_images_of_processes_have_no_way_out(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    for name, plant in PROCESSES.items():
        forged = with_processes(engine, bundle, planted(tmp_path / name, plant))
        with refused(engine, Damaged, "the image of its processes has something else in it", name):
            imported(engine, forged, trust=True)


def test_devices_in_shm(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    def plant(tree: Path) -> None:
        (tree / "shm").mkdir()
        os.mknod(tree / "shm/disk", 0o666 | stat.S_IFBLK, os.makedev(8, 0))

    forged = with_processes(engine, bundle, planted(tmp_path, plant), shm=True)
    with refused(engine, Damaged, "it has a device, b'disk'"):
        imported(engine, forged)


SAID: list[dict[str, Any]] = [
    {"logs": {"../../catalog.sqlite": 1}},
    {"remaps": ["../../../etc/passwd"]},
    {"init": "../init"},
    {"address": "somewhere"},
    {"range": [0, 65536]} | {"memory": -1},
    {"placements": [{"thread": 1, "ioprio": 1 << 13}]},
]


def test_what_is_said_of_processes(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    files = planted(tmp_path, lambda tree: (tree / "x.img").touch())
    for fields in SAID:
        with refused(engine, Damaged, "the manifest: ", str(fields)):
            imported(engine, with_processes(engine, bundle, files, **fields))


def logs(tree: Path) -> None:
    (tree / "io").mkdir()
    (tree / "io/0.log").write_bytes(b"log")
    (tree / "inventory.img").write_bytes(b"nothing that criu would know")


UNFIT: list[tuple[dict[str, Any], type[Exception]]] = [
    ({}, CannotRestore),
    ({"memory": 4096}, Damaged),
    ({"memory": 1 << 50}, CannotRestore),
    ({"range": [0, 1 << 32]}, CannotRestore),
    ({"logs": {"0.log": 3}}, CannotRestore),
    ({"logs": {"0.log": 1 << 28}}, CannotRestore),
    ({"logs": {"7.log": 3}}, Exception),
    ({"shm": True}, Exception),
]


def test_what_criu_would_not_restore(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    files = planted(tmp_path, logs)
    for number, (fields, error) in enumerate(UNFIT):
        forged = with_processes(engine, bundle, files, **fields)
        forged.manifest["id"] = f"{number:012x}"
        imported(engine, forged)
        with refused(engine, error, "", str(fields)):
            engine.fork(forged.manifest["id"], name="b")
    engine.fork(forged.manifest["id"], name="b", mode="filesystem")
    assert inside(engine, "b", "cat /file") == "content\n"
