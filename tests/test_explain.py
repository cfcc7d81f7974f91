"""What criu's log says of a failure, in the words of criu 4.2.1."""

from __future__ import annotations

import pytest

from engine.checkpoint import REASONS, explain
from engine.checkpoint.explain import _TELLING

ERRORS = {
    "address": "(criu/sk-inet.c:800): inet: Can't bind inet socket (id 5): Cannot assign requested address",
    "bpf": "(criu/bpfmap.c:262): bpfmap: CRIU does not currently support dumping BPF map type 27!",
    "changed-file": "(criu/files-reg.c:2175): File tmp/log has bad size 4 (expect 9)",
    "cpu": "(criu/arch/x86/cpu.c:300): cpu: CPU instruction capabilities do not match run time",
    "damaged-image": "(criu/image.c:500): Magic doesn't match for core-1.img",
    "descriptor": "(criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:seccomp notify)",
    "device": "(criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr 10:229)",
    "epoll": "(criu/cr-dump.c:1550): Dump eventpoll (pid: 16593) failed with -1",
    "file-lock": "(criu/file-lock.c:110): Some file locks are hold by dumping tasks!",
    "io-uring": "(criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])",
    "large-deleted-file": "(criu/files-reg.c:1031): Can't dump ghost file /tmp/large of 536879104 size, increase limit",
    "leaderless": "(criu/seize.c:882): Zombies with threads are not supported",
    "long-path": "(criu/util.c:484): Can't read link of fd 19: File name too long",
    "mapping": "(criu/proc_parse.c:663): Can't handle non-regular mapping on 12's map 7f5933757000",
    "memfd-secret": "(criu/proc_parse.c:502): Unknown shit 100600 (/secretmem (deleted))",
    "mptcp": "(criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 307456",
    "namespace": "(criu/namespaces.c:460): Can't dump nested user namespace for 5209",
    "no-memory": "(criu/cr-restore.c:900): Can't fork for 5: Cannot allocate memory",
    "no-space": "(criu/page-xfer.c:300): Unable to write 4096 bytes: No space left on device",
    "other-user": "(criu/cr-dump.c:500): Can't get rlimit 0: Operation not permitted",
    "outside-file": "(criu/files-reg.c:1790): Can't lookup mount=82 for fd=3 path=/queue",
    "outside-socket": "(criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.",
    "session": "(criu/pstree.c:801): Can't find a session leader for 3",
    "shared-directories": "(criu/cr-dump.c:676): Can't make FS id for 5371",
    "shared-memory": "(criu/cr-dump.c:669): Can't make VM id for 5342",
    "socket": "(criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 44)",
    "tcp-in-flight": "(soccr/soccr.c:750): Unable to set window parameters: Invalid argument",
    "terminal": "(criu/tty.c:2286): tty: ctty inheritance detected sid/pgrp 3 (ctty pid_real 2958 pty pid_real 2957)",
    "thread-timer": "(criu/pie/restorer.c:1293): Can't create posix timer - 0: -22",
    "unix-in-flight": "(criu/sk-unix.c:506): unix: Non-empty write queue on an in-flight socket 0x3073d7",
    "unread-datagrams": "(criu/sk-netlink.c:77): netlink: The socket has data to read",
    "unstoppable": "(criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0",
    "watch": "(criu/fsnotify.c:284): fsnotify: \tCan't dump that handle",
}
"""reason -> a line of a log that tells it, after ``Error``"""

NOISE = """\
(00.000043) Version: 4.2.1 (gitid 0)
Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0x33:0x1f93e6 cannot be opened
{}
Error (criu/cr-dump.c:1545): Dump files (pid: 2888) failed with -1
Error (criu/cr-dump.c:1975): Dumping FAILED.
"""


def test_every_reason_has_a_line() -> None:
    assert set(ERRORS) == {reason for reason, _ in _TELLING}


@pytest.mark.parametrize("reason", ERRORS)
@pytest.mark.parametrize("before", ["", "(00.032023) ", "(00.064404) pie: 2: ", "(00.056299)      2: "])
def test_told_in_a_log_of_any_level(reason: str, before: str) -> None:
    found = explain(NOISE.format(f"{before}Error {ERRORS[reason]}"))
    assert found.reason == reason
    assert found.remedy == REASONS[reason].remedy
    assert REASONS[reason].what in found.detail
    assert ERRORS[reason].partition(": ")[2].split("\t")[0] in found.detail


def test_what_nobody_foresaw() -> None:
    found = explain(NOISE.format("Error (criu/new.c:1): A thing of next year"))
    assert found.reason == "criu-failed"
    assert found.detail == "criu failed: A thing of next year | Dump files (pid: 2888) failed with -1"


def test_not_a_word() -> None:
    assert explain("").detail == explain(NOISE.split("{}")[0]).detail == "criu failed without a word"


def test_a_warning_alone_is_no_reason() -> None:
    assert explain("Warn  (criu/x.c:1): No space left on device").reason == "criu-failed"


def test_a_line_that_a_job_chose() -> None:
    found = explain("Error (criu/files-reg.c:2175): File \x1b[2J" + 9999 * "x" + " is odd")
    assert found.detail.isprintable()
    assert len(found.detail) < 300
