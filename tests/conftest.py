"""What all tests share: the header, the rules for root tests, and the sanitized programs."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import leftovers
import pytest
from bases import debian, debian_root
from hypothesis import HealthCheck, settings
from roots import engine, root_directory, small_tree

__all__ = [
    "debian",
    "debian_root",
    "engine",
    "root_directory",
    "small_tree",
]  # fixtures; one that modules import for themselves is made anew for each of them

REPO = Path(__file__).resolve().parents[1]
SETUP_BIN = Path("/usr/local/lib/serac/bin")
LOCK = Path("/run/lock/serac-tests")

# A shell that starts the tests in the background has them ignore it, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair. The examples are chosen by the code alone, so that who breaks
# something sees it, and nobody else; --hypothesis-profile=default looks for new ones.
settings.register_profile("serac", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("serac")


def pytest_report_header() -> list[str]:
    """The host's capabilities, so that a skip or a failure can be judged from the log alone."""
    root = "root" if os.geteuid() == 0 else "NOT ROOT"
    places = f"cgroup {cgroup_layout()}, /run on {file_system('/run')}, / on {file_system('/')}"
    return [
        f"host: Linux {platform.release()}, {os.cpu_count()} cpus, {root}, {places}",
        f"kernel: {', '.join(kernel_features())}",
        f"tools: {', '.join(tools())}",
    ]


def cgroup_layout() -> str:
    kinds = {mount.split()[1] for mount in leftovers.mounts()} & {"cgroup", "cgroup2"}
    return {frozenset(): "none", frozenset({"cgroup", "cgroup2"}): "hybrid"}.get(frozenset(kinds), " ".join(kinds))


def file_system(path: str) -> str:
    """The type of the file system that holds a path: that of the longest mount point above it."""
    above = [mount.split() for mount in leftovers.mounts() if Path(path).is_relative_to(mount.split()[0])]
    return max(above, key=lambda mount: len(mount[0]))[1]


def kernel_features() -> list[str]:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    namespaces = sorted(os.listdir("/proc/self/ns"))
    return [f"{'' if name in known else 'NO '}{name}" for name in ("overlay", "erofs")] + [
        "namespaces " + " ".join(namespaces)
    ]


def tools() -> Iterator[str]:
    for name in ("criu", "mkfs.erofs", "mmdebstrap", "umoci", "nft", "skopeo", "podman", "runc", "vagrant"):
        found = shutil.which(name, path=f"{SETUP_BIN}:{os.environ['PATH']}")
        yield found or f"NO {name}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("needs root: run `sudo scripts/test`, or `scripts/test -m 'not root'` without these", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """One root test at a time on a host, whoever runs it: each counts what the whole host holds."""
    if not item.get_closest_marker("root") or os.geteuid() != 0:
        return (yield)
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return (yield)
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A root test leaves the host's mounts, cgroups, processes and the rest of `leftovers.count` as they were."""
    if request.node.get_closest_marker("root") is None:
        yield
        return
    before = leftovers.count()
    yield
    found = leftovers.difference(before, leftovers.settled(before))
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """A directory with serac-launch and serac-init built with ASan and UBSan; it stays, for the next run."""
    build = REPO / "build/sanitized"
    build.mkdir(parents=True, exist_ok=True)
    # A second worker finds everything built.
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        quietly("cmake", "-S", str(REPO / "native"), "-B", str(build), "-G", "Ninja", "-DSERAC_SANITIZE=ON")
        quietly("cmake", "--build", str(build))
    return build


def quietly(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}", pytrace=False)
