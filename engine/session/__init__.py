"""What the engine says to a job's init, and what init left on disk (native/protocol.h, SESSIONS and LOG).

    with session.connect(io, timeout=10) as connection:
        connection.start(spec, attach=True)
        for event in connection.events(): ...       # Output, StepMark, and at the end Exit

    for event in session.follow(io, 0): ...         # the same, and it does not mind when init is gone

``io`` is the directory that init shares with the engine. The job's root can write there and can take init's place at
the socket: whatever comes from either is checked, bounded, and a ProtocolError where it isn't what it must be.
"""

from engine.session.connection import INPUT_MAX, LIVE, START, TAIL, Connection, connect, reach
from engine.session.files import (
    SESSION_ID_MAX,
    Lease,
    RawQuestion,
    Trace,
    lease,
    raw_question,
    specs,
    status,
    statuses,
    trace,
)
from engine.session.log import follow, follow_unblocked, read_log
from engine.session.protocol import CHUNK_MAX, Exit, Output, SessionEvent, StepMark, encode_answer

__all__ = [
    "CHUNK_MAX",
    "INPUT_MAX",
    "LIVE",
    "SESSION_ID_MAX",
    "START",
    "TAIL",
    "Connection",
    "Exit",
    "Lease",
    "Output",
    "RawQuestion",
    "SessionEvent",
    "StepMark",
    "Trace",
    "connect",
    "encode_answer",
    "follow",
    "follow_unblocked",
    "lease",
    "raw_question",
    "reach",
    "read_log",
    "specs",
    "status",
    "statuses",
    "trace",
]
