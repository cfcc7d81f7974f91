"""Reading a chain that no job runs on: a packer in a sandbox of its own over it, as a job would see it.

So no link in the chain leads to the host. What the sandbox itself writes goes to a scratch directory, thrown away by
its owner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from engine import cgroup, launch, layers, store
from engine.errors import BadPath, SeracError
from engine.launch import LaunchSpec
from engine.lifecycle import mounting
from engine.lifecycle.root import Root
from engine.model import Limits

_PROBLEM_MAX = 4096


@contextlib.contextmanager
def packed(root: Root, base: str, chain: Sequence[str], path: str, scratch: Path) -> Iterator[BinaryIO]:
    """A tar stream of ``path`` on a chain, in the host's ids. What went wrong in the packer is what is raised."""
    with contextlib.ExitStack() as stack:
        group = root.group(store.new_id(), Limits())
        cgroup.create(root.host, group, Limits())
        stack.callback(cgroup.remove, group)
        stack.callback(cgroup.kill, group, timeout=root.timeout)
        problems = stack.enter_context(open(scratch / "problems", "w+b", buffering=0))
        reading, writing = os.pipe()
        stream = stack.enter_context(open(reading, "rb", buffering=0))
        with open(writing, "wb", buffering=0) as output:
            spec = _spec(root, group, base, chain, path, scratch, output.fileno(), problems.fileno())
            launch.launch(spec, timeout=root.timeout)
        failure = None
        try:
            yield stream
        except SeracError as error:
            failure = error
        problems.seek(0)
        said = problems.read(_PROBLEM_MAX).decode(errors="replace").splitlines()
        if said:
            raise BadPath(said[0]) from failure
        if failure is not None:
            raise failure


def _spec(
    root: Root,
    group: cgroup.Group,
    base: str,
    chain: Sequence[str],
    path: str,
    scratch: Path,
    stdout: int,
    stderr: int,
) -> LaunchSpec:
    for name in ("upper", "work", "stage"):
        (scratch / name).mkdir()
    overlay = layers.overlay(root.layers, mounting.mounted(root, base), chain, None)
    return LaunchSpec(
        cgroup=group.path,
        stage=os.fspath(scratch / "stage"),
        trees=(*overlay.trees, ("scratch", os.fspath(scratch))),
        lowers=overlay.lowers,
        upper="scratch/upper",
        work="scratch/work",
        overlay=overlay.options,
        args=("pack", "--one-file-system", path),
        stdout=stdout,
        stderr=stderr,
    )
