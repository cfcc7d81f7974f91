"""sd_notify(3): tell the service manager how far this process is."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("serac")


def notify(state: str) -> None:
    """``READY=1``, ``STOPPING=1`` ... Nothing happens where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError as error:
        log.warning("notify: %s", error)
