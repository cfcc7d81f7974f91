"""engine.network: addresses, and real veth pairs between real network namespaces, seen from both ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from namespaces import UDP_CLIENT, UDP_RECEIVER, UDP_SENDER, Namespace

from engine import network
from engine.config import Config, Settings
from engine.errors import HostLacks, InUse, InvalidInput, NoSpace, SeracError, WrongState
from engine.model import Address

INTERNET_HOST, INTERNET_SERVER = "198.51.100.1", "198.51.100.2"


def configured(root: str = "/srv/first", **settings: object) -> Config:
    run = Path("/run/serac") / Config.tag(Path(root))
    return Config(root=Path(root), run=run, settings=Settings(**settings))  # type: ignore[arg-type]


# Addresses


def test_allocate_gives_each_job_a_block_of_its_own() -> None:
    config = configured(subnet="10.213.0.0/24")
    taken: list[Address] = []
    for _ in range(63):
        taken.append(network.allocate(config, taken))
    assert len({a.gateway for a in taken} | {a.job for a in taken}) == 126
    assert len({a.interface for a in taken}) == 63
    for address in taken:
        first = int(address.gateway.rpartition(".")[2]) - 1
        assert first % 4 == 0
        assert first != 0
        assert address.job == f"10.213.0.{first + 2}"
        assert address.prefix == 30
    with pytest.raises(NoSpace):
        network.allocate(config, taken)
    assert network.allocate(config, taken[:5] + taken[6:]) == taken[5]


def test_allocate_passes_over_interfaces_of_a_former_subnet() -> None:
    old = network.allocate(configured(subnet="10.1.0.0/24"), [])
    assert network.allocate(configured(subnet="10.2.0.0/24"), [old]).interface != old.interface


def test_two_roots_begin_at_different_places() -> None:
    assert network.allocate(configured("/srv/a"), []).gateway != network.allocate(configured("/srv/b"), []).gateway


@pytest.mark.parametrize("subnet", ["10.0.0.0/8", "172.16.0.0/12", "192.168.9.0/29"])
def test_interface_names_fit(subnet: str) -> None:
    config = configured(subnet=subnet)
    address = network.allocate(config, [])
    assert len(address.interface) <= 15
    assert len(f"{network._prefix(config)}{(1 << 22) - 1}") <= 15


@pytest.mark.parametrize(
    "subnet", ["", "here", "10.213.0.1/16", "10.213.0.0/30", "10.0.0.0/7", "8.8.0.0/16", "127.0.0.0/16", "fd00::/64"]
)
def test_bad_subnets_are_refused(subnet: str) -> None:
    with pytest.raises(InvalidInput, match="subnet"):
        network.allocate(configured(subnet=subnet), [])


# Name servers


def test_servers_that_a_job_cannot_reach_are_left_out() -> None:
    text = (
        "# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver fd00::1\nnameserver\nnameserver 9.9.9.9\nsearch a.b\n"
    )
    assert network.reachable_servers(text) == ("9.9.9.9",)
    assert network.reachable_servers("nameserver localhost\noptions edns0\n") == ()


def test_the_second_file_serves_where_the_first_names_only_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("nameserver 192.0.2.53\n")
    monkeypatch.setattr(network, "RESOLV_CONFS", (tmp_path / "absent", stub, real))
    assert network.name_servers(configured()) == ("192.0.2.53",)
    assert network.name_servers(configured(dns=("192.0.2.1",))) == ("192.0.2.1",)


def test_resolv_conf() -> None:
    assert network.resolv_conf(("1.1.1.1", "9.9.9.9"), ("a.example", "b.example")) == (
        "search a.example b.example\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n"
    )
    assert network.resolv_conf(()) == ""


# Real pairs


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def tables() -> set[str]:
    listed = json.loads(subprocess.run(["nft", "-j", "list", "tables"], check=True, capture_output=True).stdout)
    return {item["table"]["name"] for item in listed["nftables"] if "table" in item}


def host() -> dict[str, object]:
    return {
        "links": links(),
        "tables": tables(),
        "forward": network.IP_FORWARD.read_text(),
        "state": network.STATE.exists(),
        "routes": Path("/proc/net/route").read_text(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


@pytest.fixture
def unchanged() -> Iterator[None]:
    """The host's network afterwards is what it was before."""
    with network._netlink():  # what importing it opens for good is none of the tests' business
        pass
    before = host()
    yield
    assert host() == before


class Jobs:
    """Bridge jobs of one root; leaving takes them all down as the engine would."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.addresses: list[Address] = []
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        for address in list(self.addresses):
            self.disconnect(address)
        self.stack.close()

    def start(self) -> tuple[Namespace, Address]:
        job = self.stack.enter_context(Namespace())
        address = network.allocate(self.config, self.addresses)
        network.connect(self.config, address, pid=job.pid)
        self.addresses.append(address)
        job.configure(address)
        return job, address

    def disconnect(self, address: Address) -> None:
        network.disconnect(self.config, address)
        self.addresses.remove(address)
        network.release(self.config)


@pytest.fixture
def jobs(unchanged: None) -> Iterator[Jobs]:
    with Jobs(configured()) as running:
        yield running


@pytest.fixture
def internet(unchanged: None) -> Iterator[Namespace]:
    """Another machine, which the host reaches by a network of its own and which knows no way to the jobs' subnet."""
    with Namespace() as world:
        link = ["ip", "link", "add", "internet0", "type", "veth", "peer", "name", "eth0", "netns", str(world.pid)]
        subprocess.run(link, check=True)
        try:
            subprocess.run(["ip", "addr", "add", f"{INTERNET_HOST}/24", "dev", "internet0"], check=True)
            subprocess.run(["ip", "link", "set", "internet0", "up"], check=True)
            world.ip("addr", "add", f"{INTERNET_SERVER}/24", "dev", "eth0")
            world.ip("link", "set", "eth0", "up")
            yield world
        finally:
            subprocess.run(["ip", "link", "del", "internet0"], check=True)


@pytest.mark.root
def test_a_job_reaches_the_world_under_the_hosts_address(jobs: Jobs, internet: Namespace) -> None:
    job, _ = jobs.start()
    with internet.serving(7000):
        assert job.says(INTERNET_SERVER, 7000) == INTERNET_HOST


@pytest.mark.root
def test_the_world_cannot_open_connections_to_a_job(jobs: Jobs, internet: Namespace) -> None:
    job, address = jobs.start()
    internet.ip("route", "add", "10.213.0.0/16", "via", INTERNET_HOST)
    with job.serving(7001):
        with socket.create_connection((address.job, 7001), timeout=30) as connection:
            assert connection.makefile().read() == address.gateway
        assert internet.says(address.job, 7001, patience=1) == "TimeoutError"


@pytest.mark.root
def test_a_job_reaches_its_gateway(jobs: Jobs) -> None:
    job, address = jobs.start()
    with socket.create_server((address.gateway, 0)) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(job.says, address.gateway, server.getsockname()[1])
        connection, peer = server.accept()
        assert peer[0] == address.job
        connection.sendall(b"hello")
        connection.close()
        assert answer.result() == "hello"


@pytest.mark.root
def test_a_name_server_on_the_host_answers(jobs: Jobs) -> None:
    job, address = jobs.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address.gateway, 0))
        server.settimeout(30)
        with job.python(UDP_CLIENT, address.gateway, str(server.getsockname()[1])) as client:
            question, peer = server.recvfrom(100)
            server.sendto(b"answer to " + question, peer)
            assert client.communicate(timeout=30)[0] == "answer to question\n"


@pytest.mark.root
def test_jobs_are_kept_apart(jobs: Jobs) -> None:
    first, _ = jobs.start()
    second, address = jobs.start()
    with second.serving(7002):
        assert first.says(address.job, 7002, patience=1) == "TimeoutError"
        assert second.says(address.job, 7002) == address.job


@pytest.mark.root
def test_jobs_of_two_roots_are_kept_apart(jobs: Jobs) -> None:
    first, _ = jobs.start()
    with Jobs(configured("/srv/second")) as others:
        second, address = others.start()
        with second.serving(7003):
            assert first.says(address.job, 7003, patience=1) == "TimeoutError"


@pytest.mark.root
def test_a_false_source_address_does_not_get_out(jobs: Jobs, internet: Namespace) -> None:
    job, address = jobs.start()
    job.ip("addr", "add", "10.99.0.1/32", "dev", "eth0")
    with internet.python(UDP_RECEIVER, "7004") as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "listening\n"
        for source, text in (("10.99.0.1", "false"), (address.job, "true")):
            with job.python(UDP_SENDER, source, text, INTERNET_SERVER, "7004") as sender:
                assert sender.wait(30) == 0
        assert receiver.stdout.readline() == "true\n"


@pytest.mark.root
def test_the_pair_has_no_ipv6_and_the_uplinks_mtu(jobs: Jobs) -> None:
    _, address = jobs.start()
    assert Path(f"/proc/sys/net/ipv6/conf/{address.interface}/disable_ipv6").read_text() == "1\n"
    with network._netlink() as ip:
        expected = network._uplink_mtu(ip)
    assert Path(f"/sys/class/net/{address.interface}/mtu").read_text() == f"{expected}\n"


@pytest.mark.root
def test_a_dead_jobs_address_serves_at_once_again(jobs: Jobs) -> None:
    config = jobs.config
    address = network.allocate(config, [])
    for _ in range(5):
        with Namespace() as job:
            network.connect(config, address, pid=job.pid)
            job.configure(address)
        with Namespace() as again:
            network.connect(config, address, pid=again.pid)
            again.configure(address)
    network.disconnect(config, address)
    network.disconnect(config, address)
    network.release(config)
    network.release(config)


@pytest.mark.root
def test_what_is_shared_stays_until_the_last_job_is_gone(jobs: Jobs) -> None:
    _, first = jobs.start()
    _, second = jobs.start()
    network.release(jobs.config)
    assert network._table(jobs.config) in tables()
    jobs.disconnect(first)
    assert network._table(jobs.config) in tables()
    assert network.IP_FORWARD.read_text() == "1\n"
    jobs.disconnect(second)
    assert network._table(jobs.config) not in tables()


@pytest.mark.root
def test_forwarding_is_put_back_by_the_last_root(unchanged: None) -> None:
    before = network.IP_FORWARD.read_text()
    with Jobs(configured("/srv/second")) as later:
        with Jobs(configured("/srv/first")) as earlier:
            earlier.start()
            later.start()
        assert network.IP_FORWARD.read_text() == "1\n"
        assert json.loads(network.STATE.read_bytes()) == {"ip_forward": before.strip(), "roots": [later.config.name]}
    assert network.IP_FORWARD.read_text() == before


@pytest.mark.root
def test_rules_that_someone_flushed_are_put_right(jobs: Jobs, internet: Namespace) -> None:
    job, _ = jobs.start()
    subprocess.run(["nft", "delete", "table", "inet", network._table(jobs.config)], check=True)
    jobs.start()
    with internet.serving(7005):
        assert job.says(INTERNET_SERVER, 7005) == INTERNET_HOST


@pytest.mark.root
def test_many_at_once(unchanged: None) -> None:
    config = configured()
    lock, taken = threading.Lock(), list[Address]()

    def live() -> None:
        for _ in range(4):
            with Namespace() as job:
                with lock:
                    address = network.allocate(config, taken)
                    taken.append(address)
                network.connect(config, address, pid=job.pid)
                assert network._table(config) in tables()
                job.configure(address)
            network.disconnect(config, address)
            with lock:
                taken.remove(address)
            network.release(config)

    with ThreadPoolExecutor(6) as pool:
        for ended in [pool.submit(live) for _ in range(6)]:
            ended.result()


@pytest.mark.root
def test_processes_that_cannot_be_connected(unchanged: None) -> None:
    config = configured()
    address = network.allocate(config, [])
    with pytest.raises(WrongState, match="of its own"):
        network.connect(config, address, pid=os.getpid())
    with Namespace() as job:
        pass
    with pytest.raises(WrongState, match="is gone"):
        network.connect(config, address, pid=job.pid)


@pytest.mark.root
def test_an_address_that_the_host_has_is_refused(jobs: Jobs) -> None:
    _, address = jobs.start()
    other = configured("/srv/second")
    same = Address(job=address.job, gateway=address.gateway, prefix=30, interface=f"{network._prefix(other)}1")
    with Namespace() as job, pytest.raises(InUse, match=address.gateway):
        network.connect(other, same, pid=job.pid)
    assert network._table(other) not in tables()


@pytest.mark.root
def test_a_failure_in_the_middle_leaves_nothing(unchanged: None) -> None:
    config = configured()
    with Namespace() as job:
        job.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
        with pytest.raises(SeracError, match="File exists"):
            network.connect(config, network.allocate(config, []), pid=job.pid)


@pytest.mark.root
def test_a_kernel_without_nat_is_named(unchanged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2\nexit 1\n")
    nft.chmod(0o755)
    config = configured()
    with Namespace() as job:
        monkeypatch.setenv("SERAC_TOOLS", os.fspath(tmp_path))
        with pytest.raises(HostLacks, match="not supported"):
            network.connect(config, network.allocate(config, []), pid=job.pid)


@pytest.mark.root
def test_other_tables_that_drop_are_found(unchanged: None) -> None:
    assert "strict/gate" not in network.obstacles()
    chain = "{ type filter hook forward priority 0; policy drop; }"
    subprocess.run(["nft", "-f", "-"], input=f"table ip strict {{\n chain gate {chain}\n}}\n".encode(), check=True)
    try:
        assert "strict/gate" in network.obstacles()
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "strict"], check=True)
