"""What criu is told of every job: the options that its processes need to be carried whole. Pure.

Sources: criu(8), and for the network lock, links and limits the README's section on processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.checkpoint.rpc import Option

GHOST_LIMIT = 512 << 20
"""bytes of a file that is deleted but open; a larger one makes a dump fail"""

LOG_LEVEL = 2
"""errors and warnings: the lowest that explains a failure"""

_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET: the namespace is made anew, empty, and the engine fills it"""
_LOCK_SKIP = 3
"""criu_network_lock_method: the engine locks the network itself"""

_SHARED: dict[str, Option] = {
    "tcp_established": True,
    "file_locks": True,
    "link_remap": True,
    "ghost_limit": GHOST_LIMIT,
    "manage_cgroups": True,
    "manage_cgroups_mode": 0,  # IGNORE: what is restored is born where it belongs
    "empty_ns": _NEW_NETWORK,
    "network_lock": _LOCK_SKIP,
    "force_irmap": True,
    "irmap_scan_paths": ("/root", "/home", "/src", "/tmp", "/etc", "/var", "/opt", "/srv", "/work"),
    "notify_scripts": True,
    "log_level": LOG_LEVEL,
}


def dump_options(*, images: int, work: int, pid: int, cgroup: str, timeout: int) -> Mapping[str, Any]:
    """``images``, ``work``: descriptors of the directories for the image and for the log; ``pid``: of the job's init;
    ``cgroup``: its frozen v2 directory; ``timeout`` in seconds, for criu's own waits."""
    return {
        **_SHARED,
        "images_dir_fd": images,
        "work_dir_fd": work,
        "log_file": "dump.log",
        "pid": pid,
        "freeze_cgroup": cgroup,
        "tcp_skip_in_flight": True,
        "external": ("mnt[/run/serac]:io", "mnt[/dev/shm]:shm"),
        "timeout": timeout,
    }


def restore_options(*, images: int, work: int, lazily: bool = False) -> Mapping[str, Any]:
    """``work``: descriptor of the directory for the log, for one image may be restored several times at once. criu sees
    the job's root and the rest where serac-launch puts them (native/protocol.h). ``lazily``: it leaves out the memory
    that can come later, and tells who listens at lazy-pages.socket in ``work``."""
    return {
        **_SHARED,
        "images_dir_fd": images,
        "work_dir_fd": work,
        "log_file": "restore.log",
        "root": "/run/root",
        "external": ("mnt[io]:/run/io", "mnt[shm]:/run/shm"),
        "lazy_pages": lazily,
    }
