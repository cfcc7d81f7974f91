"""The manifest: that old ones are read for ever, that there is one form of it alone, and what is refused.

What lies in golden/ was written by the serac of its day and is never written again. Those that must fail begin with
``bad-``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forge import BASE, LOWER, PROCESSES, canonical, described
from hypothesis import given
from hypothesis import strategies as st

from engine.archive import manifest
from engine.archive.manifest import Manifest
from engine.errors import Damaged
from engine.model import Context, HostFacts, JobSpec, Limits, Placement, ProcessImage, SessionSpec, Step

GOLDEN = Path(__file__).parent / "golden"
GOOD = sorted(path.name for path in GOLDEN.glob("serac-snapshot-*.json"))
BAD = sorted(path.name for path in GOLDEN.glob("bad-*.json"))
DIGESTS = {
    "serac-snapshot-1.json": "4c0651e30fd011b2c531b518b38d8c0446965defc30390e8d21b54417e343a5c",
    "serac-snapshot-1-processes.json": "0de4d37ac83bb6e7a20696a54dbb7208bed8efb543c54b9c08ca9c75d7dccbce",
}
FILES = described([LOWER], base=BASE)
MEMORY = described([LOWER], base=BASE, processes=PROCESSES)


def changed(value: dict[str, Any], path: str, new: object) -> dict[str, Any]:
    """A copy, with another value at ``spec.env``, say; ... takes it away."""
    copy = json.loads(json.dumps(value))
    *above, last = path.split(".")
    place = copy
    for name in above:
        place = place[int(name) if name.isdigit() else name]
    if new is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = new
    return copy  # type: ignore[no-any-return]


# golden files


def test_every_golden_file_is_known() -> None:
    assert sorted(DIGESTS) == GOOD
    assert len(BAD) >= 4
    assert {path.name for path in GOLDEN.glob("*.json")} == {*GOOD, *BAD}


@pytest.mark.parametrize("name", GOOD)
def test_what_was_written_once_is_read_for_ever(name: str) -> None:
    encoded = (GOLDEN / name).read_bytes()
    assert manifest.digest(encoded) == hashlib.sha256(encoded).hexdigest() == DIGESTS[name]
    assert manifest.encode(manifest.decode(encoded)) == encoded


def test_what_the_golden_files_mean() -> None:
    files = manifest.decode((GOLDEN / "serac-snapshot-1.json").read_bytes())
    assert (files.id, files.job, files.name, files.parent) == ("4f0c2a91d3e7", "77aa01bcfe12", "build", "0123456789ab")
    assert (files.mode, files.reason, files.processes) == ("filesystem", "inotify-on-overlay", None)
    assert files.base.env == {"PATH": "/usr/bin:/bin"}
    assert files.labels == {"mr": "42", "caf\u00e9": "\U0001f600"}
    assert [part.size for part in manifest.parts(files)] == [1 << 20, 3 << 20]
    assert files.spec == JobSpec(
        base="debian",
        name="build",
        steps=(Step(name="build", script="make -j2\n"), Step(name="test", script="make check")),
        env={"CI": "true"},
        workdir="/src",
        net="bridge",
        tty=True,
        limits=Limits(memory=2 << 30, cpus=1.5, pids=500),
        labels={"team": "a"},
        on_resume=("/bin/renew",),
        resume_signal="USR1",
        state={"tries": [1, 2.5, None, True], "\u00e4": "\u2028"},
    )
    first, shell = files.context.sessions
    assert (first.id, first.steps, first.done, first.tty) == (0, files.spec.steps, ("build",), (24, 80))
    assert shell == SessionSpec(
        id=3, argv=("bash", "-l"), env={"A": "b=c"}, workdir="/tmp", tty=(50, 132), keep=True, uid=1000, gid=100
    )
    assert files.context == Context(sessions=(first, shell), state=files.spec.state, labels={"team": "a", "mr": "42"})


def test_what_the_golden_file_with_processes_means() -> None:
    memory = manifest.decode((GOLDEN / "serac-snapshot-1-processes.json").read_bytes())
    assert memory.processes == ProcessImage(
        digest="33" * 32,
        host=HostFacts(criu="4.1", kernel="6.18.0", machine="x86_64", cpu=("avx", "fpu")),
        init="/.serac/init-0123456789abcdef",
        memory=52_428_800,
        remaps=("src/link_remap.7",),
        connections=True,
        address="10.83.0.2",
        shm=True,
        placements=(Placement(thread=5, cpus=(0, 1)), Placement(thread=9, ioprio=3 << 13)),
        logs={"0.log": 4096, "0.log.old": 10, "3.status": 77},
        range=(100_000, 65_536),
    )
    assert memory.mode == "process"
    assert [part.size for part in manifest.parts(memory)] == [1 << 20, 7 << 20]


@pytest.mark.parametrize("name", BAD)
def test_what_must_fail(name: str) -> None:
    with pytest.raises(Damaged) as error:
        manifest.decode((GOLDEN / name).read_bytes())
    assert error.value.hint
    assert "\n" not in str(error.value)


# one form


def test_every_field_is_documented() -> None:
    """In the order of the docstring, which may have several fields a line."""
    text = str(manifest.__doc__)
    table = text[text.index("    format ") : text.index("\n\nWritten history")]
    heads = [match[1] for match in re.finditer(r"^    (\w.*?)  ", table, re.MULTILINE)]
    marked = re.findall(r"``(\w+)``", table)
    fields = [field for head in heads for field in head.split(", ")]
    assert {*fields, *marked} >= set(Manifest.__struct_fields__)
    assert set(fields) <= set(Manifest.__struct_fields__)
    assert {"digest", "size", "env"} <= set(marked)
    assert manifest.FORMAT in text[text.index("Written history") :]


def test_the_form() -> None:
    decoded = manifest.decode(canonical(MEMORY))
    assert manifest.encode(decoded) == canonical(MEMORY)
    assert list(json.loads(manifest.encode(decoded))) == sorted(Manifest.__struct_fields__)


@pytest.mark.parametrize(
    "other",
    [
        json.dumps(FILES).encode(),
        json.dumps(FILES, sort_keys=True).encode(),
        canonical(FILES) + b"\n",
        b"\xef\xbb\xbf" + canonical(FILES),
        canonical(FILES).replace(b'"name":"job"', b'"name":"\\u006aob"'),
        canonical(FILES).replace(b'"labels":{}', b'"labels":{},"labels":{}'),
        canonical(FILES).replace(b'"labels":{}', b'"labels":{"b":"1","a":"2"}'),
        canonical(FILES).replace(b"1764100000.5", b"1764100000.50"),
        canonical(changed(FILES, "more", 1)),
        canonical(changed(FILES, "spec.more", 1)),
        canonical(changed(FILES, "spec.workdir", "/")),
        canonical(changed(FILES, "created", 1764100000)),
        canonical(changed(FILES, "parent", ...)),
        canonical(FILES).decode().encode("utf-16"),
    ],
)
def test_the_same_in_another_form_is_refused(other: bytes) -> None:
    """Two digests for one snapshot would be two snapshots."""
    assert other != canonical(FILES)
    with pytest.raises(Damaged, match="manifest"):
        manifest.decode(other)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=20,
)


@given(labels=st.dictionaries(TEXTS, TEXTS), state=JSON, created=st.floats(0, 1e11), env=st.dictionaries(TEXTS, TEXTS))
def test_whatever_is_in_it_comes_back(labels: dict[str, str], state: Any, created: float, env: dict[str, str]) -> None:
    spec = JobSpec(base="small", env=env, state=state)
    context = Context(sessions=(SessionSpec(id=0, env=env),), state=state, labels=labels)
    decoded = manifest.decode(canonical(FILES))
    other = msgspec.structs.replace(decoded, spec=spec, context=context, labels=labels, created=created)
    encoded = manifest.encode(other)
    assert manifest.decode(encoded) == other
    assert manifest.encode(manifest.decode(encoded)) == encoded


# what is refused


def test_a_newer_version_is_told_apart() -> None:
    newer = changed(FILES, "format", "serac-snapshot/2")
    for value in (newer, {"format": "serac-snapshot/2"}, changed(newer, "layers", "something new")):
        with pytest.raises(Damaged, match=r"newer serac \(serac-snapshot/2\)") as error:
            manifest.decode(canonical(value))
        assert error.value.hint == "upgrade serac"


@pytest.mark.parametrize(
    "form", ["serac-snapshot/0", "serac-snapshot/01", "serac-snapshot/-1", "serac-snapshot/1.0", "serac-snapshot/",
             "serac-snapshot/\u0661", "serac-snapshot/1\n", "serac-image/1", "", "oci", "serac-snapshot/9999999999"],
)  # fmt: skip
def test_what_is_no_manifest(form: str) -> None:
    with pytest.raises(Damaged, match="no manifest of a snapshot"):
        manifest.decode(canonical(changed(FILES, "format", form)))


@pytest.mark.parametrize("field", sorted(FILES))
@pytest.mark.parametrize("new", [..., 7, "x", [], [[]], {"x": 1}, True, 1.5], ids=str)
def test_fields_missing_or_of_another_type(field: str, new: object) -> None:
    fitting: list[tuple[str, object]] = [("reason", "x"), ("name", "x"), ("created", 1.5)]
    if (field, new) not in fitting:
        with pytest.raises(Damaged):
            manifest.decode(canonical(changed(FILES, field, new)))


NO_DIGESTS = ["", "0" * 63, "0" * 65, "A" * 64, "../../etc/passwd", "/" * 64, "\u0660" * 64, "0" * 64 + "\n", None]
NO_IDS = ["", "0" * 11, "0" * 13, "A" * 12, "../../../etc", "0" * 12 + "\n", "\u0660" * 12]
NO_SIZES = [0, -1, 1 << 51, 1 << 80, -(1 << 80), 1.5, "1", None]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("base.digest", NO_DIGESTS),
        ("layers.0.digest", NO_DIGESTS),
        ("processes.digest", NO_DIGESTS),
        ("id", NO_IDS),
        ("job", NO_IDS),
        ("parent", NO_IDS),
        ("base.size", NO_SIZES),
        ("layers.0.size", NO_SIZES),
        ("processes_size", NO_SIZES),
        ("processes.memory", [-1, 1 << 51, 1 << 80]),
        ("created", [-1.0, 1e12, 1e300]),
        ("mode", ["auto", "filesystem", "", None]),
        ("processes", [None]),
        ("layers", [[]]),
        ("overlay", [{"index": 1}, None]),
        ("processes.logs", [{name: 1} for name in ("../x", "0.log/../x", "/etc/passwd", "", "x.log", "0.log\n")]),
        ("processes.logs", [{"0.log": size} for size in (-1, 1 << 40, 1 << 80)]),
        ("processes.remaps", [[path] for path in ("/etc/x", "../x", "a/../../x", "", "a//b", "a/", "./a", "a\0b")]),
        ("processes.init", ["init", "", "/", "/../init", "/a\0b", "//init"]),
        ("processes.address", ["", "x", "::1", "10.0.0.1/8", "10.0.0.1\n", "-f"]),
        ("processes.range", [..., [0], [0, 1, 2]]),
        ("processes.placements", [[{"thread": 1, "cpus": cpus}] for cpus in ([-1], [1 << 40], [1 << 80])]),
        ("processes.placements", [[{"thread": 1, "ioprio": value}] for value in (-1, 5, 1 << 13, 4 << 13, 1 << 80)]),
        ("processes.placements", [[{"thread": 0}], [{"thread": -5, "ioprio": 3 << 13}]]),
        ("processes.host.criu", ["9" * 5000, 4]),
        ("spec.userns", ["host", "none"]),
        ("spec.net", ["all"]),
        ("spec.env", [{"a": 1}, []]),
        ("spec.limits", [{"memory": "1"}, {"cpus": [1]}]),
    ],
)  # fmt: skip
def test_values_that_cannot_be(path: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(Damaged, match="manifest"):
            manifest.decode(canonical(changed(MEMORY, path, value)))


def test_images_that_do_not_fit_together() -> None:
    twice = changed(FILES, "layers", [LOWER.part, {**LOWER.part, "size": 1}])
    for value, why in (
        (twice, "two sizes"),
        (changed(FILES, "layers", [BASE.part]), "its base is one of its layers"),
        (changed(FILES, "processes_size", 7), "have a size"),
        (changed(MEMORY, "mode", "filesystem"), "has processes, or not"),
        (changed(FILES, "mode", "process"), "has processes, or not"),
    ):
        with pytest.raises(Damaged, match=why):
            manifest.decode(canonical(value))
    manifest.decode(canonical(changed(FILES, "layers", [LOWER.part, LOWER.part])))


@pytest.mark.parametrize("depth", [2000, 200_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_no_nesting_is_too_deep_to_be_refused(depth: int, brackets: tuple[bytes, bytes]) -> None:
    nest = brackets[0] * depth + (b"1" if brackets[0] != b"[" else b"") + brackets[1] * depth
    encoded = canonical(FILES)
    for place in (b'"spec":{"base":"small"', b'"context":{'):
        more = b',"state":' if place.startswith(b'"spec') else b'"state":'
        with pytest.raises(Damaged):
            manifest.decode(encoded.replace(place, place + more + nest))
    for hidden in (b'{"more":' + nest + b"," + encoded[1:], nest, b'{"format":' + nest + b"}"):
        with pytest.raises(Damaged):
            manifest.decode(hidden)


@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_do_anything_else(data: bytes) -> None:
    with pytest.raises(Damaged):
        manifest.decode(data)


@given(data=st.data())
def test_no_change_of_some_bytes_does_anything_else(data: st.DataObject) -> None:
    spoilt = bytearray(canonical(MEMORY))
    for at in data.draw(st.lists(st.integers(0, len(spoilt) - 1), min_size=1, max_size=3)):
        spoilt[at] = data.draw(st.integers(0, 255))
    try:
        decoded = manifest.decode(bytes(spoilt))
    except Damaged:
        return
    assert manifest.encode(decoded) == bytes(spoilt)


@given(path=st.sampled_from(["spec.env", "labels", "context", "base.env", "processes.logs", "layers.0"]), value=JSON)
def test_no_value_does_anything_else(path: str, value: object) -> None:
    try:
        manifest.decode(canonical(changed(MEMORY, path, value)))
    except (Damaged, UnicodeEncodeError):
        return
