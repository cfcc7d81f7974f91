"""write(2), which may take less than it is given, of the last that a disk has room for say."""

from __future__ import annotations

import errno
from typing import BinaryIO


def write_all(out: BinaryIO, content: bytes | bytearray | memoryview) -> None:
    """Also to a stream that has no buffer and takes less at a time. Raises OSError."""
    left = memoryview(content)
    while left:
        taken = out.write(left)
        if taken is None:
            raise BlockingIOError(errno.EAGAIN, "a stream must wait until all is written")
        left = left[taken:]
