"""Files that criu puts into a job's tree at a dump, and takes away when it restores them.

A file that is open under a name that is gone, but that has other names, gets one more: ``link_remap.N`` beside where it
was. The image says which (criu's images/remap-file-path.proto, fdinfo.proto and regfile.proto): remap-fpath.img leads
from the open file to the new one, files.img has that one's path. Image files are two magic numbers and then entries,
each after its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from engine.checkpoint.rpc import Fields, decoded

_HEAD = 8
_SIZE = struct.Struct("<I")
_LINKED = 0
"""remap_type; the others are files that criu keeps in the image, and what lies in /proc"""


def link_remaps(images: Path) -> tuple[str, ...]:
    """Paths in the job's tree, from its root and without a slash before; not in /dev/shm, which is copied as a whole.
    Raises OSError, CriuGone (a broken image)."""
    try:
        wanted = {entry.get(2) for entry in _entries(images / "remap-fpath.img") if entry.get(3, _LINKED) == _LINKED}
    except FileNotFoundError:
        return ()
    regular = (entry.get(3) for entry in _entries(images / "files.img"))
    files = (decoded(file) for file in regular if isinstance(file, bytes))
    names = (entry.get(6) for entry in files if entry.get(1) in wanted)
    paths = (name.decode(errors="surrogateescape").lstrip("/") for name in names if isinstance(name, bytes))
    return tuple(path for path in paths if not path.startswith("dev/shm/"))


def _entries(path: Path) -> Iterator[Fields]:
    content, at = path.read_bytes(), _HEAD
    while at + _SIZE.size <= len(content):
        (size,) = _SIZE.unpack_from(content, at)
        at += _SIZE.size
        yield decoded(content[at : at + size])
        at += size
