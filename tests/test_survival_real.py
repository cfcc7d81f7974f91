"""Real programs go on after a pause in mode process: servers with a client each, builds, a clone, a test run, a JVM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from roots import until, wait_for
from survivors import Outcomes, Place, Thing, one_by_one, resumed, taken_through

from engine import Engine
from engine.session import Output

pytestmark = pytest.mark.root


def write(place: Place, path: str, text: str) -> None:
    place.inside(f"mkdir -p $(dirname {path}); cat > {path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n")


def printed(place: Place, number: int) -> str:
    """What a session printed to its end."""
    events = place.engine.follow(place.job, number)
    return b"".join(event.data for event in events if isinstance(event, Output)).decode()


def postgres(place: Place) -> Callable[[Place], None]:
    """A transaction is open in a client, and another session's lock waits for its end."""
    user = int(place.inside("id -u postgres"))
    place.inside("ln -s /usr/lib/postgresql/*/bin /pg; install -d -o postgres /run/postgresql /pgdata")
    initdb = "/pg/initdb -D /pgdata -A trust -U postgres -N > /tmp/initdb 2>&1 || cat /tmp/initdb"
    assert place.inside(f"setpriv --reuid {user} --regid {user} --clear-groups {initdb}") == ""
    number = place.start("/pg/postgres", "-D", "/pgdata", user=user, workdir="/pgdata")
    until(place.engine, place.job, b"ready to accept connections", number)
    psql = ("psql", "-h", "127.0.0.1", "-U", "postgres", "--no-psqlrc", "-P", "pager=off")
    client, waiter = place.start(*psql, tty=True), place.start(*psql, tty=True)
    with place.screen(client) as user_of_it:
        user_of_it.type("create table kept (value int); insert into kept values (1);\r")
        user_of_it.expect("INSERT 0 1")
        user_of_it.type("begin; update kept set value = value + 41; create temp table own as select 7 as seven;\r")
        user_of_it.expect("SELECT 1")
    with place.screen(waiter) as other:
        other.type("update kept set value = value * 10;\r")
        blocked = 'psql -h 127.0.0.1 -U postgres -Atc "select count(*) from pg_locks where not granted"'
        wait_for(lambda: place.inside(blocked) == "1\n")

    def check(place: Place) -> None:
        with place.screen(client) as user_of_it, place.screen(waiter) as other:
            user_of_it.type("select 'seven is ' || seven from own; commit;\r")
            user_of_it.expect("seven is 7")
            user_of_it.expect("COMMIT")
            other.expect("UPDATE 1")
        found = place.inside("psql -h 127.0.0.1 -U postgres -Atc 'select value from kept'")
        assert found == "420\n"

    return check


def redis(place: Place) -> Callable[[Place], None]:
    """One client is in a transaction, one waits for a list, one has subscribed."""
    number = place.start("redis-server", "--save", "", "--port", "6379")
    until(place.engine, place.job, b"Ready to accept connections", number)
    place.inside("redis-cli set kept before")
    one, two, three = (place.start("redis-cli", tty=True) for _ in range(3))
    with place.screen(one) as user:
        user.expect("6379> ")
        user.type("multi\r")
        user.expect("(TX)> ")
        user.type("incrby number 41\r")
        user.expect("QUEUED")
    with place.screen(two) as user:
        user.expect("6379> ")
        user.type("blpop list 0\r")
        wait_for(lambda: "blocked_clients:1" in place.inside("redis-cli info clients"))
    with place.screen(three) as user:
        user.expect("6379> ")
        user.type("subscribe news\r")
        user.expect("(integer) 1")

    def check(place: Place) -> None:
        assert place.inside("redis-cli get kept") == "before\n"
        with place.screen(one) as user:
            user.type("exec\r")
            user.expect("(integer) 41")
        with place.screen(two) as user:
            place.inside("redis-cli rpush list pushed-later")
            user.expect("pushed-later")
        with place.screen(three) as user:
            assert place.inside("redis-cli publish news hear-hear") == "1\n"
            user.expect("hear-hear")

    return check


SERVER = """
let asked = 0;
const server = require('http').createServer((request, response) => {
  response.end(`answer ${++asked} to port ${request.socket.remotePort}`);
});
server.keepAliveTimeout = 0;
server.listen(8080, '127.0.0.1', () => console.log('listening'));
"""

CLIENT = """
const http = require('http');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
require('readline').createInterface({ input: process.stdin }).on('line', () => {
  http.get({ host: '127.0.0.1', port: 8080, agent }, (response) => {
    response.setEncoding('utf8');
    response.on('data', (text) => console.log(text));
  }).on('error', (error) => console.log(`failed: ${error}`));
});
console.log('waiting');
"""


def node(place: Place) -> Callable[[Place], None]:
    """A client that keeps its connection."""
    write(place, "/node/server.js", SERVER)
    write(place, "/node/client.js", CLIENT)
    until(place.engine, place.job, b"listening", place.start("node", "/node/server.js"))
    number = place.start("node", "/node/client.js", tty=True)
    with place.screen(number) as user:
        user.expect("waiting")
        user.type("ask\r")
        user.expect("answer 1 to port ")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            user.type("ask\r")
            user.expect("answer 2 to port ")

    return check


UNITS = 120

GENERATE = r"""
import sys

units = range(int(sys.argv[1]))
loop = "int f{}_{}(int x) {{ for (int k = 1; k < x; k++) x ^= k * {} + x / ({} + k); return x; }}\n"
for n in units:
    with open(f"unit{n}.c", "w") as unit:
        unit.writelines(loop.format(n, i, i, n) for i in range(20))
        unit.write(f"int unit{n}(void) {{ return {n}; }}\n")
with open("main.c", "w") as main:
    main.write("#include <stdio.h>\n")
    main.writelines(f"int unit{n}(void);\n" for n in units)
    main.write(r'int main(void) { printf("%d\n", 0' + "".join(f" + unit{n}()" for n in units) + "); return 0; }\n")
"""

MAKEFILE = """
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
	gcc -o $@ $^
%.o: %.c
	echo $@ >> built
	gcc -O1 -c -o $@ $<
"""


def make(place: Place) -> Callable[[Place], None]:
    """-j4, in the middle of a build: nothing is built twice, and the program is right."""
    write(place, "/make/generate.py", GENERATE)
    write(place, "/make/Makefile", MAKEFILE)
    assert place.inside(f"cd /make; python3 generate.py {UNITS} 2>&1") == ""
    number = place.start("make", "-s", "-j4", workdir="/make")
    wait_for(lambda: int(place.inside("cat /make/built 2>/dev/null | wc -l")) > UNITS // 8)

    def check(place: Place) -> None:
        assert printed(place, number) == ""
        assert place.inside("/make/program") == f"{UNITS * (UNITS - 1) // 2}\n"
        built = place.inside("cat /make/built").split()
        assert len(built) == len(set(built)) == UNITS + 1

    return check


HOOK = """#!/bin/sh
# Five megabytes of the pack, and the rest when somebody writes into the gate.
"$@" | { head -c 5000000; read -r _ < /git/gate; cat; }"""


def git(place: Place) -> Callable[[Place], None]:
    """A clone from git daemon, held in the middle of its pack by the server's hook."""
    write(place, "/git/hook", HOOK)
    place.inside("""set -e; cd /git; chmod +x hook; mkfifo gate; export HOME=/git
        git config --global uploadpack.packObjectsHook /git/hook; git config --global user.email a@example.com
        git config --global user.name a; git config --global init.defaultBranch main; git init -q source; cd source
        for n in 1 2 3 4; do head -c 5000000 /dev/urandom > file$n; git add .; git commit -qm $n; done""")
    daemon = ("git", "daemon", "--reuseaddr", "--export-all", "--base-path=/git", "--listen=127.0.0.1", "--verbose")
    until(place.engine, place.job, b"Ready to rumble", place.start("env", "HOME=/git", *daemon))
    number = place.start("git", "clone", "--progress", "git://127.0.0.1/source", "/git/clone")
    sizes = "cat /git/clone/.git/objects/pack/tmp_pack_* 2>/dev/null | wc -c"
    wait_for(lambda: int(place.inside(sizes)) > 4_000_000)

    def check(place: Place) -> None:
        place.inside("echo > /git/gate")
        said = printed(place, number)
        assert "Receiving objects: 100%" in said, said
        place.inside("cd /git/clone && git fsck --strict > /tmp/fsck 2>&1; echo $? >> /tmp/fsck")
        assert place.inside("tail -1 /tmp/fsck") == "0\n"
        assert place.inside("cd /git/clone; git log --oneline | wc -l; cmp file4 ../source/file4") == "4\n"

    return check


TESTS = """
import pytest

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "file"
    path.write_text("by the fixture")
    yield path
    path.unlink()

def test_before(made):
    assert made.read_text() == "by the fixture"

@pytest.mark.parametrize("number", range(3))
def test_in_the_middle(made, number, capsys, monkeypatch):
    monkeypatch.setenv("NUMBER", str(number))
    print("captured", number)
    if number == 1:
        with open("/pytest/here", "w") as here:
            here.write("here")
        with open("/pytest/gate") as gate:
            assert gate.read() == "open\\n"
    assert capsys.readouterr().out == f"captured {number}\\n"

def test_after(made):
    assert made.exists()
"""


def pytest_run(place: Place) -> Callable[[Place], None]:
    """In the middle of a test with fixtures."""
    write(place, "/pytest/test_it.py", TESTS)
    place.inside("mkfifo /pytest/gate")
    number = place.start("python3", "-B", "-m", "pytest", "-v", "-p", "no:cacheprovider", workdir="/pytest")
    wait_for(lambda: place.inside("cat /pytest/here 2>/dev/null || true") == "here")

    def check(place: Place) -> None:
        place.inside("echo open > /pytest/gate")
        assert "5 passed" in printed(place, number)

    return check


JAVA = """
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.LongStream;

public class Kept {
    public static void main(String[] words) throws Exception {
        Map<Integer, byte[]> heap = new HashMap<>();
        for (int n = 0; n < 2000; n++) heap.put(n, new byte[4096]);
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
        var ticks = new java.util.concurrent.atomic.AtomicLong();
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 1, 1, TimeUnit.MILLISECONDS);
        ExecutorService pool = Executors.newFixedThreadPool(8);
        Scanner lines = new Scanner(System.in);
        System.out.println("waiting");
        while (lines.hasNextLine()) {
            lines.nextLine();
            List<Future<Long>> sums = new ArrayList<>();
            for (int part = 0; part < 8; part++) {
                long from = part;
                sums.add(pool.submit(() -> LongStream.range(0, 100000).map(n -> 8 * n + from).sum()));
            }
            long sum = 0;
            for (Future<Long> each : sums) sum += each.get();
            long then = ticks.get();
            while (ticks.get() == then) Thread.sleep(1);
            System.gc();
            System.out.println("sum " + sum + " heap " + heap.size());
        }
    }
}
"""


def jvm(place: Place) -> Callable[[Place], None]:
    """Threads, timers, compiled code, garbage collection."""
    write(place, "/java/Kept.java", JAVA)
    assert place.inside("cd /java; ecj -17 -proc:none -nowarn Kept.java 2>&1") == ""
    number = place.start("java", "-cp", "/java", "Kept", tty=True)
    with place.screen(number) as user:
        user.expect("waiting")
        user.type("first\r")
        user.expect("sum 319999600000 heap 2000")

    def check(place: Place) -> None:
        with place.screen(number) as user:
            for word in ("second", "third"):
                user.type(f"{word}\r")
                user.expect("sum 319999600000 heap 2000")

    return check


THINGS: dict[str, Thing] = {thing.__name__: thing for thing in (postgres, redis, node, make, git, pytest_run, jvm)}


@pytest.fixture(scope="module")
def outcomes(debian_root: Path) -> Outcomes:
    with Engine(debian_root) as engine:
        return taken_through(engine, resumed, one_by_one(THINGS), list(THINGS))


@pytest.mark.parametrize("name", THINGS)
def test_it_goes_on(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name] == "OK"
