"""People's programs at terminals go on after a pause in mode process, in the same terminal, and in a fork too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from roots import wait_for
from survivors import Outcomes, Place, Thing, forked_and_stacked, one_by_one, taken_through

from engine import Engine

pytestmark = pytest.mark.root

TEXT = "\n".join(f"this is line {number}" for number in range(1, 1001))


def bash(place: Place) -> Callable[[Place], None]:
    """History, variables, functions, directory, options, a stopped job and one in the background."""
    number = place.start("bash", "--norc", tty=True)
    with place.screen(number) as user:
        user.type('cd /usr/share; colour=blue; shout() { echo "${1^^}"; }; set -o pipefail\r')
        user.type("sleep 5000 &\r")
        user.type("cat\r")
        wait_for(lambda: "cat" in place.inside(f"ps -o args= --ppid {leader(place, number)}"))
        user.type("\x1a")
        user.expect("Stopped")
        user.type("echo re''ady\r")
        user.expect("ready")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type("shout \"$colour in $PWD\"; set -o | grep pipe; echo jo''bs; jobs\r")
            user.expect("BLUE IN /USR/SHARE")
            user.expect("pipefail       \ton")
            user.expect("jobs")
            user.expect("sleep 5000 &")
            user.type("fg\r")
            wait_for(lambda: continued(place, number))
            user.type("typed\r")
            user.expect("typed")
            user.expect("typed")
            user.type("\x04history | head -1; kill %1; wait; echo en''d\r")
            user.expect("cd /usr/share; colour=blue")
            user.expect("end")

    return check


def leader(place: Place, number: int) -> int:
    return next(status.pid or 0 for status in place.engine.sessions(place.job) if status.id == number)


def continued(place: Place, number: int) -> bool:
    """Whether the shell's cat isn't stopped any more: only then has the terminal the modes that cat is to have."""
    children = place.inside(f"ps -o stat=,args= --ppid {leader(place, number)}").splitlines()
    return any(line.startswith("S") and line.endswith("cat") for line in children)


def dash(place: Place) -> Callable[[Place], None]:
    """Which keeps /dev/tty open."""
    number = place.start("dash", "-i", tty=True)
    with place.screen(number) as user:
        user.type("cd /usr; colour=green; sleep 5000 &\r")
        user.type("cat\r")
        wait_for(lambda: "cat" in place.inside(f"ps -o args= --ppid {leader(place, number)}"))
        user.type("\x1a")
        user.expect("Stopped")
        user.type("echo re''ady\r")
        user.expect("ready")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type('echo "$colour in $PWD"; jobs\r')
            user.expect("green in /usr")
            user.expect("Stopped")
            user.type("fg\r")
            wait_for(lambda: continued(place, number))
            user.type("typed\r")
            user.expect("typed")
            user.expect("typed")
            user.type("\x04kill %1; wait; echo en''d; tty\r")
            user.expect("end")
            user.expect("/dev/pts/")

    return check


def vim(place: Place) -> Callable[[Place], None]:
    """Text that was not saved, undo, a register, the mode that it is in."""
    place.inside("echo first line > /root/vim.txt")
    number = place.start("vim.tiny", "-N", "-u", "NONE", "-n", "/root/vim.txt", tty=True)
    with place.screen(number) as user:
        user.expect("first line")
        user.type("yyA, more\x1bohalf a li")
        user.expect("half a li")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type("ne\x1bp:w! /root/one.txt\r")
            user.expect("written")
            user.type("uu:w! /root/two.txt\r")
            user.expect("written")
        assert place.inside("cat /root/one.txt") == "first line, more\nhalf a line\nfirst line\n"
        assert place.inside("cat /root/two.txt") == "first line, more\n"

    return check


def less(place: Place) -> Callable[[Place], None]:
    """Where it stands in its text, and a search that goes on."""
    place.inside(f"cat > /root/text <<'END'\n{TEXT}\nEND")
    number = place.start("less", "/root/text", tty=True)
    with place.screen(number) as user:
        user.expect("this is line 23")
        user.type("500g/line 6.7\r")
        user.expect("this is line 607")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type("n")
            user.expect("this is line 617")
            user.type("G")
            user.expect("this is line 1000")

    return check


def python(place: Place) -> Callable[[Place], None]:
    """A REPL: what was defined, a generator in its middle, an open file, the last value."""
    number = place.start("python3", "-q", tty=True)
    with place.screen(number) as user:
        user.type("import itertools, os; squares = (n * n for n in itertools.count()); names = {'a': [1, 2]}\r")
        user.type("[next(squares) for _ in range(5)]\r")
        user.expect("[0, 1, 4, 9, 16]")
        user.type("file = open('/etc/passwd'); file.readline()[:4]\r")
        user.expect("'root'")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type("_ + str(next(squares)) + str(names)\r")
            user.expect("\"root25{'a': [1, 2]}\"")
            user.type("len(file.readlines()) == len(open('/etc/passwd').readlines()) - 1\r")
            user.expect("True")

    return check


def tmux(place: Place) -> Callable[[Place], None]:
    """The server, two windows with shells in them, the client at its terminal."""
    number = place.start("env", "TERM=screen", "LC_ALL=C.UTF-8", "tmux", "new", "-s", "work", "bash --norc", tty=True)
    with place.screen(number) as user:
        user.type("colour=red; echo re''ady\r")
        user.expect("ready")
        place.inside("tmux new-window -t work 'colour=blue bash --norc'")
        user.expect("1:bash*")
        user.type("echo se''cond\r")
        user.expect("second")

    def check(place: Place) -> None:
        assert place.inside("tmux list-windows -t work -F '#I'") == "0\n1\n"
        with place.screen(number) as user:
            user.type("echo is $colour\r")
            user.expect("is blue")
            place.inside("tmux select-window -t work:0")
            user.expect("ready")
            user.type("echo is $colour\r")
            user.expect("is red")
        assert "ready" in place.inside("tmux capture-pane -p -t work:0")

    return check


THINGS: dict[str, Thing] = {thing.__name__: thing for thing in (bash, dash, vim, less, python, tmux)}


@pytest.fixture(scope="module")
def outcomes(debian_root: Path) -> Outcomes:
    with Engine(debian_root) as engine:
        return taken_through(engine, forked_and_stacked, one_by_one(THINGS), list(THINGS))


@pytest.mark.parametrize("name", THINGS)
def test_it_goes_on(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name] == "OK"
