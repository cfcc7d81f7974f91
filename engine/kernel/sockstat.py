"""What the kernel tells of a socket that is open here: getsockopt(2), tcp(7), sock_diag(7)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

LISTEN = 10
"""the state of a socket that waits for connections, in the kernel's tcp_states.h"""


class TcpState(NamedTuple):
    state: int
    """as in tcp_states.h"""
    waiting: int
    """connections of a listening socket that wait to be accepted"""


def tcp_state(fd: int) -> TcpState:
    """Of any TCP socket. Takes the descriptor over, and closes it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd) as opened:
        # struct tcp_info: tcpi_state is its first byte; a listening socket's tcpi_unacked is its backlog.
        state, unacked = struct.unpack_from("=B23xI", opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28))
    return TcpState(state, unacked if state == LISTEN else 0)
