"""What doctor says of a host, and the check that every opening of a root makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import Engine, doctor, launch, tools
from engine.config import Config
from engine.errors import BadRoot, NotPrivileged, SeracError
from engine.kernel.mountinfo import mounts
from engine.model import Finding
from engine.tree import erofs

REQUIRED = {
    "root rights",
    "kernel: overlay",
    "kernel: EROFS",
    "kernel: EROFS from a file",
    "kernel: cgroup v2",
    "kernel: seccomp",
    "root directory",
}
OPTIONAL = {
    "kernel: limits",
    "kernel: user namespaces",
    "idmapped layers",
    "free space",
    "run directory",
    "criu check",
    "CAP_SYS_RESOURCE",
    "lazy memory",
    "nftables",
    "criu",
    "mmdebstrap",
    "umoci",
    "nft",
    "tar",
    "cp",
}


def examined(root: Path, *, tried: bool = True) -> dict[str, Finding]:
    program = launch.program("serac-launch") if tried else None
    findings = doctor.examine(Config.load(root), launch=program)
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


@pytest.mark.root
def test_a_host_that_has_what_is_needed(tmp_path: Path) -> None:
    findings = examined(tmp_path)
    assert {name for name, finding in findings.items() if finding.required} == REQUIRED
    assert {name for name, finding in findings.items() if not finding.required} == OPTIONAL
    assert [finding for finding in findings.values() if finding.required and not finding.ok] == []
    for finding in findings.values():
        assert finding.detail
        assert (finding.remedy is None) == finding.ok
    assert findings["criu"].detail.startswith(tools.find("criu").version)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_nothing_of_the_root_is_made(tmp_path: Path) -> None:
    findings = examined(tmp_path / "not/yet/there")
    assert findings["root directory"].ok
    assert findings["free space"].detail.endswith(str(tmp_path / "not/yet/there"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_without_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERAC_TOOLS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "SETUP_BIN", tmp_path)
    monkeypatch.setattr(tools, "_FIXED_PATH", str(tmp_path))
    findings = examined(tmp_path)
    lacking = {name for name, finding in findings.items() if not finding.ok}
    assert lacking >= {"criu", "mmdebstrap", "umoci", "nft", "nftables", "criu check", "tar"}
    assert "Debian package criu" in str(findings["criu"].remedy)


@pytest.mark.root
def test_without_serac_launch(tmp_path: Path) -> None:
    finding = examined(tmp_path, tried=False)["kernel: EROFS from a file"]
    assert (finding.ok, finding.remedy) == (False, "run scripts/setup")


@pytest.mark.root
def test_a_root_is_opened_while_it_is_examined(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(program: Path, verb: str, **fields: Path) -> str:
        Engine(engine.config.root).close()
        return launch_(program, verb, **fields)

    launch_ = doctor._launch
    monkeypatch.setattr(doctor, "_launch", launched)
    finding = examined(engine.config.root)["kernel: EROFS from a file"]
    assert finding.ok, finding
    assert list((engine.config.root / "tmp").iterdir()) == []


@pytest.mark.root
def test_a_root_is_opened_after_the_doctor_was_killed(engine: Engine) -> None:
    code = """
import os, signal, sys
from engine import Engine, doctor
launch = doctor._launch
doctor._launch = lambda program, verb, **fields: (
    launch(program, verb, **fields) if verb == "mount" else os.kill(os.getpid(), signal.SIGKILL)
)
Engine.doctor(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, os.fspath(engine.config.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((engine.config.root / "tmp").iterdir()) != []
    Engine(engine.config.root).close()
    assert list((engine.config.root / "tmp").iterdir()) == []


@pytest.mark.root
def test_a_mount_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that no kernel mounts."""
    monkeypatch.setattr(erofs, "MAGIC", 0)
    finding = examined(tmp_path)["kernel: EROFS from a file"]
    assert not finding.ok
    assert finding.detail.startswith("mount failed at ")


@pytest.mark.root
@pytest.mark.parametrize("place", ["/proc/serac", "/sys", "/proc/self/nothing/deeper"])
def test_a_filesystem_that_cannot_hold_an_upper(place: str) -> None:
    with pytest.raises(BadRoot, match=r"is on (proc|sysfs)") as caught:
        doctor.check_root_filesystem(Path(place))
    assert "--root on ext4" in caught.value.hint
    finding = examined(Path(place))["root directory"]
    assert not finding.ok
    assert "--root on ext4" in str(finding.remedy)


@pytest.mark.root
def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(BadRoot, match="not a directory"):
            doctor.check_root_filesystem(path)


@pytest.mark.root
def test_a_dangling_link_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(BadRoot, match="not a directory"):
        doctor.check_root_filesystem(tmp_path / "link")


IN_A_NAMESPACE = """
mount -t tmpfs none "$1"
mkdir "$1/lower" "$1/upper" "$1/work" "$1/overlay" "$1/readonly" "$1/ramfs" "$1/tmpfs"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" none "$1/overlay"
mount -t tmpfs -o ro none "$1/readonly"
mount -t ramfs none "$1/ramfs"
for kind in overlay readonly ramfs tmpfs; do
    SERAC_ROOT="$1/$kind" "$2" -c '
from engine import doctor, errors
from engine.config import Config
try:
    doctor.check_root_filesystem(Config.load().root / "new")
    print("good")
except errors.BadRoot as error:
    print(error)
'
done
"""


@pytest.mark.root
def test_filesystems_of_a_namespace(tmp_path: Path) -> None:
    shell = ["unshare", "--mount", "sh", "-e", "-c", IN_A_NAMESPACE, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.replace(str(tmp_path), "T").splitlines() == [
        "T/overlay is on overlay, which can't hold a job's files",
        "T/readonly is on a read-only filesystem",
        "T/ramfs is on ramfs, which can't hold a job's files",
        "T/tmpfs is on tmpfs, which can't hold a job's files",
    ]


@pytest.mark.root
def test_an_unknown_filesystem_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GOOD", {})
    doctor.check_root_filesystem(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "BAD", {})
    unified = next(mount.target for mount in mounts() if mount.type == "cgroup2")
    with pytest.raises(SeracError):
        doctor.check_root_filesystem(Path(unified))


def test_the_check_is_cheap(tmp_path: Path) -> None:
    """The best of many, for the machine may be busy; a probe that writes or starts a program would show."""
    if os.geteuid() != 0:
        pytest.skip("it ends at the first question without root rights")

    def once() -> float:
        started = time.perf_counter()
        doctor.check_root_filesystem(tmp_path / "deep/er")
        return time.perf_counter() - started

    assert min(once() for _ in range(50)) < 0.001


@pytest.mark.root
def test_another_account() -> None:
    """In a user namespace without a map: the files are as readable as before, but there are no rights."""
    code = """
from pathlib import Path
from engine import doctor, errors
from engine.config import Config
try:
    doctor.check_root_filesystem(Path("/tmp"))
except errors.NotPrivileged as error:
    print(error.status)
findings = doctor.examine(Config.load("/tmp/serac-doctor"))
print(" | ".join(finding.name for finding in findings if finding.required and not finding.ok))
"""
    command = ["unshare", "--user", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    status, lacking = done.stdout.splitlines()
    assert int(status) == NotPrivileged.status
    assert {"root rights", "root directory"} <= set(lacking.split(" | "))
