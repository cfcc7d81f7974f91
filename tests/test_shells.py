"""People at shells: a real bash on a real terminal, over a pause, with its history, its jobs and its window."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from roots import inside, wait_for
from terminals import Terminal

from engine import Engine, JobSpec, SessionSpec
from engine.base import DirSource
from engine.session import Output

pytestmark = pytest.mark.root

PROGRAMS = ("/bin/bash", "/bin/stty", "/usr/bin/id", "/bin/ls", "/bin/cat", "/bin/sleep")
USER = (1234, 567)


@pytest.fixture(scope="module")
def bash_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base with this host's bash, what it needs of libraries, and a user."""
    tree = tmp_path_factory.mktemp("bash") / "tree"
    shutil.copytree(small_tree, tree, symlinks=True)
    for program in PROGRAMS:
        for path in (program, *libraries(program)):
            target = tree / path.lstrip("/")
            target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with open(tree / "etc/passwd", "a") as accounts:
        accounts.write(f"worker:x:{USER[0]}:{USER[1]}::/srv/worker:/bin/bash\n")
    (tree / "srv/worker").mkdir(parents=True)
    return tree


def libraries(program: str) -> list[str]:
    """The files that ldd(1) names."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(?:=> |^\t)(/\S+)", listed, re.MULTILINE)


@pytest.fixture
def job(engine: Engine, bash_tree: Path) -> Iterator[str]:
    """A job with bash that stays up."""
    engine.base_build("bash", DirSource(path=bash_tree))
    yield engine.run(JobSpec(base="bash", name="up", argv=("/bin/sleep", "1000"))).name
    engine.remove("up", force=True)
    engine.base_remove("bash")


def test_history_outlives_a_pause(engine: Engine, job: str) -> None:
    root = engine.config.root
    with Terminal(root, "exec", "-t", job, "--", "bash", "--norc") as user:
        user.type("cd /src\r")
        user.type("colour=blue; echo lo''oked\r")
        user.expect("looked")
        wait_for(lambda: "looked" in inside(engine, job, "cat /root/.bash_history").replace("'", ""))
        engine.pause(job, mode="filesystem")
        assert user.wait() == 220
    engine.resume(job)
    assert inside(engine, job, "cat /root/.bash_history") == "cd /src\ncolour=blue; echo lo''oked\n"
    with Terminal(root, "attach", job, "1") as user:
        user.type("history; echo in $PWD; echo [$colour]\r")
        user.expect("cd /src")
        user.expect("colour=blue; echo lo''oked")
        user.expect("in /src")
        user.expect("[]")  # the shell is a new one
        user.type("exit 4\r")
        assert user.wait() == 4


def test_the_last_command_is_found_by_its_beginning(engine: Engine, job: str) -> None:
    """As people do it: arrow up, after a pause."""
    root = engine.config.root
    with Terminal(root, "exec", "-t", job, "--", "bash", "--norc") as user:
        user.type("echo $((40 + 2)) answers\r")
        user.expect("42 answers")
        wait_for(lambda: "answers" in inside(engine, job, "cat /root/.bash_history 2>/dev/null || true"))
        engine.pause(job, mode="filesystem")
        user.wait()
    engine.resume(job)
    with Terminal(root, "attach", job, "1") as user:
        user.type("\x1b[A\r")
        user.expect("42 answers")


def test_the_window_is_followed(engine: Engine, job: str) -> None:
    with Terminal(engine.config.root, "exec", "-t", job, "--", "bash", "--norc", rows=30, columns=100) as user:
        user.type("echo is $LINES $COLUMNS\r")
        user.expect("is 30 100")
        user.resize(40, 120)
        user.type("until stty size | grep -x '40 120'; do sleep 0.05; done; echo is $LINES $COLUMNS\r")
        user.expect("is 40 120")


def test_two_users_share_a_shell(engine: Engine, job: str) -> None:
    root = engine.config.root
    number = str(engine.start(job, SessionSpec(argv=("bash", "--norc"), tty=(24, 80))).id)
    with Terminal(root, "attach", job, number) as one, Terminal(root, "attach", job, number) as two:
        one.type("echo o''ne\r")
        one.expect("one")
        two.expect("one")
        two.type("echo t''wo\r")
        one.expect("two")
        two.expect("two")
        one.type("\x10\x11")
        assert one.wait() == 0
        two.type("exit 6\r")
        assert two.wait() == 6


def test_job_control(engine: Engine, job: str) -> None:
    with Terminal(engine.config.root, "exec", "-t", job, "--", "bash", "--norc") as user:
        user.type("sleep 1000\r")
        wait_for(lambda: "sleep 1000" in inside(engine, job, "ps -o args | tail -n +4"))
        user.type("\x1a")
        user.expect("Stopped")
        user.type("jobs; bg; jobs\r")
        user.expect("Running")
        user.type("fg\r")
        user.expect("sleep 1000\r\n")
        user.type("\x03")
        user.type("echo status $?\r")
        user.expect("status 130")
        user.type("cat | cat\r")
        wait_for(lambda: re.search(r"^cat$", inside(engine, job, "ps -o args"), re.MULTILINE))
        user.type("line\r")
        user.expect("line\r\nline")
        user.type("\x04")
        user.type("exit 0\r")
        assert user.wait() == 0


def test_a_session_of_an_ordinary_user(engine: Engine, job: str) -> None:
    spec = SessionSpec(
        argv=("bash", "-c", "id -u; id -g; echo $HOME; echo mine > file; touch /etc/theirs; cat /proc/self/status"),
        uid=USER[0],
        gid=USER[1],
        workdir="/srv/worker",
        env={"HOME": "/srv/worker"},
    )
    inside(engine, job, f"chown {USER[0]}:{USER[1]} /srv/worker")
    with engine.exec(job, spec) as connection:
        events = [event for event in connection.events() if isinstance(event, Output)]
    printed = b"".join(event.data for event in events if event.stream == 1).decode()
    assert printed.split()[:3] == [str(USER[0]), str(USER[1]), "/srv/worker"]
    assert "CapEff:\t0000000000000000" in printed
    assert "Groups:\t\n" in printed.replace("Groups:\t \n", "Groups:\t\n")
    assert b"Permission denied" in b"".join(event.data for event in events if event.stream == 2)
    assert inside(engine, job, "stat -c '%u %g' /srv/worker/file") == "1234 567\n"


def test_a_users_session_comes_back_as_the_user(engine: Engine, job: str) -> None:
    spec = SessionSpec(argv=("bash", "-c", "id -u >> /tmp/ids; exec sleep 1000"), uid=USER[0], gid=USER[1])
    engine.start(job, spec)
    wait_for(lambda: inside(engine, job, "cat /tmp/ids 2>/dev/null || true") == "1234\n")
    engine.pause(job, mode="filesystem")
    engine.resume(job)
    wait_for(lambda: inside(engine, job, "cat /tmp/ids") == "1234\n1234\n")
