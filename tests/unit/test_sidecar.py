from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import sidecar
from datahound_storage.files.atomic import Signature
from datahound_storage.files.sidecar import Hashes, Sidecar, SidecarHeader
from datahound_storage.halves import hashes_of
from tests.former import former_hashes

HEADER = SidecarHeader(
    database="5a1d",
    incarnation="7391",
    epoch=3,
    watermark="10:20:12,14",
    shown_us=1_790_000_000_000_000,
    file=(12, 3456, 1_790_000_000_123_456_789),
    replaced=(11, 3400, 1_780_000_000_123_456_789),
    before="aa",
    after="bb",
)
TASKS: dict[str, Hashes] = {"t1": ("01", "02"), "日本": ("03", "04"), 'a"\\b\n': ("05", "06")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".scheduled_tasks.state.json"


def encoded(header: SidecarHeader = HEADER, tasks: dict[str, Hashes] = TASKS) -> bytes:
    lines = [sidecar.task_line(key, hashes) for key, hashes in tasks.items()]
    return sidecar.encode(header, lines, {"t1": ("07", "08"), "new": None})


def test_a_sidecar_comes_back_as_it_was(path: Path) -> None:
    path.write_bytes(encoded())
    assert sidecar.read(path) == Sidecar(HEADER, TASKS, {"t1": ("07", "08"), "new": None})


def test_a_sidecar_of_no_tasks_comes_back(path: Path) -> None:
    path.write_bytes(sidecar.encode(HEADER, [], {}))
    assert sidecar.read(path) == Sidecar(HEADER, {}, {})


def test_one_that_was_begun_says_nothing_and_can_be_told_from_others(path: Path) -> None:
    digests = set()
    for _ in range(2):
        sidecar.begin(path)
        assert sidecar.read(path) is None
        digests.add(sidecar.header_digest(path))
    assert len(digests - {None}) == 2


def test_its_digest_stays_when_something_is_noted(path: Path) -> None:
    path.write_bytes(encoded())
    before = sidecar.header_digest(path)
    sidecar.note_shown(path, {"t1": None})
    assert sidecar.header_digest(path) == before
    path.write_bytes(sidecar.encode(replace(HEADER, after="other"), [], {}))
    assert sidecar.header_digest(path) not in (before, None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_there_is_no_digest_of_what_is_no_sidecar(path: Path, content: bytes) -> None:
    assert sidecar.header_digest(path) is None
    path.write_bytes(content)
    assert sidecar.header_digest(path) is None


def test_it_is_json_with_a_line_for_each_task() -> None:
    content = encoded()
    assert set(json.loads(content)["tasks"]) == set(TASKS)
    assert len(content.splitlines()) == len(TASKS) + 2


def test_a_missing_sidecar_is_none(path: Path) -> None:
    assert sidecar.read(path) is None


def test_a_sidecar_torn_at_any_byte_is_none(path: Path) -> None:
    content = encoded().rstrip()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert sidecar.read(path) is None, end


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{}",
        b"\xff\xfe",
        b"\x00" * 100,
        b"[" * 100_000,
        encoded().replace(b'"format":2', b'"format":3'),
        encoded().replace(b'"format":2', b'"format":0'),
        encoded().replace(b'"format":2', b'"format":[1]'),
        encoded().replace(b'"format":2', b'"unknown":2'),
        encoded().replace(b'"database"', b'"data_base"'),
        encoded().replace(b'"previous":{', b'"previous":7,"x":{'),
        encoded().replace(b'"previous":{', b'"shown_since":[1],"previous":{'),
        encoded().replace(b'["01","02"]', b'["01"]'),
        encoded().replace(b'["01","02"]', b"null"),
        encoded().replace(b'["07","08"]', b'["07"]'),
        encoded().replace(b'"10:20:12,14"', b"10"),
        encoded().replace(b'"10:20:12,14"', b'"garbage"'),
        encoded().replace(b'"epoch":3', b'"epoch":"3"'),
        encoded().replace(b'"epoch":3', b'"epoch":null'),
        encoded().replace(b"1790000000000000,", b'"soon",'),
        encoded().replace(b"[12,3456,", b"[12,"),
        encoded().replace(b'"5a1d"', b"null"),
    ],
    ids=lambda content: ascii(content[:20]),
)
def test_a_sidecar_that_cannot_be_understood_is_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert sidecar.read(path) is None


def test_a_sidecar_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FileStoreError, match="cannot read"):
        sidecar.read(path)


@pytest.mark.parametrize(("digest", "ours"), [("aa", True), ("bb", True), ("cc", False)])
def test_the_old_and_the_new_snapshot_are_ours(digest: str, ours: bool) -> None:
    assert HEADER.recognises(digest, HEADER.replaced) is ours


def test_the_content_of_the_old_snapshot_in_another_file_is_not_ours() -> None:
    assert not HEADER.recognises("aa", HEADER.file)
    assert not HEADER.recognises("aa", None)
    assert HEADER.recognises("bb", None)


def task_text(**changes: object) -> str:
    return json.dumps({"task_id": "t1", "name": "one", "run_count": 0, **changes})


def test_what_the_files_showed_since_is_taken_down_and_the_rest_stays(path: Path) -> None:
    path.write_bytes(encoded())
    texts = [task_text(name="two"), task_text(name="two", run_count=1)]
    for text in texts:
        sidecar.note_shown(path, {"t1": text})
    sidecar.note_shown(path, {"added": texts[0]})
    known = sidecar.read(path)
    assert known is not None
    shown = [hashes_of(json.loads(text)) for text in texts]
    assert known.shown_since == {"t1": shown, "added": shown[:1]}
    assert (known.header, known.tasks) == (HEADER, TASKS)
    assert known.previous == {"t1": ("07", "08"), "new": None}


def test_what_is_added_to_a_former_one_is_of_its_format(path: Path) -> None:
    content = encoded(replace(HEADER, file=(11, 7, 3))).replace(b'"format":2', b'"format":1')
    path.write_bytes(content)
    text = task_text(name="two")
    sidecar.note_shown(path, {"t1": text, "gone": None})
    shown = {"t1": [tuple(former_hashes(json.loads(text)))], "gone": [None]}
    known = sidecar.read(path)
    assert known is not None
    assert (known.format, known.tasks, known.shown_since) == (1, TASKS, shown)
    sidecar.settle(path, Signature(11, 7, 3))
    settled = sidecar.read(path)
    assert settled is not None
    assert (settled.format, settled.previous, settled.shown_since) == (1, {}, shown)
    assert settled.tasks["t1"] == ("07", "08")


def test_without_a_sidecar_none_is_made(path: Path) -> None:
    sidecar.note_shown(path, {"new": task_text()})
    assert not path.exists()


@pytest.mark.parametrize(
    ("unpublished", "stands"),
    [
        (None, "new"),
        (Signature(11, 7, 3), "old"),
        (Signature(12, 7, 3), "old"),  # in a copy of the directory
        (Signature(11, 7, 4), "new"),  # of a later attempt, before its sidecar
        (Signature(11, 8, 3), "new"),
    ],
)
def test_which_snapshot_stands_is_told_by_what_was_not_published(
    unpublished: Signature | None, stands: str
) -> None:
    header = replace(HEADER, file=(11, 7, 3), replaced=(12, 1, 1))
    known = Sidecar(header, {"a": ("1", "2"), "b": ("3", "4")}, {"a": ("5", "6"), "b": None})
    settled = known.settled(unpublished)
    assert settled.tasks == (known.tasks if stands == "new" else {"a": ("5", "6")})
    assert settled.header.file == (header.file if stands == "new" else None)
    assert settled.previous == {}


def test_its_digest_stays_when_it_is_settled(path: Path) -> None:
    header = replace(HEADER, file=(11, 7, 3))
    path.write_bytes(sidecar.encode(header, [], {"a": ("5", "6")}))
    before = sidecar.header_digest(path)
    sidecar.settle(path, Signature(11, 7, 3))
    assert (sidecar.header_digest(path), before is None) == (before, False)
    found = sidecar.read(path)
    assert found is not None
    assert (found.tasks, found.header.file) == ({"a": ("5", "6")}, None)


def test_a_header_that_lacks_a_newer_field_has_a_digest(path: Path) -> None:
    value = json.loads(encoded())
    value.pop("replaced")
    path.write_text(json.dumps(value))
    assert sidecar.read(path) is not None
    assert sidecar.header_digest(path) is not None
