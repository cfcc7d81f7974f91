"""What a pause in mode process can't carry."""

from __future__ import annotations

import os
import socket

from survival import Probe, holds, libc, same
from survival.files import directory
from survival.watches import CREATE, events, watch


def packets_in_a_pipe() -> Probe:
    read, write = os.pipe2(os.O_DIRECT)
    for word in (b"one", b"two", b"three"):
        os.write(write, word)
    yield
    same([os.read(read, 100) for _ in range(3)], [b"one", b"two", b"three"])


def semaphore_eventfd() -> Probe:
    fd = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
    yield
    same([os.eventfd_read(fd) for _ in range(3)], [1, 1, 1])


def large_eventfd() -> Probe:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(fd, 1 << 40)
    yield
    same(os.eventfd_read(fd), 1 << 40)


def process_directory() -> Probe:
    fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    yield
    holds("status" in os.listdir(fd), "it lists")


def message_queue() -> Probe:
    """POSIX's."""
    queue = libc.call("mq_open", b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
    yield
    holds(os.fstat(queue).st_size > 0, "it is there")


def unread_events() -> Probe:
    """Of inotify."""
    here = directory("unread")
    fd = libc.call("inotify_init1", os.O_NONBLOCK)
    number = watch(fd, here)
    (here / "before").touch()
    yield
    (here / "after").touch()
    same(events(fd), [(number, CREATE, "before"), (number, CREATE, "after")])


def deleted_attributes() -> Probe:
    """Extended attributes of a deleted file."""
    path = directory("attributes") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.setxattr(fd, "user.kind", b"kept")
    os.unlink(path)
    yield
    same(os.getxattr(fd, "user.kind"), b"kept")


def unread_udp() -> Probe:
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    server.bind(("127.0.0.1", 0))
    client.sendto(b"before", server.getsockname())
    yield
    same(server.recv(9), b"before")


def empty_datagram() -> Probe:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    there.setblocking(False)
    for word in (b"one", b"", b"two"):
        here.send(word)
    yield
    same([there.recv(9) for _ in range(3)], [b"one", b"", b"two"])


def sender_of_a_datagram() -> Probe:
    """Its name, by which it gets its answer."""
    server, client = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    server.bind("/tmp/lost-server")
    client.bind("/tmp/lost-client")
    client.sendto(b"before", "/tmp/lost-server")
    yield
    same(server.recvfrom(9), (b"before", "/tmp/lost-client"))
