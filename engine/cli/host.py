"""``serac doctor``, ``check`` and ``completion``: what this host can do, how a root is, and help for shells."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from engine.cli.output import Output
from engine.cli.parser import Verbs
from engine.errors import Damaged, HostLacks

if TYPE_CHECKING:
    from engine.model import Finding, Violation


def add(verbs: Verbs) -> None:
    verbs.add(
        "doctor", doctor, "say what this host can do, and the remedy for what is missing",
        more=f"Exits with {HostLacks.status} when something is missing that serac can't do without.",
        examples="serac doctor\nserac doctor --json",
    )  # fmt: skip
    checked = verbs.add(
        "check", check, "say whether all of a root is as it must be",
        more="Looks at every row, directory, image, mount and control group of the root, and changes nothing. Exits "
        f"with {Damaged.status} when something is wrong. With --repair all is put right that can be without losing "
        "anything: what engines that were killed have left, records, and a catalog that is missing or damaged, which "
        "is made anew from what lies on the disk; what has no place in it goes to lost/ in the root. To read all bytes "
        "is the work of `snapshot verify`.",
        examples="serac check\nserac check --repair",
    )  # fmt: skip
    checked.add_argument("--repair", action="store_true", help="put right what can be")
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


def check(args: Namespace, out: Output) -> int:
    from engine import Engine

    found = Engine.check(args.root, repair=args.repair, timeout=args.timeout)
    lines = [f"repaired: {line}" for line in found.repaired]
    lines += [f"{entry.subject}: {entry.what}{_remedy(entry)}" for entry in found.violations]
    lines += [f"not looked at: {line}" for line in found.unseen]
    out.value(found, "\n".join(lines) or "all is as it must be")
    return Damaged.status if found.violations else 0


def _remedy(violation: Violation) -> str:
    return " (--repair puts it right)" if violation.mends else ""


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
