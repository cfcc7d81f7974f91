"""``serac base``: build, list, look at, warm and remove the images that jobs run over."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import text, values
from engine.cli.opening import open_engine
from engine.cli.output import Output
from engine.cli.parser import Parser, Verbs
from engine.cli.progress import Progress
from engine.errors import InvalidInput
from engine.model import JobSpec

if TYPE_CHECKING:
    from engine.base import Source
    from engine.model import Base, SnapshotSource


def add(verbs: Verbs) -> None:
    family = verbs.family(
        "base",
        "build, list, warm and remove bases",
        examples="serac base build debian --debian bookworm --include git,gcc,make\n"
        "serac base ls\nserac base warm debian",
    )
    _add_build(family)
    listed = family.add("ls", ls, "list the bases", examples="serac base ls\nserac base ls --json")
    listed.add_argument("-q", "--quiet", action="store_true", help="print names only")
    shown = family.add("show", show, "show one base in detail", examples="serac base show debian")
    _add_reference(shown)
    _add_warming(family)
    removed = family.add(
        "rm", rm, "remove a base's name, and its image with the last name",
        more="A base that a job or a snapshot needs is refused.", examples="serac base rm debian",
    )  # fmt: skip
    removed.add_argument("bases", nargs="+", metavar="BASE", help="a name or a digest")


def _add_warming(family: Verbs) -> None:
    profiled = family.add(
        "profile", profile, "note what a command reads of a base, for `base warm`",
        more="Runs it in a job on the base, of which nothing is in memory then. No other job may be on the base.",
        examples="serac base profile debian -- sh -c 'git --version && gcc --version'",
        usage="serac base profile [OPTIONS] BASE -- CMD [ARG ...]",
    )  # fmt: skip
    _add_reference(profiled)
    warmed = family.add(
        "warm", warm, "bring a base into the page cache, so that jobs start fast",
        more="What `base profile` has noted of it, or all of it where nothing was noted.",
        examples="serac base warm debian",
    )  # fmt: skip
    _add_reference(warmed)
    warmed.add_argument("--whole", action="store_true", help="all of it, whatever was noted")


def _add_build(family: Verbs) -> None:
    parser = family.add(
        "build", build, "build a base and give it a name",
        more="The same content is stored once, whatever its names are; a name that exists moves to the new base.",
        examples="serac base build debian --debian bookworm --include git,gcc,make\n"
        "serac base build app --oci ./layout:latest\n"
        "serac base build mine --tar rootfs.tar\n"
        "serac base build ready --snapshot 4f0c2a91",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the base's name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--debian", metavar="SUITE", help="a fresh Debian: bookworm, trixie ...")
    source.add_argument("--tar", metavar="FILE", help="a root filesystem as a tar file")
    source.add_argument("--oci", metavar="DIR[:TAG]", help="an OCI image layout")
    source.add_argument("--dir", metavar="DIR", help="a directory that holds a root filesystem")
    source.add_argument("--snapshot", metavar="SNAP", help="what a job had when it was paused")
    parser.add_argument("--include", metavar="P,P", type=values.words, help="with --debian: more packages")


def _add_reference(parser: Parser) -> None:
    parser.add_argument("base", metavar="BASE", help="a name or a digest")


def build(args: Namespace, out: Output) -> int:
    source = _source(args)
    with open_engine(args) as engine, Progress(out) as progress:
        base = engine.base_build(args.name, source, progress=progress)
    out.value(base, f"{args.name}: {base.digest}, {text.size(base.size)}")
    return 0


def _source(args: Namespace) -> Source | SnapshotSource:
    """Exactly one of the options is set, argparse saw to it."""
    from engine.base import DebianSource, DirSource, OciSource, TarSource, layout_and_tag
    from engine.model import SnapshotSource

    if args.include and not args.debian:
        raise InvalidInput("--include goes with --debian only", hint="see `serac base build --help`")
    if args.debian:
        return DebianSource(suite=args.debian, include=args.include or ())
    if args.tar:
        return TarSource(path=Path(args.tar))
    if args.dir:
        return DirSource(path=Path(args.dir))
    if args.oci:
        path, tag = layout_and_tag(args.oci)
        return OciSource(path=path, tag=tag)
    return SnapshotSource(snapshot=args.snapshot)


def ls(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        bases = engine.bases()
    if args.quiet:
        out.names([name for base in bases for name in base.names or (base.digest,)])
        return 0
    columns = ("NAME", "DIGEST", "SIZE", "SOURCE", "CREATED")
    out.table(bases, columns, (_row(base) for base in bases))
    return 0


def _row(base: Base) -> tuple[str, ...]:
    names = ",".join(base.names)
    return names, base.digest[:12], text.size(base.size), base.source, text.age(base.created)


def show(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        base = engine.base(args.base)
    facts = {
        "names": ", ".join(base.names),
        "digest": base.digest,
        "size": text.size(base.size),
        "source": base.source,
        "created": text.moment(base.created),
        "environment": "\n".join(f"{key}={value}" for key, value in base.env.items()),
    }
    out.listing(base, facts)
    return 0


def profile(args: Namespace, out: Output) -> int:
    if not args.command:
        raise InvalidInput("no command", hint="it comes after `--`: serac base profile BASE -- CMD")
    with open_engine(args) as engine:
        noted = engine.base_profile(JobSpec(base=args.base, argv=tuple(args.command)))
        whole = engine.base(args.base).size
    out.value(noted, f"{args.base}: {text.size(noted.size)} of {text.size(whole)} are read")
    return 0


def warm(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        warmth = engine.base_warm(args.base, whole=args.whole)
    before, after, whole = (text.size(n) for n in (warmth.cached_before, warmth.cached_after, warmth.size))
    out.value(warmth, f"{args.base}: {after} of {whole} in memory, {before} before")
    return 0


def rm(args: Namespace, out: Output) -> int:
    with open_engine(args) as engine:
        out.removed(args.bases, engine.base_remove)
    return 0
