"""import of an OCI image layout: the image becomes a base, and a snapshot over it, of a job that was never run here and
whose command is the image's.

1 the base, as `engine.lifecycle.bases` builds one, but without a name; 2 the snapshot's one layer, which is empty,
sealed and flushed; 3 COMMIT: its rows, and the snapshot's, which is pinned.

| killed | leaves | put right by |
| --- | --- | --- |
| within 1 | as with a build | as with a build |
| between 1 and 3 | a base that nothing needs | the next import takes it; or ``base rm`` |
| between 2 and 3 | a directory that the catalog doesn't know, a marker in tmp/ too | the sweep |

Of the image's config, ``Entrypoint`` and ``Cmd``, ``Env``, ``WorkingDir``, ``User`` and ``Labels`` are taken; a user's
further groups, ``ExposedPorts``, ``Volumes``, ``StopSignal`` and health checks are not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import msgspec

from engine import base, layers, store
from engine.base import OciConfig, OciSource
from engine.errors import Damaged, InUse, InvalidInput
from engine.lifecycle import bases, flush, run, sessions, trees
from engine.lifecycle.root import NAME, Root, now
from engine.model import Base, Context, JobSpec, Layer, SessionSpec, Snapshot
from engine.steps import step
from engine.tree import Node

ACCOUNTS_MAX = 4 << 20
"""bytes of /etc/passwd or /etc/group"""


def layout(source: str) -> OciSource | None:
    """The image, if it is a layout that is meant."""
    path, tag = base.layout_and_tag(source)
    return OciSource(path=path, tag=tag) if path.is_dir() else None


def import_image(root: Root, source: OciSource) -> Snapshot:
    """Raises InvalidInput, Damaged, ToolMissing, ToolFailed, NoSpace; a base that was new is gone again then."""
    config = base.image_config(source)
    spec = _spec(config)
    known = {entry.digest for entry in root.catalog.bases()}
    built = bases.build(root, None, source)
    try:
        return _import(root, source, built, config, msgspec.structs.replace(spec, base=built.digest))
    except BaseException:
        if built.digest not in known and not root.catalog.base(built.digest).names:
            with contextlib.suppress(InUse):  # another importer has it
                bases.remove(root, built.digest)
        raise


def _spec(config: OciConfig) -> JobSpec:
    """What the image runs, checked as what a caller asks for. ``base`` is still to come."""
    spec = JobSpec(
        base="",
        argv=(*(config.entrypoint or ()), *(config.cmd or ())),
        workdir=config.working_dir or "/",
        labels=config.labels or {},
    )
    try:
        run.check(spec)
    except InvalidInput as error:
        raise Damaged(f"the image's config: {error}", hint=error.hint) from error
    return spec


def _import(root: Root, source: OciSource, built: Base, config: OciConfig, spec: JobSpec) -> Snapshot:
    layer = Layer(id=store.new_id(), created=now())
    name = source.path.resolve().name
    name = name if NAME.fullmatch(name) else "image"
    with trees.opened_base(root, built.digest) as tree:
        first = sessions.main_session(name, spec, built.env, None)
        if first is not None and config.user:
            first = _as_user(tree, first, config.user, built.env, most=root.config.settings.id_count)
        snapshot = Snapshot(
            id=store.new_id(),
            job=store.new_id(),
            name=name,
            spec=spec,
            base=built.digest,
            layers=(layer.id,),
            context=Context(sessions=(first,) if first is not None else (), labels=spec.labels),
            labels=spec.labels,
            created=layer.created,
            pinned=True,
        )
        with root.intent(f"import-{snapshot.id}") as intent:
            try:
                _make_layer(root, layer, snapshot, tree)
                with step("import.commit"), root.catalog.transaction(durable=True) as transaction:
                    root.catalog.base(built.digest)
                    transaction.put_layer(layer)
                    transaction.put_snapshot(snapshot)
            except BaseException:
                store.remove_tree(root.layer(layer.id))
                intent.undone()
                raise
    return snapshot


def _make_layer(root: Root, layer: Layer, snapshot: Snapshot, like: Node) -> None:
    directory = root.layer(layer.id)
    with step("import.layers"):
        layers.create(directory, like=like)
        layers.drop_work(directory)
        layers.seal(directory, snapshot)
        flush.through(root)


def _as_user(tree: Node, first: SessionSpec, user: str, env: Mapping[str, str], *, most: int) -> SessionSpec:
    """The session of a user who has an id below ``most``. Raises InvalidInput."""
    uid, gid, home = _user(tree, user)
    if not (0 <= uid < most and 0 <= gid < most):
        raise InvalidInput(
            f"the image runs as {user[:80]!r}, whom it doesn't know or no job has",
            hint="`serac base build --oci`, then run its command as root",
        )
    at_home = {"HOME": home} if home is not None and "HOME" not in env else {}
    return msgspec.structs.replace(first, uid=uid, gid=gid, env={**first.env, **at_home})


def _user(tree: Node, user: str) -> tuple[int, int, str | None]:
    """User, group and home of ``USER[:GROUP]``, names or numbers, by the image's own /etc/passwd and /etc/group; -1 for
    a name that isn't there. A number need not be."""
    name, _, group = user.partition(":")
    uid, gid, home = _number(name or "0"), 0, None
    for fields in _accounts(tree, b"passwd", 6):
        if (name or "0") in (fields[0], fields[2]) and fields[2].isdecimal() and fields[3].isdecimal():
            uid, gid, home = int(fields[2]), int(fields[3]), fields[5]
            break
    if group:
        ids = (fields[2] for fields in _accounts(tree, b"group", 3) if fields[0] == group)
        gid = _number(next(ids, group))
    return uid, gid, home


def _number(text: str) -> int:
    """-1 where it is none."""
    return int(text) if text.isdecimal() and len(text) < 11 else -1


def _accounts(tree: Node, name: bytes, fields: int) -> Iterator[list[str]]:
    """The lines of a file in /etc that have so many fields, or more; no link is followed."""
    etc = tree.child(b"etc")
    file = etc.child(name) if etc is not None and etc.is_directory else None
    if file is None or not file.is_file or file.size > ACCOUNTS_MAX:
        return
    text = b"".join(file.read(0, file.size))
    for line in text.splitlines():
        parts = os.fsdecode(line).split(":")
        if len(parts) >= fields:
            yield parts
