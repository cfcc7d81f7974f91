"""criu's protocol: the encoding, against protobuf's own rules and any bytes; and conversations, with a process on the
other end of the socket that plays criu's part."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import checkpoint
from engine.checkpoint import DUMP, RESTORE, Conversation, CriuGone, Refused, rpc
from engine.errors import Timeout

# the encoding


def encoded(fields: dict[int, int | bytes]) -> bytes:
    """By the rules of protobuf's own documentation, written a second time."""

    def varint(number: int) -> bytes:
        groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
        return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])

    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields.items()
    )


NUMBERS = st.integers(1, (1 << 29) - 1)
VALUES = st.integers(0, (1 << 64) - 1) | st.binary(max_size=300)


@given(st.dictionaries(NUMBERS, VALUES, max_size=12))
def test_what_is_encoded_is_decoded(fields: dict[int, int | bytes]) -> None:
    assert rpc.decoded(encoded(fields)) == fields
    assert b"".join(rpc._field(number, value) for number, value in fields.items()) == encoded(fields)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(message: bytes) -> None:
    with contextlib.suppress(CriuGone):
        assert all(isinstance(value, (int, bytes)) for value in rpc.decoded(message).values())


@given(st.dictionaries(NUMBERS, VALUES, min_size=1, max_size=5), st.data())
def test_half_a_message_is_an_error_or_fewer_fields(fields: dict[int, int | bytes], data: st.DataObject) -> None:
    whole = encoded(fields)
    half = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        assert rpc.decoded(half).items() <= fields.items()
    except CriuGone:
        assert half


def test_a_known_message() -> None:
    """By hand from rpc.proto: {type: RESTORE, opts: {images_dir_fd: 5, pid: 300, root: "/r"}}."""
    options = {"images_dir_fd": 5, "pid": 300, "root": "/r"}
    request = rpc._field(1, RESTORE) + rpc._field(2, rpc._encoded(options))
    assert request == bytes.fromhex("0802 1209 0805 10ac02 6a022f72")


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"tcp_established": True}, {5: 1}),
        ({"tcp_established": False}, {5: 0}),
        ({"ghost_limit": 512 << 20}, {35: 512 << 20}),
        ({"log_file": "dump.log"}, {10: b"dump.log"}),
        ({"external": ("mnt[/a]:b", "net[1]:c")}, {37: b"net[1]:c"}),
        ({}, {}),
    ],
)
def test_options(options: dict[str, rpc.Option], fields: dict[int, int | bytes]) -> None:
    assert rpc.decoded(rpc._encoded(options)) == fields


def test_repeated_options_are_all_there() -> None:
    words = ("mnt[/run/serac]:io", "mnt[/dev/shm]:shm")
    assert rpc._encoded({"external": words}) == b"".join(encoded({37: word.encode()}) for word in words)


def test_every_option_that_jobs_get_is_known() -> None:
    rpc._encoded(checkpoint.dump_options(images=3, work=4, pid=5, cgroup="/c", timeout=6))
    rpc._encoded(checkpoint.restore_options(images=3, work=4))


# conversations


class Other:
    """The other end of a conversation: says what it is told to, keeps what it hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard: list[rpc.Fields] = []

    def hear(self) -> rpc.Fields:
        message = self.sock.recv(1 << 20)
        self.heard.append(rpc.decoded(message) if message else {})
        return self.heard[-1]

    def notify(self, name: str, pid: int = 0) -> rpc.Fields:
        """Its answer."""
        told: dict[int, int | bytes] = {1: name.encode(), **({2: pid} if pid else {})}
        self.sock.send(encoded({1: rpc._NOTIFY, 2: 1, 5: encoded(told)}))
        return self.hear()

    def end(self, kind: int, *, success: bool) -> None:
        self.sock.send(encoded({1: kind, 2: int(success)}))
        self.sock.close()


def dump(criu: Conversation, *, to: str = "post-dump", agreed: bool = False, then: BaseException | None = None) -> None:
    """Ask for a dump and follow it ``to`` a notification; agree to its end there, or break off."""
    criu.ask(DUMP, {})
    criu.until(to)
    if agreed:
        criu.agree()
    if then is not None:
        raise then


Part = Callable[[Other], object]


@contextlib.contextmanager
def talking(part: Part, *, patience: float = 20.0) -> Iterator[tuple[Conversation, Other]]:
    """A conversation with somebody who plays ``part``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other = Other(theirs)
    player = threading.Thread(target=part, args=(other,))
    with ours, theirs:
        player.start()
        try:
            with Conversation(ours, patience=patience) as conversation:
                yield conversation, other
        finally:
            player.join()


def dumps(other: Other) -> None:
    """A dump from beginning to end, or to where it is told to give up."""
    assert other.hear()[1] == DUMP
    for name, pid in (("pre-dump", 0), ("network-lock", 0), ("post-dump", 4711)):
        if not other.notify(name, pid).get(3):
            other.end(DUMP, success=False)
            return
    other.end(DUMP, success=True)


AGREED = {1: rpc._NOTIFY, 3: 1}
REFUSED = {1: rpc._NOTIFY, 3: 0}


def test_a_dump_to_its_end() -> None:
    with talking(dumps) as (criu, other):
        criu.ask(DUMP, {"pid": 12})
        assert criu.until("pre-dump") == 0
        assert criu.until("post-dump") == 4711
        assert other.heard[1:] == [AGREED] * 2
        criu.finish()
    assert other.heard == [{1: DUMP, 2: encoded({2: 12})}, *[AGREED] * 3]


def test_what_is_raised_in_the_middle_makes_it_give_up() -> None:
    with pytest.raises(KeyboardInterrupt), talking(dumps) as (criu, other):
        dump(criu, then=KeyboardInterrupt())
    assert other.heard[-1] == REFUSED


def test_what_is_raised_after_it_was_agreed_does_not() -> None:
    with pytest.raises(KeyboardInterrupt), talking(dumps) as (criu, other):
        dump(criu, agreed=True, then=KeyboardInterrupt())
    assert other.heard[-1] == AGREED


def test_a_conversation_that_is_left_before_it_began_is_ended() -> None:
    with talking(Other.hear) as (_, other):
        pass
    assert other.heard == [{}]


@pytest.mark.parametrize("name", ["post-dump", "nonsense"])
def test_a_refusal(name: str) -> None:
    def refuses(other: Other) -> None:
        other.hear()
        other.notify("pre-dump")
        other.end(DUMP, success=False)

    with pytest.raises(Refused), talking(refuses) as (criu, _):
        dump(criu, to=name)


def test_a_success_that_comes_too_early_is_none() -> None:
    def hurries(other: Other) -> None:
        other.hear()
        other.end(DUMP, success=True)

    with pytest.raises(CriuGone, match="never came to post-dump"), talking(hurries) as (criu, _):
        dump(criu)


NONSENSE: dict[str, bytes] = {
    "half a number": b"\x08\xff",
    "half a text": b"\x12\x05ab",
    "a kind that is none": b"\x0d\1\2\3\4",
    "too long a text": b"\x12" + b"\xff" * 9 + b"\1" + b"a",
}


@pytest.mark.parametrize("message", NONSENSE.values(), ids=NONSENSE)
def test_nonsense(message: bytes) -> None:
    def babbles(other: Other) -> None:
        other.hear()
        other.sock.send(message)
        other.hear()

    with pytest.raises(CriuGone), talking(babbles) as (criu, _):
        dump(criu)


def test_one_that_goes_away() -> None:
    def goes(other: Other) -> None:
        other.hear()
        other.sock.close()

    with pytest.raises(CriuGone), talking(goes) as (criu, _):
        dump(criu)


def test_one_that_is_gone_when_it_is_asked() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours, Conversation(ours, patience=20) as criu, pytest.raises(CriuGone):
        criu.ask(DUMP, {})


def test_one_that_says_nothing() -> None:
    with pytest.raises(Timeout), talking(Other.hear, patience=0.05) as (criu, _):
        dump(criu)


def test_one_that_dies_while_others_hold_its_socket() -> None:
    """What criu restores has the descriptor too: the socket alone would not tell."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, subprocess.Popen(["sleep", "1000"]) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            process.kill()
            with Conversation(ours, patience=20, pidfd=pidfd) as criu, pytest.raises(CriuGone):
                dump(criu)
        finally:
            os.close(pidfd)


def test_the_last_word_of_one_that_is_dead_counts() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, subprocess.Popen(["true"]) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            with Conversation(ours, patience=20, pidfd=pidfd) as criu:
                criu.ask(DUMP, {})
                theirs.send(encoded({1: DUMP, 2: 1}))
                process.wait()
                criu.finish()
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("agreed", [True, False])
def test_settling_with_one_whose_engine_died(agreed: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        checkpoint.settle(ours, agreed=agreed)
        assert Other(theirs).hear() == (AGREED if agreed else {})


def test_settling_with_one_that_has_ended_too() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.close()
        checkpoint.settle(ours, agreed=True)
        checkpoint.settle(ours, agreed=False)
