"""``serac snapshot archive`` and what images are good for: verify, diff, flatten, export, import; and ``serac gc``."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from engine.cli import text, values
from engine.cli.files import check_input, check_stream
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.cli.progress import Progress
from engine.errors import Damaged

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.model import FileChange, Job

MARKS = {"added": "A", "deleted": "D", "modified": "M", "attributes": "m", "type": "T"}


def add(verbs: Verbs, snapshots: Verbs) -> None:
    """To the family of snapshots, and beside it."""
    _add_images(snapshots)
    _add_transport(snapshots)
    collected = verbs.add(
        "gc", collect, "remove what the policies give up, and what no job or snapshot needs any more",
        more="Snapshots go whose time has ended (--ttl), or that retention and quota in config.json don't keep, each "
        "with the job that is paused to it; then layers and images that nothing refers to, and directories of layers "
        "that are archived and that no job will write again.",
        examples="serac gc --dry-run\nserac gc",
    )  # fmt: skip
    collected.add_argument(
        "-n", "--dry-run", action="store_true", help="say what would go and what would stay, and why"
    )


def add_options(parser: Parser) -> None:
    """Of a verb that makes a snapshot."""
    parser.add_argument(
        "--ttl", metavar="TIME", type=values.duration,
        help="how long it is kept, 7d for instance (default: as the policies in config.json have it)",
    )  # fmt: skip
    parser.add_argument(
        "--durability", choices=("full", "fast"), default="full",
        help="wait until all of it is on the device, or don't: a host that goes down in the next seconds loses it then",
    )  # fmt: skip
    parser.add_argument(
        "--archive", choices=("background", "wait", "never"), default=None,
        help="make images of the snapshot, which can leave this host, after this verb (background, the default), "
        "within it, or not",
    )  # fmt: skip


def _add_images(snapshots: Verbs) -> None:
    _add_snapshot(snapshots.add(
        "archive", archive, "make images of a snapshot, which can leave this host",
        more="A pause does it in the background, see its --archive. What is an image already is left as it is.",
        examples="serac snapshot archive 4f0c2a91",
    ))  # fmt: skip
    _add_snapshot(snapshots.add(
        "verify", verify, "read every byte of an archived snapshot and compare it with its digests",
        more=f"Exits with {Damaged.status} when something is wrong, and names each file and piece.",
        examples="serac snapshot verify 4f0c2a91",
    ))  # fmt: skip
    _add_snapshot(snapshots.add(
        "flatten", flatten, "make one layer of a snapshot's chain",
        more="It shows the same. Chains that get long are flattened in the background; see depth in config.json.",
        examples="serac snapshot flatten 4f0c2a91",
    ))  # fmt: skip
    compared = snapshots.add(
        "diff", diff, "say what a job changed, or what is different between two snapshots",
        more="A: added, D: deleted, M: modified, m: mode, owner, attributes or time alone, T: of another type. "
        "Contents are compared, not times.",
        examples="serac snapshot diff 4f0c2a91\nserac snapshot diff 4f0c2a91 77aa01bc --tree",
    )  # fmt: skip
    _add_snapshot(compared)
    compared.add_argument("other", metavar="SNAP2", nargs="?", help="compare with this one, not with the base")
    compared.add_argument("--tree", action="store_true", help="show the changes as a tree")


def _add_transport(snapshots: Verbs) -> None:
    exported = snapshots.add(
        "export", export, "write a snapshot to a file, to be imported elsewhere",
        more="It is archived first, if it isn't yet. The file has all of it but the base. Format oci makes an image "
        "layout with the base and the files, in a new directory DIR[:TAG]; podman a checkpoint archive, for tools "
        "that read such.",
        examples="serac snapshot export 4f0c2a91 build.serac\n"
        "serac snapshot export --format oci 4f0c2a91 ./build:v1\n"
        "serac snapshot export --with-base 4f0c2a91 - | ssh host serac snapshot import -",
    )  # fmt: skip
    _add_snapshot(exported)
    exported.add_argument("target", metavar="FILE", help="a file, or - for standard output")
    exported.add_argument("--format", choices=("serac", "oci", "podman"), default="serac", help="default: serac")
    exported.add_argument("--with-base", action="store_true", help="take the base along")
    imported = snapshots.add(
        "import", import_, "take a snapshot that was exported",
        more="Every byte is verified before anything of it is used. It is pinned; `serac resume SNAP` makes a job of "
        "it. An OCI image layout, DIR[:TAG], becomes a base and a snapshot over it. Root restores processes as they "
        "were written: take them only from whom you would let be root here.",
        examples="serac snapshot import build.serac\n"
        "ssh host serac snapshot export 4f0c2a91 - | serac snapshot import -",
    )  # fmt: skip
    imported.add_argument("source", metavar="FILE", help="a file, or - for standard input")
    imported.add_argument(
        "--trust", action="store_true", help="take privileges that it asks for, and device nodes that it has"
    )


def _add_snapshot(parser: Parser) -> None:
    parser.add_argument("snapshot", metavar="SNAP", help="its id")


def archive(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine, Progress(out) as progress:
        snapshot = engine.snapshot_archive(args.snapshot, progress=partial(progress, "archive"))
    out.value(snapshot, f"archived {snapshot.id}: {snapshot.archive}")
    return 0


def verify(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine, Progress(out) as progress:
        snapshot = engine.snapshot(args.snapshot)
        wrong = engine.snapshot_verify(snapshot.id, progress=partial(progress, "verify"))
    report = {"snapshot": snapshot.id, "archive": snapshot.archive, "damaged": wrong}
    out.value(report, "\n".join(wrong) or f"{snapshot.id} is whole")
    return Damaged.status if wrong else 0


def flatten(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        snapshot = engine.snapshot_flatten(args.snapshot)
    out.value(snapshot, f"flattened {snapshot.id}")
    return 0


def diff(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        changes = engine.snapshot_diff(args.snapshot, args.other)
        if out.json:
            out.document(list(changes))
            return 0
        counts: Counter[str] = Counter()
        lines = _tree(changes, counts) if args.tree else (_line(change) for change in _counted(changes, counts))
        for line in lines:
            out.write(text.printable(line))
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    out.note(said or "no difference")
    return 0


def _counted(changes: Iterable[FileChange], counts: Counter[str]) -> Iterator[FileChange]:
    for change in changes:
        counts[change.kind] += 1
        yield change


def _line(change: FileChange) -> str:
    return f"{MARKS[change.kind]} {change.path}{_slash(change)}{_more(change)}"


def _tree(changes: Iterable[FileChange], counts: Counter[str]) -> Iterator[str]:
    """Directories that aren't changed themselves are shown for what is in them."""
    shown: list[str] = []
    for change in _counted(changes, counts):
        *above, name = change.path.strip("/").split("/")
        same = next((at for at, pair in enumerate(zip(above, shown, strict=False)) if pair[0] != pair[1]), len(shown))
        for depth in range(min(same, len(above)), len(above)):
            yield f"  {'  ' * depth}{above[depth]}/"
        shown = [*above, name] if change.type == "directory" else above
        yield f"{MARKS[change.kind]} {'  ' * len(above)}{name}{_slash(change)}{_more(change)}"


def _slash(change: FileChange) -> str:
    return "/" if change.type == "directory" and change.path != "/" else ""


def _more(change: FileChange) -> str:
    sizes = [text.size(count) for count in (change.before, change.after) if count is not None]
    facts = [" -> ".join(dict.fromkeys(sizes)), ", ".join(change.attributes)]
    said = "; ".join(fact for fact in facts if fact)
    return f" ({said})" if said else ""


def export(args: Namespace, out: Output) -> int:
    to_stdout = args.target == "-"
    if to_stdout:
        check_stream(out, "pipe it: serac snapshot export SNAP - | ...")
    with open_engine(args) as engine, Progress(out) as progress, contextlib.ExitStack() as stack:
        target = stack.enter_context(out.stream()) if to_stdout else args.target
        snapshot = engine.snapshot_export(
            args.snapshot, target, format=args.format, with_base=args.with_base, progress=partial(progress, "export")
        )
    if not to_stdout:
        out.value({"snapshot": snapshot.id, "archive": snapshot.archive, "file": args.target}, f"wrote {args.target}")
    return 0


def import_(args: Namespace, out: Output) -> int:
    source = args.source
    if source == "-":
        check_input("pipe it: ... | serac snapshot import -")
        source = sys.stdin.buffer
    with open_engine(args) as engine, Progress(out) as progress:
        snapshot = engine.snapshot_import(source, trust=args.trust, progress=partial(progress, "import"))
    out.value(snapshot, f"imported {snapshot.id} ({snapshot.name}, {snapshot.mode})")
    return 0


def collect(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        kept = [verdict for verdict in engine.verdicts() if verdict.keep] if args.dry_run else []
        found = engine.collect(dry_run=args.dry_run)
    said = "would remove" if args.dry_run else "removed"
    lines = [f"would keep snapshot {verdict.snapshot}: {verdict.reason}" for verdict in kept]
    lines += [f"{said} {entry.kind} {entry.id[:12]}: {entry.reason}" for entry in found]
    if not found:
        lines.append("nothing to remove")
    out.value({"removed": found, **({"kept": kept} if args.dry_run else {})}, "\n".join(lines))
    return 0


def states(engine: Engine, jobs: Iterable[Job]) -> dict[str, dict[str, object]]:
    """By job: how far the archive of the snapshot is that it is paused to."""
    snapshots = {snapshot.id: snapshot for snapshot in engine.snapshots()}
    under_way = engine.archiving()
    found = {}
    for job in jobs:
        snapshot = snapshots.get(job.snapshot or "")
        if snapshot is None:
            continue
        done, total = under_way.get(snapshot.id, (0, 0))
        state = "archiving" if snapshot.id in under_way else "due" if snapshot.due else "none"
        found[job.id] = {"state": "archived" if snapshot.archive else state, "done": done, "total": total}
    return found


def state_text(state: dict[str, object] | None) -> str:
    """``archived``, ``42 %``, ``due`` ..."""
    if state is None or state["state"] == "none":
        return ""
    done, total = int(str(state["done"])), int(str(state["total"]))
    if state["state"] != "archiving":
        return str(state["state"])
    return f"{done * 100 // total} %" if total else text.size(done)
