"""``serac supervise`` as a service has it: signals, a kill in the middle, two of them, the unit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, serac
from remains import holders
from roots import shell, until, wait_for
from test_supervisor import WAITS, goes_on, journal, quiet, states

from engine import Engine, JobState
from engine.errors import Busy
from engine.supervisor import notify, unit

__all__ = ["serac"]  # a fixture

root = pytest.mark.root


def configured(engine: Engine, **supervise: object) -> None:
    settings = {"archive": "never", "supervise": {"freeze_after": 0, "pause_after": 0.5, **supervise}}
    (engine.config.root / "config.json").write_text(json.dumps(settings))


def waiting(engine: Engine, name: str) -> None:
    engine.run(shell(WAITS, name=name))
    until(engine, name, b"ready\n")
    quiet(engine, name)


class Manager:
    """Where a service manager listens."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._socket.settimeout(60)

    def told(self) -> str:
        return self._socket.recv(100).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(f"{tmp_path}/notify")) as manager:
        yield manager


@contextlib.contextmanager
def started(serac: Command, *words: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        serac.words("supervise", *words),
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_it_is_told_to_end(
    engine: Engine, serac: Command, manager: Manager, number: signal.Signals
) -> None:
    waiting(engine, "a")
    engine.run(shell("while :; do :; done", name="busy"))
    configured(engine)
    with started(serac, "--interval", "200ms", NOTIFY_SOCKET=manager.address) as process:
        assert manager.told() == "READY=1"
        wait_for(lambda: engine.job("a").state is JobState.PAUSED)
        status, lines = serac.error("supervise", "--once")
        assert status == Busy.status
        assert "a supervisor works in" in lines[0]
        wait_for(lambda: journal(engine))
        process.send_signal(number)
        assert manager.told() == "STOPPING=1"
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().startswith("paused a: idle for ")
    assert states(engine) == {"a": "paused", "busy": "running"}
    assert engine.resume("a").mode == "process"
    goes_on(engine, "a")


@root
@pytest.mark.parametrize("place", ["pause.dump:after", "pause.commit:before", "pause.commit:after"])
def test_killed_in_the_middle_of_a_pause_the_next_one_goes_on(
    engine: Engine, serac: Command, manager: Manager, place: str
) -> None:
    waiting(engine, "a")
    configured(engine, pause_after=0.01)
    with started(serac, "--interval", "100ms", SERAC_FAULT=place) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with started(serac, "--interval", "100ms", NOTIFY_SOCKET=manager.address) as process:
        assert manager.told() == "READY=1"
        wait_for(lambda: engine.job("a").state is JobState.PAUSED)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert holders(engine) == []
    assert list((engine.config.root / "tmp").iterdir()) == []
    assert engine.resume("a").mode == "process"
    goes_on(engine, "a")


@root
def test_once_and_again_is_a_supervisor_too(engine: Engine, serac: Command) -> None:
    """For a timer: what one has seen the next one knows."""
    waiting(engine, "a")
    configured(engine, pause_after=1)
    assert serac.good("supervise", "--once") == ""
    wait_for(lambda: "would pause a: idle for " in serac.good("supervise", "--once", "--dry-run"))
    assert states(engine) == {"a": "running"}
    record = json.loads(serac.good("--json", "supervise", "--once"))
    assert (record["verb"], record["name"], record["outcome"], record["error"]) == ("pause", "a", "ok", None)
    assert record["job"] == engine.job("a").id
    assert record["reason"].startswith("idle for ")
    assert states(engine) == {"a": "paused"}


@root
def test_an_interval_of_nothing_is_refused(serac: Command) -> None:
    assert serac("supervise", "--interval", "0").returncode == 200


@root
def test_the_unit_leaves_it_the_rights_that_it_needs(engine: Engine, serac: Command) -> None:
    """A pause with the processes, and the way back, with no more than the unit's capabilities."""
    waiting(engine, "a")
    configured(engine, pause_after=0.01)
    lines = unit(Path("/bin/serac"), engine.config.root).splitlines()
    taken = [name for line in lines if line.startswith("CapabilityBoundingSet=~") for name in line[23:].split()]
    assert len(taken) > 10
    less = ",".join(f"-{name.removeprefix('CAP_').lower()}" for name in taken)
    confined = ["setpriv", "--no-new-privs", f"--bounding-set={less}", f"--inh-caps={less}"]

    def paused() -> bool:
        subprocess.run([*confined, *serac.words("supervise", "--once")], check=True, timeout=120)
        return engine.job("a").state is JobState.PAUSED

    wait_for(paused)
    assert engine.snapshot(engine.job("a").snapshot or "").mode == "process"
    engine.resume("a")
    goes_on(engine, "a")


def test_a_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (f"{tmp_path}/notify", f"@serac-test-{os.getpid()}"):
        with contextlib.closing(Manager(address)) as manager:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            notify("READY=1")
            assert manager.told() == "READY=1"
    notify("READY=1")  # nobody is there any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


@pytest.mark.parametrize("where", ["/var/lib/serac", '/srv/a b/100%/$HOME/q"uo\\te'])
def test_the_unit_is_one(tmp_path: Path, where: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: it is in Debian's systemd")
    command = tmp_path / "serac"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    text = unit(command, Path(where))
    (tmp_path / "serac.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "serac.service"],
        check=False,
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "serac" in line]
    assert ours == []
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert (settings["Type"], settings["KillMode"], settings["Delegate"]) == ("notify", "process", "yes")
    assert "Protect" not in "".join(settings)  # a mount namespace of its own would hide its mounts from others
    assert settings["ExecStart"].startswith(f"{command} --root ")
    assert settings["ExecStart"].endswith(" supervise")


def test_the_unit_quotes_what_a_path_may_have() -> None:
    (line,) = [
        line for line in unit(Path("/bin/serac"), Path('/a b%c$d"e\\f')).splitlines() if line.startswith("ExecStart")
    ]
    assert line == 'ExecStart=/bin/serac --root "/a b%%c$$d\\"e\\\\f" supervise'


def test_the_command_prints_the_unit(capfd: pytest.CaptureFixture[str]) -> None:
    from engine.cli import main

    assert main(["--root", "/srv/jobs", "supervise", "--unit"]) == 0
    assert "--root /srv/jobs supervise\n" in capfd.readouterr().out
