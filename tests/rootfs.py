"""Small root filesystems with something of everything, and tar files that want to get out of one."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

Snapshot = dict[str, tuple[object, ...]]


def listing(tree: Path) -> Snapshot:
    """What must survive the way into a tree, by path."""
    return {str(path.relative_to(tree)): facts(path) for path in [tree, *tree.rglob("*")]}


def facts(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    return (status.st_mode, status.st_uid, status.st_gid, links, status.st_mtime_ns, xattrs, content)


def planted(tree: Path) -> Path:
    """A small root filesystem with something of everything."""
    (tree / "etc").mkdir(parents=True)
    (tree / "bin").mkdir()
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "bin/su").write_bytes(b"\x7fELF" + bytes(5000))
    os.chown(tree / "bin/su", 12, 70_000)
    (tree / "bin/su").chmod(0o4751)
    os.setxattr(tree / "bin/su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(tree / "etc", "user.note", b"kept")
    os.setxattr(tree / "etc", "trusted.note", b"kept")
    os.link(tree / "bin/su", tree / "bin/sudo")
    os.symlink("/bin/su", tree / "bin/absolute")
    (tree / os.fsdecode(b"caf\xe9")).touch()
    tree.chmod(0o751)
    return tree


Member = tuple[str, bytes, str]
"""name, tarfile type, and what it links to, or its content"""

HOSTILE: dict[str, list[Member]] = {
    "dots": [("../../outside/new", tarfile.REGTYPE, "evil")],
    "dots inside": [("a/../../../outside/new", tarfile.REGTYPE, "evil")],
    "absolute": [("{outside}/new", tarfile.REGTYPE, "evil")],
    "link, then through it": [("d", tarfile.SYMTYPE, "{outside}"), ("d/new", tarfile.REGTYPE, "evil")],
    "relative link, then through it": [
        ("d", tarfile.SYMTYPE, "../../outside"),
        ("d/victim", tarfile.REGTYPE, "evil"),
    ],
    "two links": [
        ("a", tarfile.DIRTYPE, ""),
        ("a/b", tarfile.SYMTYPE, ".."),
        ("c", tarfile.SYMTYPE, "a/b/../../outside"),
        ("c/new", tarfile.REGTYPE, "evil"),
    ],
    "link over a directory, its mode set later": [
        ("d", tarfile.DIRTYPE, ""),
        ("d", tarfile.SYMTYPE, "{outside}"),
        ("d", tarfile.DIRTYPE, ""),
    ],
    "link over a file": [
        ("f", tarfile.SYMTYPE, "{outside}/victim"),
        ("f", tarfile.REGTYPE, "evil"),
    ],
    "hard link out": [("h", tarfile.LNKTYPE, "{outside}/victim"), ("h", tarfile.REGTYPE, "evil")],
    "hard link up": [("h", tarfile.LNKTYPE, "../../outside/victim"), ("h", tarfile.REGTYPE, "evil")],
    "hard link through a link": [
        ("s", tarfile.SYMTYPE, "{outside}"),
        ("h", tarfile.LNKTYPE, "s/victim"),
        ("h", tarfile.REGTYPE, "evil"),
    ],
}


def forge(path: Path, members: list[Member], outside: Path) -> Path:
    """A tar file that tar itself wouldn't write."""
    with tarfile.open(path, "w") as archive:
        for name, kind, value in members:
            info = tarfile.TarInfo(name.format(outside=outside))
            info.type, info.mode, text = kind, 0o777, value.format(outside=outside)
            content = text.encode() if kind == tarfile.REGTYPE else b""
            info.linkname, info.size = ("" if content else text), len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
