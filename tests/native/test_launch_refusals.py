"""What serac-launch refuses: specs, steps that fail, and system calls of the job."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import launches
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launches import Place, Record

pytestmark = pytest.mark.root

MKFS = Path("/usr/local/lib/serac/bin/mkfs.erofs")
BAD = st.one_of(
    st.text(max_size=40), st.sampled_from(["-1", "0", "99999", "/", "a=b", "1:2", "x:y:z", "private", ":", "/../x"])
)
KEYS = [
    *(
        "serac-launch",
        "cgroup",
        "cgroup1",
        "range",
        "stage",
        "warm",
        "tree",
        "lower",
        "upper",
        "work",
        "overlay",
        "bind",
        "net",
    ),
    *("hold", "address", "gateway", "hostname", "rlimit", "shm", "allow", "write", "init", "arg", "listen", "stdin"),
]


def give(program: Path, verb: str, spec: bytes) -> tuple[int, list[Record], str]:
    done = subprocess.run([program, verb], input=spec, capture_output=True, check=False, timeout=60)
    return done.returncode, launches.decode(done.stdout), done.stderr.decode()


def refused(place: Place, program: Path, records: list[Record]) -> tuple[str, int, str]:
    status, report, stderr = give(program, "run", launches.encode(records))
    assert (status, stderr) == (1, "")
    assert [key for key, _ in report] == ["step", "errno", "path"]
    found = dict(report)
    return found["step"], int(found["errno"]), found["path"]


@pytest.mark.parametrize("key", ["cgroup", "stage", "tree", "lower", "net", "init"])
def test_what_must_be_there(place: Place, program: Path, key: str) -> None:
    without = [key, "upper", "work"] if key == "lower" else [key]
    assert refused(place, program, place.spec(without=without)) == ("spec", errno.EINVAL, key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serac-launch", "1"),
        ("surprise", "1"),
        ("cgroup", "/a"),
        ("stage", "relative"),
        ("warm", "relative"),
        ("range", "5"),
        ("range", "0:65536"),
        ("range", "4294967000:65536"),
        ("tree", "Base=/x"),
        ("tree", "base"),
        ("tree", "base=relative"),
        ("lower", "/absolute"),
        ("lower", "base/../job"),
        ("lower", "a,b"),
        ("bind", "io"),
        ("bind", "io=relative"),
        ("net", "some"),
        ("address", "10.0.0.1"),
        ("address", "10.0.0.1/33"),
        ("gateway", "10.0.0.1"),
        ("hostname", "h" * 65),
        ("rlimit", "nofile:1"),
        ("rlimit", "speed:1:2"),
        ("rlimit", "nofile:1:2:3"),
        ("shm", "1"),
        ("allow", "everything"),
        ("write", "relative=x"),
        ("write", "/x"),
        ("listen", "/" + "x" * 108),
        ("init", "3"),
        ("meta", "/x"),
    ],
)
def test_record_that_is_wrong(place: Place, program: Path, key: str, value: str) -> None:
    without = [key] if key in ("range", "net", "stage", "init") else []
    assert refused(place, program, [*place.spec(without=without), (key, value)]) == ("spec", errno.EINVAL, key)


def test_spec_that_is_no_spec(place: Place, program: Path) -> None:
    assert refused(place, program, place.spec()[1:]) == ("spec", errno.EINVAL, "cgroup")
    assert refused(place, program, [("serac-launch", "2"), *place.spec()[1:]]) == ("spec", errno.EINVAL, "serac-launch")
    assert refused(place, program, [*place.spec(), ("hold", "77")]) == ("spec", errno.EBADF, "hold")
    assert refused(place, program, place.spec(without=["work"])) == ("spec", errno.EINVAL, "work")
    assert refused(place, program, place.spec(more=[("allow", "perf")] * 65)) == ("spec", errno.EINVAL, "allow")
    assert refused(place, program, place.spec(more=[("arg", "x" * (5 << 20))])) == ("spec", errno.EINVAL, "size")
    for spec in (b"", b"serac-launch=1", b"serac-launch\0", b"Serac=1\0"):
        status, report, _ = give(program, "run", spec)
        assert (status, dict(report)["step"]) == (1, "spec")
    assert give(program, "fly", b"")[0] == 2


Spoil = Callable[[Place], dict[str, object]]


def replace(*records: Record) -> Spoil:
    return lambda place: {"without": [key for key, _ in records], "more": list(records)}


def add(*records: Record) -> Spoil:
    return lambda place: {"more": list(records)}


def unwritable_work(place: Place) -> dict[str, object]:
    """Of an id that the job's range doesn't have: overlayfs would mount read-only without a word."""
    os.chown(place.root / "job/work", 70000, 70000)
    (place.root / "job/work").chmod(0o700)
    return {}


def directory_for_init(place: Place) -> dict[str, object]:
    (place.root / "job/upper/.serac/init").mkdir(parents=True)
    return {}


def text_for_init(place: Place) -> dict[str, object]:
    place.probe = place.root / "text"
    place.probe.write_text("no program")
    return {}


@pytest.mark.parametrize(
    ("spoil", "step", "error", "path"),
    [
        (replace(("stage", "/nowhere")), "trees", errno.ENOENT, "/nowhere"),
        (replace(("cgroup", "/nowhere")), "cgroup", errno.ENOENT, "/nowhere"),
        (replace(("cgroup", "/proc")), "clone", errno.EBADF, "/proc"),
        (add(("cgroup1", "/nowhere")), "cgroup", errno.ENOENT, "/nowhere/cgroup.procs"),
        (add(("tree", "more=/nowhere")), "trees", errno.ENOENT, "/nowhere"),
        (add(("tree", "more=/proc")), "trees", errno.EINVAL, "/proc"),
        (add(("lower", "none")), "overlay", errno.ENOENT, ""),
        (add(("overlay", "colour=red")), "overlay", errno.EINVAL, "colour"),
        (unwritable_work, "overlay", errno.EROFS, "job/upper"),
        (add(("bind", "none=/io")), "mounts", errno.ENOENT, "none"),
        (add(("bind", "io=/none")), "mounts", errno.ENOENT, "/none"),
        (add(("address", "10.0.0.2/24")), "network", errno.ENODEV, "eth0"),
        (add(("write", "/etc/layer/x=")), "files", errno.ENOTDIR, "/etc/layer/x"),
        (add(("write", "/proc/x/y=")), "files", errno.ENOENT, "/proc/x/y"),
        (directory_for_init, "files", errno.EISDIR, "/.serac/init"),
        (add(("listen", "/none/socket")), "files", errno.ENOENT, "/none/socket"),
        (add(("rlimit", "nofile:9:8")), "sandbox", errno.EINVAL, "nofile:9:8"),
        (text_for_init, "exec", errno.ENOEXEC, "/.serac/init"),
    ],
)
def test_step_that_fails(place: Place, program: Path, spoil: Spoil, step: str, error: int, path: str) -> None:
    done = place.launch(program, **spoil(place))
    assert (done.status, done.stderr, done.answers) == (1, "", [])
    assert done.failure
    assert done.failure[:2] == (step, error), done.failure
    assert path in done.failure[2]
    assert not any(key == "ready" for key, _ in done.report)
    assert "populated 0" in (place.cgroup / "cgroup.events").read_text()


@pytest.fixture(scope="session")
def spec_program(sanitized: Path) -> Path:
    return sanitized / "serac-launch"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.tuples(st.sampled_from(KEYS), BAD), max_size=12),
    noise=st.binary(max_size=30),
    verb=st.sampled_from(["run", "mount", "unmount"]),
)
def test_any_bytes_are_answered(spec_program: Path, records: list[Record], noise: bytes, verb: str) -> None:
    spec = launches.encode([("serac-launch", "1")]) + b"".join(f"{k}={v}".encode() + b"\0" for k, v in records) + noise
    status, report, stderr = give(spec_program, verb, spec)
    assert (status, stderr) == (1, "")
    assert [key for key, _ in report] == ["step", "errno", "path"]
    assert dict(report)["step"] == "spec"


CALLS = {
    "io_uring_setup": (425, errno.ENOSYS, "io_uring"),
    "landlock_create_ruleset": (444, errno.ENOSYS, "landlock"),
    "userfaultfd": (323, errno.ENOSYS, "userfaultfd"),
    "perf_event_open": (298, errno.ENOSYS, "perf"),
    "fanotify_init": (300, errno.ENOSYS, "fanotify"),
    "memfd_secret": (447, errno.ENOSYS, "memfd_secret"),
    "clone3": (435, errno.ENOSYS, "namespaces"),
    "bpf": (321, errno.EPERM, "bpf"),
    "keyctl": (250, errno.EPERM, "keyring"),
    "setns": (308, errno.EPERM, "namespaces"),
}
"""x86-64: number, what a job gets, the word that lifts it; each is called with -1 for all arguments"""
ONES = " -1" * 6
KEYCTL, GET_KEYRING_ID, JOIN_SESSION_KEYRING, SESSION_KEYRING = 250, 0, 1, -3
on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


@on_x86_64
def test_denied_calls(place: Place, program: Path) -> None:
    always = {
        "mount": 165,
        "pivot_root": 155,
        "swapon": 167,
        "reboot": 169,
        "kexec_load": 246,
        "open_by_handle_at": 304,
    }
    asked = [f"call {number}{ONES}" for number, _, _ in CALLS.values()]
    done = place.launch(program, [*asked, *(f"call {number}{ONES}" for number in always.values())])
    assert done.answers == [str(-error) for _, error, _ in CALLS.values()] + [str(-errno.EPERM)] * len(always)


@on_x86_64
@pytest.mark.parametrize("name", CALLS)
def test_denial_is_lifted_by_its_word_alone(place: Place, launcher: Path, name: str) -> None:
    number, error, word = CALLS[name]
    done = place.launch(launcher, [f"call {number}{ONES}", "call 165 0 0 0 0 0"], more=[("allow", word)])
    assert done.answers[0] != str(-error)
    others = [f"call {n}{ONES}" for n, _, other in CALLS.values() if other != word]
    done = place.launch(launcher, others, more=[("allow", word)])
    assert done.answers == [str(-wrong) for _, wrong, other in CALLS.values() if other != word]


@on_x86_64
@pytest.mark.parametrize("userns", [True, False], ids=["private", "host"])
def test_a_job_that_may_have_keys_has_none_of_the_hosts(place: Place, launcher: Path, userns: bool) -> None:
    """A session's keyring goes along to whatever is started in it."""
    libc = ctypes.CDLL(None)
    assert libc.syscall(KEYCTL, JOIN_SESSION_KEYRING, None) > 0
    ours = libc.syscall(KEYCTL, GET_KEYRING_ID, SESSION_KEYRING, 0)
    question = f"call {KEYCTL} {GET_KEYRING_ID} {SESSION_KEYRING} 0"
    done = place.launch(launcher, [question], userns=userns, more=[("allow", "keyring")])
    assert 0 < int(done.answers[0]) != ours


@on_x86_64
def test_denials_by_argument(place: Place, launcher: Path) -> None:
    flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    refused_calls = [f"call 272 {flag}" for flag in [*flags, 0x80, 0x10000400]]
    refused_calls += [f"call 56 {flag | 17}" for flag in flags]
    refused_calls += ["call 16 0 0x5412", "call 16 0 0x100005412", "call 16 0 0x541c"]
    refused_calls += [f"call 135 {value}" for value in (0x40000, 0x400000, 1, 0x80000000, 0xFFFFFFFE, 0x1FFFFFFFE)]
    done = place.launch(launcher, refused_calls)
    assert done.answers == [str(-errno.EPERM)] * len(refused_calls)
    allowed = ["call 272 0x400", "call 135 0xffffffff", "call 135 8", "call 135 0x20008", "call 135 0"]
    done = place.launch(launcher, [*allowed, "call 41 40 1 0", "call 41 2 2 0"])
    assert done.answers[:6] == ["0", "0", "0", "8", str(0x20008), str(-errno.EAFNOSUPPORT)]
    assert int(done.answers[6]) > 2


@on_x86_64
def test_device_nodes_are_denied(place: Place, launcher: Path) -> None:
    """In the host's user namespace a job could else make, and open, any of the host's disks."""
    nodes = ["133 0 0x6180 0x801", "133 0 0x2180 0x101", "259 -100 0 0x6180 0x801", "259 -100 0 0x2180 0x101"]
    nodes += ["133 0 0x100006180 0x801", "133 0 0x6180 0x100000801"]
    done = place.launch(launcher, [f"call {node}" for node in nodes])
    assert done.answers == [str(-errno.EPERM)] * len(nodes)
    # A whiteout, and a fifo: the kernel looks at the path, which is none.
    done = place.launch(launcher, ["call 133 0 0x2180 0", "call 133 0 0x1180 0", "call 259 -100 0 0x2180 0"])
    assert done.answers == [str(-errno.EFAULT)] * 3
    done = place.launch(launcher, [f"call {nodes[0]}"], more=[("allow", "devices")])
    assert done.answers == [str(-errno.EFAULT)]


@on_x86_64
def test_other_architectures_are_no_way_around(place: Place, launcher: Path) -> None:
    x32 = 0x40000000
    asked = [f"call {x32 + 39}", f"call {x32 + 165}{ONES}"]
    narrow = ["call32 21 0 0 0", "call32 425 0 0", "call32 310 0x10000000", "call32 136 0x40000", "call32 20"]
    done = place.launch(launcher, [*asked, *narrow, "call32 102 1 0"])
    assert done.answers[:2] == [str(-errno.ENOSYS)] * 2
    assert done.answers[2:6] == [str(-error) for error in (errno.EPERM, errno.ENOSYS, errno.EPERM, errno.EPERM)]
    assert done.answers[6] == "1"
    assert done.answers[7] == str(-errno.EAFNOSUPPORT), "which family socketcall(SYS_SOCKET) asks for can't be seen"


def test_image_is_mounted_and_unmounted(place: Place, program: Path) -> None:
    mkfs = MKFS if MKFS.exists() else shutil.which("mkfs.erofs")
    if not mkfs:
        pytest.skip("no mkfs.erofs")
    meta, blob, target = (place.root / name for name in ("meta.erofs", "data.blob", "stage"))
    make = [mkfs, "--quiet", "--chunksize=4096", f"--blobdev={blob}", meta, place.root / "base"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    spec = [("serac-launch", "1"), ("meta", f"{meta}"), ("blob", f"{blob}"), ("target", f"{target}")]
    status, report, stderr = give(program, "mount", launches.encode(spec))
    assert (status, report[-1:], stderr) == (0, [("ready", "1")], "")
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{target}" in line)
    assert line.split()[5].split(",")[0] == "ro"
    assert not {"nodev", "nosuid"} & set(line.split()[5].split(","))
    assert (target / "etc/layer").read_text() == "base"
    with (target / "etc/layer").open():
        assert dict(give(program, "unmount", launches.encode(spec[::3]))[1])["errno"] == str(errno.EBUSY)
    assert give(program, "unmount", launches.encode(spec[::3]))[0] == 0
    _, report, _ = give(program, "unmount", launches.encode(spec[::3]))
    assert dict(report) == {"step": "unmount", "errno": str(errno.EINVAL), "path": f"{target}"}


def test_image_that_is_none(place: Place, program: Path) -> None:
    (place.root / "zeros").write_bytes(bytes(8192))
    names = {"meta": f"{place.root}/zeros", "blob": f"{place.root}/zeros", "target": f"{place.root}/stage"}
    status, report, _ = give(program, "mount", launches.encode([("serac-launch", "1"), *names.items()]))
    assert (status, dict(report)["step"], dict(report)["errno"]) == (1, "mount", str(errno.EINVAL))
