"""``serac doctor`` and ``serac completion``: what this host can do, and help for its shells."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from engine.cli.output import Output
from engine.cli.parser import Verbs
from engine.errors import HostLacks

if TYPE_CHECKING:
    from engine.model import Finding


def add(verbs: Verbs) -> None:
    verbs.add(
        "doctor", doctor, "say what this host can do, and the remedy for what is missing",
        more=f"Exits with {HostLacks.status} when something is missing that serac can't do without.",
        examples="serac doctor\nserac doctor --json",
    )  # fmt: skip
    completion = verbs.add(
        "completion", complete, "print completions for a shell",
        examples='eval "$(serac completion bash)"\nserac completion zsh > "${fpath[1]}/_serac"',
    )  # fmt: skip
    completion.add_argument("shell", choices=("bash", "zsh"), help="which shell")


def doctor(args: Namespace, out: Output) -> int:
    from engine import Engine

    findings = Engine.doctor(args.root)
    marks = ["ok" if finding.ok else "missing" if finding.required else "absent" for finding in findings]
    rows = ((mark, finding.name, _found(finding)) for mark, finding in zip(marks, findings, strict=True))
    out.table(findings, ("STATE", "WHAT", "FOUND"), rows)
    return HostLacks.status if "missing" in marks else 0


def _found(finding: Finding) -> str:
    return f"{finding.detail}; remedy: {finding.remedy}" if finding.remedy and not finding.ok else finding.detail


def complete(args: Namespace, out: Output) -> int:
    from engine.cli.completion import script

    text = script(args.shell)
    if out.json:
        out.document({"shell": args.shell, "script": text})
    else:
        out.write(text)
    return 0
