"""The catalog: which bases, layers, jobs and snapshots there are. SQLite in WAL mode, one JSON document a row.

The catalog may lag behind the disk, never lead it. `Catalog.transaction` is the only way to write; with
``durable=True`` it returns when the commit is on the device, else a power cut may take back the last commits
(whole, in order), which is enough for intents: a power cut takes the processes with it.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.errors import BadRoot, Busy, Damaged, NameTaken, NoSpace, NotFound, SeracError
from engine.model import Base, Job, Layer, Snapshot, Value

VERSION = 1
_SCHEMA = """
CREATE TABLE base     (id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tag      (name TEXT PRIMARY KEY, base TEXT NOT NULL REFERENCES base(id)) WITHOUT ROWID;
CREATE TABLE layer    (id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE job      (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, document BLOB NOT NULL)
                      WITHOUT ROWID;
CREATE TABLE snapshot (id TEXT PRIMARY KEY, job TEXT NOT NULL, document BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_BUSY_TIMEOUT = 30.0
"""seconds a writer waits for another one; every transaction is a few rows"""

_IDLE_MAX = 4
"""connections kept for the next one who asks"""

BEGINNING_MIN = 4
"""characters of an id that stand for it: the name of a job that is gone, ``a`` say, must not mean another job"""

Document = TypeVar("Document", bound=Value)

_File = tuple[int, int] | None
"""device and inode of a catalog's file, None = it wasn't there"""


class Catalog:
    """One catalog file. Every method may be called from any thread.

    Within a `transaction` reads see what it has written, and nobody else can write: what is decided on what was read
    there still holds when it is committed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[tuple[sqlite3.Connection, _File]] = []
        self._process = os.getpid()
        self._guard = threading.Lock()
        self._current: contextvars.ContextVar[sqlite3.Connection | None] = contextvars.ContextVar(
            "current", default=None
        )
        with _translated(path), self._borrowed() as connection:
            _prepare(connection, path)

    def close(self) -> None:
        with self._guard:
            while self._idle:
                self._idle.pop()[0].close()

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Transaction]:
        """All of it or nothing. Raises NoSpace, Busy, Damaged; the block's own exceptions roll it back."""
        with _translated(self._path), self._borrowed() as connection:
            token = None
            try:
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE")
                token = self._current.set(connection)
                yield Transaction(connection)
                connection.execute("COMMIT")
            finally:
                if token is not None:
                    self._current.reset(token)
                if connection.in_transaction:
                    connection.rollback()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """The transaction's connection inside of one, else an idle or a new one, for this thread alone."""
        current = self._current.get()
        if current is not None:
            yield current
            return
        connection, file = self._take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._guard:
            if len(self._idle) < _IDLE_MAX:
                self._idle.append((connection, file))
                return
        connection.close()

    def _take(self) -> tuple[sqlite3.Connection, _File]:
        file = _file(self._path)
        with self._guard:
            if self._process != os.getpid():
                # SQLite's connections don't survive a fork(2) of the host program; not even closing them is allowed.
                _forked_away.extend(connection for connection, _ in self._idle)
                self._idle.clear()
                self._process = os.getpid()
            while self._idle:
                connection, connected = self._idle.pop()
                if connected == file:
                    return connection, file
                connection.close()  # the catalog has been rebuilt since
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection, file

    def jobs(self, *, naming: str | None = None) -> list[Job]:
        """All, or those that name an id (of a layer, say) anywhere; the others aren't even decoded."""
        return self._naming("job", naming, Job)

    def jobs_in(self, *states: str) -> list[Job]:
        marks = ",".join("?" * len(states))
        return self._all(f"SELECT document FROM job WHERE state IN ({marks})", states, Job)

    def job(self, ref: str) -> Job:
        """By id, by name or by an unambiguous beginning of the id. Raises NotFound."""
        named = self._all("SELECT document FROM job WHERE name = ?1 OR id = ?1", (ref,), Job)  # no name is another's id
        return named[0] if named else self._by_id("job", ref, Job)

    def job_with(self, job_id: str) -> Job:
        """By its whole id, never by name. Raises NotFound."""
        found = self._all("SELECT document FROM job WHERE id = ?", (job_id,), Job)
        if not found:
            raise NotFound(f"no job {job_id}")
        return found[0]

    def snapshots(self, *, naming: str | None = None) -> list[Snapshot]:
        """As `jobs`."""
        return self._naming("snapshot", naming, Snapshot)

    def snapshot(self, ref: str) -> Snapshot:
        """By id or an unambiguous beginning of it. Raises NotFound."""
        return self._by_id("snapshot", ref, Snapshot)

    def layers(self, ids: Collection[str] | None = None) -> list[Layer]:
        """All, or those of ``ids`` that there are."""
        if ids is None:
            return self._all("SELECT document FROM layer", (), Layer)
        marks = ",".join("?" * len(ids))
        return self._all(f"SELECT document FROM layer WHERE id IN ({marks})", tuple(ids), Layer)

    def chain(self, ids: Sequence[str]) -> list[Layer]:
        """The layers of these ids, in their order. Raises NotFound."""
        found = {layer.id: layer for layer in self.layers(ids)}
        missing = [layer for layer in ids if layer not in found]
        if missing:
            raise NotFound(f"layer {missing[0]} was removed meanwhile")
        return [found[layer] for layer in ids]

    def bases(self) -> list[Base]:
        """With their names filled in from the tags."""
        return [self._named(base) for base in self._all("SELECT document FROM base", (), Base)]

    def base(self, ref: str) -> Base:
        """By name, digest or an unambiguous beginning of the digest. Raises NotFound."""
        query = "SELECT document FROM base JOIN tag ON base.id = tag.base WHERE tag.name = ?"
        named = self._all(query, (ref,), Base)
        return self._named(named[0] if named else self._by_id("base", ref, Base))

    def _named(self, base: Base) -> Base:
        rows = self._rows("SELECT name FROM tag WHERE base = ? ORDER BY name", (base.digest,))
        return msgspec.structs.replace(base, names=tuple(name for (name,) in rows))

    def _by_id(self, table: str, ref: str, kind: type[Document]) -> Document:
        # A range instead of LIKE: uses the index, and nothing in `ref` is a wildcard.
        query = f"SELECT document FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        found = self._all(query, (ref, ref + "\U0010ffff"), kind) if len(ref) >= BEGINNING_MIN else []
        if len(found) == 1 or (found and _identity(found[0]) == ref):
            return found[0]
        if found:
            raise NotFound(f"{table} {ref} is ambiguous", hint="give more of its id")
        raise NotFound(f"no {table} {ref}")

    def _naming(self, table: str, naming: str | None, kind: type[Document]) -> list[Document]:
        if naming is None:
            return self._all(f"SELECT document FROM {table}", (), kind)
        return self._all(f"SELECT document FROM {table} WHERE instr(document, ?)", (naming.encode(),), kind)

    def _all(self, query: str, values: tuple[str | bytes, ...], kind: type[Document]) -> list[Document]:
        with _translated(self._path):
            return [msgspec.json.decode(document, type=kind) for (document,) in self._rows(query, values)]

    def _rows(self, query: str, values: tuple[str | bytes, ...]) -> list[Any]:
        try:
            with _translated(self._path), self._borrowed() as connection:
                return connection.execute(query, values).fetchall()
        except UnicodeEncodeError as error:
            raise NotFound(f"nothing is called {error.object!r}: that is no UTF-8") from error


_forked_away: list[sqlite3.Connection] = []


def trouble(path: Path) -> str | None:
    """Why a catalog can't be used, None = it can. Reads all of it. Raises Damaged for a newer serac's."""
    if not path.exists():
        return f"{path} is missing"
    try:
        catalog = Catalog(path)
        with contextlib.closing(catalog), _translated(path), catalog._borrowed() as connection:
            found = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            if found:
                return f"{path}: {found[0]}"
            _ = catalog.bases(), catalog.layers(), catalog.snapshots(), catalog.jobs()
    except Damaged as error:
        if _is_newer(path):
            raise
        return str(error)
    return None


def _is_newer(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError:
        return False
    return bool(version > VERSION)


def _file(path: Path) -> _File:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    if version > VERSION:
        raise Damaged(f"{path} was written by a newer serac (format {version})", hint="upgrade serac")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
    connection.execute("COMMIT")


class Transaction:
    """Writes within `Catalog.transaction`. Reads through the catalog see them in the same thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add_job(self, job: Job) -> None:
        """Raises NameTaken."""
        try:
            self._write("INSERT INTO job VALUES (?, ?, ?, ?)", job.id, job.name, job.state, _encode(job))
        except sqlite3.IntegrityError as error:
            raise NameTaken(f"there is a job {job.name} already") from error

    def put_job(self, job: Job) -> None:
        self._write("UPDATE job SET state = ?, document = ? WHERE id = ?", job.state, _encode(job), job.id)

    def put_layer(self, layer: Layer) -> None:
        self._write("INSERT OR REPLACE INTO layer VALUES (?, ?)", layer.id, _encode(layer))

    def put_snapshot(self, snapshot: Snapshot) -> None:
        self._write("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", snapshot.id, snapshot.job, _encode(snapshot))

    def put_base(self, base: Base) -> None:
        bare = msgspec.structs.replace(base, names=())
        self._write("INSERT OR REPLACE INTO base VALUES (?, ?)", base.digest, _encode(bare))

    def put_tag(self, name: str, digest: str) -> None:
        self._write("INSERT OR REPLACE INTO tag VALUES (?, ?)", name, digest)

    def remove_job(self, job_id: str) -> None:
        self._write("DELETE FROM job WHERE id = ?", job_id)

    def remove_layer(self, layer_id: str) -> None:
        self._write("DELETE FROM layer WHERE id = ?", layer_id)

    def remove_snapshot(self, snapshot_id: str) -> None:
        self._write("DELETE FROM snapshot WHERE id = ?", snapshot_id)

    def remove_tag(self, name: str) -> None:
        self._write("DELETE FROM tag WHERE name = ?", name)

    def remove_base(self, digest: str) -> None:
        self._write("DELETE FROM tag WHERE base = ?", digest)
        self._write("DELETE FROM base WHERE id = ?", digest)

    def _write(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement, values)


def _identity(document: Value) -> str:
    return str(getattr(document, "digest", None) or getattr(document, "id", ""))


def _encode(document: Value) -> bytes:
    return msgspec.json.encode(document)


_MAPPED = 32 << 10
"""bytes of the catalog's index"""
_ROOM = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
"""what SQLite also says when it has no room for the two files that it makes beside the catalog"""


def _full(path: Path) -> bool:
    """Whether the disk has no room for them."""
    with contextlib.suppress(OSError):
        room = os.statvfs(path.parent)
        return room.f_bavail * room.f_frsize < _MAPPED or not room.f_favail
    return False


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        message = f"{path}: {error}"
        kind = error.sqlite_errorcode & 0xFF
        if kind == sqlite3.SQLITE_FULL or (kind in _ROOM and _full(path)):
            raise NoSpace(message) from error
        if kind == sqlite3.SQLITE_IOERR:
            raise SeracError(message, hint="its disk fails: the kernel's log says how") from error
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Busy(message) from error
        if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise BadRoot(message, hint="the root directory must be writable") from error
        raise Damaged(message, hint="is it a serac root, and writable?") from error
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        raise Damaged(
            f"{path}: {error}", hint="`serac check --repair` makes it anew from what lies on the disk"
        ) from error
