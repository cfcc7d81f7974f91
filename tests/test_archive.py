"""Images: what is kept, that the same tree gives the same digest, and that damage is found and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import archive, launch
from engine.archive import image
from engine.errors import Damaged, NotFound
from engine.model import Digest, Image
from engine.tree import open_directory, open_image

WHEN = 1_234_567_890_123_456_789
"""mtime of everything in `plant`, in nanoseconds"""

EMPTY = hashlib.sha256(b"").hexdigest()


def plant(tree: Path, *, reverse: bool = False) -> Path:
    """A tree of 200 files and 40 directories; ``reverse`` makes them in the other order."""
    tree.mkdir()
    names = [f"{number % 20:02}/{'é' * (number % 7)}{number}" for number in range(200)]
    for name in reversed(names) if reverse else names:
        path = tree / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hashlib.sha256(name.encode()).digest() * (len(name) * 97))
        os.setxattr(path, "user.b" if reverse else "user.a", b"1")
        os.setxattr(path, "user.a" if reverse else "user.b", b"1")
    os.link(tree / names[5], tree / "hard")
    os.symlink("hard", tree / "link")
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, ns=(WHEN + 7 * reverse, WHEN), follow_symlinks=False)
    os.utime(tree, ns=(WHEN, WHEN))
    return tree


def build(tree: Path, into: Path, *, tick: Callable[[int], None] | None = None) -> Image:
    with open_directory(tree) as root:
        return archive.build_image(root, into, tick=tick)


def described(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    owner = (status.st_uid, status.st_gid)
    return (status.st_mode, *owner, size, links, status.st_rdev, status.st_mtime_ns, xattrs, content)


def inventory(tree: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a tree keeps of each entry, the root included."""
    entries = [tree, *tree.rglob("*")]
    return {os.fsencode(path.relative_to(tree)): described(path) for path in entries}


@contextlib.contextmanager
def mounted(image: Path, target: Path) -> Iterator[Path]:
    """The image on ``target`` through serac-launch."""
    target.mkdir(exist_ok=True)
    command(b"mount", meta=image / "meta.erofs", blob=image / "data.blob", target=target)
    try:
        yield target
    finally:
        command(b"unmount", target=target)


def command(verb: bytes, **fields: Path) -> None:
    spec = b"serac-launch=1\0" + b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
    done = subprocess.run([launch.program("serac-launch"), verb], input=spec, capture_output=True, check=False)
    assert done.stdout.split(b"\0")[-2:] == [b"ready=1", b""], done


@pytest.mark.root
def test_everything_of_a_tree_is_in_its_image(tmp_path: Path) -> None:
    tree = plant(tmp_path / "tree")
    weird = tree / os.fsdecode(b"\xff\xfe \n name") / ("n" * 255)
    weird.mkdir(parents=True)
    (weird / "sparse").touch()
    os.truncate(weird / "sparse", 64 << 20)
    (weird / "suid").write_bytes(b"x" * 5000)
    os.chown(weird / "suid", 70_000, 4_000_000_000)
    (weird / "suid").chmod(0o6755)
    os.setxattr(weird / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(weird, "trusted.overlay.opaque", b"y")
    os.setxattr(weird, "user.long", b"v" * 3000)
    os.mkfifo(weird / "fifo")
    os.mknod(weird / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(weird / "whiteout", stat.S_IFCHR, 0)
    os.mknod(weird / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 300_000))
    acl = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
    os.setxattr(tree / "hard", "system.posix_acl_access", acl)
    wanted = inventory(tree)
    image = build(tree, tmp_path / "image")
    with mounted(tmp_path / "image", tmp_path / "mnt") as seen:
        assert inventory(seen) == wanted
    assert image.blob.size < 2 << 20, "holes were written out, or equal chunks twice"


@pytest.mark.root
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_directories_that_fill_their_blocks(tmp_path: Path, blocks: int, more: int) -> None:
    """An entry takes 12 bytes and its name, `.` and `..` 27 together: 20 names or 21 fill a block."""
    tree = tmp_path / "tree"
    tree.mkdir()
    lengths = [*[200] * 19, 29, *([180] * 20 + [244]) * (blocks - 1)]
    lengths[-1] += more
    for number, length in enumerate(lengths):
        (tree / f"{number:03}".ljust(length, "n")).touch()
    build(tree, tmp_path / "image")
    with mounted(tmp_path / "image", tmp_path / "mnt") as seen:
        assert inventory(seen) == inventory(tree)
    with open_image(tmp_path / "image/meta.erofs", tmp_path / "image/data.blob") as root:
        assert [name for name, _ in root.children()] == sorted(map(os.fsencode, os.listdir(tree)))


@pytest.mark.root
@pytest.mark.parametrize("content", ["nothing", "an empty file", "a hole"])
def test_trees_without_data(tmp_path: Path, content: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    if content != "nothing":
        (tree / "file").touch()
        os.truncate(tree / "file", 0 if content == "an empty file" else 10 << 20)
    image = build(tree, tmp_path / "image")
    assert (image.blob, image.pieces) == (Digest(sha256=EMPTY, size=0), ())
    archive.verify_image(tmp_path / "image", archive.image_digest(tmp_path / "image"))
    with mounted(tmp_path / "image", tmp_path / "mnt") as seen:
        assert inventory(seen) == inventory(tree)


def test_the_same_tree_gives_the_same_digest(tmp_path: Path) -> None:
    """On another filesystem, made in another order, with other inode numbers and atimes, a second later."""
    plant(tmp_path / "tree")
    build(tmp_path / "tree", tmp_path / "one")
    elsewhere = Path("/dev/shm", f"serac-test-{os.getpid()}")
    elsewhere.mkdir()
    try:
        plant(elsewhere / "other", reverse=True)
        assert os.stat(elsewhere).st_dev != os.stat(tmp_path).st_dev
        build(elsewhere / "other", elsewhere / "two")
        assert archive.image_digest(tmp_path / "one") == archive.image_digest(elsewhere / "two")
    finally:
        shutil.rmtree(elsewhere)


def test_another_tree_gives_another_digest(tmp_path: Path) -> None:
    tree = plant(tmp_path / "tree")
    build(tree, tmp_path / "one")
    (tree / "hard").chmod(0o600)
    build(tree, tmp_path / "two")
    assert archive.image_digest(tmp_path / "one") != archive.image_digest(tmp_path / "two")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a blob of three and a half pieces."""
    tree = tmp_path_factory.mktemp("large") / "tree"
    tree.mkdir()
    (tree / "random").write_bytes(os.urandom((7 << 20) // 2))
    build(tree, tree.parent / "image")
    return tree.parent / "image"


def test_digests_are_those_of_the_bytes(large: Path) -> None:
    image = archive.load_image(large)
    blob = (large / "data.blob").read_bytes()
    pieces = [blob[start : start + (1 << 20)] for start in range(0, len(blob), 1 << 20)]
    assert image.pieces == tuple(hashlib.sha256(piece).hexdigest() for piece in pieces)
    assert image.blob == Digest(sha256=hashlib.sha256(blob).hexdigest(), size=len(blob))
    assert image.meta.sha256 == hashlib.sha256((large / "meta.erofs").read_bytes()).hexdigest()
    index = (large / "image.json").read_bytes()
    assert archive.image_digest(large) == hashlib.sha256(index).hexdigest()
    assert index == json.dumps(json.loads(index), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(index)["format"] == "serac-image/1"


@pytest.mark.parametrize(
    ("file", "offset", "message"),
    [
        ("data.blob", (2 << 20) + 17, r"data\.blob is damaged: piece 2, at byte 2097152$"),
        ("data.blob", (7 << 20) // 2 - 1, r"data\.blob is damaged: piece 3, at byte 3145728$"),
        ("meta.erofs", 1500, r"meta\.erofs is damaged$"),
        ("image.json", 20, r"image\.json is not the one of"),
    ],
)
def test_a_flipped_bit_is_found_and_named(large: Path, tmp_path: Path, file: str, offset: int, message: str) -> None:
    digest = archive.image_digest(large)
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    assert archive.verify_image(copy, digest) == archive.load_image(large)
    with (copy / file).open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Damaged, match=message):
        archive.verify_image(copy, digest)


@pytest.mark.parametrize("file", ["data.blob", "meta.erofs"])
def test_a_file_that_is_short_or_gone_is_found(large: Path, tmp_path: Path, file: str) -> None:
    digest = archive.image_digest(large)
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    os.truncate(copy / file, 100)
    with pytest.raises(Damaged, match=f"{file} has 100 bytes instead of"):
        archive.verify_image(copy, digest)
    (copy / file).unlink()
    with pytest.raises(Damaged, match=file):
        archive.verify_image(copy, digest)


def test_no_image_is_not_found(tmp_path: Path) -> None:
    for call in (archive.load_image, archive.image_digest):
        with pytest.raises(NotFound):
            call(tmp_path)


GOOD = {
    "blob": {"sha256": EMPTY, "size": 0},
    "format": "serac-image/1",
    "meta": {"sha256": EMPTY, "size": 4096},
    "piece_size": 1 << 20,
    "pieces": [],
}


def test_the_shape_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text(json.dumps(GOOD))
    blob, meta = Digest(sha256=EMPTY, size=0), Digest(sha256=EMPTY, size=4096)
    assert archive.load_image(tmp_path) == Image(blob=blob, meta=meta)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "serac-image/2"},
        {"piece_size": 0},
        {"piece_size": 4096},
        {"pieces": [EMPTY]},
        {"pieces": None},
        {"blob": {"sha256": EMPTY, "size": 1}},
        {"blob": {"sha256": EMPTY, "size": -1}},
        {"blob": {"sha256": EMPTY, "size": 1 << 80}},
        {"blob": {"sha256": "../../etc/passwd", "size": 0}},
        {"meta": {"sha256": EMPTY.upper(), "size": 4096}},
        {"meta": {"sha256": EMPTY, "size": 0}},
        {"meta": {}},
    ],
)
def test_nonsense_in_the_index_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "image.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(Damaged, match=r"image\.json"):
        archive.load_image(tmp_path)


@given(index=st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"[a-z]+":[0-9"\[{]*'))
def test_no_bytes_make_the_index_do_anything_else(tmp_path_factory: pytest.TempPathFactory, index: bytes) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / "image.json").write_bytes(index)
    with pytest.raises(Damaged):
        archive.load_image(directory)


def test_an_endless_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.json").touch()
    os.truncate(tmp_path / "image.json", image.INDEX_MAX + 1)
    with pytest.raises(Damaged, match="larger than"):
        archive.load_image(tmp_path)


def test_progress_rises_with_what_was_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "random").write_bytes(os.urandom(48 << 20))
    told: list[int] = []
    build(tree, tmp_path / "image", tick=told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert 32 << 20 < told[-1] <= 48 << 20


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m none "$1"
exec "$2" -c '
import sys
from pathlib import Path
from engine import archive, errors, tree
try:
    with tree.open_directory(Path(sys.argv[1])) as root:
        archive.build_image(root, Path(sys.argv[2], "image"))
except errors.NoSpace as error:
    print("no space:", error)
' "$3" "$1"
"""


@pytest.mark.root
def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    tree.mkdir()
    disk.mkdir()
    (tree / "random").write_bytes(os.urandom(8 << 20))
    shell = ["unshare", "--mount", "sh", "-e", "-c", ON_A_SMALL_DISK, "sh", str(disk), sys.executable, str(tree)]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("no space: build image: No space left"), done


def test_a_tree_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        build(tmp_path / "nothing", tmp_path / "image")


def test_the_image_of_an_image_is_the_same(tmp_path: Path) -> None:
    """A flattened chain is one: what of a hole became zeros must not become more and more."""
    tree = plant(tmp_path / "tree")
    with (tree / "sparse").open("wb") as file:
        for place in (0, 1 << 30, (2 << 30) + 12_345):
            file.seek(place)
            file.write(b"x")
    build(tree, tmp_path / "one")
    with open_image(tmp_path / "one/meta.erofs", tmp_path / "one/data.blob") as root:
        archive.build_image(root, tmp_path / "two")
    assert archive.image_digest(tmp_path / "one") == archive.image_digest(tmp_path / "two")
