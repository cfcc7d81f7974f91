"""Holding a network namespace from Python: the lock that ends, is given up, or is lost."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest
from namespaces import Namespace

from engine import launch
from engine.errors import HostLacks, InvalidInput, LaunchFailed
from engine.launch_spec import NetworkSpec

pytestmark = pytest.mark.root

GUEST = "10.77.88.99"
LIMIT = 30


@pytest.fixture
def job() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@pytest.fixture
def namespace(job: Namespace) -> Iterator[int]:
    fd = os.open(f"/proc/{job.pid}/ns/net", os.O_RDONLY)
    yield fd
    os.close(fd)


def locked(job: Namespace) -> bool:
    return job.nft("list", "tables") == "table inet serac\n"


def test_ended(job: Namespace, namespace: int) -> None:
    with (
        job.new_socket(socket.AF_INET, socket.SOCK_STREAM) as one,
        job.new_socket(socket.AF_INET, socket.SOCK_STREAM) as other,
    ):
        with launch.network(NetworkSpec(guests=(GUEST,), close=True), namespace=namespace, timeout=LIMIT) as hold:
            assert locked(job)
            one.bind((GUEST, 0))
            assert hold.end() == 0
            assert not locked(job)  # before the process is gone
        with pytest.raises(OSError, match="Cannot assign"):
            other.bind((GUEST, 0))


def test_left_without_an_end(job: Namespace, namespace: int) -> None:
    with launch.network(NetworkSpec(up=True), namespace=namespace, timeout=LIMIT):
        assert locked(job)
    assert not locked(job)


def test_given_up_for_an_error(job: Namespace, namespace: int) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        launch.network(NetworkSpec(), namespace=namespace, timeout=LIMIT),
    ):
        raise ZeroDivisionError
    assert not locked(job)


def test_killed_meanwhile(job: Namespace, namespace: int) -> None:
    with launch.network(NetworkSpec(), namespace=namespace, timeout=LIMIT) as hold:
        (holder,) = psutil.Process().children()[1:]
        holder.send_signal(signal.SIGKILL)
        with pytest.raises(LaunchFailed, match="ended with status -9"):
            hold.end()
        assert not locked(job)


def test_second_lock_is_refused(job: Namespace, namespace: int) -> None:
    with launch.network(NetworkSpec(), namespace=namespace, timeout=LIMIT) as hold:
        with (
            pytest.raises(HostLacks, match="lock") as refused,
            launch.network(NetworkSpec(), namespace=namespace, timeout=LIMIT),
        ):
            pytest.fail("two locks")
        assert "locked already" in (refused.value.hint or "")
        assert locked(job)
        assert hold.end() == 0


def test_failure_names_its_step(job: Namespace, namespace: int) -> None:
    spec = NetworkSpec(address="192.0.2.7/24")
    with pytest.raises(LaunchFailed, match="eth0"), launch.network(spec, namespace=namespace, timeout=LIMIT):
        pytest.fail("there is no eth0")
    assert not locked(job)


def test_address_that_is_none(namespace: int) -> None:
    for spec in (NetworkSpec(guests=("::1",)), NetworkSpec(gateway="x")):
        with pytest.raises(LaunchFailed, match="spec"), launch.network(spec, namespace=namespace, timeout=LIMIT):
            pytest.fail("a spec that is wrong")
    spec = NetworkSpec(guests=("1.1.1.1\0",))
    with pytest.raises(InvalidInput), launch.network(spec, namespace=namespace, timeout=LIMIT):
        pytest.fail("a spec that is none")
