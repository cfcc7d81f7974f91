"""TCP and UDP over loopback."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Callable

from survival import Probe, holds, same
from survival.processes import Child

DATA = bytes(range(256)) * 256
BOTH = (socket.AF_INET, socket.AF_INET6)
HERE = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FLOOD = 512 << 20
"""bytes, more than go through until the pause"""


def connected(family: int) -> tuple[socket.socket, socket.socket, socket.socket]:
    """(listening, client, accepted)"""
    server = socket.create_server((HERE[socket.AddressFamily(family)], 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    return server, client, server.accept()[0]


def drain(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return found


def established() -> Probe:
    """IPv4 and IPv6, bytes queued at both ends; new connections find the listener."""
    ends = {family: connected(family) for family in BOTH}
    for _, client, accepted in ends.values():
        client.sendall(DATA)
        accepted.sendall(DATA[::-1])
    yield
    for family, (server, client, accepted) in ends.items():
        same(drain(accepted, len(DATA)), DATA, f"from the client, {family!r}")
        same(drain(client, len(DATA)), DATA[::-1], f"from the server, {family!r}")
        same(client.getpeername()[:2], server.getsockname()[:2], "addresses")
        with socket.create_connection(server.getsockname()[:2]) as late:
            late.sendall(b"late")
            same(server.accept()[0].recv(9), b"late", "from who comes later")


def stream() -> Probe:
    """One process sends and another receives the whole time: nothing is lost, nothing twice."""
    server, client, accepted = connected(socket.AF_INET)
    sender = Child(lambda: worker(lambda: pump(client)))
    client.close()
    receiver = Child(lambda: worker(lambda: swallow(accepted)))
    accepted.close()
    yield
    sender.ask()
    expected = hashlib.sha256()
    for _ in range(FLOOD // len(DATA)):
        expected.update(DATA)
    same(receiver.ask(), (FLOOD, expected.hexdigest()), "what came through")
    server.close()


def worker(work: Callable[[], object]) -> Callable[[], object]:
    """Let it go on in a thread; what it gives when it has come to its end."""
    given: list[object] = []
    thread = threading.Thread(target=lambda: given.append(work()))
    thread.start()
    return lambda: (thread.join(), given[0])[1]


def pump(sock: socket.socket) -> None:
    for _ in range(FLOOD // len(DATA)):
        sock.sendall(DATA)
    sock.close()


def swallow(sock: socket.socket) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while data := sock.recv(1 << 16):
        size += len(data)
        digest.update(data)
    return size, digest.hexdigest()


def full() -> Probe:
    """A sender that waits for room: nobody reads until after the pause."""
    server, client, accepted = connected(socket.AF_INET)
    client.setblocking(False)
    sent = 0
    try:
        while True:
            sent += client.send(DATA)
    except BlockingIOError:
        pass
    client.setblocking(True)
    yield
    client.shutdown(socket.SHUT_WR)
    digest, size = hashlib.sha256(), 0
    while data := accepted.recv(1 << 16):
        digest.update(data)
        size += len(data)
    same(size, sent, "bytes")
    same(digest.digest(), hashlib.sha256((DATA * (sent // len(DATA) + 1))[:sent]).digest(), "contents")
    server.close()


def half_closed() -> Probe:
    """Each has shut down one direction, with bytes before the end."""
    server, client, accepted = connected(socket.AF_INET)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    yield
    same((drain(accepted, 100)), b"question")
    accepted.sendall(b"answer")
    accepted.close()
    same(drain(client, 100), b"answer")
    server.close()


def closed_peer() -> Probe:
    server, client, accepted = connected(socket.AF_INET)
    accepted.sendall(b"last words")
    accepted.close()
    yield
    same(drain(client, 100), b"last words")
    server.close()


def options() -> Probe:
    server, client, accepted = connected(socket.AF_INET)
    wanted = {
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 77,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 7,
        (socket.SOL_SOCKET, socket.SO_REUSEADDR): 1,
        (socket.SOL_SOCKET, socket.SO_REUSEPORT): 1,
    }
    for (level, name), value in wanted.items():
        client.setsockopt(level, name, value)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 9, 0))
    yield
    same({key: client.getsockopt(*key) for key in wanted}, wanted, "options")
    same(struct.unpack("qq", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)), (9, 0))
    server.close()


def udp() -> Probe:
    """Bound, connected, IPv6; what is sent after arrives."""
    for family in BOTH:
        server, client = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        server.bind((HERE[family], 0))
        client.connect(server.getsockname())
        datagrams.append((server, client))
    addresses = [(server.getsockname(), client.getsockname()) for server, client in datagrams]
    yield
    same([(server.getsockname(), client.getsockname()) for server, client in datagrams], addresses, "addresses")
    for server, client in datagrams:
        client.send(b"question")
        text, sender = server.recvfrom(100)
        server.sendto(b"answer", sender)
        same((text, client.recv(100)), (b"question", b"answer"))


datagrams: list[tuple[socket.socket, socket.socket]] = []


def unconnected() -> Probe:
    """Made, bound, never connected."""
    bare, bound = socket.socket(), socket.socket()
    bound.bind(("127.0.0.1", 0))
    yield
    server = socket.create_server(("127.0.0.1", 0))
    bare.connect(server.getsockname())
    port = bound.getsockname()[1]
    bound.listen()
    with socket.create_connection(("127.0.0.1", port)):
        holds(bound.accept()[0].getsockname()[1] == port, "it listens where it was bound")


def interface() -> Probe:
    """Loopback is up, and nothing else is there that was not."""
    before = socket.if_nameindex()
    yield
    same(socket.if_nameindex(), before, "interfaces")
    with socket.create_server(("127.5.6.7", 0)) as server:
        socket.create_connection(server.getsockname()).close()
