"""The network of ``--net bridge`` jobs: a veth pair and a /30 for each, behind the host's NAT.

There is no bridge device. A job's pair has one end on the host, ``srTAGINDEX``, which bears the gateway's address, and
one in the job's network namespace, ``eth0``, which serac-launch gives its address and route. When that namespace dies
the kernel removes the pair; what has to be put back by hand is shared by all jobs:

table inet serac_TAG      one nftables table a root: lets jobs out (masqueraded) and answers in, keeps jobs apart
net.ipv4.ip_forward       1 while any root has bridge jobs
/run/serac/network.json   what ip_forward was, and which roots rely on it; exists while one does. It is the lock, too:
                          the host's network is one thing, whichever root changes it

A packet must pass every table of its hook, so accepting one here does not overrule another program's table that drops
it; ``obstacles`` names such tables. IPv6 is off on the pair: a job reaches IPv4 only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import tools
from engine.errors import (
    Damaged,
    HostLacks,
    InUse,
    InvalidInput,
    NoSpace,
    NotPrivileged,
    SeracError,
    ToolFailed,
    WrongState,
    from_os,
)
from engine.model import Address

if TYPE_CHECKING:
    from engine.config import Config

LINK_PREFIX_LENGTH = 30
INTERFACE = "eth0"
"""the job's end, as it is called inside"""
STATE = Path("/run/serac/network.json")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""the second has the real servers where the first names systemd-resolved's own on loopback"""
NFT_TIMEOUT = 30.0
"""seconds"""

_RULES = """
table inet {table}
delete table inet {table}
table inet {table} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{prefix}*" oifname "{prefix}*" drop
        iifname "{prefix}*" ip saddr != {subnet} drop
        iifname "{prefix}*" meta nfproto ipv6 drop
        ip saddr {subnet} ip daddr {subnet} drop
        oifname "{prefix}*" ct state established,related accept
        oifname "{prefix}*" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} ip daddr != {subnet} masquerade
    }}
}}
"""


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of ``STATE``."""

    ip_forward: str
    """what it was before the first root came"""
    roots: list[str]
    """tags of the roots that have bridge jobs"""


def allocate(config: Config, taken: Iterable[Address]) -> Address:
    """The first free /30 of the configured subnet for a new job; pure.

    The search begins where the root's tag says and wraps around, so that roots that share a subnet rarely meet
    (``connect`` refuses when they do). Raises InvalidInput for a bad subnet, NoSpace when all of it is taken.
    """
    subnet = _subnet(config)
    used = list(taken)
    gateways, interfaces = {a.gateway for a in used}, {a.interface for a in used}
    count = 1 << (LINK_PREFIX_LENGTH - subnet.prefixlen)
    start = int(config.name, 16)
    for step in range(count - 1):
        index = 1 + (start + step) % (count - 1)
        first = subnet.network_address + 4 * index
        gateway, interface = str(first + 1), f"{_prefix(config)}{index}"
        if gateway not in gateways and interface not in interfaces:
            return Address(job=str(first + 2), gateway=gateway, prefix=LINK_PREFIX_LENGTH, interface=interface)
    raise NoSpace(f"no address is left in {subnet}", hint="remove bridge jobs, or set a larger `subnet` in config.json")


def connect(config: Config, address: Address, *, pid: int) -> None:
    """Make the pair: ``eth0`` (down, without address) in the namespace of ``pid``, the host's end up and addressed.

    ``pid`` is a job whose launch is held. NAT and forwarding are installed with it. A failure leaves nothing behind.
    Raises WrongState (no such process, or it shares the host's network), InUse (the address is on the host already),
    HostLacks, ToolMissing, ToolFailed.
    """
    subnet = _subnet(config)
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(_namespace(pid))
        held = stack.enter_context(_locked())
        with contextlib.ExitStack() as undo:
            undo.callback(_uninstall, held, config)
            _install(held, config, subnet)
            _delete_link(address.interface)
            undo.callback(_delete_link, address.interface)
            _create_link(address, namespace)
            undo.pop_all()


def disconnect(config: Config, address: Address, *, passed_on: Callable[[], bool] = lambda: False) -> None:
    """Remove the job's pair, if it is there still and not ``passed_on`` to another job. May be called again."""
    if not address.interface.startswith(_prefix(config)):
        raise InvalidInput(f"{address.interface} is not an interface of this root")
    with _locked():
        if not passed_on():
            _delete_link(address.interface)


def release(config: Config, *, known: Container[str] | None = None) -> None:
    """Undo what all bridge jobs of a root share, unless one of them still has its pair. May be called again.

    Pairs that are not ``known`` go first: the kernel may be slow to remove those of the dead.
    """
    with _locked() as held:
        for name in _links(config):
            if known is not None and name not in known:
                _delete_link(name)
        _uninstall(held, config)


def name_servers(config: Config) -> tuple[str, ...]:
    """Name servers that a bridge job can reach: the configured ones, else the host's IPv4 ones; may be none."""
    if config.settings.dns:
        return config.settings.dns
    for path in RESOLV_CONFS:
        with contextlib.suppress(FileNotFoundError):
            found = reachable_servers(path.read_text(errors="replace"))
            if found:
                return found
    return ()


def reachable_servers(text: str) -> tuple[str, ...]:
    """The ``nameserver`` lines of a resolv.conf that are IPv4 and not on loopback."""
    words = (line.split() for line in text.splitlines())
    named = (w[1] for w in words if len(w) > 1 and w[0] == "nameserver")
    return tuple(server for server in named if _is_remote(server))


def resolv_conf(servers: Iterable[str], search: Iterable[str] = ()) -> str:
    """The text of a job's /etc/resolv.conf."""
    domains = " ".join(search)
    lines = [f"search {domains}"] if domains else []
    return "".join(f"{line}\n" for line in [*lines, *(f"nameserver {server}" for server in servers)])


def obstacles() -> tuple[str, ...]:
    """Other programs' nftables chains (``table/chain``) that drop forwarded IPv4 packets by policy, for ``doctor``.

    With one of them jobs get no further than the host, unless it lets ``sr*`` interfaces through.
    """
    listed = msgspec.json.decode(_nft("-j", "list", "chains"))
    chains = [item["chain"] for item in listed["nftables"] if "chain" in item]
    return tuple(
        f"{chain['table']}/{chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
    )


def _prefix(config: Config) -> str:
    """Of interface names: six digits of the tag, at most seven of an index; fifteen characters are allowed."""
    return f"sr{config.name[:6]}"


def _table(config: Config) -> str:
    return f"serac_{config.name}"


def _subnet(config: Config) -> ipaddress.IPv4Network:
    hint = "in config.json: a private network between /8 and /29, such as 10.213.0.0/16"
    try:
        subnet = ipaddress.IPv4Network(config.settings.subnet)
    except ValueError as error:
        raise InvalidInput(f"subnet: {error}", hint=hint) from error
    if not 8 <= subnet.prefixlen < LINK_PREFIX_LENGTH or not subnet.is_private or subnet.is_loopback:
        raise InvalidInput(f"subnet: {subnet} cannot be used for jobs", hint=hint)
    return subnet


def _is_remote(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_unspecified


@contextlib.contextmanager
def _namespace(pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of ``pid``, which must not be our own."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    except FileNotFoundError as error:
        raise WrongState(f"process {pid} is gone, there is nothing to connect") from error
    except OSError as error:
        raise from_os(error, "connect the network") from error
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat("/proc/thread-self/ns/net")):
            raise WrongState(f"process {pid} has no network namespace of its own")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked() -> Iterator[int]:
    """Hold ``STATE`` and yield its descriptor.

    Whoever held it before may have removed it: then there is another file to lock.
    """
    try:
        STATE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        while True:
            with open(STATE, "ab+", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file.fileno(), STATE):
                    continue
                try:
                    yield file.fileno()
                finally:
                    if not os.fstat(file.fileno()).st_size:
                        STATE.unlink()
                return
    except OSError as error:
        raise from_os(error, "change the host's network") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_APPEND | os.O_NOFOLLOW, 0o600)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> _State | None:
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        return msgspec.json.decode(text, type=_State) if text else None
    except msgspec.DecodeError as error:
        raise Damaged(f"{STATE}: {error}", hint=f"set {IP_FORWARD} as you want it and remove the file") from error


def _write(descriptor: int, state: _State) -> None:
    """In one piece and never shorter than before: to be killed here leaves the old text or the new one."""
    text = msgspec.json.encode(state)
    os.pwrite(descriptor, text.ljust(os.fstat(descriptor).st_size), 0)


def _install(held: int, config: Config, subnet: ipaddress.IPv4Network) -> None:
    """The root's table and forwarding, put right if something took them away.

    They are written down before they are made, so that what isn't there in writing needs no undoing."""
    state = _read(held) or _State(ip_forward=IP_FORWARD.read_text().strip(), roots=[])
    known = config.name in state.roots
    if not known:
        state.roots.append(config.name)
        _write(held, state)
    try:
        _nft("-f", "-", rules=_RULES.format(table=_table(config), prefix=_prefix(config), subnet=subnet))
    except SeracError:  # nft does all of it or nothing
        if not known:
            _forget(held, config, state)
        raise
    IP_FORWARD.write_text("1")


def _uninstall(held: int, config: Config) -> None:
    """The reverse of ``_install``, however far that came, unless the root still has a pair."""
    if _links(config):
        return
    state = _read(held)
    if state is None or config.name not in state.roots:
        return
    table = _table(config)
    _nft("-f", "-", rules=f"table inet {table}\ndelete table inet {table}\n")
    _forget(held, config, state)


def _forget(held: int, config: Config, state: _State) -> None:
    """The root relies on the host's forwarding no more."""
    state.roots.remove(config.name)
    if state.roots:
        _write(held, state)
    else:
        IP_FORWARD.write_text(state.ip_forward)
        os.ftruncate(held, 0)


def _links(config: Config) -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith(_prefix(config))]


def _nft(*arguments: str, rules: str = "") -> bytes:
    try:
        return tools.run(["nft", *arguments], data=rules.encode(), timeout=NFT_TIMEOUT).stdout
    except ToolFailed as error:
        if "not supported" in str(error):
            raise HostLacks(str(error), hint="bridge networks need a kernel with nf_tables and its NAT") from error
        if "not permitted" in str(error):
            raise NotPrivileged(str(error)) from error
        raise


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """An IPRoute, its errors translated."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise HostLacks(
                "the kernel has no veth interfaces", hint="load or build the kernel's veth driver"
            ) from error
        raise from_os(OSError(error.code, os.strerror(error.code)), "connect the network") from error


def _create_link(address: Address, namespace: int) -> None:
    host = address.interface
    with _netlink() as ip:
        if any(ip.get_addr(family=socket.AF_INET, address=address.gateway)):
            raise InUse(
                f"{address.gateway} is on this host already", hint="give this root a `subnet` of its own in config.json"
            )
        mtu = _uplink_mtu(ip)
        peer = {"ifname": INTERFACE, "net_ns_fd": namespace, "mtu": mtu}
        ip.link("add", ifname=host, kind="veth", mtu=mtu, peer=peer)
        # The kernel drops what a job sends under a false address, and the host speaks no IPv6 with it.
        _set(f"ipv4/conf/{host}/rp_filter", "1")
        _set(f"ipv6/conf/{host}/disable_ipv6", "1")
        index = socket.if_nametoindex(host)
        ip.addr("add", index=index, address=address.gateway, prefixlen=address.prefix)
        ip.link("set", index=index, state="up")


def _uplink_mtu(ip: Any) -> int:
    """The MTU of the host's default route: a pair with a larger one would rely on path MTU discovery."""
    for route in ip.get_default_routes(family=socket.AF_INET):
        if route.get("oif"):
            return int(ip.link("get", index=route.get("oif"))[0].get("mtu"))
    return 1500


def _set(name: str, value: str) -> None:
    """A sysctl below net/; one that this kernel lacks, for want of IPv6, needs no setting."""
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/sys/net", name).write_text(value)


def _delete_link(name: str) -> None:
    with _netlink() as ip, _gone_is_well():
        for index in ip.link_lookup(ifname=name):
            ip.link("del", index=index)


@contextlib.contextmanager
def _gone_is_well() -> Iterator[None]:
    """The kernel may have removed the link itself meanwhile."""
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
