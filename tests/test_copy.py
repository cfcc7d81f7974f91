"""engine.copy and native/copy.h: trees through both ends of a stream."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trees import grow, look, packed, run, unpacked

from engine.copy import iter_pack, unpack_host
from engine.errors import BadPath


@pytest.fixture
def program(sanitized: Path) -> Path:
    return sanitized / "serac-init"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    grow(tmp_path / "tree")
    yield tmp_path / "tree"
    # pytest can't remove what is deeper than a path may be long.
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_a_tree_goes_from_job_to_job(tree: Path, tmp_path: Path, program: Path) -> None:
    target = tmp_path / "copy"
    unpacked(program, packed(program, tree), target)
    assert look(target) == look(tree)


def test_a_tree_goes_from_host_to_job(tree: Path, tmp_path: Path, program: Path) -> None:
    target = tmp_path / "copy"
    unpacked(program, b"".join(iter_pack(tree)), target)
    assert look(target) == look(tree)


def test_a_tree_goes_from_job_to_host(tree: Path, tmp_path: Path, program: Path) -> None:
    target = tmp_path / "copy"
    unpack_host(io.BytesIO(packed(program, tree)), target)
    expected = look(tree)
    sticky = expected["/sticky"]
    expected["/sticky"] = (*sticky[:-1], 0o777)
    assert look(target) == expected


def test_copying_again_over_it_changes_nothing(tree: Path, tmp_path: Path, program: Path) -> None:
    data = packed(program, f"{tree}/.")
    for _ in range(2):
        unpacked(program, data, tree)
        unpack_host(io.BytesIO(data), tree)
    again = tmp_path / "again"
    again.mkdir()
    unpacked(program, data, again)
    names = {name for name, node in look(tree).items() if node[0] != stat.S_IFDIR}
    assert {name: look(again)[name] for name in names} == {name: look(tree)[name] for name in names}


@pytest.mark.root
def test_owners_set_id_bits_and_attributes_travel_on_request(tmp_path: Path, program: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "program").write_bytes(b"#!")
    os.chown(source / "program", 3_000_000, 70_000)
    (source / "program").chmod(0o4755)
    os.setxattr(source / "program", "user.note", b"a=b\n\0c")
    os.setxattr(source, "user.empty", b"")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    (source / "ping").touch()
    os.setxattr(source / "ping", "security.capability", capability)
    os.chown(source, 5, 6)
    os.symlink("x", source / "link")
    os.lchown(source / "link", 7, 8)
    data = packed(program, source)

    kept, changed = tmp_path / "kept", tmp_path / "changed"
    unpacked(program, data, "--owner", kept)
    assert look(kept, owners=True) == look(source, owners=True)
    assert os.getxattr(kept / "program", "user.note") == b"a=b\n\0c"
    assert os.getxattr(kept, "user.empty") == b""
    assert os.getxattr(kept / "ping", "security.capability") == capability

    unpacked(program, data, changed)
    status = (changed / "program").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o755)
    assert os.getxattr(changed / "program", "user.note") == b"a=b\n\0c"
    assert os.listxattr(changed / "ping") == []
    assert (changed / "link").lstat().st_uid == 0


@pytest.mark.root
def test_devices_travel_between_jobs_and_are_refused_on_the_host(tmp_path: Path, program: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    data = packed(program, source)
    unpacked(program, data, tmp_path / "job")
    status = (tmp_path / "job" / "null").stat()
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, os.makedev(1, 3))
    with pytest.raises(BadPath, match="neither file"):
        unpack_host(io.BytesIO(data), tmp_path / "host")
    with pytest.raises(BadPath, match="is a device"):
        list(iter_pack(source))


def test_sockets_are_left_out(tmp_path: Path, program: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(source / "socket"))
    for data in (packed(program, source), b"".join(iter_pack(source))):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == ["source"]


# Other programs' streams


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_what_tar_writes_is_read(tmp_path: Path, program: Path, form: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / ("n" * 80)).write_bytes(b"contents")
    os.link(source / "sub" / ("n" * 80), source / "hard")
    if form in ("gnu", "pax", "oldgnu"):
        (source / ("m" * 200)).write_bytes(b"long")
        os.symlink("t" * 300, source / "soft")
    # Not rglob: Python 3.11.2's takes the target of a link for a name, and finds it too long.
    for node in [Path(where, name) for where, below, files in os.walk(tmp_path) for name in below + files]:
        os.utime(node, ns=(0, 10**18), follow_symlinks=False)
    argv = ["tar", "-c", f"--format={form}", "-C", tmp_path, "source"]
    data = subprocess.run(argv, check=True, capture_output=True).stdout
    unpacked(program, data, tmp_path / "copy")
    assert look(tmp_path / "copy") == look(source)


def test_what_pack_writes_tar_reads(tree: Path, tmp_path: Path, program: Path) -> None:
    subprocess.run(["rm", "-rf", tree / ("d" * 250)], check=True)
    for writer in (packed(program, tree), b"".join(iter_pack(tree))):
        target = tmp_path / "target"
        target.mkdir()
        subprocess.run(["tar", "-xp", "-C", target], input=writer, check=True)
        assert look(target / "tree") == look(tree)
        subprocess.run(["rm", "-rf", target], check=True)


# Names


def to_job(program: Path) -> Callable[[str, str], None]:
    def copy(source: str, target: str) -> None:
        done = run(program, "unpack", target, data=b"".join(iter_pack(source)))
        if done.returncode:
            raise BadPath(done.stderr.decode())

    return copy


def to_host(program: Path) -> Callable[[str, str], None]:
    def copy(source: str, target: str) -> None:
        done = run(program, "pack", source)
        if done.returncode:
            raise BadPath(done.stderr.decode())
        unpack_host(io.BytesIO(done.stdout), target)

    return copy


@pytest.fixture(params=[to_job, to_host], ids=["to job", "to host"])
def copy(request: pytest.FixtureRequest, program: Path) -> Callable[[str, str], None]:
    made: Callable[[str, str], None] = request.param(program)
    return made


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("file")
    Path("directory").mkdir()
    Path("directory/inner").write_text("inner")
    os.symlink("file", "to-file")
    os.symlink("directory", "to-directory")
    Path("there").mkdir()
    Path("existing").write_text("existing")
    os.symlink("existing", "to-existing")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("file", "new", "new"),
        ("file", "there", "there/file"),
        ("file", "there/", "there/file"),
        ("file", "there/.", "there/file"),
        ("file", "existing", "existing"),
        ("file", "to-existing", "to-existing"),
        ("directory", "new", "new/inner"),
        ("directory", "new/", "new/inner"),
        ("directory/", "new", "new/inner"),
        ("directory", "there", "there/directory/inner"),
        ("directory/.", "there", "there/inner"),
        ("directory/.", "new", "new/inner"),
        ("to-directory/.", "there", "there/inner"),
        ("to-directory/", "there", "there/to-directory/inner"),
        ("directory/../file", "there", "there/file"),
        ("directory", "to-directory", "directory/directory/inner"),
    ],
)
def test_names(places: Path, copy: Callable[[str, str], None], source: str, target: str, expected: str) -> None:
    copy(source, target)
    assert Path(expected).read_text() == ("file" if "file" in source else "inner")
    if target != "existing":
        assert Path("existing").read_text() == "existing"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("file", "new/"),
        ("file", "absent/new"),
        ("file", "existing/new"),
        ("file", "existing/"),
        ("directory", "existing"),
        ("directory/.", "existing"),
        ("directory", "to-existing"),
        ("absent", "new"),
        ("file/", "new"),
        ("file/.", "new"),
        ("", "new"),
        ("file", ""),
        ("file", "absent/.."),
        ("file", "n" * 256),
        ("file", "n/" * 3000 + "n"),
    ],
)
def test_names_that_are_refused(places: Path, copy: Callable[[str, str], None], source: str, target: str) -> None:
    before = look(places)
    with pytest.raises(BadPath):
        copy(source, target)
    assert look(places) == before


def test_a_symbolic_link_is_copied_as_one(places: Path, copy: Callable[[str, str], None]) -> None:
    copy("to-directory", "new")
    assert os.readlink("new") == "directory"


def test_kinds_are_not_mixed(places: Path, copy: Callable[[str, str], None]) -> None:
    Path("there/file").mkdir()
    Path("there/directory").write_text("in the way")
    for source in ("file", "directory"):
        with pytest.raises(BadPath, match=source):
            copy(source, "there")
    assert Path("there/directory").read_text() == "in the way"


def test_a_directory_that_exists_keeps_its_attributes(places: Path, copy: Callable[[str, str], None]) -> None:
    Path("there/directory").mkdir()
    Path("there/directory").chmod(0o1777)
    copy("directory", "there")
    assert stat.S_IMODE(Path("there/directory").stat().st_mode) == 0o1777
    assert Path("there/directory/inner").read_text() == "inner"
