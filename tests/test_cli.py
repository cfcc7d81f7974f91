"""The command line without an engine: how it is parsed, what it prints, how it fails, what it imports."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli import terminal, text, values
from engine.cli.output import Output, complete
from engine.cli.parser import Parser, build, parse, split
from engine.errors import InvalidInput
from engine.model import Limits, PauseResult, Step

VERBS = {
    "base build", "base ls", "base show", "base profile",
    "base warm", "base rm", "run", "ps", "show", "logs", "exec", "attach", "cp",
    "pause", "freeze", "thaw", "prefetch", "resume", "answer", "stop", "rm",
    "snapshot take", "snapshot ls", "snapshot show", "snapshot rm",
    "snapshot pin", "snapshot unpin", "snapshot archive", "snapshot verify", "snapshot diff", "snapshot flatten",
    "snapshot export", "snapshot import", "gc", "check", "events", "supervise", "bench", "doctor", "completion",
}  # fmt: skip

SERAC = (sys.executable, "-m", "engine.cli")


def serac(*words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = (*SERAC, *words)
    return subprocess.run(command, check=False, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


def subparsers(parser: Parser) -> Iterator[tuple[str, Parser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def leaves(parser: Parser, prefix: str = "") -> Iterator[tuple[str, Parser]]:
    """Every verb with the parser that it has, families resolved."""
    for name, sub in subparsers(parser):
        below = list(leaves(sub, f"{prefix}{name} "))
        yield from below or [(f"{prefix}{name}", sub)]


def examples() -> list[str]:
    """Each line in the help texts that begins with our name, without what the shell does with its output."""
    parsers = [build(), *(sub for _, sub in subparsers(build())), *(sub for _, sub in leaves(build()))]
    lines = [line.strip() for parser in parsers for line in (parser.epilog or "").splitlines()]
    commands = [part.strip() for line in lines for part in line.replace("$(", "|").replace(")", "|").split("|")]
    return sorted({command.split(" > ")[0] for command in commands if command.startswith("serac ")})


def test_verbs_are_the_ones_of_the_contract() -> None:
    assert {name for name, _ in leaves(build())} == VERBS


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_explains_itself(name: str) -> None:
    parser = dict(leaves(build()))[name]
    assert parser.description
    assert parser.epilog is not None
    assert f"serac {name}" in parser.epilog
    assert "--json" in parser.format_help()


@pytest.mark.parametrize("command", examples())
def test_examples_in_help_parse(command: str) -> None:
    args = parse(shlex.split(command)[1:])
    assert callable(args.run)


@pytest.mark.parametrize(
    "words",
    [
        "run --base B --name J --env K=V --workdir /d --net bridge --userns host --label K=V --tty --detach",
        "run --memory 2G --cpus 1.5 --pids 9 --step a=b --step c=d",
        "run -- make -j2",
        "exec -t -d -e K=V -w /d J -- CMD --json -- x",
        "base build N --debian bookworm --include git,gcc",
        "base build N --oci DIR:TAG",
        "pause J --mode filesystem --archive wait --label K=V --state {}",
        "snapshot take J --archive never",
        "snapshot diff S",
        "snapshot diff S T --tree",
        "snapshot export S FILE --with-base",
        "snapshot import FILE --trust",
        "gc --dry-run",
        "events -f --since 10m",
        "supervise --once --dry-run --interval 1m",
        "supervise --unit",
        "bench B --mode both --rounds 30 --cold --json -- CMD",
        "run --pause-after 1h -- CMD",
        "resume S --as NAME",
        "stop --grace 3 J",
        "rm --force J K",
        "logs -f J 3",
        "attach J 3",
        "cp - J:/x",
        "--root /x --json --timeout 5 -v ps --all",
        "ps --all --root /x --json --timeout 5 -v",
    ],
)
def test_contract_forms_parse(words: str) -> None:
    assert callable(parse(words.split()).run)


def test_globals_before_and_after_the_verb() -> None:
    before, after = parse(["--root", "/a", "--timeout", "5", "ps"]), parse(["ps", "--root", "/a", "--timeout", "5"])
    assert (before.root, before.timeout, before.json) == (after.root, after.timeout, after.json) == ("/a", 5.0, False)
    assert parse(["--json", "ps"]).json
    assert parse(["--root", "/a", "ps", "--root", "/b"]).root == "/b"


@pytest.mark.parametrize(
    ("words", "head", "command"),
    [
        (["ps"], ["ps"], None),
        (["run", "--"], ["run"], []),
        (["exec", "j", "--", "a", "--", "--json"], ["exec", "j"], ["a", "--", "--json"]),
    ],
)
def test_split(words: list[str], head: list[str], command: list[str] | None) -> None:
    assert split(words) == (head, command)


def test_command_reaches_the_verb_untouched() -> None:
    assert parse(["exec", "j", "--", "sh", "-c", "echo --json", "--", ""]).command == [
        "sh",
        "-c",
        "echo --json",
        "--",
        "",
    ]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("", "required: VERB", "serac --help"),
        ("nonsense", "invalid choice", "serac --help"),
        ("base build x", "one of the arguments --debian", "serac base build --help"),
        ("base build x --tar a --dir b", "not allowed with", "serac base build --help"),
        ("ps -- ls", "takes no command", "serac ps --help"),
        ("exec j ls", "unrecognized arguments: ls", "a command comes after `--`"),
        ("run --memory 9Q", "--memory", "serac run --help"),
        ("run --memory 1", "out of range", "serac run --help"),
        ("run --cpus 0", "out of range", "serac run --help"),
        ("run --cpus nan", "no number", "serac run --help"),
        ("run --pids 0", "out of range", "serac run --help"),
        ("run --pids 99999999", "out of range", "serac run --help"),
        ("run --env =x", "KEY=VALUE", "serac run --help"),
        ("run --env x", "KEY=VALUE", "serac run --help"),
        ("run --step x", "NAME=SCRIPT", "serac run --help"),
        ("run --net wifi", "invalid choice", "serac run --help"),
        ("run --detach-keys f13", "no key", "serac run --help"),
        ("run --nam x", "unrecognized", "serac run --help"),
        ("pause j --state {", "no JSON", "serac pause --help"),
        ("pause j --mode warm", "invalid choice", "serac pause --help"),
        ("logs j -1", "no session's number", "serac logs --help"),
        ("--timeout soon ps", "no time", "serac --help"),
    ],
)
def test_wrong_usage(words: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(words.split())
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_wrong_usage_from_outside() -> None:
    done = serac("run", "--memory", "9Q")
    assert done.returncode == InvalidInput.status
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines == [
        "serac: argument --memory: '9Q' is no size (examples: 512M, 2G, 1073741824)",
        "hint: see `serac run --help`",
    ]


def test_wrong_usage_as_json() -> None:
    done = serac("run", "--json", "--memory", "9Q")
    assert done.returncode == InvalidInput.status
    assert done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["status"]) == ("invalid-input", 200)
    assert "9Q" in error["message"]
    assert error["hint"] == "see `serac run --help`"


def test_json_inside_the_command_is_not_ours() -> None:
    done = serac("ps", "--", "--json")
    assert done.returncode == InvalidInput.status
    assert done.stderr.startswith("serac: ")


def test_run_refuses_steps_and_a_command() -> None:
    done = serac("run", "--step", "a=b", "--", "true")
    assert (done.returncode, done.stderr.splitlines()[0]) == (200, "serac: a job has steps or a command, not both")


@pytest.mark.parametrize("words", [["a", "b"], ["j:/a", "k:/b"]])
def test_cp_wants_one_side_in_a_job(words: list[str]) -> None:
    assert "one side must be in a job" in serac("cp", *words).stderr


def test_cp_wants_an_absolute_path() -> None:
    done = serac("cp", "job:etc/passwd", ".")
    assert (done.returncode, "must be absolute" in done.stderr) == (216, True)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_verb(shell: str) -> None:
    done = serac("completion", shell)
    assert done.returncode == 0
    for name in VERBS:
        assert name.split()[-1] in done.stdout
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], check=False, input=done.stdout, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes(tmp_path: Path) -> None:
    file = tmp_path / "completion"
    file.write_text(serac("completion", "bash").stdout)
    typed = 'COMP_WORDS=(serac snapshot s); COMP_CWORD=2; _shtab_serac; echo "${COMPREPLY[@]}"'
    command = ["bash", "-c", f"source {file}; {typed}"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "show\n"


def test_closed_output_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = serac("completion", "bash", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_no_standard_descriptors_at_all() -> None:
    command = f"{shlex.join(SERAC)} base --help <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode == 0


def test_full_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = serac("completion", "bash", stdout=full)
    assert done.returncode == 213
    assert "write standard output" in done.stderr


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("8388608", 8 << 20),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("64MB", 64 << 20),
        ("1T", 1 << 40),
    ],
)
def test_memory(typed: str, size: int) -> None:
    assert values.memory(typed) == size


@pytest.mark.parametrize("typed", ["", "G", "-1G", "1e9", "1 G", "0x10", "\u0661\u0660M", "1GG", "nan"])
def test_no_memory(typed: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"no size|out of range"):
        values.memory(typed)


@pytest.mark.parametrize(
    ("typed", "seconds"), [("10", 10.0), ("500ms", 0.5), ("1.5s", 1.5), ("2m", 120.0), ("7d", 604800.0)]
)
def test_duration(typed: str, seconds: float) -> None:
    assert values.duration(typed) == seconds


def test_step_keeps_the_script() -> None:
    assert values.step("build=make A=b -j2") == Step(name="build", script="make A=b -j2")


@pytest.mark.parametrize(
    ("typed", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("^]", b"\x1d"), ("ctrl-@,x", b"\x00x"), ("CTRL-A", b"\x01")]
)
def test_detach_keys(typed: str, keys: bytes) -> None:
    assert values.detach_keys(typed) == keys


@given(typed=st.binary(), keys=st.binary(min_size=1, max_size=3), cuts=st.lists(st.integers(0, 64)))
def test_detach_keys_are_found_however_input_is_cut(typed: bytes, keys: bytes, cuts: list[int]) -> None:
    scanner, sent, left = terminal.DetachKeys(keys), b"", False
    places = [0, *sorted(min(cut, len(typed)) for cut in cuts), len(typed)]
    for start, end in itertools.pairwise(places):
        passed, left = scanner.feed(typed[start:end])
        sent += passed
        if left:
            break
    place = typed.find(keys)
    assert left == (place >= 0)
    if left:
        assert sent == typed[:place]
    else:
        assert typed.startswith(sent)
        assert keys.startswith(typed[len(sent) :])


def test_raw_terminal_is_put_back() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        with terminal.raw(slave):
            assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert termios.tcgetattr(slave) == before
        with pytest.raises(FileNotFoundError), terminal.raw(slave):
            os.stat("/nowhere")
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_size_of_what_is_no_terminal() -> None:
    with open(os.devnull) as null:
        assert terminal.size(null.fileno()) == terminal.DEFAULT_SIZE


def test_signals_can_be_read() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with terminal.caught([signal.SIGUSR1]) as descriptor:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert os.read(descriptor, 8) == bytes([signal.SIGUSR1])
    assert signal.getsignal(signal.SIGUSR1) is before


def test_complete_has_the_defaults_too() -> None:
    assert complete({"limits": (Limits(pids=3),)}) == {"limits": [{"memory": None, "cpus": None, "pids": 3}]}


def test_value_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    result = PauseResult(job="j", snapshot="s", mode="filesystem", reason=None, timings={"total": 1.5}, sizes={})
    Output(json=True).value(result, "paused")
    assert json.loads(capsys.readouterr().out) == {
        "job": "j", "snapshot": "s", "mode": "filesystem", "reason": None, "archive": None, "durability": "full",
        "timings": {"total": 1.5}, "sizes": {},
    }  # fmt: skip
    Output().value(result, "paused")
    assert capsys.readouterr().out == "paused\n"


def test_table_is_aligned_and_safe(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([], ("NAME", "STATE"), [("long-name\x1b[2J", "paused"), ("a", "")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME              STATE",
        "long-name\\x1b[2J  paused",
        "a                 -",
    ]


def test_empty_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).table([], ("NAME",), [])
    assert capsys.readouterr().out == "[]\n"


def test_listing_leaves_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Output().listing(None, {"job": "a", "failure": "", "layers": "x\ny"})
    assert capsys.readouterr().out == "job:     a\nlayers:  x\n         y\n"


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (327680000, "312.5 MiB"), (5 << 40, "5.0 TiB")],
)
def test_size_for_people(size: int, shown: str) -> None:
    assert text.size(size) == shown


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_shell_quotes(argv: list[str]) -> None:
    assert shlex.split(text.shell(argv)) == argv


@given(st.text())
def test_printable_is_printable(value: str) -> None:
    assert text.printable(value).isprintable()
