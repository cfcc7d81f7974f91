"""The census tells what differs, and nothing else: of each kind of change there is one, made in a tree taken before."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import census
import ground as g
import pytest

OLD = 1_234_567_890_123_456_789
"""mtime of everything, in nanoseconds"""


@pytest.fixture
def tree() -> Iterator[Path]:
    """A tree of all that needs no root, on the file system of /var/tmp."""
    top = Path(tempfile.mkdtemp(prefix="serac-test-", dir="/var/tmp"))
    yield plant(top / "tree")
    shutil.rmtree(top)


def plant(top: Path) -> Path:
    (top / "directory/inner").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "empty").touch()
    (top / "large").write_bytes(g.POOL[:300_000])
    (top / "zeros").write_bytes(bytes(300_000))
    (top / "directory/inner/leaf").write_bytes(b"leaf")
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(10 << 20)
        sparse.seek(5 << 20)
        sparse.write(g.POOL[:100_000])
    for name in ("a", "b", "c"):
        (top / name).write_bytes(b"linked")
        os.link(top / name, top / "directory" / name)
    os.symlink("file", top / "symlink")
    os.mkfifo(top / "fifo")
    os.mkdir(os.fsencode(top) + b"/\xff\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(top / "socket"))
    os.setxattr(top / "file", "user.a", b"1")
    os.setxattr(top / "directory", "user.b", b"\0\xff")
    still(top)
    return top


def still(top: Path) -> None:
    """All mtimes as they were."""
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)


Change = Callable[[Path], object]


def write(name: str, offset: int, data: bytes) -> Change:
    def change(top: Path) -> None:
        with (top / name).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


def punch(top: Path) -> None:
    with (top / "zeros").open("r+b") as file:
        g.fallocate(file.fileno(), g.FALLOC_FL_PUNCH_HOLE | g.FALLOC_FL_KEEP_SIZE, 0, 1 << 20)


def become(name: str, make: Callable[[Path], object]) -> Change:
    def change(top: Path) -> None:
        (top / name).unlink()
        make(top / name)

    return change


def split(top: Path) -> None:
    (top / "directory/a").unlink()
    (top / "directory/a").write_bytes(b"linked")


def swap(top: Path) -> None:
    """`directory/a` and `directory/b` are linked the other way round."""
    for name, other in (("a", "b"), ("b", "a")):
        (top / "directory" / name).unlink()
        os.link(top / other, top / "directory" / name)


def join(top: Path) -> None:
    """`c` becomes one with the pair of `a`."""
    (top / "c").unlink()
    os.link(top / "a", top / "c")


def xattr(name: str, key: str, value: bytes) -> Change:
    return lambda top: os.setxattr(top / name, key, value, follow_symlinks=False)


def node(kind: int, minor: int) -> Callable[[Path], object]:
    return lambda path: os.mknod(path, kind | 0o600, os.makedev(1, minor))


ACL = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

CHANGES: dict[str, tuple[Change, list[str]]] = {
    "nothing": (lambda top: None, []),
    "a byte": (write("file", 3, b"T"), ["file: content: "]),
    "a byte in the middle": (write("large", 150_000, b"\0\0\0"), ["large: content: "]),
    "the last byte": (write("large", 299_999, b"\0"), ["large: content: "]),
    "a byte in a hole": (write("sparse", 1 << 20, b"!"), ["sparse: content: "]),
    "a hole written out": (write("sparse", 0, bytes(4 << 20)), ["sparse: allocated: 102400 -> 4296704"]),
    "zeros punched out": (punch, ["zeros: allocated: 300000 -> 0"]),
    "data moved by a block": (
        lambda top: [
            write("sparse", (5 << 20) + 4096, g.POOL[:100_000])(top),
            write("sparse", 5 << 20, bytes(4096))(top),
        ],
        ["sparse: content: "],
    ),
    "longer by a hole": (lambda top: os.truncate(top / "file", 9000), ["file: size: 7 -> 9000"]),
    "shorter by a hole": (lambda top: os.truncate(top / "sparse", 9 << 20), ["sparse: size: 10485760 -> 9437184"]),
    "longer": (write("empty", 0, b"x"), ["empty: size: 0 -> 1", "empty: content: "]),
    "mode": (lambda top: (top / "file").chmod(0o640), ["file: mode: 0o644 -> 0o640"]),
    "set-user-id bit": (lambda top: (top / "file").chmod(0o4644), ["file: mode: 0o644 -> 0o4644"]),
    "sticky bit": (lambda top: (top / "directory").chmod(0o1755), ["directory: mode: 0o755 -> 0o1755"]),
    "mode of a fifo": (lambda top: (top / "fifo").chmod(0o600), ["fifo: mode: 0o644 -> 0o600"]),
    "mode of the top": (lambda top: top.chmod(0o700), [".: mode: 0o755 -> 0o700"]),
    "a new attribute": (xattr("file", "user.new", b""), ["file: xattrs: user.new: None -> b''"]),
    "another value": (xattr("file", "user.a", b"2"), ["file: xattrs: user.a: b'1' -> b'2'"]),
    "an attribute gone": (
        lambda top: os.removexattr(top / "directory", "user.b"),
        [r"directory: xattrs: user.b: b'\x00\xff' -> None"],
    ),
    "attribute of the top": (xattr(".", "user.a", b"1"), [".: xattrs: user.a: None -> b'1'"]),
    "a new file": (lambda top: (top / "directory/new").touch(), ["directory/new: new"]),
    "a new directory": (lambda top: (top / "directory/inner/new").mkdir(), ["directory/inner/new: new"]),
    "a file gone": (lambda top: (top / "directory/inner/leaf").unlink(), ["directory/inner/leaf: gone"]),
    "a directory of an odd name gone": (lambda top: os.rmdir(os.fsencode(top) + b"/\xff\n"), [r"\xff\n: gone"]),
    "another name": (lambda top: (top / "file").rename(top / "fine"), ["file: gone", "fine: new"]),
    "another target": (
        become("symlink", lambda path: path.symlink_to("life")),
        ["symlink: target: b'file' -> b'life'"],
    ),
    "a file for a symlink": (become("symlink", Path.touch), ["symlink: kind: symlink -> file"]),
    "a directory for a file": (become("empty", Path.mkdir), ["empty: kind: file -> directory"]),
    "a fifo for a socket": (become("socket", os.mkfifo), ["socket: kind: socket -> fifo"]),
    "a link more": (
        lambda top: os.link(top / "file", top / "other"),
        ["file: links: 1 -> 2", "other: new"],
    ),
    "links split": (
        split,
        ["a: links: 2 -> 1", "directory/a: links: 2 -> 1", "directory/a: first: b'a' -> b'directory/a'"],
    ),
    "links swapped": (swap, ["directory/a: first: b'a' -> b'b'", "directory/b: first: b'b' -> b'a'"]),
    "links joined": (
        join,
        [
            *("a: links: 2 -> 3", "c: links: 2 -> 3", "c: first: b'c' -> b'a'"),
            *("directory/a: links: 2 -> 3", "directory/c: links: 2 -> 1", "directory/c: first: b'c' -> b'directory/c'"),
        ],
    ),
}

CHANGES_OF_ROOT: dict[str, tuple[Change, list[str]]] = {
    "owner": (lambda top: os.chown(top / "file", 70_000, -1), ["file: uid: 0 -> 70000"]),
    "group": (lambda top: os.chown(top / "directory", -1, 1), ["directory: gid: 0 -> 1"]),
    "owner of a symlink": (lambda top: os.lchown(top / "symlink", 1, -1), ["symlink: uid: 0 -> 1"]),
    "owner of the top": (lambda top: os.chown(top, 5, -1), [".: uid: 0 -> 5"]),
    "a trusted attribute": (xattr("symlink", "trusted.a", b"1"), ["symlink: xattrs: trusted.a: None -> b'1'"]),
    "an attribute of the overlay": (xattr("directory", "trusted.overlay.opaque", b"y"), []),
    "an attribute of an overlay within": (
        xattr("directory", "trusted.overlay.overlay.opaque", b"y"),
        ["directory: xattrs: trusted.overlay.overlay.opaque: None -> b'y'"],
    ),
    "a capability": (xattr("file", "security.capability", CAPABILITY), ["file: xattrs: security.capability: "]),
    "an access list": (xattr("file", "system.posix_acl_access", ACL), ["file: xattrs: system.posix_acl_access: "]),
    "a default access list": (
        xattr("directory", "system.posix_acl_default", ACL),
        ["directory: xattrs: system.posix_acl_default: "],
    ),
    "a device for a file": (become("empty", node(stat.S_IFCHR, 3)), ["empty: kind: file -> character device"]),
}


TIMES: dict[str, tuple[Change, list[str]]] = {
    "a nanosecond": (
        lambda top: os.utime(top / "file", ns=(OLD, OLD + 1)),
        ["file: mtime: 1234567890123456789 -> 1234567890123456790"],
    ),
    "of a symlink, before 1970": (
        lambda top: os.utime(top / "symlink", ns=(0, -1), follow_symlinks=False),
        ["symlink: mtime: 1234567890123456789 -> -1"],
    ),
    "of a directory": (lambda top: os.utime(top / "directory/inner", ns=(0, 0)), ["directory/inner: mtime: "]),
    "of a fifo": (lambda top: os.utime(top / "fifo", ns=(0, 0)), ["fifo: mtime: "]),
    "of the top": (lambda top: os.utime(top, ns=(0, 0)), [".: mtime: "]),
    "when it was read": (lambda top: os.utime(top / "file", ns=(0, OLD)), []),
}


def assert_told(before: census.Census, tree: Path, expected: list[str]) -> None:
    """Each line begins as expected."""
    found = census.differences(before, census.take(tree))
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected, found


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_told(tree: Path, what: str) -> None:
    change, expected = CHANGES[what]
    before = census.take(tree)
    change(tree)
    still(tree)
    assert_told(before, tree, expected)


@pytest.mark.root
@pytest.mark.parametrize("what", CHANGES_OF_ROOT)
def test_a_change_that_needs_root_is_told(tree: Path, what: str) -> None:
    change, expected = CHANGES_OF_ROOT[what]
    before = census.take(tree)
    change(tree)
    still(tree)
    assert_told(before, tree, expected)


@pytest.mark.parametrize("what", TIMES)
def test_another_time_is_told(tree: Path, what: str) -> None:
    change, expected = TIMES[what]
    before = census.take(tree)
    change(tree)
    assert_told(before, tree, expected)


def test_every_fact_is_told() -> None:
    """No field of a record is forgotten in the tables above; which device it is has a test of its own."""
    tables = [*CHANGES.values(), *CHANGES_OF_ROOT.values(), *TIMES.values()]
    told = {line.split(": ")[1] for _, lines in tables for line in lines}
    assert told - {"new", "gone"} == set(census.FACTS) - {"device"}


@pytest.mark.root
def test_another_device_is_told(tree: Path) -> None:
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    still(tree)
    before = census.take(tree)
    become("device", node(stat.S_IFCHR, 5))(tree)
    still(tree)
    assert_told(before, tree, ["device: device: 259 -> 261"])


def test_a_tree_planted_again_is_the_same(tree: Path) -> None:
    again = plant(tree.parent / "again")
    assert census.differences(census.take(tree), census.take(again)) == []


def test_a_top_may_be_a_descriptor(tree: Path) -> None:
    fd = os.open(tree, census.DIRECTORY)
    try:
        assert census.take(fd) == census.take(tree)
    finally:
        os.close(fd)


def test_what_is_ignored_is_not_told(tree: Path) -> None:
    before = census.take(tree)
    (tree / "file").chmod(0o600)
    (tree / "socket").unlink()
    tree.chmod(0o700)
    os.utime(tree, ns=(OLD, OLD))
    after = census.take(tree)
    assert [line.split(": ")[0] for line in census.differences(before, after)] == [".", "file", "socket"]
    assert not census.differences(before, after, ignore={"mode"}, sockets=False)
    found = census.differences(before, after, root=False, sockets=False)
    assert found == ["file: mode: 0o644 -> 0o600"]
    with pytest.raises(AssertionError):
        census.differences(before, after, ignore={"modes"})


@pytest.mark.root
def test_what_an_overlay_shows_is_the_jobs(tree: Path) -> None:
    os.setxattr(tree / "file", "trusted.overlay.opaque", b"y")
    assert "trusted.overlay.opaque" not in census.take(tree)[b"file"].xattrs
    assert census.take(tree, overlaid=True)[b"file"].xattrs["trusted.overlay.opaque"] == b"y"


def test_depth_is_no_matter(tree: Path) -> None:
    """400 levels with few descriptors, of a path that is longer than the kernel takes one."""
    fd = os.open(tree, census.DIRECTORY)
    for _ in range(400):
        os.mkdir("deep" * 10, dir_fd=fd)
        fd = census.moved(fd, b"deep" * 10)
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        found = census.take(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert max(found, key=len) == b"deep" * 10 + b"/" + b"/".join([b"deep" * 10] * 399) + b"/bottom"


def test_holes_are_not_read(tree: Path) -> None:
    with (tree / "huge").open("wb") as file:
        file.truncate(1 << 43)
        file.seek(1 << 42)
        file.write(b"middle")
    started = time.process_time()
    assert census.take(tree)[b"huge"].allocated == census.BLOCK
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        (0, 0, True),
        (0, 64 << 10, True),
        (0, (64 << 10) + 1, False),
        (1 << 30, 1 << 29, True),
        (1 << 20, 4 << 20, False),
    ],
)
def test_allocation_may_differ_a_little(old: int, new: int, alike: bool) -> None:
    assert census.is_alike(old, new) == census.is_alike(new, old) == alike


def test_an_image_may_have_less_of_a_file(tree: Path) -> None:
    before = census.take(tree)
    punch(tree)
    still(tree)
    after = census.take(tree)
    assert not census.differences(before, after, image=True)
    assert census.differences(after, before, image=True) == ["zeros: allocated: 0 -> 300000"]


@pytest.mark.root
def test_whiteouts_have_no_links(tree: Path) -> None:
    for name in ("white", "out"):
        os.mknod(tree / name, stat.S_IFCHR)
    still(tree)
    before = census.take(tree)
    become("out", lambda path: os.link(tree / "white", path))(tree)
    still(tree)
    assert_told(before, tree, [])


def test_names_too_long_for_a_line_are_shortened() -> None:
    assert len(census.shown_path(b"n\xff" * 3000)) < 90
