"""asking: a process of a job asks, and gets the answer (native/protocol.h, ASKING).

While the job runs, ``ask`` in its io directory has the question. A pause takes it into the snapshot's context, and what
the question has for a state becomes the job's. Whoever brings the job back answers: with processes the asker waits in
the middle of its call; without them the answers lie in the file ``answers`` before anything is started, and the command
or step that is started again, and asks again, finds there what it was told before.

An answer to processes: 1 COMMIT, that of the resume or fork, or a row of its own: the job has the answer, untold;
2 tell init; 3 row: told. Killed between 1 and 3 the job runs and the asker waits, or has its answer: whoever takes the
job next tells it, and only the question that was meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine import session, store
from engine.errors import InvalidInput, NotFound, ProtocolError, SeracError, WrongState, from_os
from engine.lifecycle import observe, processes, sessions
from engine.lifecycle.root import Root, log, require
from engine.model import LIVE, Answer, Context, Job, JobState, Outcome, Question, Snapshot
from engine.steps import step

KEPT = 64
"""answers that a job keeps"""
KEPT_SIZE = 96 << 10
"""bytes of them, as JSON"""


def asked(root: Root, job: Job) -> Question | None:
    """What the job asks, be it running or paused, or on its way back."""
    if job.state in LIVE:
        return question(root, job)
    if job.state not in (JobState.PAUSED, JobState.RESUMING) or job.snapshot is None:
        return None
    try:
        return root.catalog.snapshot(job.snapshot).context.question
    except NotFound:  # it was resumed meanwhile
        return None


def question(root: Root, job: Job) -> Question | None:
    """What a process of a living job asks; a file that isn't what init writes is passed over."""
    try:
        raw = session.raw_question(root.io(job.id))
    except ProtocolError as error:
        log.warning("job=%s %s", job.id, error)
        return None
    if raw is None:
        return None
    reason, state = _clean(raw.reason), _value(raw.state)
    return Question(reason=reason, state=state, since=raw.since, number=raw.number)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _value(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = msgspec.json.decode(_clean(text))
        sessions.check_annotations({}, value)
    except (msgspec.DecodeError, RecursionError, InvalidInput):
        return _clean(text)
    return value


def standing(job: Job, context: Context) -> tuple[Answer, ...]:
    """Of the answers that a job was given those that still count after a start from its files: a step that isn't
    started again has had its own."""
    place = sessions.next_step(context)
    return tuple(answer for answer in job.answers if answer.step == place)


def answers(snapshot: Snapshot, outcome: Outcome, value: Any | msgspec.UnsetType) -> tuple[Answer, ...]:
    """What a job was told that begins at a snapshot; the last is ``value``, or null without one, where it asks. Raises
    WrongState for a value where nobody asks, InvalidInput."""
    context = snapshot.context
    if context.question is None:
        if value is not msgspec.UNSET:
            raise WrongState(f"nobody asks in snapshot {snapshot.id}", hint="leave out the answer")
        return context.answers
    plain = None if value is msgspec.UNSET else value
    return (*context.answers, _answer(context.question, outcome, plain, sessions.next_step(context)))


def _answer(question: Question, outcome: Outcome, value: Any, place: str | None) -> Answer:
    """Raises InvalidInput for what can't be told."""
    sessions.check_annotations({}, value)
    answer = Answer(outcome=outcome, value=value, question=question, step=place)
    _records(answer)
    return answer


def _records(answer: Answer) -> bytes:
    """The payload of M_ANSWER."""
    text = answer.value if answer.outcome == "refused" else ""
    return session.encode_answer(answer.outcome, text=text, state=_json(answer))


def _json(answer: Answer) -> str:
    return msgspec.json.encode(answer.value).decode()


def leave(root: Root, job: Job) -> Job:
    """Put the job's answers where its init finds them, which is there at most and runs nothing yet; all are told."""
    told = _kept(tuple(msgspec.structs.replace(answer, told=True) for answer in job.answers))
    if told:
        blocks = (f"reason={answer.question.reason}\0".encode() + _records(answer) for answer in told)
        try:
            store.write_aside(root.io(job.id) / "answers", b"".join(blocks), mode=0o644)
        except OSError as error:
            raise from_os(error, "leave the answers") from error
    return msgspec.structs.replace(job, answers=told)


def _kept(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """The last of them, as far as there is room for them; refusals aren't kept: who was refused may ask again."""
    kept: list[Answer] = []
    size = 0
    for answer in reversed([answer for answer in answers if answer.outcome != "refused"]):
        size += len(msgspec.json.encode(answer))
        if len(kept) == KEPT or size > KEPT_SIZE:
            break
        kept.insert(0, answer)
    return tuple(kept)


def reply(root: Root, job: Job, outcome: Outcome, value: Any) -> Question:
    """Answer what a running job asks; it runs on. Raises NotFound when nobody asks, or does any more."""
    require(job, JobState.RUNNING, verb="answer", hint=_hint(job))
    found = question(root, job)
    if found is None:
        raise NotFound(f"nobody in job {job.name} asks")
    status = observe.main_status(root, job)
    answer = _answer(found, outcome, value, None if status is None else status.step)
    with step("answer.commit", job=job.id):
        answering = root.put(msgspec.structs.replace(job, answers=(*job.answers, answer)))
    try:
        _tell(root, answering, answer)
    except SeracError:
        root.put(job)
        raise
    return found


def _hint(job: Job) -> str | None:
    return "`serac resume JOB --answer JSON`" if job.state is JobState.PAUSED else None


def untold(job: Job) -> bool:
    """Whether a job that runs has an answer that is still to be told."""
    return job.state is JobState.RUNNING and bool(job.answers) and not job.answers[-1].told


def tell(root: Root, job: Job) -> str | None:
    """Tell an asker what the job's row has for it since a commit; why that came to nothing: it may have gone."""
    job = root.catalog.job_with(job.id)
    if not untold(job):
        return None
    answer = job.answers[-1]
    try:
        _tell(root, job, answer)
    except SeracError as error:
        root.put(msgspec.structs.replace(job, answers=job.answers[:-1]))
        return f"the answer: {error}"
    return None


def _tell(root: Root, job: Job, answer: Answer) -> None:
    """Steps 2 and 3."""
    text = answer.value if answer.outcome == "refused" else ""
    with step("answer.tell", job=job.id), processes.connected(root, job.id) as connection:
        connection.answer(answer.outcome, text=text, state=_json(answer), number=answer.question.number)
    told = msgspec.structs.replace(answer, told=True)
    root.put(msgspec.structs.replace(job, answers=_kept((*job.answers[:-1], told))))
