"""After a resume tools find their files as they left them: builders build nothing again, caches are warm, git is clean.

The ways back: by ``reuse``, by ``stack`` over a directory, and from images alone, without processes and with them. What
of stat(2) changes on which way is said in CHANGES; modification times, sizes of files, owners and modes never do, and
these are what builders look at. git looks at inode numbers too: after a way back from images its first status reads
every file once more, unless it is told not to look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from roots import inside

from engine import Engine, JobSpec

pytestmark = pytest.mark.root

UNITS = 8
FILES, SIZE = 200, 10_000
"""of the git repository, and bytes of each"""
KEPT = set[str]()
FROM_IMAGES = {"st_ino", "st_ctime", "st_atime", "st_blocks", "st_size of directories"}
CHANGES = {"reuse": KEPT, "stack": KEPT, "images": FROM_IMAGES, "processes": FROM_IMAGES}
"""way -> what changes of entries that nobody touches; st_dev, which each mount is given anew, may always"""


class Way(NamedTuple):
    name: str
    job: str


@pytest.fixture
def home(debian: Engine) -> Iterator[Engine]:
    """With a running job ``a``; all jobs and snapshots go at the end."""
    debian.run(JobSpec(base="debian", name="a"))
    try:
        yield debian
    finally:
        for job in debian.jobs(ended=True):
            debian.remove(job.id, force=True)
        for snapshot in debian.snapshots():
            debian.snapshot_remove(snapshot.id)
        debian.collect()


def ways_back(engine: Engine) -> Iterator[Way]:
    """Take job ``a`` through a pause and back, by each of the ways."""
    engine.pause("a", mode="filesystem")
    assert engine.resume("a").strategy == "reuse"
    yield Way("reuse", "a")
    files = engine.pause("a", mode="filesystem", archive="wait").snapshot
    engine.snapshot_pin(files)
    assert engine.resume("a").strategy == "stack"
    yield Way("stack", "a")
    processes = engine.pause("a", mode="process", archive="wait").snapshot
    engine.snapshot_pin(processes)
    engine.remove("a")
    engine.collect()
    assert not any(layer.directory for layer in engine._root.catalog.layers())
    engine.fork(files, name="images")
    yield Way("images", "images")
    engine.fork(processes, name="processes", mode="process")
    yield Way("processes", "processes")


def write(engine: Engine, ref: str, path: str, text: str) -> None:
    inside(engine, ref, f"mkdir -p $(dirname {path}); cat > {path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n")


MAKEFILE = """
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
	gcc -o $@ $^
%.o: %.c
	echo $@ >> built
	gcc -c -o $@ $<
"""

BUILD_NINJA = """
rule cc
  command = echo $out >> built && gcc -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
""" + "".join(f"build unit{number}.o: cc unit{number}.c\n" for number in range(UNITS))

FINGERPRINTS = """
import hashlib, json, os, pathlib, subprocess

# As cargo does it: what a unit was built from is known by path, size, time and command; a stamp must not be older.
for unit in sorted(pathlib.Path().glob("*.c")):
    status = unit.stat()
    command = ["gcc", "-c", str(unit), "-o", f"{unit.stem}.o"]
    wanted = hashlib.sha256(json.dumps([command, status.st_size, status.st_mtime_ns]).encode()).hexdigest()
    stamp = pathlib.Path(f"{unit.stem}.stamp")
    if stamp.exists() and stamp.read_text() == wanted and stamp.stat().st_mtime_ns >= status.st_mtime_ns:
        continue
    subprocess.run(command, check=True)
    stamp.write_text(wanted)
    with open("built", "a") as built:
        built.write(f"{unit}\\n")
"""

TESTS = """
import pytest
from unit import answer

@pytest.mark.parametrize("number", range(20))
def test_numbers(number):
    assert answer(number) == 42 or number != 7
"""

BUILDERS = {"make": "make 2>&1", "ninja": "ninja 2>&1", "fingerprints": "python3 build.py 2>&1"}
IDLE = {"make": "make: 'program' is up to date.\n", "ninja": "ninja: no work to do.\n", "fingerprints": ""}
"""what each says when it has nothing to do"""


def test_builders_build_nothing_again(home: Engine) -> None:
    for name, command in BUILDERS.items():
        plant_sources(home, f"/{name}")
        inside(home, "a", f"cd /{name} && {command}")
    assert built(home, "a") == dict.fromkeys(BUILDERS, UNITS)
    for way in ways_back(home):
        said = {name: inside(home, way.job, f"cd /{name} && {command}") for name, command in BUILDERS.items()}
        assert said == IDLE, way
        assert built(home, way.job) == dict.fromkeys(BUILDERS, UNITS), way
    inside(home, "images", "cd /make; touch unit3.c; make")
    assert built(home, "images")["make"] == UNITS + 1


def plant_sources(engine: Engine, directory: str) -> None:
    write(engine, "a", f"{directory}/Makefile", MAKEFILE)
    write(engine, "a", f"{directory}/build.ninja", BUILD_NINJA)
    write(engine, "a", f"{directory}/build.py", FINGERPRINTS)
    units = f'for n in `seq 0 {UNITS - 2}`; do echo "int unit$n;" > unit$n.c; done'
    inside(engine, "a", f"cd {directory}; {units}; echo 'int main(void) {{ return 0; }}' > unit{UNITS - 1}.c")


def built(engine: Engine, ref: str) -> dict[str, int]:
    """How many compilations there have been."""
    return {name: int(inside(engine, ref, f"cat /{name}/built | wc -l")) for name in BUILDERS}


def test_caches_of_pytest_and_python_are_warm(home: Engine) -> None:
    write(home, "a", "/tests/unit.py", "def answer(number):\n    return 42 if number != 7 else 41\n")
    write(home, "a", "/tests/test_unit.py", TESTS)
    run = "cd /tests; python3 -m pytest -q"
    assert "1 failed, 19 passed" in inside(home, "a", run)
    compiled = "cd /tests; stat -c '%n %y %s' __pycache__/*"
    before = inside(home, "a", compiled)
    assert len(before.splitlines()) == 2
    for way in ways_back(home):
        said = inside(home, way.job, f"{run} --last-failed")
        assert "1 failed in" in said, (way, said)
        assert "test_unit.py::test_numbers[7]" in inside(home, way.job, f"{run} --cache-show"), way
        assert inside(home, way.job, compiled) == before, way


STATUS = """
import os, subprocess, sys

def calls():
    return [int(line.split()[1]) for line in open("/proc/self/io") if line.startswith(("rchar", "wchar"))]

before, index = calls(), os.stat("/repo/.git/index").st_mtime_ns
subprocess.run(["git", "-C", "/repo", *sys.argv[1:], "status", "--porcelain"])
after = calls()
print(*(now - was for was, now in zip(before, after)), os.stat("/repo/.git/index").st_mtime_ns != index)
"""
MINIMAL = "-c core.checkStat=minimal -c core.trustctime=false"


class Status(NamedTuple):
    """What git said, and whether it read all files, and wrote its index."""

    said: str
    reads_files: bool
    writes_index: bool


CLEAN = Status("", reads_files=False, writes_index=False)
REFRESHED = Status("", reads_files=True, writes_index=True)


def status(engine: Engine, ref: str, options: str = "") -> Status:
    *said, counts = inside(engine, ref, f"python3 /status.py {options}").splitlines(keepends=True)
    read, _, writes_index = counts.split()
    assert not FILES * SIZE // 10 < int(read) < FILES * SIZE, "some files only"
    return Status("".join(said), int(read) > FILES * SIZE, writes_index == "True")


def test_git_is_clean_and_reads_at_most_once(home: Engine) -> None:
    plant_repository(home)
    assert status(home, "a") == CLEAN
    for way in ways_back(home):
        from_images = way.name not in ("reuse", "stack")
        assert status(home, way.job, MINIMAL) == CLEAN, way
        assert status(home, way.job) == (REFRESHED if from_images else CLEAN), way
        assert status(home, way.job) == CLEAN, way
    inside(home, "images", "echo changed > /repo/d3/f3")
    for options in (MINIMAL, ""):
        assert status(home, "images", options).said == " M d3/f3\n"


def plant_repository(engine: Engine) -> None:
    write(engine, "a", "/status.py", STATUS)
    files = f"for n in `seq {FILES // 10}`; do head -c {SIZE} /dev/urandom > d$d/f$n; done"
    inside(
        engine,
        "a",
        f"""set -e; mkdir /repo; cd /repo; git init -q; git config user.email a@example.com; git config user.name a
        for d in `seq 10`; do mkdir d$d; {files}; done; ln -s f1 d1/link; git add .; git commit -qm one
        git mv d1/f1 d1/moved; chmod +x d1/f2; git commit -qam two
        sleep 1.1; git update-index --really-refresh""",  # what is as new as the index is read again
    )


STAT = """
import json, os, stat

found = {}
for top, directories, files in os.walk("/repo"):
    for path in [top, *(os.path.join(top, name) for name in files)]:
        status = os.lstat(path)
        kind = " of directories" if stat.S_ISDIR(status.st_mode) else ""
        for name in dir(status):
            if name.startswith("st_") and not name.endswith("time"):
                own = name in ("st_nlink", "st_size")
                found[f"{path} {name.removesuffix('_ns')}{kind if own else ''}"] = getattr(status, name)
print(json.dumps(found))
"""


def test_what_of_stat_changes(home: Engine) -> None:
    plant_repository(home)
    write(home, "a", "/stat.py", STAT)
    before = json.loads(inside(home, "a", "python3 /stat.py"))
    for way in ways_back(home):
        after = json.loads(inside(home, way.job, "python3 /stat.py"))
        assert after.keys() == before.keys(), way
        changed = {fact.rpartition(" st_")[2] for fact in before if before[fact] != after[fact]}
        assert {f"st_{name}" for name in changed - {"dev"}} == CHANGES[way.name], way
