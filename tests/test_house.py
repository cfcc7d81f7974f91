"""The house's own rules: linters, layout, and what a package must hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "LICENSE",
    "README.md",
    "Vagrantfile",
    "engine",
    "native",
    "pyproject.toml",
    "scripts",
    "tests",
}
LINES_MAX = 400
LONG_FOR_A_REASON = {"engine/model.py": "all values of the domain are in one module, which does nothing"}
"""file -> why it has more than LINES_MAX lines"""

ADDRESS = re.compile(r"\bhttps?://([\w.-]+)")
ADDRESSES_ALLOWED = re.compile(
    r"(127\.0\.0\.1|localhost|([\w-]+\.)*(example(\.\w+)?|test|invalid)|docs\.kernel\.org|www\.w3\.org)$"
)
MACHINE_PATH = re.compile(r"(?<![\w.>})\]*])/(?:work/(?:main|shared)|home/\w+|Users/\w+|tmp/brief)\b")
REGISTRY = re.compile(r"\b(?:[\w-]+\.)+(?:debian|pypi|pythonhosted|npmjs|docker|github|ubuntu)\.(?:org|io|com)\b")


def repo_files() -> list[str]:
    """What git tracks or would track, that is: without what .gitignore names."""
    # Root in a clone of somebody else's is no danger here.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (REPO / name).is_file()]


def scripts() -> list[str]:
    return [name for name in repo_files() if name.startswith(("scripts/", ".ci/"))]


def passes(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command in the repository; its output is the failure's text."""
    words = [os.fspath(word) for word in command]
    done = subprocess.run(
        words,
        cwd=REPO,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(words)}\n{done.stdout}", pytrace=False)
    return done.stdout


def test_ruff_finds_nothing() -> None:
    passes(BIN / "ruff", "check", ".")


def test_python_is_formatted() -> None:
    passes(BIN / "ruff", "format", "--check", ".")


def test_types_hold() -> None:
    passes(BIN / "mypy")
    passes(BIN / "mypy", "--follow-imports=silent", "tests/bench", env={"MYPYPATH": "tests"})


def test_imports_go_down_only() -> None:
    passes(BIN / "lint-imports", "--no-cache")


def test_shell_is_clean() -> None:
    passes("shellcheck", *scripts())


def test_c_is_formatted() -> None:
    passes(BIN / "clang-format", "--dry-run", "-Werror", *sorted((REPO / "native").glob("*.[ch]")))


def test_every_c_file_is_built() -> None:
    built = set(re.findall(r"\b\w+\.c\b", (REPO / "native/CMakeLists.txt").read_text()))
    assert built == {path.name for path in (REPO / "native").glob("*.c")}


def test_words_are_spelt_right() -> None:
    passes(BIN / "codespell", *repo_files())


def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed: `scripts/setup vagrant` installs Debian's")
    passes("vagrant", "validate", "--ignore-provider", env={"VAGRANT_HOME": str(tmp_path)})


def test_top_level_is_exactly_this() -> None:
    assert {name.split("/")[0] for name in repo_files()} == TOP_LEVEL


def test_files_are_short() -> None:
    lines = {
        name: (REPO / name).read_bytes().count(b"\n") for name in repo_files() if name.endswith((".py", ".c", ".h"))
    }
    long = {name: count for name, count in lines.items() if count > LINES_MAX}
    assert set(long) == set(LONG_FOR_A_REASON), long


def test_repository_names_no_registry_and_no_machine() -> None:
    found = []
    for name in repo_files():
        for number, line in enumerate((REPO / name).read_bytes().decode(errors="replace").splitlines(), 1):
            hosts = [host for host in ADDRESS.findall(line) if not ADDRESSES_ALLOWED.match(host)]
            hits = hosts + MACHINE_PATH.findall(line) + REGISTRY.findall(line)
            found += [f"{name}:{number}: {hit}" for hit in hits]
    assert not found, "\n".join(found)


def test_every_script_says_what_it_does() -> None:
    for name in scripts():
        first, second = (REPO / name).read_text().splitlines()[:2]
        assert first == "#!/bin/sh", name
        assert second.startswith("# "), name
        assert os.access(REPO / name, os.X_OK), name


def test_installed_package_holds_both_programs(tmp_path: Path) -> None:
    """`pip install .`, looked at without the editable install (-S) that the tests themselves run on."""
    passes(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, REPO)
    ask = "from engine.launch import program; print(program('serac-launch'), program('serac-init'))"
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), sysconfig.get_path("platlib")])}
    answer = subprocess.run(
        [sys.executable, "-S", "-c", ask], cwd="/", env=path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert answer == [str(tmp_path / "engine/bin/serac-launch"), str(tmp_path / "engine/bin/serac-init")]
    assert (tmp_path / "engine/py.typed").exists()
    assert (tmp_path / "bin/serac").exists()
    for program in answer:
        assert is_static(Path(program)), program


def is_static(program: Path) -> bool:
    """An ELF program without PT_INTERP, thus without a dynamic loader."""
    headers = subprocess.run(["readelf", "-lW", program], check=True, capture_output=True, text=True).stdout
    return "LOAD" in headers and "INTERP" not in headers
