"""What this host can do, and the remedy for each thing missing. Only looks; what it has to try, it removes again.

Features are probed, not versions. A probe that itself can't be made is a finding like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from engine import store, tools
from engine.config import Config
from engine.errors import BadRoot, NotPrivileged, SeracError, Timeout, ToolFailed, ToolMissing, from_os
from engine.kernel import userfaultfd
from engine.kernel.mountinfo import mounts
from engine.kernel.statfs import type_of
from engine.model import Finding
from engine.tree import open_directory, write_image

GOOD = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs"}
"""f_type -> filesystems known to hold an upper: xattrs in trusted.*, whiteouts, idmapped mounts"""

BAD = {
    0x01021994: "tmpfs",  # no image can be mounted from a file there
    0x794C7630: "overlay",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
    0x517B: "smb",
    0xFE534D42: "smb2",
    0xFF534D42: "cifs",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0xF15F: "ecryptfs",
    0xE0F5E1E2: "erofs",
    0x73717368: "squashfs",
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x858458F6: "ramfs",
}
"""f_type -> filesystems that can't; the kernel's linux/magic.h"""

FREE_WANTED = 2 << 30
"""bytes below which the root is called short of space"""

_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "SETGID": 6, "SETUID": 7, "NET_ADMIN": 12, "SYS_CHROOT": 18}
_CAPABILITIES |= {"SYS_PTRACE": 19, "SYS_ADMIN": 21, "MKNOD": 27}
_SYS_RESOURCE = 24
_ON_EXT4 = "choose a --root on ext4, xfs or btrfs"


def check_root_filesystem(path: Path) -> None:
    """Raise NotPrivileged without root rights, BadRoot when uppers can't live at ``path`` (which needn't exist yet).

    Cheap enough for every opening of a root: two system calls on a filesystem that is known to be good.
    """
    if os.geteuid() != 0:
        raise NotPrivileged("serac needs root rights", hint="run it as root, for instance with sudo")
    try:
        place = _existing(path)
        if not place.is_dir():
            raise BadRoot(f"{place} is not a directory", hint="choose another --root")
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise BadRoot(f"{place} is on a read-only filesystem", hint="choose a --root that can be written")
        _check_type(place)
    except OSError as error:
        raise from_os(error, "look at the root directory") from error


def _check_type(place: Path) -> None:
    kind = type_of(place)
    if kind in GOOD:
        return
    if kind in BAD:
        raise BadRoot(f"{place} is on {BAD[kind]}, which can't hold a job's files", hint=_ON_EXT4)
    with tempfile.NamedTemporaryFile(dir=place, prefix=".serac-probe-") as probe:
        try:
            os.setxattr(probe.name, "trusted.serac", b"1")
        except OSError as error:
            raise BadRoot(f"{place}: its filesystem ({kind:#x}) keeps no trusted xattrs", hint=_ON_EXT4) from error


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), Path("/"))


def examine(config: Config, *, launch: Path | None = None) -> list[Finding]:
    """Everything that serac needs or can use, in the order in which a person would put it right.

    ``launch`` is the path of serac-launch: with it, mounting an image from a file is tried for real.
    """
    probes: list[tuple[str, Callable[[], Finding]]] = [
        ("root rights", _rights),
        ("kernel: overlay", lambda: _filesystem("overlay")),
        ("kernel: EROFS", lambda: _filesystem("erofs")),
        ("kernel: EROFS from a file", lambda: _image_mount(config, launch)),
        ("kernel: cgroup v2", _cgroup2),
        ("kernel: limits", _limits),
        ("kernel: user namespaces", _user_namespaces),
        ("idmapped layers", lambda: _idmapped(config)),
        ("kernel: seccomp", _seccomp),
        ("root directory", lambda: _root(config)),
        ("free space", lambda: _space(config)),
        ("run directory", lambda: _run(config)),
        ("criu check", _criu_check),
        ("CAP_SYS_RESOURCE", _resource),
        ("lazy memory", _lazy_memory),
        ("nftables", _nftables),
    ]
    return [*_guarded(probes), *_programs()]


def _guarded(probes: list[tuple[str, Callable[[], Finding]]]) -> Iterator[Finding]:
    for name, probe in probes:
        try:
            yield probe()
        except SeracError as error:
            yield Finding(name=name, ok=False, detail=str(error), remedy=error.hint)
        except OSError as error:
            yield Finding(name=name, ok=False, detail=f"can't be looked at: {error}", remedy="run it as root")


def _finding(name: str, ok: bool, detail: str, remedy: str, *, required: bool = True) -> Finding:
    return Finding(name=name, ok=ok, detail=detail, remedy=None if ok else remedy, required=required)


def _effective() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _rights() -> Finding:
    have = _effective()
    lacking = [name for name, bit in _CAPABILITIES.items() if not have >> bit & 1]
    uid = os.geteuid()
    detail = f"uid {uid}" + (f", without CAP_{', CAP_'.join(lacking)}" if lacking else ", with all capabilities needed")
    return _finding("root rights", uid == 0 and not lacking, detail, "run it as root, outside of any container")


def _resource() -> Finding:
    ok = bool(_effective() >> _SYS_RESOURCE & 1)
    detail = (
        "held" if ok else "not held: criu can't checkpoint jobs with `--userns host` that have accounts of their own"
    )
    remedy = "use `--userns private`, the default, or give it to serac"
    return _finding("CAP_SYS_RESOURCE", ok, detail, remedy, required=False)


def _lazy_memory() -> Finding:
    lacking = {name: userfaultfd.lacking(private=name == "private") for name in ("private", "host")}
    missing = [f"not for `--userns {name}`: {why}" for name, why in lacking.items() if why]
    remedy = "sysctl vm.unprivileged_userfaultfd=1, or use --eager, which is what jobs get by themselves"
    return _finding("lazy memory", not missing, "; ".join(missing) or "userfaultfd", remedy, required=False)


def _filesystem(name: str) -> Finding:
    title = {"overlay": "kernel: overlay", "erofs": "kernel: EROFS"}[name]
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    if name in known:
        return Finding(name=title, ok=True, detail="there")
    modules = Path("/lib/modules", os.uname().release)
    for listing in ("modules.builtin", "modules.dep"):
        file = modules / listing
        if file.is_file() and f"/{name}.ko" in file.read_text(encoding="utf-8", errors="replace"):
            return Finding(name=title, ok=True, detail="a module, which the kernel loads when it is needed")
    return Finding(
        name=title, ok=False, detail="the kernel doesn't have it", remedy=f"modprobe {name}, or another kernel"
    )


def _image_mount(config: Config, launch: Path | None) -> Finding:
    title = "kernel: EROFS from a file"
    if launch is None:
        return Finding(name=title, ok=False, detail="not tried: serac-launch is not built", remedy="run scripts/setup")
    tmp = config.root / "tmp"
    with contextlib.ExitStack() as stack:
        there = tmp if tmp.is_dir() else None
        if there is not None:  # nobody takes what is there for a crash's meanwhile
            stack.enter_context(store.locked(there, timeout=30, shared=True))
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="doctor.", dir=there))
        report = _try_mount(Path(name), launch)
    remedy = "Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE"
    return _finding(title, not report, report or "an image was mounted and unmounted", remedy)


def _try_mount(scratch: Path, launch: Path) -> str:
    """Mount a tiny image through serac-launch and unmount it: nothing, or why it can't be done."""
    tree, target, meta, blob = (scratch / name for name in ("tree", "target", "meta", "blob"))
    tree.mkdir()
    target.mkdir()
    (tree / "file").write_bytes(b"serac" * 1000)
    with open_directory(tree) as root:
        write_image(root, meta, blob)
    mounted = _launch(launch, "mount", meta=meta, blob=blob, target=target)
    if mounted:
        return mounted
    try:
        content = (target / "file").read_bytes()
    finally:
        unmounted = _launch(launch, "unmount", target=target)
    return unmounted or ("" if content == b"serac" * 1000 else "what was read from the image is wrong")


def _launch(program: Path, verb: str, **fields: Path) -> str:
    """Run a verb of serac-launch, see native/protocol.h: nothing, or what it reports."""
    records = [b"serac-launch=1", *(key.encode() + b"=" + os.fsencode(value) for key, value in fields.items())]
    spec = b"".join(record + b"\0" for record in records)
    report = tools.run([program, verb], data=spec, timeout=30, accept=(0, 1)).stdout.split(b"\0")
    if b"ready=1" in report:
        return ""
    said = dict(record.decode(errors="replace").partition("=")[::2] for record in report if record)
    number = said.get("errno", "")
    reason = os.strerror(int(number)) if number.isdigit() else "no reason given"
    return f"{verb} failed at {said.get('step', 'start')}: {reason}"


def _cgroup2() -> Finding:
    title = "kernel: cgroup v2"
    mounted = next((mount.target for mount in mounts() if mount.type == "cgroup2"), None)
    if mounted is None:
        return _finding(title, False, "not mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    lacking = [name for name in ("cgroup.freeze", "cgroup.kill") if not _has(Path(mounted), name)]
    detail = f"at {mounted}" + (f", without {' and '.join(lacking)}" if lacking else ", with freeze and kill")
    return _finding(title, not lacking, detail, "Linux 5.14 or newer")


def _has(hierarchy: Path, name: str) -> bool:
    """The root group lacks most files, so a group below is looked at; where there is none, the kernel's symbols."""
    below = next((entry for entry in hierarchy.iterdir() if entry.is_dir()), None)
    if below:
        return (below / name).exists()
    symbols = Path("/proc/kallsyms").read_text(encoding="ascii", errors="replace")
    return f" {name.replace('.', '_')}_write\n" in symbols


def _limits() -> Finding:
    wanted, found = ("memory", "cpu", "pids"), dict[str, str]()
    for mount in mounts():
        if mount.type == "cgroup2":
            controllers = Path(mount.target, "cgroup.controllers").read_text(encoding="ascii").split()
            found |= dict.fromkeys(set(wanted) & set(controllers), "v2")
        elif mount.type == "cgroup":
            found |= dict.fromkeys(set(wanted) & mount.options, "v1")
    lacking = [name for name in wanted if name not in found]
    detail = ", ".join(f"{name} ({found.get(name, 'missing')})" for name in wanted)
    remedy = "boot with the controllers enabled (cgroup_enable=memory), or do without --memory, --cpus, --pids"
    return _finding("kernel: limits", not lacking, detail, remedy, required=False)


def _user_namespaces() -> Finding:
    title, setting = "kernel: user namespaces", Path("/proc/sys/user/max_user_namespaces")
    if not setting.exists():
        return _finding(title, False, "the kernel doesn't have them", "use `--userns host`", required=False)
    most = int(setting.read_text(encoding="ascii"))
    remedy = "sysctl user.max_user_namespaces=10000, or use `--userns host`"
    return _finding(title, most > 0, f"at most {most}", remedy, required=False)


def _idmapped(config: Config) -> Finding:
    """Whether jobs with `--userns private` can see the layers with their plain ids: the filesystem has to allow it."""
    kind = type_of(_existing(config.root))
    detail = f"{config.root} is on {GOOD[kind]}, which allows them" if kind in GOOD else f"unknown of type {kind:#x}"
    return _finding("idmapped layers", kind in GOOD, detail, f"{_ON_EXT4}, or use `--userns host`", required=False)


def _seccomp() -> Finding:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    ok = actions.exists() and "errno" in actions.read_text(encoding="ascii").split()
    return _finding("kernel: seccomp", ok, "filters" if ok else "no filters", "a kernel with CONFIG_SECCOMP_FILTER")


def _root(config: Config) -> Finding:
    check_root_filesystem(config.root)
    place = _existing(config.root)
    name = GOOD.get(type_of(place), f"filesystem {type_of(place):#x}")
    return Finding(name="root directory", ok=True, detail=f"{config.root} on {name}")


def _space(config: Config) -> Finding:
    status = os.statvfs(_existing(config.root))
    free = status.f_bavail * status.f_frsize
    detail = f"{free / (1 << 30):.1f} GiB and {status.f_favail} inodes free for {config.root}"
    enough = free >= FREE_WANTED and (status.f_files == 0 or status.f_favail > 10_000)
    return _finding("free space", enough, detail, "free some space, or choose another --root", required=False)


def _run(config: Config) -> Finding:
    kind = GOOD.get(type_of(_existing(config.run)), "another filesystem")
    detail = f"{config.run} on {kind}"
    remedy = "mount a tmpfs on /run: criu keeps what it knows of the kernel only there, and is slower without"
    return _finding("run directory", kind == "tmpfs", detail, remedy, required=False)


def _criu_check() -> Finding:
    title, remedy = "criu check", "run scripts/setup, which installs a newer criu; without, pauses are filesystem only"
    try:
        tools.run(["criu", "check"], timeout=60)
    except ToolMissing as error:
        return _finding(title, False, str(error), error.hint, required=False)
    except (ToolFailed, Timeout) as error:
        return _finding(title, False, str(error), remedy, required=False)
    return _finding(title, True, "looks good", remedy, required=False)


def _nftables() -> Finding:
    title, remedy = "nftables", "install nftables, on a kernel with CONFIG_NF_TABLES; only `--net bridge` needs it"
    try:
        tools.run(["nft", "list", "tables"], timeout=30)
    except (ToolMissing, ToolFailed, Timeout) as error:
        return _finding(title, False, str(error), remedy, required=False)
    return _finding(title, True, "the kernel answers", remedy, required=False)


_USES = {
    "criu": "checkpoints processes",
    "mmdebstrap": "base build --debian",
    "umoci": "base build --oci",
    "nft": "--net bridge",
    "tar": "base build --tar",
    "cp": "base build --dir",
}


def _programs() -> Iterator[Finding]:
    for name, use in _USES.items():
        try:
            tool = tools.find(name)
        except ToolMissing as error:
            detail = f"{error} ({use})"
            yield Finding(name=name, ok=False, detail=detail, remedy=error.hint, required=False)
        else:
            said = f"{tool.version} at {tool.path}" if tool.version else f"{tool.path}"
            yield Finding(name=name, ok=True, detail=f"{said}: {tool.why}", required=False)
