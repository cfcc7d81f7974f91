"""serac-launch on the real kernel: what a job sees inside, what the host sees outside."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
from launches import RANGE, Place

pytestmark = pytest.mark.root

CAPS_KEPT = 0xA80425FB
"""The containers' usual set: chown, dac_override, fsetid .. setfcap, nothing that reaches the kernel itself."""
NULL_DEVICE = "20666 0 0 103"


def status_of(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def mounts_of(text: str) -> dict[str, tuple[set[str], str]]:
    """target -> (options, type)"""
    fields = [(line.split(), line.partition(" - ")[2].split()) for line in text.splitlines()]
    return {head[4]: (set(head[5].split(",")), rest[0]) for head, rest in fields}


@pytest.mark.parametrize("userns", [True, False], ids=["private", "host"])
def test_process_one_is_confined(place: Place, program: Path, userns: bool) -> None:
    questions = ["read /proc/1/status", "link /proc/self/cwd", "fds", "listen", "read /proc/self/limits"]
    more = [("hostname", "box"), ("listen", "/io/init.sock"), ("rlimit", "nofile:200:300"), ("rlimit", "core:0:0")]
    done = place.launch(program, [*questions, "read /proc/sys/kernel/hostname"], userns=userns, more=more)
    assert (done.status, done.stderr) == (0, "")
    status = status_of(done.answers[0])
    assert {status[key] for key in ("Pid", "NSpid", "NSsid", "NSpgid")} == {"1"}
    assert (status["Uid"].split(), status["Gid"].split(), status["Groups"]) == (["0"] * 4, ["0"] * 4, "")
    assert {int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd")} == {CAPS_KEPT}
    assert {int(status[key], 16) for key in ("CapInh", "CapAmb", "SigBlk", "SigIgn")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Umask"]) == ("1", "2", "0022")
    assert done.answers[1] == "/"
    fds = dict(word.split("=") for word in done.answers[2].split())
    assert sorted(fds) == ["0", "1", "2", "3"]
    assert (fds["0"][:5], fds["1"][:5], fds["2"], fds["3"][:7]) == ("pipe:", "pipe:", "/dev/null", "socket:")
    assert done.answers[3] == "1"
    assert (place.root / "io/init.sock").stat().st_mode & 0o777 == 0o666
    limits = [line.split() for line in done.answers[4].splitlines()]
    assert ["Max", "open", "files", "200", "300", "files"] in limits
    assert done.answers[5] == "box\n"


def test_report_names_the_steps(place: Place, program: Path) -> None:
    report = place.launch(program, []).report
    assert [key for key, _ in report][:1] == ["pid"]
    assert report[-1] == ("ready", "1")
    took = dict(value.split(":") for key, value in report if key == "took")
    assert set(took) <= {
        "spec",
        "cgroup",
        "userns",
        "trees",
        "overlay",
        "clone",
        "network",
        "mounts",
        "files",
        "sandbox",
        "exec",
    }
    assert all(int(micros) > 0 for micros in took.values())
    assert {"overlay", "mounts", "clone"} <= set(took)


@pytest.mark.parametrize(("userns", "net"), [(True, "private"), (True, "host"), (False, "private"), (False, "host")])
def test_kernel_files_are_covered(place: Place, program: Path, userns: bool, net: str) -> None:
    covered = ["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list"]
    written = ["/proc/sys/net/core/somaxconn", "/sys/kernel/profiling", "/sys/firmware/x"]
    present = [path for path in covered if os.path.exists(path)]
    questions = [f"stat {path}" for path in present] + [f"write {path}" for path in written]
    done = place.launch(program, [*questions, "read /proc/self/mountinfo"], userns=userns, net=net)
    assert done.status == 0, done
    assert done.answers[: len(present)] == [NULL_DEVICE] * len(present)
    refusals = {str(-errno.EROFS), str(-errno.EACCES)}  # the latter first, where the host's root owns the file
    assert set(done.answers[len(present) : -1]) <= refusals
    mounts = mounts_of(done.answers[-1])
    sealed = {"nosuid", "nodev", "noexec"}
    assert sealed <= mounts["/proc"][0]
    assert {*sealed, "ro"} <= mounts["/sys"][0] & mounts["/sys/firmware"][0] & mounts["/proc/sys"][0]
    assert (mounts["/sys"][1], mounts["/dev/shm"][1], mounts["/dev/pts"][1]) == ("sysfs", "tmpfs", "devpts")
    own = {"/", "/io", "/proc", "/sys", "/sys/firmware", "/dev/pts", "/dev/shm"}
    assert {target for target in mounts if not target.startswith("/proc/")} == own
    assert place.root.name not in " ".join(line.split()[4] for line in done.answers[-1].splitlines())


def test_ids_on_disk_stay_plain(place: Place, program: Path) -> None:
    with place.started(program, ["write /made", "stat /made", "wait"]) as running:
        pid = running.pid()
        assert running.report()[-1] == ("ready", "1")
        assert [running.answer(), running.answer()] == ["7", "100644 0 0 0"]
        assert Path(f"/proc/{pid}").stat().st_uid == RANGE
        assert Path(f"/proc/{pid}/root/made").stat().st_uid == RANGE
        assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", f"{RANGE}", "65536"]
        assert running.finish().answers == ["0"]
    made = (place.root / "job/upper/made").stat()
    assert (made.st_uid, made.st_gid, made.st_size) == (0, 0, 7)


@pytest.mark.parametrize("userns", [True, False], ids=["private", "host"])
def test_every_namespace_is_the_jobs_own(place: Place, launcher: Path, userns: bool) -> None:
    with place.started(launcher, ["wait"], userns=userns) as running:
        pid = running.pid()
        running.report()
        kinds = ["ipc", "mnt", "net", "pid", "uts", *(["user"] if userns else [])]
        for kind in kinds:
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert f"0::/{place.cgroup.name}" in groups
        assert not place.cgroup1 or any("pids" in line and place.cgroup1.name in line for line in groups)
        assert place.root.name not in Path("/proc/self/mountinfo").read_text()
        running.finish()


def test_loopback_and_shared_memory(place: Place, program: Path) -> None:
    done = place.launch(program, ["loopback", "read /proc/self/mountinfo"], more=[("shm", "1048576")])
    assert done.answers[0] == "1"
    assert "size=1024k" in next(line for line in done.answers[1].splitlines() if " /dev/shm " in line)


def test_network_of_the_host(place: Place, launcher: Path) -> None:
    done = place.launch(launcher, ["link /proc/self/ns/net"], net="host")
    assert done.answers == [os.readlink("/proc/self/ns/net")]


@pytest.mark.parametrize("userns", [True, False], ids=["private", "host"])
def test_network_that_is_given(place: Place, launcher: Path, userns: bool) -> None:
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=PIPE, stdout=PIPE) as owner:
        assert owner.stdin
        assert owner.stdout
        owner.stdout.readline()
        with open(f"/proc/{owner.pid}/ns/net") as given:
            questions = ["link /proc/self/ns/net", "read /sys/class/net/lo/operstate"]
            how = {"net": f"fd:{given.fileno()}", "fds": [given.fileno()], "userns": userns}
            done = place.launch(launcher, questions, **how)
        inside = os.readlink(f"/proc/{owner.pid}/ns/net")
        owner.stdin.close()
    assert done.answers == [inside, "down\n"]


def test_network_that_is_put_in_while_the_job_is_held(place: Place, program: Path) -> None:
    asks = ["read /proc/net/route", "read /proc/net/fib_trie"]
    more = [("address", "10.231.7.2/30"), ("gateway", "10.231.7.1")]
    reader, writer = os.pipe()
    with place.started(program, asks, fds=[reader], more=[*more, ("hold", f"{reader}")]) as running:
        os.close(reader)
        link = ["ip", "link", "add", "seractest0", "type", "veth", "peer", "name", "eth0", "netns", f"{running.pid()}"]
        subprocess.run(link, check=True)
        os.write(writer, b"x")
        done = running.finish()
        subprocess.run(["ip", "link", "del", "seractest0"], check=False, stderr=DEVNULL)
    os.close(writer)
    assert done.status == 0, done
    routes = [line.split()[:4] for line in done.answers[0].splitlines()]
    assert ["eth0", "00000000", "0107E70A", "0003"] in routes
    assert "10.231.7.2" in done.answers[1]


def test_hold_that_is_given_up(place: Place, program: Path) -> None:
    reader, writer = os.pipe()
    with place.started(program, ["write /ran"], fds=[reader], more=[("hold", f"{reader}")]) as running:
        os.close(reader)
        pid = running.pid()
        os.close(writer)
        done = running.finish()
        assert not Path(f"/proc/{pid}").exists()
    assert (done.status, done.failure) == (1, ("network", errno.ECANCELED, "hold"))
    assert not (place.root / "job/upper/ran").exists()


def test_job_that_is_killed_in_the_middle(place: Place, program: Path) -> None:
    reader, writer = os.pipe()
    with place.started(program, fds=[reader], more=[("hold", f"{reader}")]) as running:
        os.close(reader)
        running.pid()
        place.kill()
        done = running.finish()
    os.close(writer)
    assert (done.status, done.failure) == (
        1,
        ("clone", errno.ECHILD, "the job's first process was killed by signal 9"),
    )


def test_launcher_that_is_killed_leaves_nothing(place: Place, program: Path) -> None:
    reader, writer = os.pipe()
    with place.started(program, ["write /ran"], fds=[reader], more=[("hold", f"{reader}")]) as running:
        os.close(reader)
        handle = os.pidfd_open(running.pid())
        running.process.kill()
        assert select.select([handle], [], [], 30)[0], "the job's first process lives on"
        running.finish()
    os.close(handle)
    os.close(writer)
    assert not (place.root / "job/upper/ran").exists()
    assert list((place.root / "stage").iterdir()) == []


def test_launcher_that_is_killed_at_any_moment(place: Place, launcher: Path) -> None:
    for turn in range(40):
        with place.started(launcher, []) as running:
            time.sleep(turn / 4000)  # the moments are the point: 0 to 10 ms cover a launch
            running.process.kill()
            running.process.wait()
            running.hold.close()
            place.await_empty()


def test_report_that_nobody_reads_ends_the_job(place: Place, program: Path) -> None:
    reader, writer = os.pipe()
    with place.started(program, ["wait"], fds=[reader], more=[("hold", f"{reader}")]) as running:
        os.close(reader)
        running.pid()
        assert running.process.stdout
        running.process.stdout.close()
        os.write(writer, b"x")
        os.close(writer)
        assert running.process.wait(30) == 1
        assert running.answers.readall() == b""


def test_nothing_is_begun_when_nobody_is_left_to_read_the_report(program: Path) -> None:
    """The engine has died before the launcher got a CPU: nothing tells it so later on."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([program, "run"], stdin=subprocess.PIPE, stdout=writer) as process:
        os.close(writer)
        assert process.wait(30) == 1


def test_layers_lie_in_the_order_given(place: Place, program: Path) -> None:
    for name in ("old", "new"):
        (place.root / "io/layers" / name / "etc").mkdir(parents=True)
        (place.root / "io/layers" / name / "etc/layer").write_text(name)
    lowers = [("lower", f"io/layers/{name}") for name in ("new", "old")] + [("lower", "base")]
    upper = [("upper", "job/upper"), ("work", "job/work"), ("overlay", "redirect_dir=on")]
    done = place.launch(program, ["read /etc/layer", "read /proc/self/mountinfo"], layers=[*lowers, *upper])
    assert done.answers[0] == "new"
    assert "redirect_dir=on" in done.answers[1]


@pytest.mark.parametrize("lowers", [["base"], ["io/layer", "base"]], ids=["one", "two"])
def test_layers_without_an_upper_are_read_only(place: Place, program: Path, lowers: list[str]) -> None:
    (place.root / "io/layer").mkdir()
    (place.root / "base/.serac").mkdir()
    shutil.copy(place.probe, place.root / "base/.serac/init")
    done = place.launch(program, ["write /made", "read /etc/layer"], layers=[("lower", name) for name in lowers])
    assert (done.status, done.answers) == (0, [str(-errno.EROFS), "base"])


def test_files_are_put_in(place: Place, program: Path) -> None:
    upper = place.root / "job/upper"
    (upper / "etc").mkdir()
    (upper / "etc/link").symlink_to("layer")
    (place.root / "base/etc/same").write_text("as it is")
    writes = [("/etc/link", "own"), ("/etc/same", "as it is"), ("/new/deep/file", "a=b")]
    more = [("write", f"{path}={content}") for path, content in writes]
    done = place.launch(program, ["read /etc/layer", *(f"read {path}" for path, _ in writes)], more=more)
    assert done.answers == ["base", "own", "as it is", "a=b"]
    assert not (upper / "etc/link").is_symlink()
    assert not (upper / "etc/same").exists()
    modes = [(upper / name).stat().st_mode & 0o7777 for name in ("etc/link", "new/deep", ".serac/init")]
    assert modes == [0o644, 0o755, 0o755]


@pytest.mark.parametrize("userns", [True, False], ids=["private", "host"])
@pytest.mark.parametrize("link", ["/../etc", "/proc/../../etc"])
def test_links_of_the_job_end_in_its_own_root(place: Place, program: Path, link: str, userns: bool) -> None:
    """Above it the host's tree lies while it is entered."""
    assert Path("/etc/hostname").is_file()
    (place.root / "job/upper/.serac").mkdir()
    (place.root / "job/upper/.serac/empty").symlink_to(link)
    done = place.launch(program, ["read /sys/firmware/hostname", "read /sys/firmware/layer"], userns=userns)
    assert (done.status, done.answers) == (0, [str(-errno.ENOENT), "base"])


def test_no_descriptor_of_the_launch_leads_out(place: Place, launcher: Path) -> None:
    """A link of the job's through /proc is followed while files are put in; which number it needs the job can try."""
    made = Path("/serac-test-made"), place.cgroup / "serac-test-made"
    for number in range(40):
        link = place.root / "job/upper/way"
        link.unlink(missing_ok=True)
        link.symlink_to(f"/proc/self/fd/{number}")
        place.launch(launcher, userns=False, more=[("write", "/way/serac-test-made=x")])
        place.launch(launcher, userns=False, more=[("write", "/way/serac-test-made/deep=x")])
    there = [path for path in made if path.exists()]
    for path in there:
        subprocess.run(["rm", "-r", path], check=False)
    assert there == []


def test_init_stays_while_it_is_the_same(place: Place, launcher: Path) -> None:
    copied = place.root / "job/upper/.serac/init"
    assert place.launch(launcher).status == 0
    first = copied.stat()
    assert place.launch(launcher).status == 0
    assert copied.stat().st_ino == first.st_ino
    os.truncate(copied, 5)
    assert place.launch(launcher).status == 0
    assert (copied.stat().st_size, copied.stat().st_ino != first.st_ino) == (first.st_size, True)


def test_init_that_the_job_wrote_itself_is_replaced(place: Place, launcher: Path) -> None:
    assert place.launch(launcher).status == 0
    copied = place.root / "job/upper/.serac/init"
    with copied.open("r+b") as file:
        file.write(b"#!/evil\n")
    assert place.launch(launcher).status == 0
    assert copied.read_bytes() == place.probe.read_bytes()


def test_null_device_that_the_job_broke_is_replaced(place: Place, launcher: Path) -> None:
    (place.root / "job/upper/dev").mkdir()
    (place.root / "job/upper/dev/null").write_text("a trap")
    done = place.launch(launcher, ["stat /proc/keys", "fds"])
    assert done.status == 0, done
    assert done.answers[0].startswith("20")
    assert (place.root / "job/upper/dev/null").read_text() == "a trap"


def test_control_group_that_was_killed_before_serves_again(place: Place, launcher: Path) -> None:
    (place.cgroup / "cgroup.kill").write_text("1")
    done = place.launch(launcher, ["read /proc/self/cgroup"])
    assert done.status == 0, done
    assert f"0::/{place.cgroup.name}" in done.answers[0].splitlines()


def test_older_kernel_gets_the_same_job(place: Place, programs: dict[str, Path]) -> None:
    (place.root / "io/layer/etc").mkdir(parents=True)
    (place.root / "io/layer/etc/layer").write_text("upper lower")
    lowers = [("lower", "io/layer"), ("lower", "base"), ("upper", "job/upper"), ("work", "job/work")]
    asks = ["read /etc/layer", "write /made", "read /proc/self/mountinfo", "read /proc/self/cgroup"]
    older = {"LD_PRELOAD": os.fspath(programs["older"])}
    done = place.launch(programs["dynamic"], asks, layers=lowers, env=older)
    assert (done.status, done.answers[:2]) == (0, ["upper lower", "7"])
    assert "lowerdir=io/layer:base" in done.answers[2]
    assert f"0::/{place.cgroup.name}" in done.answers[3].splitlines()
