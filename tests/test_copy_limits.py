"""engine.copy and native/copy.h where something runs out: memory, descriptors, digits, the file itself."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import BinaryIO

import launches
import pytest
from trees import grow_deep, look, packed, run, unpacked

from engine.copy import iter_pack, pack_host, unpack_host

SOURCES = ("copy.c", "pack.c", "unpack.c", "unstream.c", "tar.c")
MAIN = '#include "copy.h"\nint main(int argc, char **argv) { return copy_main(argc - 1, argv + 1); }\n'


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copying alone and without sanitizers, which have a mind of their own about memory and descriptors."""
    main = tmp_path_factory.mktemp("plain") / "main.c"
    main.write_text(MAIN)
    sources = [main, *(launches.NATIVE / source for source in SOURCES)]
    return launches.compile_c(main.with_name("copy"), sources, f"-I{launches.NATIVE}")


def test_a_size_beyond_octal(tmp_path: Path, plain: Path) -> None:
    huge = tmp_path / "huge"
    with open(huge, "wb") as file:
        file.truncate(9 << 30)
    with subprocess.Popen([plain, "pack", huge], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        start = process.stdout.read(1536)
        process.stdout.close()
        process.kill()
    assert b"size=9663676416\n" in start
    pieces = iter_pack(huge)
    assert b"size=9663676416\n" in next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def test_a_tree_too_deep_for_the_descriptors(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "tree").mkdir()
    grow_deep(tmp_path / "tree", "d", levels=80)
    data = packed(plain, tmp_path / "tree")
    (tmp_path / "target").mkdir()
    for arguments in (["pack", tmp_path / "tree"], ["unpack", tmp_path / "target"]):
        done = subprocess.run(
            ["prlimit", "--nofile=64", plain, *arguments], input=data, capture_output=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.endswith(b": Too many open files\n")


def test_a_file_that_shrinks_is_padded_and_told(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 2_000_000)
    with subprocess.Popen(
        [plain, "pack", tmp_path / "file"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        start = process.stdout.read(512)
        os.truncate(tmp_path / "file", 1000)
        rest = process.stdout.read()
        assert b"shorter" in process.stderr.read()
    assert process.returncode == 1
    with tarfile.open(fileobj=io.BytesIO(start + rest)) as archive:
        assert archive.getmember("file").size == 2_000_000
        assert len(archive.getmembers()) == 1


def test_a_full_pipe_end_is_an_error(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 2_000_000)
    with open("/dev/full", "wb") as full:
        done = subprocess.run([plain, "pack", tmp_path / "file"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(b"No space left on device\n")


def test_more_hard_links_than_are_remembered(tmp_path: Path, plain: Path) -> None:
    """The names' limit is reached first: 16 MiB of them, 255 bytes each."""
    source = tmp_path / "source"
    source.mkdir()
    for index in range(100):
        (source / f"{index:03}").write_bytes(b"%d" % index)
        os.link(source / f"{index:03}", source / f"{index:03}-again")
    unpacked(plain, packed(plain, source), tmp_path / "copy")
    assert look(tmp_path / "copy") == look(source)


@pytest.mark.parametrize("arguments", [[], ["pack"], ["pack", "a", "b"], ["unpack"], ["other", "x"]])
def test_usage(plain: Path, arguments: list[str]) -> None:
    done = run(plain, *arguments)
    assert done.returncode == 1
    assert b"usage" in done.stderr


def resident(pid: int) -> int:
    """The most memory that a process has had, in bytes; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


class Measured(io.RawIOBase):
    """The output of a process, and what memory it had while that was read."""

    def __init__(self, stream: BinaryIO, pid: int) -> None:
        self.stream, self.pid, self.peak = stream, pid, 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.peak = max(self.peak, resident(self.pid))
        return data


@pytest.mark.slow
def test_three_gigabytes_in_constant_memory(tmp_path: Path, plain: Path) -> None:
    size = 3 << 30
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        file.truncate(size)
        file.seek(size - 1)
        file.write(b"!")

    with subprocess.Popen([plain, "pack", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        stream = Measured(process.stdout, process.pid)
        unpack_host(stream, target)
    assert process.returncode == 0
    assert 0 < stream.peak < 4 << 20
    assert target.stat().st_size == size
    with subprocess.Popen([plain, "unpack", target], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        pack_host(source, process.stdin)
        peak = resident(process.pid)
    assert process.returncode == 0
    assert 0 < peak < 4 << 20
    assert target.stat().st_size == size
    with open(target, "rb") as file:
        file.seek(size - 1)
        assert file.read() == b"!"


@pytest.mark.root
def test_a_large_directory_that_two_layers_make_up(tmp_path: Path, plain: Path) -> None:
    """Reading goes on in the middle of a merged directory after each of its many subdirectories."""
    names = set()
    for layer in ("lower", "upper"):
        for index in range(1500):
            (tmp_path / layer / "merged" / f"{layer}-{index}").mkdir(parents=True)
            (tmp_path / layer / "merged" / f"{layer}-{index}" / "file").touch()
            names |= {f"merged/{layer}-{index}", f"merged/{layer}-{index}/file"}
    for directory in ("work", "mount"):
        (tmp_path / directory).mkdir()
    script = 'mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay mount; exec "$0" pack mount/merged'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, plain], cwd=tmp_path, stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = archive.getnames()
    assert len(found) == len(names) + 1
    assert set(found) == {"merged", *names}
