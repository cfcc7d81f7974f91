"""Snapshots leave a host and are jobs on another one: two roots stand for two hosts, real jobs run on both."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from commands import Command
from forge import Bundle
from roots import another_root, inside, output, shell, steps, until, wait_for
from screens import Screen
from travels import exported, imported, names, paused, refused, state

from engine import Engine, JobSpec, SessionSpec
from engine.errors import Damaged, InvalidInput, NameTaken, NotFound
from engine.model import Snapshot

pytestmark = pytest.mark.root


@pytest.fixture
def there(small_tree: Path) -> Iterator[Engine]:
    """Another host, which has built the same base."""
    with another_root(small_tree) as engine:
        yield engine


@pytest.fixture
def bare() -> Iterator[Engine]:
    """Another host, without a base."""
    with another_root(None) as engine:
        yield engine


CHANGES = """
mkdir -p /dir/deep; echo new > /dir/deep/file; ln /dir/deep/file /dir/hard; ln -s /dir/deep /link
rm /src/lower; rm -r /root; mkdir /root; echo fresh > /root/file
mkfifo /fifo; chown 7:8 /dir; chmod 4755 /dir/hard; touch -d '2001-02-03 04:05:06' /dir/deep
truncate -s 5000000000 /sparse; head -c 3000000 /dev/urandom > /random; mv /usr /usr2
"""
LOOK = """
cd /; ls -d .* * | grep -vE '^(\\.|\\.\\.|\\.serac|etc|proc|sys|dev|run)$' | sort > /run/names
find $(cat /run/names) -print | sort | while read -r name; do
    stat -c '%n %f %u %g %h %Y' "$name"; test ! -L "$name" || readlink "$name"; done
stat -c %s /sparse; md5sum /random /dir/hard /root/file; ls -a /src /root
"""


def same_but_for_the_host(one: Snapshot, two: Snapshot) -> None:
    for field in ("id", "job", "name", "spec", "base", "context", "mode", "reason", "labels", "parent", "created",
                  "archive"):  # fmt: skip
        assert getattr(one, field) == getattr(two, field), field


def test_what_is_known_of_a_snapshot_goes_along(engine: Engine, there: Engine) -> None:
    spec = JobSpec(
        base="small", name="built", env={"A": "b c"}, workdir="/src", labels={"x": "1"}, state={"n": [1, None]},
        steps=steps(one="echo one >> /done", two="echo two >> /done; test -e /go && exit 0; touch /go; sleep 1000"),
    )  # fmt: skip
    engine.run(spec)
    wait_for(lambda: inside(engine, "built", "test -e /go && echo yes"))
    snapshot = engine.pause("built", mode="filesystem", labels={"caf\u00e9": "\U0001f600"}).snapshot
    taken = imported(there, exported(engine, snapshot))
    same_but_for_the_host(engine.snapshot(snapshot), taken)
    assert taken == there.snapshot(snapshot)
    assert (taken.pinned, taken.due) == (True, False)
    assert there.snapshot_verify(snapshot) == []
    job = there.fork(snapshot, name="went-on").job
    assert there.wait(job, timeout=30).status == 0
    assert there.job(job).spec == msgspec.structs.replace(spec, name="went-on")
    assert copied(there, job, "/done") == b"one\ntwo\ntwo\n"


def copied(engine: Engine, job: str, path: str) -> bytes:
    out = io.BytesIO()
    engine.copy_out(job, path, out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        file = tar.extractfile(tar.getmembers()[0])
        assert file is not None
        return file.read()


def test_the_files_are_the_same(engine: Engine, there: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    inside(engine, "a", CHANGES)
    seen = inside(engine, "a", LOOK)
    snapshot = engine.pause("a", mode="filesystem").snapshot
    imported(there, exported(engine, snapshot))
    there.fork(snapshot, name="b")
    assert inside(there, "b", LOOK) == seen
    assert (
        inside(there, "b", "cat /dir/hard; ls -i /dir/hard /dir/deep/file | cut -d/ -f1 | uniq | wc -l") == "new\n1\n"
    )


COUNTING = """
secret=$(cat /proc/sys/kernel/random/uuid); n=0
while :; do n=$((n+1)); echo $n $secret > /count.new; mv /count.new /count; sleep 0.02; done
"""


def test_processes_go_on(engine: Engine, there: Engine) -> None:
    engine.run(shell(COUNTING, name="a", labels={"l": "m"}))
    wait_for(lambda: counted(engine, "a")[0])
    count, secret = counted(engine, "a")
    inside(engine, "a", "echo shared > /dev/shm/file")
    terminal = engine.start("a", SessionSpec(argv=("/bin/sh",), tty=(24, 80))).id
    with Screen(engine, "a", terminal) as user:
        user.type("colour=blue; echo he''re\r")
        user.expect("here")
    snapshot = engine.pause("a", mode="process").snapshot
    data = exported(engine, snapshot)
    engine.remove("a", force=True)
    taken = imported(there, data)
    assert taken.image is not None
    fork = there.fork(snapshot, name="b")
    assert fork.mode == "process"
    wait_for(lambda: counted(there, "b")[0] > count)
    assert counted(there, "b")[1] == secret
    assert inside(there, "b", "cat /dev/shm/file") == "shared\n"
    with Screen(there, "b", terminal) as user:
        user.type("echo still $colour\r")
        user.expect("still blue")
    assert there.fork(snapshot, name="c", mode="filesystem").mode == "filesystem"
    wait_for(lambda: counted(there, "c")[1] not in ("-", secret))


def counted(engine: Engine, job: str) -> tuple[int, str]:
    """What the job has written last."""
    count, secret = inside(engine, job, "cat /count || echo 0 -").split()
    return int(count), secret


def test_chains_and_what_they_have_in_common(engine: Engine, there: Engine) -> None:
    engine.run(JobSpec(base="small", name="a"))
    snapshots = []
    for number in range(3):
        inside(engine, "a", f"echo {number} >> /log; head -c 2000000 /dev/urandom > /part{number}; rm -f /part0")
        snapshots.append(engine.pause("a", mode="filesystem").snapshot)
        engine.snapshot_pin(snapshots[-1])
        engine.resume("a")
    sums = inside(engine, "a", "md5sum /part*")
    streams = [exported(engine, snapshot) for snapshot in snapshots]
    assert [len(engine.snapshot(snapshot).layers) for snapshot in snapshots] == [1, 2, 3]
    last = imported(there, streams[2])
    assert len(last.layers) == 3
    stored = names(there.config.root / "images")
    for snapshot, stream in zip(snapshots, streams, strict=True):
        imported(there, stream)
        assert there.snapshot(snapshot).id == snapshot
    assert names(there.config.root / "images") == stored
    there.fork(snapshots[2], name="b")
    assert inside(there, "b", "cat /log") == "0\n1\n2\n"
    assert inside(there, "b", "md5sum /part*") == sums
    there.remove("b", force=True)
    for snapshot in snapshots[1:]:
        there.snapshot_remove(snapshot)
    there.collect()
    assert len(names(there.config.root / "images")) == 1
    there.fork(snapshots[0], name="b")
    assert inside(there, "b", "cat /log") == "0\n"


def test_the_base_comes_along(engine: Engine, bare: Engine) -> None:
    snapshot = paused(engine, "echo new > /new")
    data = exported(engine, snapshot, with_base=True)
    taken = imported(bare, data)
    base = bare.base(taken.base)
    assert (base.digest, base.size, base.names) == (engine.base("small").digest, engine.base("small").size, ())
    bare.fork(snapshot, name="b")
    assert inside(bare, "b", "cat /new /src/lower") == "new\nof the base\n"
    assert bare.snapshot_verify(snapshot) == []
    other = paused(engine, "echo other > /other")
    imported(bare, exported(engine, other))
    imported(bare, exported(engine, other, with_base=True))
    assert len(bare.bases()) == 1


def test_without_its_base_it_says_which(engine: Engine, bare: Engine) -> None:
    snapshot = paused(engine, "head -c 3000000 /dev/urandom > /file")
    data = exported(engine, snapshot)
    digest = engine.base("small").digest
    with refused(bare, NotFound, rf"base {digest[:12]} \(small\) is not here") as error:
        imported(bare, data[: len(data) // 2])  # that is known before the rest has come
    assert "--with-base" in str(error.value.hint)  # type: ignore[attr-defined]


def test_the_same_bytes_from_everywhere(engine: Engine, there: Engine, bare: Engine) -> None:
    """Also where the base was built with another environment."""
    snapshot = paused(engine, "echo new > /new")
    data = exported(engine, snapshot)
    assert exported(engine, snapshot) == data
    imported(there, data)
    with there._root.catalog.transaction() as transaction:
        (base,) = there.bases()
        transaction.put_base(msgspec.structs.replace(base, env={"OTHER": "1"}))
    assert exported(there, snapshot) == data
    imported(bare, exported(there, snapshot, with_base=True))
    assert exported(bare, snapshot) == data
    assert imported(engine, exported(bare, snapshot)) == engine.snapshot(snapshot)


def test_again_is_no_error(engine: Engine, there: Engine) -> None:
    snapshot = paused(engine)
    data = exported(engine, snapshot)
    assert imported(engine, data) == engine.snapshot(snapshot)
    first = imported(there, data)
    before = state(there)
    assert imported(there, data) == first
    assert state(there) == before
    there.snapshot_remove(snapshot)
    assert there.snapshots() == []
    imported(there, data)
    there.fork(snapshot, name="b")


def test_another_snapshot_of_that_id(engine: Engine, there: Engine) -> None:
    snapshot = paused(engine)
    other = Bundle.of(exported(engine, paused(engine, "echo x > /x")))
    imported(there, exported(engine, snapshot))
    other.manifest["id"] = snapshot
    with refused(there, NameTaken, snapshot):
        imported(there, other)
    with refused(engine, NameTaken, snapshot):
        imported(engine, other)


def test_through_a_pipe(engine: Engine, there: Engine) -> None:
    snapshot = paused(engine, "head -c 20000000 /dev/urandom > /file; md5sum /file > /sum")
    for _ in range(2):  # the second one has nothing to do, and lets the first one come to its end
        giving = subprocess.Popen(
            Command(engine.config.root).words("snapshot", "export", snapshot, "-"), stdout=subprocess.PIPE
        )
        taking = subprocess.run(
            Command(there.config.root).words("snapshot", "import", "-"), stdin=giving.stdout, check=False
        )
        assert giving.stdout is not None
        giving.stdout.close()
        assert (giving.wait(30), taking.returncode) == (0, 0)
    there.fork(snapshot, name="b")
    assert inside(there, "b", "md5sum -c /sum") == "/file: OK\n"


# files


def test_a_file_is_its_owners(engine: Engine, there: Engine, tmp_path: Path) -> None:
    """There are memory and secrets in it."""
    snapshot = paused(engine)
    target = tmp_path / "out.serac"
    target.write_text("old")
    target.chmod(0o644)
    engine.snapshot_export(snapshot, os.fspath(target))
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.read_bytes() == exported(engine, snapshot)
    assert there.snapshot_import(os.fspath(target)).id == snapshot
    assert names(tmp_path) == {"out.serac"}


def test_a_link_stays_and_leads_there(engine: Engine, tmp_path: Path) -> None:
    snapshot = paused(engine)
    (tmp_path / "dir").mkdir()
    os.symlink("dir/real", tmp_path / "link")
    for _ in range(2):
        engine.snapshot_export(snapshot, os.fspath(tmp_path / "link"))
        assert os.readlink(tmp_path / "link") == "dir/real"
        assert (tmp_path / "dir/real").read_bytes() == exported(engine, snapshot)
    assert names(tmp_path / "dir") == {"real"}


def test_what_is_no_file_stays_what_it_is(engine: Engine, tmp_path: Path) -> None:
    snapshot = paused(engine)
    fifo, null = tmp_path / "fifo", tmp_path / "null"
    os.mkfifo(fifo)
    os.mknod(null, 0o20666, os.makedev(1, 3))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
    thread.start()
    engine.snapshot_export(snapshot, os.fspath(fifo))
    thread.join()
    assert found == [exported(engine, snapshot)]
    engine.snapshot_export(snapshot, os.fspath(null))
    assert null.is_char_device()
    assert names(tmp_path) == {"fifo", "null"}


def test_targets_and_sources_that_can_not_be(engine: Engine, tmp_path: Path) -> None:
    snapshot = paused(engine)
    engine.snapshot_archive(snapshot)
    for target in (tmp_path, tmp_path / "no/such/file", "/proc/x"):
        with refused(engine, InvalidInput):
            engine.snapshot_export(snapshot, os.fspath(target))
    for source in (tmp_path, tmp_path / "nothing"):
        with refused(engine, InvalidInput):
            engine.snapshot_import(os.fspath(source))
    for source in ("/dev/null", "/etc/passwd", "/dev/zero"):
        with refused(engine, Damaged):
            engine.snapshot_import(source)
    with refused(engine, Exception, "import: Input/output error"):
        engine.snapshot_import("/proc/self/mem")
    with refused(engine, NotFound):
        engine.snapshot_export("123456789abc", os.fspath(tmp_path / "out"))
    assert names(tmp_path) == set()


# after the import


@pytest.fixture
def images(engine: Engine, there: Engine) -> list[Path]:
    """Of a snapshot that was imported, without its base."""
    snapshot = paused(engine, "head -c 3500000 /dev/urandom > /file")
    imported(there, exported(engine, snapshot))
    return sorted((there.config.root / "images").iterdir())


def test_damage_is_named_by_piece(there: Engine, images: list[Path]) -> None:
    (snapshot,) = there.snapshots()
    (image,) = images
    with (image / "data.blob").open("r+b") as file:
        for piece in (0, 2):
            file.seek((piece << 20) + 99)
            file.write(b"damage")
    found = there.snapshot_verify(snapshot.id)
    assert [line.rpartition(": ")[2] for line in found] == ["piece 0, at byte 0", "piece 2, at byte 2097152"]
    with (image / "meta.erofs").open("r+b") as file:
        file.write(b"x")
    (there.config.root / "layers" / snapshot.layers[-1] / "manifest.json").write_bytes(b"{}")
    assert len(there.snapshot_verify(snapshot.id)) == 4


def test_another_image_in_its_place(engine: Engine, there: Engine, images: list[Path]) -> None:
    (snapshot,) = there.snapshots()
    (image,) = images
    other = paused(engine, "echo other > /other")
    engine.snapshot_archive(other)
    (source,) = (path for path in (engine.config.root / "images").iterdir() if path.name != image.name)
    shutil.rmtree(image)
    shutil.copytree(source, image)
    (line,) = there.snapshot_verify(snapshot.id)
    assert line.endswith(f"image.json is not the one of {image.name}")


@pytest.mark.parametrize("how", ["owner", "mode", "size", "link", "gone", "directory"])
def test_what_can_not_be_the_same_is_not_mounted(there: Engine, images: list[Path], how: str) -> None:
    (snapshot,) = there.snapshots()
    (image,) = images
    for name in ("meta.erofs", "data.blob"):
        file, aside = image / name, image / "aside"
        file.rename(aside)
        if how != "gone":
            shutil.copy2(aside, file)
        if how == "owner":
            os.chown(file, 65534, 0)
        elif how == "mode":
            file.chmod(0o666)
        elif how == "size":
            os.truncate(file, file.stat().st_size - 4096)
        elif how in ("link", "directory"):
            file.unlink()
            file.mkdir() if how == "directory" else file.symlink_to(aside)
        with refused(there, Damaged):
            there.fork(snapshot.id, name="b")
        if how == "directory":
            file.rmdir()
        aside.rename(file)
    there.fork(snapshot.id, name="b")


def test_the_output_of_a_job_that_went_on(engine: Engine, there: Engine) -> None:
    """Logs are a part of processes, and of nothing else."""
    engine.run(
        shell("echo before; read line < /dev/zero & while ! test -e /go; do sleep 0.05; done; echo after", name="a")
    )
    until(engine, "a", b"before\n")
    snapshot = engine.pause("a", mode="process").snapshot
    imported(there, exported(engine, snapshot))
    there.fork(snapshot, name="b")
    inside(there, "b", "touch /go")
    there.wait("b", timeout=30)
    assert output(there, "b") == "before\nafter\n"
