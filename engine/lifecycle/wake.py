"""wake: a job's processes learn that they were brought back, or that they are a copy.

``/run/serac/generation`` in the job changes before the first of them runs. When all of them do, the job's own command
(`JobSpec.on_resume`) is started and its signal (`JobSpec.resume_signal`) is sent: to draw new random numbers, to fetch
new tokens, to take a new name. An engine that dies in between leaves the job running and untold.
"""

from __future__ import annotations

import contextlib
import io
import signal
import time

from engine import cgroup, store
from engine.errors import InvalidInput, SeracError, from_os
from engine.kernel import process
from engine.lifecycle import processes, sessions
from engine.lifecycle.root import Root
from engine.model import Job, JobSpec, SessionSpec
from engine.session import Connection


def check(spec: JobSpec) -> None:
    """Raises InvalidInput for a hook that could never work."""
    sessions.check_texts(spec.on_resume, {})
    if spec.resume_signal is not None:
        _number(spec.resume_signal)


def _number(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError as error:
        raise InvalidInput(f"no signal {name!r}", hint="USR1, HUP, WINCH ...") from error


def new_generation(root: Root, job: Job) -> str:
    """Write a new id to the generation file. The job can put anything in its place."""
    generation, file = store.new_id(), root.io(job.id) / "generation"
    try:
        if file.is_dir() and not file.is_symlink():
            store.remove_tree(file)
        store.write_aside(file, f"{generation}\n".encode(), mode=0o644)
    except OSError as error:
        raise from_os(error, "write generation") from error
    return generation


def tell(root: Root, job: Job, generation: str) -> str | None:
    """Send the job's signal and start its command; why that came to nothing. It is no failure of the resume."""
    if not job.spec.on_resume and job.spec.resume_signal is None:
        return None
    try:
        with processes.connected(root, job.id) as connection:
            if job.spec.resume_signal is not None:
                _signal(root, job, connection, _number(job.spec.resume_signal))
            if job.spec.on_resume:
                connection.start(_command(root, job, generation))
    except SeracError as error:
        return str(error)
    return None


def introduce(root: Root, job: Job) -> str | None:
    """Tell the files of a fork who and where it is; why that came to nothing. What runs in it has the old ones open."""
    import tarfile

    from engine.lifecycle import transfer

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in processes.identity(root, job):
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(content), 0o644, time.time()
            tar.addfile(member, io.BytesIO(content.encode()))
    stream.seek(0)
    try:
        transfer.copy_in(root, lambda: job, stream, "/")
    except SeracError as error:
        return str(error)
    return None


def _signal(root: Root, job: Job, connection: Connection, number: signal.Signals) -> None:
    """To each session's first process alone: its children may not know the signal, and die of it."""
    leaders = {session.pid for session in connection.sessions()}
    for pid in cgroup.pids(root.group_of(job)):
        with contextlib.suppress(OSError), process.opened(pid) as pidfd:  # one that has ended meanwhile
            if process.namespace_pid(pid) in leaders:
                signal.pidfd_send_signal(pidfd, number)


def _command(root: Root, job: Job, generation: str) -> SessionSpec:
    spec = SessionSpec(argv=job.spec.on_resume, env={"SERAC_GENERATION": generation})
    return sessions.exec_session(job, root.catalog.base(job.base).env, spec)
