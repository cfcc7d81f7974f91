"""Podman, runc and tar + lz4, as they are driven: each with storage of its own, which is gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from bench import interrupts
from bench.measure import Sample, timed
from bench.workloads import JOB, PATIENCE, Awake, awake, hold
from engine import tools

IMAGE = "localhost/serac-bench"
NAME = "serac-bench"
WOKE = "/woke"
"""where the job says that it lives"""
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""without CAP_SYS_RESOURCE podman can't raise its own"""


def missing(*programs: str) -> list[str]:
    return [name for name in programs if shutil.which(name, path=_environment()["PATH"]) is None]


def _environment() -> dict[str, str]:
    """criu as serac uses it comes first."""
    criu = os.fspath(tools.find("criu").path.parent)
    return {**os.environ, "PATH": os.pathsep.join([criu, os.environ["PATH"], "/usr/sbin", "/sbin"])}


class PeerFailed(Exception):
    """A peer could not do what it was asked for."""


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        raise PeerFailed(f"{words[0]} {words[-1]}: status {done.returncode}: {last}")
    return done.stdout


class Podman:
    """A container that is checkpointed to a file and restored from it, processes and files, as `podman` does it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._archive = directory / "checkpoint.tar"

    def start(self, *, megabytes: int) -> None:
        """The same job on the same root filesystem, with so many megabytes written."""
        words = ("--detach", "--name", NAME, "--network", "none", "--runtime", "runc", *LIMITS)
        self._podman("run", *words, IMAGE, *hold(woke=WOKE))
        self._lives()
        if megabytes:
            self._podman("exec", NAME, JOB, "write", "/big", str(megabytes << 20))

    def _lives(self) -> Awake:
        """Wait until the job has said so, and take its word away."""
        script = f"until test -e {WOKE}; do sleep 0.01; done; cat {WOKE}; rm {WOKE}"
        return Awake.read(self._podman("exec", NAME, "/bin/sh", "-c", script))

    def pause(self) -> Mapping[str, Sample]:
        words = ("--export", os.fspath(self._archive), "--compress", "none", NAME)
        ms, _ = timed(lambda: self._podman("container", "checkpoint", *words))
        self.remove()
        return {"pause": Sample(ms)}

    def resume(self) -> Mapping[str, Sample]:
        words = ("--import", os.fspath(self._archive), "--name", NAME)
        began = time.time_ns()
        ms, _ = timed(lambda: self._podman("container", "restore", *words))
        self._archive.unlink()
        return {"resume": Sample(ms), "first instruction": Sample((self._lives().first - began) / 1e6)}

    def remove(self) -> None:
        self._podman("rm", "--all", "--force", "--time", "0")

    def _podman(self, *words: str) -> str:
        places = [f"--{key}={self._directory / name}" for key, name in _PLACES]
        settings = ["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]
        return _run("podman", *places, *settings, *words)

    def fetch(self, tree: Path) -> None:
        _run("tar", "-C", tree, "-cf", self._directory / "tree.tar", ".")
        self._podman("import", "--quiet", os.fspath(self._directory / "tree.tar"), IMAGE)

    def clear(self) -> None:
        self.remove()
        self._podman("rmi", "--all", "--force")


_PLACES = (("root", "root"), ("runroot", "run"), ("tmpdir", "tmp"))


@contextlib.contextmanager
def podman(directory: Path, tree: Path) -> Iterator[Podman]:
    place = directory / "podman"
    place.mkdir()
    peer = Podman(place)
    try:
        peer.fetch(tree)
        yield peer
    finally:
        with interrupts.put_off():
            peer.clear()
            _await_none(place)
            _unmount_below(place)
            shutil.rmtree(place)


def _await_none(place: Path) -> None:
    """A container's monitor has podman clean up after it, which mounts the storage again. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while any(os.fspath(place) in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{place}: podman is still at work there")
        time.sleep(0.02)


def _unmount_below(directory: Path) -> None:
    """podman binds its storage onto itself."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed(mounts):
        if Path(target).is_relative_to(directory):
            subprocess.run(["umount", target], check=True)


class Runc:
    """A container of runc's alone: processes only, its root filesystem stays a directory."""

    def __init__(self, directory: Path) -> None:
        self._bundle = directory
        self._images = directory / "images"
        self._woke = directory / f"rootfs{WOKE}"

    def start(self) -> None:
        self._runc("run", "--detach", "--bundle", os.fspath(self._bundle), NAME)
        awake(self._woke)

    def pause(self) -> Mapping[str, Sample]:
        words = ("--image-path", os.fspath(self._images), "--work-path", os.fspath(self._bundle / "work"))
        ms, _ = timed(lambda: self._runc("checkpoint", *words, NAME))
        return {"pause": Sample(ms)}

    def resume(self) -> Mapping[str, Sample]:
        words = ("--image-path", os.fspath(self._images), "--work-path", os.fspath(self._bundle / "work"))
        command = ("restore", "--detach", *words, "--bundle", os.fspath(self._bundle), NAME)
        self._woke.unlink()
        began = time.time_ns()
        ms, _ = timed(lambda: self._runc(*command))
        shutil.rmtree(self._images)
        return {"resume": Sample(ms), "first instruction": Sample((awake(self._woke).first - began) / 1e6)}

    def remove(self) -> None:
        self._runc("delete", "--force", NAME)

    def _runc(self, *words: str) -> None:
        log = self._bundle / "runc.log"
        command: list[str | Path] = ["runc", "--root", self._bundle / "state", "--log", log, *words]
        # What is detached keeps these open, so that they may be nothing of the host's.
        nothing = subprocess.DEVNULL
        done = subprocess.run(command, env=_environment(), check=False, stdin=nothing, stdout=nothing, stderr=nothing)
        if done.returncode:
            raise PeerFailed(f"runc {words[0]}: status {done.returncode}: {log.read_text()[-300:].strip()}")

    def prepare(self, tree: Path) -> None:
        shutil.copytree(tree, self._bundle / "rootfs", symlinks=True)
        _run("runc", "spec", "--bundle", self._bundle)
        file = self._bundle / "config.json"
        config = json.loads(file.read_text())
        config["process"] |= {"terminal": False, "args": list(hold(woke=WOKE)), "rlimits": []}
        config["root"]["readonly"] = False
        file.write_text(json.dumps(config))


@contextlib.contextmanager
def runc(directory: Path, tree: Path) -> Iterator[Runc]:
    place = directory / "runc"
    place.mkdir()
    peer = Runc(place)
    try:
        peer.prepare(tree)
        peer.start()
        yield peer
    finally:
        with interrupts.put_off():
            peer.remove()
            shutil.rmtree(place)


class Tar:
    """An upper that is packed with tar and lz4, and unpacked again: what keeping a project in an archive takes."""

    def __init__(self, directory: Path) -> None:
        self._archive = directory / "upper.tar.lz4"
        self._target = directory / "unpacked"

    def pause(self, upper: Path) -> Mapping[str, Sample]:
        ms, _ = timed(lambda: _pipe(["tar", "-C", upper, "-cf", "-", "."], ["lz4", "-q", "-f", "-", self._archive]))
        return {"pause": Sample(ms)}

    def resume(self) -> Mapping[str, Sample]:
        self._target.mkdir()
        words: list[str | Path] = ["tar", "-C", self._target, "-xf", "-"]
        ms, _ = timed(lambda: _pipe(["lz4", "-q", "-d", "-c", self._archive], words))
        self.remove()
        return {"resume": Sample(ms)}

    def remove(self) -> None:
        self._archive.unlink(missing_ok=True)
        shutil.rmtree(self._target, ignore_errors=not self._target.exists())


def _pipe(source: list[str | Path], target: list[str | Path]) -> None:
    with subprocess.Popen(source, stdout=subprocess.PIPE) as reading:
        subprocess.run(target, stdin=reading.stdout, check=True)
    if reading.returncode:
        raise PeerFailed(f"{source[0]}: status {reading.returncode}")
