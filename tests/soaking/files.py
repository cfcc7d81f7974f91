"""A model of the files that a job sees in its directory ``/w``, and of what an overlay makes of them.

Names of one file go apart when it is first written in a layer above the one that it lies in: `File.lower` is what
remembers that."""

from __future__ import annotations

import copy
import io
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

Kind = Literal["write", "append", "remove", "mkdir", "rename", "link", "chmod", "symlink"]
KINDS: tuple[Kind, ...] = ("write", "append", "remove", "mkdir", "rename", "link", "chmod", "symlink")
NAMES = ("a", "b", "c", "d", "d/a", "d/b", "d/e", "e", "e/a")
MODES = (0o600, 0o644, 0o755, 0o711)
"""any may be given to a file or a directory: root of a job passes all"""


class Change(msgspec.Struct, frozen=True):
    """One call that changes the files; of ``value`` a file gets its text or its mode."""

    kind: Kind
    name: str
    other: str = ""
    value: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, self.other, str(self.value))))

    @property
    def mode(self) -> int:
        return MODES[self.value % len(MODES)]


@dataclass(eq=False)
class File:
    """A file, a directory or a link: what all of its names have in common."""

    type: int
    mode: int
    text: str = ""
    lower: bool = False
    """whether it lies in a layer that is only read"""


class Entry(NamedTuple):
    """What can be seen of a name."""

    type: int
    mode: int
    text: str


@dataclass
class Files:
    """By path below ``/w``."""

    names: dict[str, File] = field(default_factory=dict)

    def seen(self) -> dict[str, Entry]:
        return {name: Entry(file.type, file.mode, file.text) for name, file in self.names.items()}

    def lowered(self) -> Files:
        """As a stacked resume finds them: under a new upper."""
        below = copy.deepcopy(self)
        for file in below.names.values():
            file.lower = True
        return below

    def script(self, change: Change) -> str | None:
        """For a shell in ``/w``; None where the change makes no sense now."""
        name, other = change.name, change.other
        if not self._possible(change):
            return None
        return {
            "write": f"echo {change.value} > {name}",
            "append": f"echo {change.value} >> {name}",
            "remove": f"rm -r {name}",
            "mkdir": f"mkdir -m 755 {name}",
            "rename": f"mv {name} {other}",
            "link": f"ln {name} {other}",
            "chmod": f"chmod {change.mode:o} {name}",
            "symlink": f"ln -s {change.value} {name}",
        }[change.kind]

    def _possible(self, change: Change) -> bool:
        here, there = self.names.get(change.name), self.names.get(change.other)
        if change.kind in ("write", "mkdir", "symlink"):
            free = here is None or (change.kind == "write" and stat.S_ISREG(here.type))
            return free and self._has_parent(change.name)
        if here is None:
            return False
        if change.kind in ("append", "link", "chmod") and stat.S_ISLNK(here.type):
            return False
        if change.kind in ("append", "link") and stat.S_ISDIR(here.type):
            return False
        if change.kind in ("rename", "link"):
            within = f"{change.other}/".startswith(f"{change.name}/")
            return there is None and not within and self._has_parent(change.other)
        return True

    def _has_parent(self, name: str) -> bool:
        parent, slash, _ = name.rpartition("/")
        return not slash or (parent in self.names and stat.S_ISDIR(self.names[parent].type))

    def apply(self, change: Change) -> None:
        """What the script does."""
        name, text = change.name, f"{change.value}\n"
        match change.kind:
            case "write" | "append" if name in self.names:
                file = self._written(name)
                file.text = text if change.kind == "write" else file.text + text
            case "write":
                self.names[name] = File(stat.S_IFREG, 0o644, text)
            case "mkdir":
                self.names[name] = File(stat.S_IFDIR, 0o755)
            case "symlink":
                self.names[name] = File(stat.S_IFLNK, 0o777, str(change.value))
            case "chmod":
                self._written(name).mode = change.mode
            case "link":
                self.names[change.other] = self._written(name)
            case "remove":
                for path in list(self._below(name)):
                    del self.names[path]
            case "rename":
                self._written(name)
                for path in list(self._below(name)):
                    self.names[change.other + path.removeprefix(name)] = self.names.pop(path)

    def _written(self, name: str) -> File:
        """What a name stands for once it lies in the upper: a copy of its own, if it wasn't there."""
        if self.names[name].lower:
            self.names[name] = copy.copy(self.names[name])
            self.names[name].lower = False
        return self.names[name]

    def _below(self, name: str) -> Iterator[str]:
        yield from (path for path in self.names if path == name or path.startswith(f"{name}/"))


def of_the_base() -> Files:
    """What `plant` has made, as a job finds it."""
    first = File(stat.S_IFREG, 0o644, "base\n", lower=True)
    return Files(
        {
            "a": first,
            "b": first,
            "d": File(stat.S_IFDIR, 0o755, lower=True),
            "d/a": File(stat.S_IFREG, 0o600, "below\n", lower=True),
            "d/e": File(stat.S_IFDIR, 0o711, lower=True),
        }
    )


PLANT = "umask 022; mkdir w; cd w; echo base > a; ln a b; mkdir d; echo below > d/a; chmod 600 d/a; mkdir -m 711 d/e"
"""a shell script that makes of an empty place what a base of these tests has"""


def from_tar(stream: bytes) -> dict[str, Entry]:
    """What a copy of ``/w`` shows."""
    found: dict[str, Entry] = {}
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        for member in archive:
            name = member.name.rstrip("/").removeprefix("./").removeprefix("w").lstrip("/")
            if not name:
                continue
            if member.isdir():
                found[name] = Entry(stat.S_IFDIR, member.mode, "")
            elif member.issym():
                found[name] = Entry(stat.S_IFLNK, 0o777, member.linkname)
            elif member.islnk():
                found[name] = found[member.linkname.removeprefix("./").removeprefix("w").lstrip("/")]
            else:
                content = archive.extractfile(member)
                assert content is not None, member
                found[name] = Entry(stat.S_IFREG, member.mode, content.read().decode())
    return found
