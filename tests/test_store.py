"""Bytes that survive, locks that hold between threads and processes, and markers that tell of a crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine import store
from engine.errors import Busy


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "f"
    store.write_aside(file, b"one")
    store.write_aside(file, b"two")
    assert file.read_bytes() == b"two"
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        store.write_aside(tmp_path / "none" / "f", b"")
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        store.write_aside(tmp_path / "d", b"x")
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_a_lock_holds_between_threads_and_processes(tmp_path: Path) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            with store.locked(tmp_path, timeout=0):
                outcomes.append("taken")
        except Busy:
            outcomes.append("busy")

    with store.locked(tmp_path, timeout=0):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        script = "import sys; from pathlib import Path; from engine import store\n"
        script += "with store.locked(Path(sys.argv[1]), timeout=0): pass"
        done = subprocess.run([sys.executable, "-c", script, os.fspath(tmp_path)], capture_output=True, check=False)
        assert b"Busy" in done.stderr
    attempt()
    assert outcomes == ["busy", "taken"]


def test_shared_locks_go_together(tmp_path: Path) -> None:
    shared = [store.locked(tmp_path, timeout=0, shared=True) for _ in range(2)]
    with shared[0], shared[1], pytest.raises(Busy), store.locked(tmp_path, timeout=0.02):
        pass


def test_the_lock_of_a_directory_that_went_away_is_none(tmp_path: Path) -> None:
    place = tmp_path / "d"
    place.mkdir()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            with store.locked(place, timeout=30):
                errors.append(AssertionError("the lock of what is gone was given"))
        except FileNotFoundError as error:
            errors.append(error)

    def holders() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.exists(link) and os.readlink(link) == os.fspath(place) for link in links)

    thread = threading.Thread(target=wait)
    with store.locked(place, timeout=0):
        thread.start()
        while holders() < 2:
            os.sched_yield()
        place.rmdir()
        place.mkdir()  # another one under its name
    thread.join()
    assert [type(error) for error in errors] == [FileNotFoundError]


def work(tmp: Path, *, undone: bool) -> None:
    with store.intent(tmp, "work", timeout=0) as intent:
        (intent.path / "scratch").mkdir()
        if undone:
            intent.undone()
        raise ZeroDivisionError


def test_a_marker_goes_with_the_work_and_stays_after_a_failure(tmp_path: Path) -> None:
    with store.intent(tmp_path, "work", timeout=0) as intent:
        (intent.path / "scratch").mkdir()
        assert os.listdir(tmp_path) == [intent.path.name]
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError):
        work(tmp_path, undone=True)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError):
        work(tmp_path, undone=False)
    (marker,) = tmp_path.iterdir()
    assert os.listdir(marker) == []


def test_a_block_may_say_itself_when_it_is_marked(tmp_path: Path) -> None:
    with store.intent(tmp_path, "work", timeout=0, marked=False) as intent:
        assert os.listdir(tmp_path) == []
        intent.mark()
        assert os.listdir(tmp_path) == [intent.path.name]
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), store.intent(tmp_path, "work", timeout=0, marked=False):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_what_is_taken_away_is_gone_at_once_and_removed_at_the_end(tmp_path: Path) -> None:
    tmp, left = tmp_path / "tmp", []
    for directory in (tmp, tmp_path / "deep/er"):
        directory.mkdir(parents=True)
    (tmp_path / "file").write_text("bytes")
    with store.intent(tmp, "work", timeout=0, later=left.append) as intent:
        for name in ("file", "deep", "nothing"):
            intent.away(tmp_path / name)
        assert os.listdir(tmp_path) == ["tmp"]
    assert left == [intent.path]
    assert sum(len(files) for _, _, files in os.walk(intent.path)) == 1
    with store.intent(tmp, "another", timeout=0, later=left.append):
        pass
    assert len(left) == 1
    store.remove_tree(intent.path)
    assert os.listdir(tmp) == []


def test_without_room_for_a_marker_what_is_taken_away_is_removed_at_once(tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "file").write_text("bytes")
    with store.intent(tmp, "work", timeout=0) as intent:
        intent.path.rmdir()  # as on a full disk, where it never was
        for name in ("file", "deep", "nothing"):
            intent.away(tmp_path / name)
        assert os.listdir(tmp_path) == ["tmp"]
        assert os.listdir(tmp) == []


def test_a_sweep_is_due_after_a_crash_and_waits_for_whoever_works(tmp_path: Path) -> None:
    with store.sweeping(tmp_path) as nothing:
        assert nothing.markers == []
    (tmp_path / "crashed").mkdir()
    with store.intent(tmp_path, "work", timeout=0), store.sweeping(tmp_path) as busy:
        assert busy.markers == []
    with store.sweeping(tmp_path) as incomplete:
        assert [marker.name for marker in incomplete.markers] == ["crashed"]
    with store.sweeping(tmp_path) as sweep:
        assert sweep.markers
        sweep.complete = True
    assert os.listdir(tmp_path) == []


def test_what_a_sweep_can_not_remove_calls_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", os.fspath(path))

    (tmp_path / "crashed").mkdir()
    monkeypatch.setattr(store, "remove_tree", fails)
    for _ in range(2):
        with store.sweeping(tmp_path) as sweep:
            assert sweep.due
            sweep.complete = True
        assert "crashed" in caplog.text
        caplog.clear()


def test_a_tree_is_removed_however_deep_and_no_link_is_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(kept)
    here = os.getcwd()
    try:
        os.chdir(tree)
        for _ in range(1500):  # far more than Python's recursion, and 7 KB of path
            os.mkdir("deep")
            os.chdir("deep")
    finally:
        os.chdir(here)
    store.remove_tree(tree)
    assert not tree.exists()
    assert kept.read_text() == "kept"
    store.remove_tree(tree)  # again is well


ON_A_MOUNT = """
mount -t tmpfs none "$1/used/deeper/mounted"
echo kept > "$1/used/deeper/mounted/file"
"$2" -c 'import sys, pathlib, engine.store; engine.store.remove_tree(pathlib.Path(sys.argv[1]))' "$1" && exit 1
cat "$1/used/deeper/mounted/file"
"""


@pytest.mark.root
def test_what_is_mounted_in_a_tree_is_an_error_and_no_loss(tmp_path: Path) -> None:
    (tmp_path / "tree/used/deeper/mounted").mkdir(parents=True)
    shell = ["unshare", "--mount", "sh", "-c", ON_A_MOUNT, "sh", os.fspath(tmp_path / "tree"), sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "kept\n"
    assert "on a different device" in done.stderr


def test_who_looks_whether_a_lock_is_held_holds_none(tmp_path: Path) -> None:
    assert not store.held(tmp_path)
    with store.locked(tmp_path, timeout=0, shared=True):  # as another who looks does
        assert not store.held(tmp_path)
    with store.locked(tmp_path, timeout=0):
        assert store.held(tmp_path)
    assert not store.held(tmp_path / "nowhere")
