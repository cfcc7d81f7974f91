"""A user at a terminal, for tests: a program runs on a pty of its own, as its controlling terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

PATIENCE = 30.0

SUPERVISOR = """\
before=$(stty -g); trap : INT
"$@"; status=$?
test "$(stty -g)" = "$before" || { echo "the terminal is not as it was"; exit 99; }
exit $status
"""
"""The session's leader: when it goes, the kernel resets the terminal, so nobody could look at it afterwards."""


class Terminal:
    """``with Terminal(root, "exec", "-t", "a", "--", "sh") as user: user.expect("#"); user.type("exit\\r")``"""

    def __init__(self, root: Path, *words: str, rows: int = 24, columns: int = 80) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(rows, columns)
        program = [sys.executable, "-m", "engine.cli", "--root", os.fspath(root), *words]
        command = ["setsid", "--ctty", "sh", "-c", SUPERVISOR, "sh", *program]
        streams = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave}
        self._process = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
        self.seen = b""
        self._read = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str) -> None:
        """Wait until the text appears after what was expected last."""
        wanted, deadline = text.encode(), time.monotonic() + PATIENCE
        while (place := self.seen.find(wanted, self._read)) < 0:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._master], [], [], max(left, 0))
            if not ready:
                raise AssertionError(f"{text!r} did not appear after {self.seen[self._read :]!r}")
            self.seen += os.read(self._master, 65536)
        self._read = place + len(wanted)

    def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        leader = self._process.pid
        (program,) = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        os.kill(int(program), number)

    def wait(self) -> int:
        """The program's exit status; 99 if it didn't leave the terminal as it was."""
        return self._process.wait(PATIENCE)
