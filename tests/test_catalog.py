"""The catalog from outside: what is found, what is refused, and that a transaction is one."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.catalog import Catalog
from engine.errors import Damaged, NameTaken, NotFound
from engine.model import Base, Job, JobSpec, JobState, Layer

JOB = Job(id="0123456789ab", name="build", spec=JobSpec(base="b"), state=JobState.RUNNING, base="d")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    yield catalog
    catalog.close()


def add(catalog: Catalog, *jobs: Job) -> None:
    with catalog.transaction() as transaction:
        for job in jobs:
            transaction.add_job(job)


def test_jobs_are_found_by_name_id_and_beginning(catalog: Catalog) -> None:
    second = msgspec.structs.replace(JOB, id="0123ffffffff", name="0123456789abc")
    add(catalog, JOB, second)
    assert catalog.job("build") == JOB
    assert catalog.job("0123456789ab") == JOB
    assert catalog.job("01234") == JOB
    assert catalog.job("0123456789abc") == second
    assert catalog.job_with("0123456789ab") == JOB
    for ref in ("", "nosuch", "0%", "012_456789ab"):
        with pytest.raises(NotFound):
            catalog.job(ref)
    with pytest.raises(NotFound, match="ambiguous"):
        catalog.job("0123")
    with pytest.raises(NotFound):
        catalog.job_with("build")


def test_what_is_no_text_names_nothing(catalog: Catalog) -> None:
    for find in (catalog.job, catalog.job_with, catalog.snapshot, catalog.base):
        with pytest.raises(NotFound, match=r"\\udcff"):
            find("build\udcff")


def test_a_name_is_taken_once(catalog: Catalog) -> None:
    add(catalog, JOB)
    with pytest.raises(NameTaken):
        add(catalog, msgspec.structs.replace(JOB, id="ffffffffffff"))
    assert catalog.jobs() == [JOB]


def test_a_transaction_is_all_or_nothing_and_sees_itself(catalog: Catalog) -> None:
    def fail() -> None:
        with catalog.transaction() as transaction:
            transaction.add_job(JOB)
            assert catalog.jobs() == [JOB]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert catalog.jobs() == []
    add(catalog, JOB)  # the write lock was given back


def test_others_see_a_transaction_when_it_is_committed(catalog: Catalog) -> None:
    seen: list[int] = []
    with catalog.transaction(durable=True) as transaction:
        transaction.put_layer(Layer(id="l"))
        thread = threading.Thread(target=lambda: seen.append(len(catalog.layers())))
        thread.start()
        thread.join()
    assert seen == [0]
    assert len(catalog.layers()) == 1


def test_threads_leave_no_connections(catalog: Catalog, tmp_path: Path) -> None:
    def opened() -> int:
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return sum(os.path.exists(link) and os.readlink(link).startswith(os.fspath(tmp_path)) for link in links)

    before = opened()
    for _ in range(50):
        thread = threading.Thread(target=catalog.jobs)
        thread.start()
        thread.join()
    assert opened() == before


def test_a_base_has_its_names(catalog: Catalog) -> None:
    with catalog.transaction() as transaction:
        transaction.put_base(Base(digest="d" * 64, size=1))
        transaction.put_tag("one", "d" * 64)
        transaction.put_tag("two", "d" * 64)
    assert catalog.base("two").names == ("one", "two")
    assert catalog.base("dddd").digest == "d" * 64
    with catalog.transaction() as transaction:
        transaction.remove_base("d" * 64)
    with pytest.raises(NotFound):
        catalog.base("one")


def test_a_newer_or_damaged_catalog_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "catalog.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Damaged, match="newer"):
        Catalog(file)
    file.write_bytes(b"not a database at all, and long enough to be read as one" * 100)
    with pytest.raises(Damaged):
        Catalog(file)


def test_what_names_an_id_is_found_without_the_rest(catalog: Catalog) -> None:
    jobs = [
        msgspec.structs.replace(JOB, id=f"{number:012}", name=f"j{number}", layers=(f"{number:012x}", "ffff00000000"))
        for number in range(3)
    ]
    add(catalog, *jobs)
    assert [found.name for found in catalog.jobs(naming="000000000002")] == ["j2"]
    assert len(catalog.jobs(naming="ffff00000000")) == 3
    assert catalog.jobs(naming="abcdefabcdef") == []
