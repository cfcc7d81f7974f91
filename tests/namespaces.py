"""Network namespaces with programs in them that talk to each other: jobs, and the rest of the world."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from engine.model import Address

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


class Namespace:
    """A process in a network namespace of its own, standing for a job (or for the rest of the world)."""

    def __init__(self) -> None:
        argv = ["unshare", "-n", "sh", "-c", "ip link set lo up; echo; exec sleep infinity"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"
        self.pid = self.process.pid

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ip(self, *arguments: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "ip", *arguments], check=True)

    def nft(self, *arguments: str) -> str:
        argv = ["nsenter", "-t", str(self.pid), "-n", "nft", *arguments]
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout

    def new_socket(self, family: int, kind: int) -> socket.socket:
        """A socket stays in the namespace where it was made, whoever has it: a thread goes there and makes it."""
        made: list[socket.socket] = []
        thread = threading.Thread(target=lambda: made.append(self._make_socket(family, kind)))
        thread.start()
        thread.join()
        return made[0]

    def _make_socket(self, family: int, kind: int) -> socket.socket:
        fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if LIBC.setns(fd, CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
            return socket.socket(family, kind)
        finally:
            os.close(fd)

    def python(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        argv = ["nsenter", "-t", str(self.pid), "-n", sys.executable, "-c", script, *arguments]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def configure(self, address: Address) -> None:
        """What serac-launch does once the launch is let go."""
        self.ip("addr", "add", f"{address.job}/{address.prefix}", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.ip("route", "add", "default", "via", address.gateway)

    def says(self, host: str, port: int, *, patience: float = 30) -> str:
        """What a TCP server answers within so many seconds, or the name of the error."""
        with self.python(CLIENT, host, str(port), str(patience)) as client:
            return client.communicate(timeout=2 * patience + 30)[0].strip()

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[None]:
        """A TCP server that tells each client the client's address."""
        with self.python(SERVER, str(port)) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "listening\n"
                yield
            finally:
                server.kill()


CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
        print(connection.makefile().read())
except OSError as error:
    print(type(error).__name__)
"""
SERVER = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
UDP_CLIENT = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(30)
client.sendto(b"question", (sys.argv[1], int(sys.argv[2])))
print(client.recv(100).decode())
"""
UDP_SENDER = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind((sys.argv[1], 0))
client.sendto(sys.argv[2].encode(), (sys.argv[3], int(sys.argv[4])))
"""
UDP_RECEIVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.settimeout(30)
server.bind(("", int(sys.argv[1])))
print("listening", flush=True)
print(server.recv(100).decode(), flush=True)
"""
