"""An agent works in a git repository, asks, is paused away, and goes on with a person's decision in mind."""

from __future__ import annotations

import json
import subprocess

import leftovers
import pytest
from commands import Command
from roots import wait_for

from engine import Engine, JobState

pytestmark = pytest.mark.root

AGENT = """
import json, os, subprocess, threading

def sh(script):
    print(script, file=shell.stdin, flush=True)
    return shell.stdout.readline().strip()

shell = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
sh("git init -q /repo && cd /repo && git config user.name agent && git config user.email a@example && echo ready")
sh("echo 'int main(void) { return 0; }' > main.c; git add main.c; git commit -qm first; PLAN=refactor; echo done")
os.chdir("/repo")
plan = {"step": 3, "secret": os.urandom(8).hex()}
notes = open("/tmp/notes", "w+")
notes.write("not flushed yet")
counted = []
threading.Thread(target=lambda: counted.extend(range(1000)), daemon=True).start()
commit = sh("git rev-parse HEAD")
state = json.dumps({"commit": commit, "secret": plan["secret"]})
asked = subprocess.run(["/.serac/ask", "--reason", "may I push?", "--state", state], stdout=subprocess.PIPE, text=True)
outcome, _, answer = asked.stdout.partition(" ")
approved = json.loads(answer)["approve"]
sh(f"git commit -q --allow-empty -m '{'approved' if approved else 'given up'}'; echo committed")
notes.write(", but kept")
notes.seek(0)
print(json.dumps({
    "outcome": outcome, "approved": approved, "plan": plan, "notes": notes.read(), "cwd": os.getcwd(),
    "shell": sh("echo $PLAN in $PWD"), "log": sh("git log --format=%s | tr '\\\\n' ,; echo"),
    "parent": sh("git rev-parse HEAD~1"), "commit": commit, "counted": len(counted),
}), flush=True)
os._exit(0 if approved else 3)
"""


def results(serac: Command, job: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(serac.good("logs", "--follow", job).splitlines()[-1])
    return found


def test_an_agent_waits_for_a_person_for_as_long_as_it_takes(debian: Engine) -> None:
    serac = Command(debian.config.root)
    idle = leftovers.count()
    serac.good("run", "--base", "debian", "--name", "agent", "--detach", "--", "python3", "-c", AGENT)
    try:
        wait_for(lambda: serac.json("show", "agent")["asks"])
        assert "asks: may I push?" in serac.good("ps")
        serac.good("pause", "agent", "--mode", "process")
        remains = leftovers.difference(idle, leftovers.settled(idle))
        assert [line for line in remains if line.startswith("left")] == []  # nothing of it but bytes
        state = serac.json("show", "agent")["spec"]["state"]
        snapshot = serac.json("show", "agent")["snapshot"]
        for name, decision in (("bold", "true"), ("shy", "false")):
            serac.good("resume", snapshot, "--as", name, "--answer", f'{{"approve": {decision}}}')
        serac.good("resume", "agent", "--answer", '{"approve": true}')
        for name, outcome, approved in (("agent", "resumed", True), ("bold", "forked", True), ("shy", "forked", False)):
            found = results(serac, name)
            last = "approved" if approved else "given up"
            assert found == {
                "outcome": outcome, "approved": approved, "plan": {"step": 3, "secret": state["secret"]},
                "notes": "not flushed yet, but kept", "cwd": "/repo", "shell": "refactor in /repo",
                "log": f"{last},first,", "parent": state["commit"], "commit": state["commit"], "counted": 1000,
            }  # fmt: skip
            job = debian.wait(name, timeout=60)
            assert (job.state, job.status) == (JobState.EXITED, 0 if approved else 3)
    finally:
        for job in debian.jobs(ended=True):
            debian.remove(job.id, force=True)
        for entry in debian.snapshots():
            debian.snapshot_remove(entry.id)


def test_an_attached_run_hands_over_to_a_person(debian: Engine) -> None:
    """`run --on-ask pause --wait` pauses the job by itself, and shows how it goes on after somebody has answered."""
    serac = Command(debian.config.root)
    words = serac.words(
        "run", "--base", "debian", "--name", "agent", "--on-ask", "pause", "--wait", "--", "python3", "-c", AGENT
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as attached:
        try:
            wait_for(lambda: [job.state for job in debian.jobs()] == [JobState.PAUSED])
            serac.good("resume", "agent", "--answer", '{"approve": false}')
            said, remarks = attached.communicate(timeout=60)
            assert json.loads(said)["outcome"] == "resumed"
            assert "asks: may I push?" in remarks
            assert attached.returncode == 3
        finally:
            attached.kill()
            for job in debian.jobs(ended=True):
                debian.remove(job.id, force=True)
