"""Bases from a Debian suite: mmdebstrap, with the mirror that the host's own apt uses."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine import tools
from engine.base.source import DebianSource
from engine.errors import HostLacks, InvalidInput

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""the same path on the host and in the base, whose own apt goes on using it"""

_CONTAINED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""mmdebstrap mounts /proc and others into the tree; ended halfway, neither mounts nor processes of it may be left"""

_ROLLING = frozenset({"sid", "unstable", "experimental"})
"""suites that have neither updates nor security updates of their own"""

_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?")

_OF_THE_BUILD = (
    "etc/resolv.conf",
    "etc/hostname",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "var/log/apt/eipp.log.xz",
    "var/lib/dbus/machine-id",
)
"""what mmdebstrap leaves of the host, or of the moment, in the tree"""


def unpack(source: DebianSource, tree: Path, *, timeout: float | None) -> None:
    """Raises InvalidInput for names that can't be right, HostLacks where apt knows no mirror, else ToolFailed."""
    _check(source)
    options = [f"--include={','.join(source.include)}"] if source.include else []
    options += [f"--aptopt={line}" for line in _proxies()]
    lines = _sources(source.suite, _mirrors())
    # The directories above are root's alone, and apt's own unprivileged account couldn't get through.
    options.append('--aptopt=APT::Sandbox::User "root"')
    argv: list[str | os.PathLike[str]] = [
        *_CONTAINED,
        tools.find("mmdebstrap").path,
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        *options,
        source.suite,
    ]
    tools.run([*argv, tree, *lines], timeout=timeout)
    for path in _OF_THE_BUILD:
        (tree / path).unlink(missing_ok=True)


def _check(source: DebianSource) -> None:
    if not _SUITE.fullmatch(source.suite):
        raise InvalidInput(f"{source.suite!r} is no Debian suite", hint="bookworm, trixie, sid ...")
    for package in source.include:
        if not _PACKAGE.fullmatch(package):
            raise InvalidInput(f"{package!r} is no name of a Debian package")


def _mirrors() -> dict[str, str]:
    """``Debian`` and ``Debian-Security`` -> the URI that the host's apt gets them from."""
    columns = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"
    output = tools.run(["apt-get", "indextargets", "--format", columns, "Created-By: Packages"])
    rows = [line.split("\t") for line in output.stdout.decode(errors="replace").splitlines()]
    mirrors: dict[str, str] = {}
    for origin, label, uri in (row for row in rows if len(row) == 3):
        if origin == "Debian" and not uri.startswith("cdrom:"):
            mirrors.setdefault(label, uri)
    if "Debian" not in mirrors:
        raise HostLacks("the host's apt knows no Debian mirror", hint="put one into its sources; run `apt-get update`")
    return mirrors


def _sources(suite: str, mirrors: dict[str, str]) -> list[str]:
    places = [(mirrors["Debian"], suite)]
    if suite not in _ROLLING:
        places.append((mirrors["Debian"], f"{suite}-updates"))
        if "Debian-Security" in mirrors:
            places.append((mirrors["Debian-Security"], f"{suite}-security"))
    return [f"deb [signed-by={KEYRING}] {uri} {name} main" for uri, name in places]


def _proxies() -> list[str]:
    """How the host's apt gets through to its mirror, as lines for apt.conf; not kept in the base."""
    output = tools.run(["apt-config", "dump", "--format", '%f "%v";%n', "Acquire::http", "Acquire::https"])
    lines = output.stdout.decode(errors="replace").splitlines()
    return [line for line in lines if re.match(r"Acquire::https?::(Proxy|CaInfo)\S* \"[^\"]+\";$", line)]
