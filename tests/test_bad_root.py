"""What can be wrong with a root or a host: each is one clear line and a remedy, with an exit status and an exception
of its own, the same through the command and the library; and it changes nothing.

serac runs in a child process here: without rights, over filesystems that are mounted for it alone, with tools hidden
from it. The scripts run in a mount namespace of their own and execute what they are given."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import leftovers
import pytest
from roots import on_disk

from engine import Engine
from engine.errors import BadRoot, Damaged, InvalidInput, NotPrivileged, SeracError, ToolMissing

pytestmark = pytest.mark.root

LIBRARY = """
import json, sys
from pathlib import Path
from engine import Engine, JobSpec
from engine.base import DebianSource, DirSource, OciSource
from engine.errors import SeracError
try:
    with Engine(sys.argv[1]) as engine:
        {call}
except SeracError as error:
    print(json.dumps([type(error).__name__, error.status, str(error), error.hint]))
"""
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")


def alone(script: str) -> tuple[str, ...]:
    """Run the rest in a mount namespace of its own, after a script; ``$ROOT`` is the root."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh")


def hidden(*programs: str) -> tuple[str, ...]:
    """Programs that aren't there; a device is nothing that can be executed."""
    places = ("/usr/local/lib/serac/bin", "/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin")
    paths = " ".join(f"{place}/{program}" for program in programs for place in places)
    return alone(f'for path in {paths}; do test ! -e "$path" || mount --bind /dev/null "$path"; done')


class Trouble(NamedTuple):
    error: type[SeracError]
    said: str
    """a part of the line"""
    before: tuple[str, ...] = ()
    """the words that the command and the library are run with"""
    make: Callable[[Path], object] | None = None
    """spoils a root that works"""
    below: str = ""
    """of the root: what is opened"""
    words: str = "ps"
    call: str = "pass"


def config(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "config.json").write_text(text)


def as_directory(root: Path) -> None:
    (root / "config.json").unlink()
    (root / "config.json").mkdir()


def damage(root: Path) -> None:
    with open(root / "catalog.sqlite", "r+b") as file:
        file.write(b"this is no database at all" * 40)


def renew(root: Path) -> None:
    with sqlite3.connect(root / "catalog.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def spoil_a_document(root: Path) -> None:
    with sqlite3.connect(root / "catalog.sqlite") as connection:
        connection.execute("UPDATE base SET document = 'x'")
    connection.close()


ON_OVERLAY = """
mkdir "$ROOT/../o"
mount -t tmpfs o "$ROOT/../o"
mkdir "$ROOT/../o/upper" "$ROOT/../o/work"
mount -t overlay -o lowerdir="$ROOT,upperdir=$ROOT/../o/upper,workdir=$ROOT/../o/work" o "$ROOT"
umount --lazy "$ROOT/../o"
rmdir "$ROOT/../o"
"""
TROUBLES = {
    "no rights": Trouble(NotPrivileged, "ermission denied", before=NOBODY),
    "no rights for a new root": Trouble(NotPrivileged, "needs root rights", before=NOBODY, below="/nosuch/root"),
    "a new root on an overlay": Trouble(BadRoot, "overlay", before=alone(ON_OVERLAY), below="new"),
    "a new root on proc": Trouble(BadRoot, "proc", before=alone('mount -t proc p "$ROOT"'), below="new"),
    "a new root on sysfs": Trouble(BadRoot, "sysfs", before=alone('mount -t sysfs s "$ROOT"'), below="new"),
    "a new root on ramfs": Trouble(BadRoot, "ramfs", before=alone('mount -t ramfs r "$ROOT"'), below="new"),
    "a new root that can't be written": Trouble(
        BadRoot, "read-only", before=alone('mount --bind -o ro "$ROOT" "$ROOT"'), below="new"
    ),
    "a root that can't be written any more": Trouble(
        BadRoot, "read-only", before=alone('mount --bind -o ro "$ROOT" "$ROOT"')
    ),
    "a root that is a file": Trouble(BadRoot, "not a directory", below="catalog.sqlite"),
    "a root below a file": Trouble(BadRoot, "not a directory", below="catalog.sqlite/new"),
    "a cut config.json": Trouble(InvalidInput, "config.json", make=config('{"subnet": "10.')),
    "an unknown setting": Trouble(InvalidInput, "nosuch", make=config('{"nosuch": 1}')),
    "a setting of the wrong type": Trouble(InvalidInput, "dns", make=config('{"dns": "10.0.0.1"}')),
    "a config.json that is no text": Trouble(
        InvalidInput, "config.json", make=config("\udcff".encode("utf-8", "surrogateescape").decode("latin1"))
    ),
    "a config.json that is a directory": Trouble(InvalidInput, "config.json", make=as_directory),
    "a subnet that can't be": Trouble(
        InvalidInput,
        "subnet",
        make=config('{"subnet": "8.8.8.0/24"}'),
        words="run --net bridge -- true",
        call="engine.run(JobSpec(base='small', argv=('true',), net='bridge'))",
    ),
    "a damaged catalog": Trouble(Damaged, "catalog.sqlite", make=damage),
    "a catalog of a newer serac": Trouble(Damaged, "newer", make=renew),
    "a damaged row": Trouble(Damaged, "catalog.sqlite", make=spoil_a_document, words="base ls", call="engine.bases()"),
    "no mmdebstrap": Trouble(
        ToolMissing,
        "mmdebstrap",
        before=hidden("mmdebstrap"),
        words="base build x --debian bookworm",
        call="engine.base_build('x', DebianSource(suite='bookworm'))",
    ),
    "no nft": Trouble(
        ToolMissing,
        "nft",
        before=hidden("nft"),
        words="run --net bridge -- true",
        call="engine.run(JobSpec(base='small', argv=('true',), net='bridge'))",
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_told_and_changes_nothing(engine: Engine, name: str) -> None:
    trouble, root = TROUBLES[name], engine.config.root
    engine.close()
    kept = {path.name: path.read_bytes() for path in root.glob("catalog*")}
    try:
        if trouble.make is not None:
            trouble.make(root)
        place = os.fspath(root / trouble.below)
        host, disk = leftovers.count(), on_disk(root)
        command = run(root, trouble, "-m", "engine.cli", "--root", place, *trouble.words.split())
        library = run(root, trouble, "-c", LIBRARY.format(call=trouble.call), place)
        assert leftovers.difference(host, leftovers.settled(host)) == []
        assert on_disk(root) == disk
    finally:
        restore(root, kept)
    assert library.returncode == 0, library.stderr
    kind, status, message, hint = json.loads(library.stdout)
    assert (kind, status) == (trouble.error.__name__, trouble.error.status), message
    assert trouble.said in message
    assert hint
    assert "\n" not in message + hint
    assert (command.returncode, command.stdout) == (status, "")
    assert command.stderr.splitlines() == [f"serac: {message}", f"hint: {hint}"]


def run(root: Path, trouble: Trouble, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*trouble.before, sys.executable, *arguments]
    environment = {**os.environ, "ROOT": os.fspath(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def restore(root: Path, kept: dict[str, bytes]) -> None:
    """As the root was before it was spoilt, so that it can be emptied."""
    for path in (*root.glob("catalog*"), *root.glob("config.json")):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in kept.items():
        (root / name).write_bytes(content)
