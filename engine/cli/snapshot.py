"""``serac snapshot``: list, look at, pin and remove what pauses left; what images are good for is in the next room."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from engine.cli import archive, text, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Verbs
from engine.cli.progress import Progress

if TYPE_CHECKING:
    from engine.model import Failure, SessionSpec, Snapshot


def add(verbs: Verbs) -> None:
    family = verbs.family(
        "snapshot", "take, list, show, compare, move and remove snapshots",
        examples="serac snapshot take build\nserac snapshot ls --job build\n"
        "serac snapshot show 4f0c2a91\nserac resume 4f0c2a91 --as second-try",
    )  # fmt: skip
    taken = family.add(
        "take", take, "make a snapshot of a job that runs on",
        more="It has the job's processes; the job stands still for a moment and stacks a new layer on what was sealed.",
        examples="serac snapshot take build --label mr=42",
    )  # fmt: skip
    taken.add_argument("job", metavar="JOB", help="its name or id")
    taken.add_argument("--label", metavar="K=V", type=values.variable, action="append", help="label the snapshot")
    taken.add_argument("--state", metavar="JSON", type=values.json_value, help="a value of your own to keep with it")
    archive.add_options(taken)
    listed = family.add("ls", ls, "list the snapshots", examples="serac snapshot ls --job build")
    listed.add_argument("--job", metavar="J", help="only this job's")
    listed.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    shown = family.add("show", show, "show one snapshot in detail", examples="serac snapshot show 4f0c2a91")
    shown.add_argument("snapshot", metavar="SNAP", help="its id")
    for name, verb, help_text in (("pin", pin, "keep a snapshot when its job goes on"), ("unpin", unpin, "undo a pin")):
        pinned = family.add(
            name, verb, help_text,
            more="A job that is resumed writes on in the layer of its own newest snapshot, which ends with that; "
            "a pinned one stays, and the job stacks a new layer on it.",
            examples=f"serac snapshot {name} 4f0c2a91",
        )  # fmt: skip
        pinned.add_argument("snapshot", metavar="SNAP", help="its id")
    removed = family.add(
        "rm", rm, "remove snapshots",
        more="One that a paused job needs for its resume is refused.", examples="serac snapshot rm 4f0c2a91",
    )  # fmt: skip
    removed.add_argument("snapshots", metavar="SNAP", nargs="+", help="its id")
    archive.add(verbs, family)


def take(args: Namespace, out: Output) -> int:
    state = {} if args.state is None else {"state": args.state}
    with open_engine(args) as engine, Progress(out) as progress:
        result = engine.snapshot_take(
            args.job,
            labels=dict(args.label or ()),
            archive=args.archive,
            ttl=args.ttl,
            durability=args.durability,
            progress=partial(progress, "archive"),
            **state,
        )
    stopped = result.timings["stopped"]
    out.value(result, f"took snapshot {result.snapshot} of {args.job}, which stood still for {stopped:.0f} ms")
    return 0


def ls(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        snapshots = engine.snapshots(args.job)
    if args.quiet:
        out.names([snapshot.id for snapshot in snapshots])
        return 0
    columns = ("SNAPSHOT", "JOB", "MODE", "LAYERS", "CREATED", "LABELS")
    out.table(snapshots, columns, (_row(snapshot) for snapshot in snapshots))
    return 0


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    labels = text.pairs(snapshot.labels)
    created = text.age(snapshot.created)
    return snapshot.id, snapshot.name, snapshot.mode, str(len(snapshot.layers)), created, text.short(labels, 40)


def show(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        snapshot = engine.snapshot(args.snapshot)
    facts = {
        "snapshot": snapshot.id,
        "job": f"{snapshot.name} ({snapshot.job})",
        "mode": f"{snapshot.mode} ({snapshot.reason})" if snapshot.reason else snapshot.mode,
        "base": f"{snapshot.spec.base} ({snapshot.base[:12]})",
        "layers": "\n".join(snapshot.layers),
        "memory": text.size(snapshot.image.memory) if snapshot.image is not None else "",
        "failure": _failure(snapshot.context.failure),
        "asks": snapshot.context.question.reason if snapshot.context.question is not None else "",
        "sessions": "\n".join(map(_session, snapshot.context.sessions)),
        "state": text.json(snapshot.context.state) if snapshot.context.state is not None else "",
        "labels": text.pairs(snapshot.labels),
        "parent": snapshot.parent or "",
        "pinned": "yes" if snapshot.pinned else "",
        "kept until": text.moment(snapshot.expires),
        "archive": snapshot.archive or ("due" if snapshot.due else ""),
        "created": text.moment(snapshot.created),
    }
    out.listing(snapshot, facts)
    return 0


def _failure(failure: Failure | None) -> str:
    if failure is None:
        return ""
    what = "its command" if failure.step is None else f"step {failure.step}"
    return f"{what} ended with status {failure.status}, begun in {failure.workdir}"


def _session(spec: SessionSpec) -> str:
    what = text.shell(spec.argv) or f"steps {', '.join(step.name for step in spec.steps)}"
    done = f" (done: {', '.join(spec.done)})" if spec.done else ""
    return f"{spec.id or 0}: {what}{done} in {spec.workdir}"


def pin(args: Namespace, out: Output) -> int:
    return _pin(args, out, pinned=True)


def unpin(args: Namespace, out: Output) -> int:
    return _pin(args, out, pinned=False)


def _pin(args: Namespace, out: Output, *, pinned: bool) -> int:
    with open_engine(args) as engine:
        snapshot = engine.snapshot_pin(args.snapshot, pinned=pinned)
    out.value(snapshot, f"{'pinned' if pinned else 'unpinned'} {snapshot.id}")
    return 0


def rm(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        out.removed(args.snapshots, engine.snapshot_remove)
    return 0
