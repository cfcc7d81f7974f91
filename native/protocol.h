/*
 * The words that the engine, serac-launch and serac-init exchange.  This file is the contract: the Python side
 * (engine/launch.py, engine/session.py) and both programs are written against it.
 *
 * RECORDS.  A list of fields is written as `key=value` records, each ended by a NUL byte.  Keys are [a-z0-9._-]+ ;
 * a value is any bytes but NUL; a key may be repeated, order counts, and a record without `=` is an error, as is an
 * unknown key (a newer engine must not be misread).  The same form serves launch specs, launch reports, session specs
 * and session status files.
 *
 * LAUNCH SPEC (standard input of `serac-launch run`, to end of file, at most LAUNCH_SPEC_MAX bytes).  An empty record may
 * divide it into head and body: with the head the launch does all that it can, and waits for the body then (end of file
 * instead of one: it gives up).  In the body may come: tree lower upper work overlay bind address gateway hostname rlimit
 * shm write listen.
 *   serac-launch=1           first record: the version
 *   cgroup=PATH              cgroup v2 directory; the job is born in it (CLONE_INTO_CGROUP, else moved before it runs)
 *   cgroup1=PATH             a cgroup v1 directory to join as well (repeated; before the job runs)
 *   range=FIRST:COUNT        user namespace: ids 0..COUNT-1 of the job are FIRST.. on the host, layers are mounted
 *                            with that idmap.  Absent: the host's user namespace, layers as they are
 *   stage=DIR                an empty directory; a tmpfs is mounted on it in the private namespace, holding the trees
 *   warm=PATH                a layer that the root will have (repeated): a long list is read from the disk side by side
 *   tree=NAME=PATH           clone of the mount at PATH (detached copy of that subtree, idmapped with `range`), to be
 *                            used below as NAME or NAME/SUB/PATH; NAME is [a-z0-9]+
 *   lower=REL                a read-only layer, topmost first (repeated; at least one)
 *   upper=REL  work=REL      the writable layer; both absent: a read-only view of the lower layers
 *   overlay=OPTION[=VALUE]   an option for the overlay (repeated), such as `index=off` or `volatile`
 *   bind=REL=TARGET          a tree bound read-write at TARGET inside the job (repeated); TARGET must exist
 *   net=private|host|fd:N    a new network namespace with loopback up | the caller's | the one behind descriptor N
 *   hold=N                   after `pid` was reported, the job waits until one byte can be read from descriptor N
 *                            (end of file: the launch is given up); meanwhile the engine puts eth0 into its namespace
 *   address=A.B.C.D/LEN  gateway=A.B.C.D     set on eth0 after `hold`, with a default route
 *   hostname=NAME
 *   rlimit=NAME:SOFT:HARD    NAME as in prlimit(1) (nofile, nproc, core, memlock, stack ...); numbers or `unlimited`
 *   shm=BYTES                size of /dev/shm (default 64 MiB)
 *   allow=GROUP              lift a seccomp denial: io_uring, landlock, userfaultfd, perf, bpf, keyring, namespaces,
 *                            fanotify, memfd_secret, devices (repeated)
 *   write=PATH=CONTENT       after pivot_root, as the job's root: make PATH a regular file with that content, unless
 *                            it is one already (repeated); missing parent directories are made, mode 0755, file 0644
 *   init=N:PATH              copy the program behind descriptor N to PATH in the job unless it is there, then execute it
 *   arg=STRING               arguments after argv[0] (repeated).  argv[0] is PATH
 *   listen=PATH              bind a SOCK_SEQPACKET unix socket at PATH inside the job, mode 0666, and give it to init
 *                            as descriptor 3
 *   stdin=N stdout=N stderr=N  descriptors to become the program's (used by copies); absent: /dev/null
 *
 * LAUNCH REPORT (standard output of serac-launch, records, written as they become known)
 *   begun=1                  of a divided spec, where the body isn't there by then: all that needs none is done, and what was
 *                            started lives
 *   pid=N                    the job's PID 1, as the caller sees it
 *   took=STEP:MICROSECONDS   steps: spec cgroup userns trees overlay clone network mounts files sandbox exec (some run side by
 *                            side: their sum is more than the time that passed); reported together, before `ready`
 *   ready=1                  init has been executed (its exec succeeded): last record on success, exit status 0
 *   step=STEP errno=N path=P  why not: last records on failure, exit status 1; nothing of the launch is left.  STEP is one
 *                            of these, or spec (path = the key), mount, unmount; P may be the kernel's own words
 *
 * `serac-launch criu` gives criu a view of its own and stays as its parent, ending as it ends; descriptors that the
 * caller passed are criu's.  In a private mount namespace a tmpfs covers /run.  Keys, as above where not told otherwise:
 *   cgroup= cgroup1=         for a restore: criu is born there, and so is all that it makes
 *   range= stage= warm= tree= lower= upper= work= overlay=     a job's root, which is then /run/root; required with cgroup=
 *   bind=REL=TARGET          a tree at TARGET, a name below /run that doesn't exist yet
 *   shm=BYTES                an empty tmpfs at /run/shm, root's in `range`; absent: none
 *   kdat=PATH                a copy of the file PATH, if it is there, at /run/criu.kdat
 *   pidfile=N:PATH           criu doesn't die with the engine.  PATH holds "PID N": its pid, and the number under which it
 *                            keeps the engine's end of its socket open; the file is locked (flock) as long as it lives
 *   preload=PATH             a library for its LD_PRELOAD: serac-userfaultfd.so, for a restore that `serac-launch pages` serves
 *   program=PATH  arg=STRING..   what is executed, with the environment of serac-launch
 * criu is executed with the head; the body may be empty.  Report: pid=N (criu's), took=STEP:MICROSECONDS, ready=1 when criu
 * has been executed; or step/errno/path.
 *
 * `serac-launch pages` brings memory in while a job runs, as `criu lazy-pages` would.  It is a guard and its child, a pager,
 * which stay when serac-launch has ended; while one of them lives nobody reads a zero for a page that is missing.  Keys:
 *   cgroup=PATH              cgroup v2 directory for the two; not below the job's, with which they must not stand still
 *   images=N                 directory of criu's image
 *   tasks=N                  listening unix socket: lazy-pages.socket in the working directory of a criu that restores the
 *                            image with lazy_pages
 *   door=N                   listening unix socket, /run/serac/pages.door in the job: who connects gets /dev/userfaultfd, which
 *                            processes in a user namespace may not open.  Absent: they need it not.  Its name has to be gone
 *                            before the job runs
 *   group=N                  the job's cgroup v2 directory
 *   status=N                 a file, locked (flock) by the caller and then by the two as long as they live: in the end it has
 *                            one line, `done` or `failed: WHY`; empty: neither could say
 *   hold=N                   stream socket: a byte says that all processes were handed over and may run.  End of file before
 *                            that: give up
 * Whatever goes wrong: all of the job is killed (cgroup.kill), and gone, before missing pages can be read as zeros.
 * Report: pid=N (the guard's), took=STEP:MICROSECONDS, ready=1; or step/errno/path, steps: spec cgroup clone pages.
 *
 * `serac-launch network` works in a network namespace that is another's, with the rights of its caller:
 *   net=fd:N                 the namespace
 *   lock=1                   until the hold ends, all packets, of IPv4 and IPv6, in and out, are dropped but those that carry
 *                            criu's mark, 0xC114 (SO_MARK): nft table `serac` of family inet, owned by this process, so that
 *                            the kernel removes it with the process, however that ends (EPERM: another's lock is there)
 *   guest=A.B.C.D            an address on lo, /32, until the hold ends, for sockets to be bound to that are restored after
 *                            the address was lost (repeated; EEXIST: it is on lo already)
 *   address=A.B.C.D/LEN  gateway=A.B.C.D     on eth0, as above; the interface is there
 *   up=1                     bring lo up
 *   close=1                  when the hold has ended, under the lock still: destroy every TCP connection of which an end is
 *                            neither loopback nor an address of the namespace; its holders find ECONNABORTED
 *   uts=fd:N  hostname=NAME  when the hold has ended: the name of the host in that UTS namespace (both or none)
 *   hold=N                   after `ready`, wait for a byte from descriptor N; required with lock, guest and close.  End of
 *                            file: give up, that is, end what the hold keeps, close nothing, and fail with ECANCELED
 * All is done in this order, and undone in the opposite one.  Report: took=STEP:MICROSECONDS, ready=1 once everything is in
 * place; at the end of the hold took=close:MICROSECONDS and closed=COUNT (0 without `close`): nothing is held any more, and the
 * process, whose lock the kernel takes some milliseconds to free, is about to exit with status 0; or
 * step/errno/path, steps: spec network lock close, and nothing stays that was put in.  Killed, it leaves guests on lo.
 *
 * `serac-launch mount` (spec: serac-launch=1, meta=FILE, blob=FILE, target=DIR, any number of the three) mounts EROFS images
 * read-only, nosuid stays off, nodev off (the base's device nodes are used), without loop devices.  `serac-launch unmount`
 * (spec: serac-launch=1, target=DIR..) unmounts them; with detach=1 what is open there stays until it is closed.  Both do
 * one after the other and end at the first that fails.  They report `ready=1` or step/errno/path.
 *
 * SESSIONS.  serac-init is PID 1 of a job.  It serves the socket that it finds as descriptor 3, bound to an absolute
 * path that init can open the directory of: that is where it keeps its files (host side:
 * JOB/io/init.sock; inside: /run/serac/init.sock).  A message is one SOCK_SEQPACKET packet: a `struct message`,
 * then `length` bytes.  All integers little-endian.  A packet that is cut, too long, unknown or not allowed in the
 * connection's state is answered with M_ERROR and the connection closed.
 * Trust: peers outside the job's pid namespace (SO_PEERCRED pid 0) and uid 0 inside may send everything; any other
 * peer inside only M_ASK and M_AWAKE.
 *
 * On accept init sends M_HELLO.  Then a connection is one of:
 *   control     any number of M_START (detached), M_LIST, M_SIGNAL, M_ANSWER, M_WATCH, M_QUIESCE
 *   attached    after M_START with `attach=1` or M_ATTACH: a view of one session, M_INPUT / M_INPUT_END / M_RESIZE /
 *               M_SIGNAL one way, M_OUTPUT / M_STEP / M_EXIT the other; closing it detaches
 *   asking      after M_ASK: blocks until M_ANSWER; afterwards it may ask again
 *   holding     after M_AWAKE: keeps the job awake until it is closed; another M_AWAKE takes the place of the first
 * In a control connection M_SIGNAL and M_ANSWER are answered with M_OK or M_ERROR; a request that fails leaves it open.
 * An attached one is closed by init after the last message of its session, so an M_EXIT that more follows is of an
 * earlier life of a session that came back.  Input for a session that takes none (any more) is dropped; input for one
 * that another connection feeds is EBUSY; after M_QUIESCE the first attached one that sends M_INPUT, be it empty, or
 * M_INPUT_END feeds it, and is then the one that is waited for when it lags.  M_ATTACHED to a session with stdin=1 says
 * how many bytes of M_INPUT it took (or dropped) since it began, so that who fed it knows what to send again.
 * M_QUIESCE lets starts that are under way be answered, takes what attached ones have sent already as far as there is
 * room for it (what those have sent that are closed: all), kills the sessions with lent files, and is answered when they
 * are reaped and every connection is closed but those that ask or hold from inside: their answer comes after the pause.
 * Each terminal's holder is then younger than every process that was there before, unless one takes more than 5 seconds for
 * that.  From then on, until somebody connects again, no process of the job holds a descriptor that was a client's, nor a
 * log open for reading.  A second M_QUIESCE meanwhile is EBUSY.
 *
 * SESSION SPEC (payload of M_START)
 *   arg=S (repeated)         command; or, instead, steps run one after the other with `/bin/sh -e -c SCRIPT`:
 *   step=NAME script=SCRIPT  (pairs, repeated, at most 255 bytes of name; `done=NAME` for one that is completed already
 *                            and only recorded: its pair may be there or not)
 *   env=K=V (repeated)       the whole environment
 *   cwd=DIR  umask=OCTAL  uid=N  gid=N
 *   tty=ROWSxCOLS            on a terminal of its own
 *   main=1                   session 0: when it ends, the job ends with its status.  Without main the next free id is taken;
 *   id=N                     ask for this id (a session that comes back after a resume keeps its id)
 *   attach=1                 stay attached on this connection, from the first byte of output
 *   stdin=1                  standard input is a pipe fed by this connection (else /dev/null); it is closed by
 *                            M_INPUT_END or when this connection ends
 *   keep=1                   comes back after a filesystem resume (detached and terminal sessions)
 * Three descriptors that come with M_START (SCM_RIGHTS) are lent: they become a command's standard files, in place of
 * pipes.  Such a session must have attach=1, has no log and no files in JOB/io, and ends with M_QUIESCE.
 *
 * FILES that init keeps in /run/serac (JOB/io), each replaced by rename, mode 0600; of sessions that have ended those
 * of the last 64 and of session 0 are kept:
 *   N.spec                   the session's spec as it was received
 *   N.status                 records: pid=N (in the job's pid namespace), started=NANOSECONDS, running=1, or exit=CODE
 *                            or signal=N and ended=NANOSECONDS; for steps `done=NAME` for each completed one, in order,
 *                            and `step=NAME` for the running one
 *   N.log, N.log.old         output; see LOG
 *   ask                      the open request of M_ASK: reason=TEXT, state=JSON, pid=N, id=N (which one, counted from 1),
 *                            since=NANOSECONDS
 *   awake                    while M_AWAKE holds: until=NANOSECONDS (0: until it is let go), reason=TEXT; of several the
 *                            longest.  Who reads it compares `until` with the clock: init doesn't
 * The engine writes:
 *   N.used                   N was a session's that didn't come back, and no higher number has been: init goes on behind it
 *   generation               another id after each resume, and in each fork
 *   answers                  after a resume in mode `filesystem`, of the command or step that was started again: for each
 *                            question that was answered reason=TEXT, then the records of its M_ANSWER; oldest first, the
 *                            last 64 of them.  An M_ASK with that very reason is answered by the first, at once, and the
 *                            next one by the next
 *
 * ASKING.  One question is open at a time, others wait in order.  An answer is that of the open one, and with `offset`
 * only if that is its id: ENOENT else.  In mode `process` the asker waits through the pause; in mode `filesystem` it is
 * gone, and what is started again asks again.  A question goes with the connection of who asked.
 *
 * COMMANDS.  /.serac/ask and /.serac/awake are links to the init that runs in the job, made when it starts.
 *   ask [--reason TEXT] [--state JSON|@FILE] [--timeout TIME]
 *       prints one line, `OUTCOME ANSWER`: resumed, forked, answered or refused; the answer is JSON, `null` without one,
 *       of `refused` the reason.  Exit status 0; 1: refused; 2: it can't be asked; 3: no answer in TIME (90, 15m, 2h, 1d),
 *       which doesn't count pauses
 *   awake [--for TIME] [--reason TEXT] [-- COMMAND [ARG ...]]
 *       holds as long as the command runs, and exits with its status, or with 125 if it can't hold; without a command
 *       until it is killed, or TIME is over.  TIME counts pauses: it is of the wall clock
 * The same without them, in Python (reason and state together at most 32 KiB):
 *   head, packet = struct.Struct("<BBHIIIQQ"), b""
 *   payload = b"reason=deploy?\0" b'state={"commit": "4f0c2a91"}\0'
 *   while packet[:1] in b"\1":  # but M_HELLO nothing: init hung up, for it does so when the job is paused; ask again
 *       sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
 *       sock.connect("/run/serac/init.sock")  # fails when the job ends
 *       with contextlib.suppress(BrokenPipeError, ConnectionResetError):
 *           sock.send(head.pack(15, 0, 0, 0, len(payload), 0, 0, 0) + payload)
 *           while (packet := sock.recv(1 << 16)) and packet[0] == 1: pass
 *   kind, records = packet[0], dict(part.split(b"=", 1) for part in packet[head.size:].split(b"\0") if b"=" in part)
 *   # kind 16: records[b"outcome"], records.get(b"state"); kind 19: an error
 *
 * LOG.  A log file is a `struct log_head` and then messages exactly as sent to attached clients (M_OUTPUT, M_STEP,
 * M_EXIT); `offset` in each is its own logical position: the byte position had the log never been rotated, counted
 * without heads.  When a file reaches half of the limit (LOG_LIMIT, default 256 MiB for both together) it becomes
 * N.log.old and a new one begins.  Each attached client has a cursor in the log and is served from it when its socket
 * takes more: a slow client lags, loses nothing that is still kept, and never slows the session.  Only the connection
 * that started a session of pipes with attach=1 is waited for when it lags by 8 MiB, as a pipe would wait: it misses
 * nothing.  `time` is CLOCK_REALTIME's: over a pause it jumps.
 */
#pragma once
#include <stdint.h>

#define LAUNCH_VERSION 1
#define LAUNCH_SPEC_MAX (4u << 20)
#define PROTOCOL_VERSION 1
#define MESSAGE_MAX (1u << 20) /* payload of M_START; every other payload is at most CHUNK_MAX */
#define CHUNK_MAX (32u << 10)
#define SESSIONS_MAX 1024
#define ANSWERS_MAX (128u << 10) /* bytes of the file `answers` */
#define CLIENTS_MAX 256          /* connections to one init */
#define LOG_MAGIC "seraclog"
#define LOG_VERSION 1

enum message_type {
    M_HELLO = 1,    /* init: `session` = PROTOCOL_VERSION, payload: records build=ID */
    M_START = 2,    /* client: payload session spec */
    M_STARTED = 3,  /* init: `session` id, payload records pid=N */
    M_ATTACH = 4,   /* client: `session`, `offset` = where to begin; ~0 = only what comes; ~0-1 = last 64 KiB */
    M_ATTACHED = 5, /* init: `session`, `offset` = where it really begins; payload status records, taken=N */
    M_OUTPUT = 6,   /* init: `session`, `stream` 1 or 2 (a terminal: 1), `offset`, `time`, payload bytes */
    M_STEP = 7,     /* init: `stream` 0 begins, 1 completed, 2 failed; payload: the step's name */
    M_EXIT = 8,     /* init: payload records exit=N or signal=N; the last of a session */
    M_INPUT = 9,    /* client: payload bytes for standard input or the terminal */
    M_INPUT_END = 10,
    M_RESIZE = 11,  /* client: `offset` = rows << 32 | columns */
    M_SIGNAL = 12,  /* client: `session`, `stream` = signal number; to the session's process group */
    M_LIST = 13,    /* client; answered by M_LISTED for each live session and one with `session` ~0 */
    M_LISTED = 14,  /* init: `session`, payload status records */
    M_ASK = 15,     /* client inside: payload records reason=TEXT state=JSON; init to who watches: `offset` its id */
    M_ANSWER = 16,  /* client outside -> init -> asker: `offset` id or 0; payload records
                     * outcome=resumed|forked|answered|refused, text=, state=JSON */
    M_QUIESCE = 17, /* client outside: every connection is closed, this one last, after M_OK; see above */
    M_OK = 18,
    M_ERROR = 19, /* `stream` 0, `offset` errno, payload: step or reason as text */
    M_WATCH =
        20, /* client outside; answered by M_OK, and M_ASK for the question that is open and each that is opened */
    M_AWAKE = 21, /* client inside: payload records until=NANOSECONDS (0: no end) reason=TEXT; answered by M_OK */
};

struct message {
    uint8_t type;
    uint8_t stream;
    uint16_t zero;
    uint32_t session;
    uint32_t length; /* of the payload that follows */
    uint32_t zero2;
    uint64_t offset;
    uint64_t time; /* CLOCK_REALTIME, nanoseconds; 0 from clients */
};

struct log_head {
    char magic[8];
    uint32_t version;
    uint32_t session;
    uint64_t base; /* logical offset of the first byte after this head */
};
