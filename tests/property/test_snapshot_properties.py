from __future__ import annotations

import codecs
import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datahound_storage.files import layout, sidecar, snapshot
from datahound_storage.files.sidecar import SidecarHeader
from datahound_storage.halves import hashes_of
from tests.property import examples, task_lists, utf8_texts, values


def as_file(tasks: list[Any]) -> bytes:
    """The bytes that the old code writes."""
    return json.dumps(tasks, indent=2).encode()


def reassembled(content: bytes) -> bytes:
    items, problems = snapshot.parse(content)
    assert problems == []
    return b"".join(layout.assemble(item.text for item in items))


@examples
@given(task_lists())
def test_a_file_of_the_old_code_stays_byte_by_byte(tasks: list[Any]) -> None:
    assert reassembled(as_file(tasks)) == as_file(tasks)
    assert repr([item.task for item in snapshot.parse(as_file(tasks))[0]]) == repr(tasks)


@examples
@given(
    task_lists(utf8_texts),
    st.sampled_from([None, 0, 1, 4, "\t", "\r\n "]),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", "\t:\r\n")]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_a_file_in_any_layout_becomes_one_of_the_old_code(
    tasks: list[Any],
    indent: Any,
    separators: tuple[str, str],
    line_end: str,
    escape: bool,
    mark: bool,
) -> None:
    text = json.dumps(tasks, indent=indent, separators=separators, ensure_ascii=escape)
    content = codecs.BOM_UTF8 * mark + text.replace("\n", line_end).encode()
    assert reassembled(content) == as_file(tasks)


@examples
@given(
    st.lists(
        st.from_regex(
            r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
        ),
        max_size=5,
    ),
    utf8_texts,
)
def test_the_spelling_of_every_number_is_kept(spellings: list[str], other: str) -> None:
    text = json.dumps(other, ensure_ascii=False)
    content = f'[{{"task_id":"t","n":[{",".join(spellings)}],"s":{text}}}]'.encode()
    (found,) = json.loads(reassembled(content), parse_int=str, parse_float=str)
    assert found == {"task_id": "t", "n": spellings, "s": other}


@st.composite
def nearly_ours(draw: st.DrawFn) -> bytes:
    """A snapshot of ours, perhaps with something put in, or with a piece of it doubled or gone."""
    content = as_file(draw(task_lists()))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    odd = [
        b" ",
        b"\n",
        b"\r\n",
        b",\n  {",
        b"}",
        b"]",
        b"NaN",
        b"1E5",
        b"\x7f",
        b"\xc3\xbc",
        b"\xff",
    ]
    change = draw(st.sampled_from(["none", "insert", "remove", "double"]))
    if change == "none":
        return content
    if change == "insert":
        return content[:start] + draw(st.sampled_from(odd)) + content[start:]
    return content[:end] + content[start if change == "double" else end :]


@examples
@given(nearly_ours())
def test_the_fast_way_reads_what_the_thorough_one_does(content: bytes) -> None:
    found = snapshot._read_plain(io.BytesIO(content))
    if found is None:
        return
    plain = found.items
    items, problems = snapshot.parse(content)
    assert problems == []
    assert found.digest == layout.digest(content)
    assert [(item.task_key, item.text) for item in plain] == [
        (item.task_key, item.text) for item in items
    ]
    for item in plain:
        assert item.digest == layout.text_digest(item.text)
        if item.is_read_alike:
            assert repr(orjson.loads(item.text)) == repr(json.loads(item.text))


@examples
@given(task_lists())
def test_a_snapshot_of_ours_is_read_the_fast_way(tasks: list[Any]) -> None:
    found = snapshot._read_plain(io.BytesIO(as_file(tasks)))
    assert found is not None or not tasks
    assert [item.task for item in (found.items if found else [])] == tasks


@examples
@given(task_lists(), st.integers(5, 40))
def test_the_fast_way_finds_the_same_wherever_its_blocks_end(tasks: list[Any], block: int) -> None:
    content = as_file(tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_READ", block)
        found = snapshot._read_plain(io.BytesIO(content))
        assert layout.digest(content) == snapshot._read_any(content).digest
    whole = snapshot._read_plain(io.BytesIO(content))
    assert found == whole


@examples
@given(task_lists())
def test_the_digest_of_a_snapshot_can_be_told_from_its_texts(tasks: list[Any]) -> None:
    content = as_file(tasks)
    texts = [item.text for item in snapshot.parse(content)[0]]
    digests = [layout.text_digest(text) for text in texts]
    assert layout.digest_of_texts(d or b"" for d in digests) == layout.digest(content)


@examples
@given(nearly_ours(), nearly_ours())
def test_different_contents_have_different_digests(one: bytes, other: bytes) -> None:
    assert (layout.digest(one) == layout.digest(other)) is (one == other)


@examples
@given(task_lists())
def test_a_second_reading_finds_the_same(tasks: list[Any]) -> None:
    compact = json.dumps(tasks).encode()
    once = reassembled(compact)
    assert reassembled(once) == once


@examples
@given(st.binary(max_size=60) | st.text('[]{},:"ab01 \n\\').map(str.encode))
def test_any_bytes_are_read_without_a_failure(content: bytes) -> None:
    items, problems = snapshot.parse(content)
    try:
        whole = isinstance(json.loads(content.decode("utf-8-sig")), list)
    except (ValueError, RecursionError):
        whole = False
    assert whole or problems
    assert problems or len(items) == len(json.loads(content.decode("utf-8-sig")))


@examples
@given(task_lists(), st.data())
def test_a_torn_file_is_damaged_and_shows_the_tasks_before_the_tear(
    tasks: list[Any], data: st.DataObject
) -> None:
    content = as_file(tasks)
    end = data.draw(st.integers(0, len(content) - 1))
    items, problems = snapshot.parse(content[:end])
    assert problems
    assert [item.task for item in items] == tasks[: len(items)]


@examples
@given(task_lists(), values().filter(lambda value: not isinstance(value, dict)), st.data())
def test_an_item_that_is_no_task_hides_no_other(
    tasks: list[Any], bad: Any, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tasks)))
    items, problems = snapshot.parse(as_file([*tasks[:place], bad, *tasks[place:]]))
    assert [item.task for item in items] == tasks
    assert [problem.split(" (")[0] for problem in problems] == [f"item {place + 1}"]


@examples
@given(task_lists())
def test_a_sidecar_knows_every_task_of_its_snapshot(tasks: list[Any]) -> None:
    hashes = {task["task_id"]: hashes_of(task) for task in tasks}
    lines = [sidecar.task_line(key, pair) for key, pair in hashes.items()]
    content = sidecar.encode(SidecarHeader(), lines, dict(hashes))
    found = json.loads(content)
    assert {key: tuple(pair) for key, pair in found["tasks"].items()} == hashes
    assert {key: tuple(pair) for key, pair in found["previous"].items()} == hashes
