"""Unix sockets: what is queued in them, what they are called, who is at the other end."""

from __future__ import annotations

import array
import os
import socket
import struct

from survival import Probe, holds, same
from survival.processes import Child

DATA = bytes(range(256)) * 300
SCM_CREDENTIALS = 2


def stream() -> Probe:
    """Queued both ways, other end in a child."""
    here, there = socket.socketpair()
    here.sendall(DATA)
    there.sendall(b"back")
    child = Child(lambda: (here.close(), lambda: (everything(there), there.sendall(b" again"))[0])[1])
    yield
    here.sendall(b"more")
    here.shutdown(socket.SHUT_WR)
    there.close()
    same(child.ask(), DATA + b"more", "what the child got")
    same(everything(here), b"back again", "what came back")


def everything(sock: socket.socket) -> bytes:
    found = b""
    while data := sock.recv(1 << 16):
        found += data
    return found


def messages() -> Probe:
    """Datagrams and seqpackets keep their limits."""
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
    words = [b"one", b"two", b"x" * 5000]
    for here, _ in pairs:
        for word in words:
            here.send(word)
    yield
    for here, there in pairs:
        same([there.recv(9000) for _ in words], words, "messages")
        there.send(b"back")
        same(here.recv(9), b"back", "an answer")


def named_datagrams() -> Probe:
    """Bound to paths, which find them."""
    server, client = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    server.bind("/tmp/dgram-server")
    client.bind("/tmp/dgram-client")
    client.sendto(b"before", "/tmp/dgram-server")
    yield
    same(server.recv(100), b"before")
    client.sendto(b"question", "/tmp/dgram-server")
    text, sender = server.recvfrom(100)
    same((text, sender), (b"question", "/tmp/dgram-client"))
    server.sendto(b"answer", sender)
    same(client.recv(100), b"answer")


def listening() -> Probe:
    """By a path and by an abstract name, with a client that is connected and one that comes later."""
    for name in ("/tmp/listening", "\0listening"):
        check = listening_at(name)
        next(check)
        checks.append(check)
    yield
    for check in checks:
        for _ in check:
            raise AssertionError("yields twice")


checks: list[Probe] = []


def listening_at(name: str) -> Probe:
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen(7)
    client = socket.socket(socket.AF_UNIX)
    client.connect(name)
    accepted, _ = server.accept()
    client.sendall(b"before")
    yield
    same(accepted.recv(100), b"before", "from the client")
    accepted.sendall(b"after")
    same(client.recv(100), b"after", "from who was accepted")
    late = socket.socket(socket.AF_UNIX)
    late.connect(name)
    late.sendall(b"late")
    same(server.accept()[0].recv(100), b"late", "from who comes later")


def passed() -> Probe:
    """Descriptors on their way in a message: a file in its middle, a pipe, a socket."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file = os.open("/tmp/passed", os.O_RDWR | os.O_CREAT)
    os.write(file, b"0123456789")
    os.lseek(file, 4, os.SEEK_SET)
    read, write = os.pipe()
    one, two = socket.socketpair()
    socket.send_fds(here, [b"take"], [file, read, two.fileno()])
    for fd in (file, read):
        os.close(fd)
    two.close()
    yield
    text, fds, _, _ = socket.recv_fds(there, 100, 9)
    same((text, len(fds)), (b"take", 3), "the message")
    same(os.read(fds[0], 9), b"456789", "the file")
    os.write(write, b"piped")
    one.sendall(b"sent")
    same((os.read(fds[1], 9), os.read(fds[2], 9)), (b"piped", b"sent"), "the pipe and the socket")


def options() -> Probe:
    here, there = socket.socketpair()
    here.settimeout(None)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40960)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 5, 500000))
    there.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    there.setblocking(False)
    yield
    same(here.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 81920, "size of the buffer")
    limit = struct.unpack("qq", here.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
    same(limit[0], 5, "seconds that a receive takes")
    here.sendall(b"x")
    _, about, _, _ = there.recvmsg(9, 200)
    same([struct.unpack("3i", data)[0] for _, kind, data in about if kind == SCM_CREDENTIALS], [os.getpid()])
    same(os.get_blocking(there.fileno()), False, "blocking")


def closed_peer() -> Probe:
    """What the other one sent before it closed is still there, and then the end."""
    here, there = socket.socketpair()
    there.sendall(b"last words")
    there.close()
    yield
    same((here.recv(100), here.recv(100)), (b"last words", b""))


def peers() -> Probe:
    """SO_PEERCRED of who connected."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0peers")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("\0peers")
    accepted, _ = server.accept()
    yield
    found = array.array("i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)).tolist()
    same(found, [os.getpid(), os.getuid(), os.getgid()])
    holds(client.fileno() >= 0, "the client is open")
