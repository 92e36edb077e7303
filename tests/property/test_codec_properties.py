from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datahound_storage import codec, runs
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.stored import rebuild
from datahound_storage.saving import TaskAdapter
from tests.property import examples, keys, numbers, tasks, texts, values


@examples
@given(tasks())
def test_a_task_comes_back_with_its_values_key_order_and_types(task: dict[str, Any]) -> None:
    assert repr(codec.decode(codec.encode(task))) == repr(task)


@examples
@given(tasks())
def test_a_task_is_written_as_the_old_code_writes_it(task: dict[str, Any]) -> None:
    assert f"[\n  {codec.encode(task)}\n]" == json.dumps([task], indent=2)
    assert codec.encode_lenient(task) == codec.encode(task)


@examples
@given(st.floats())
def test_every_float_is_written_as_the_old_code_writes_it_or_refused(number: float) -> None:
    written = codec.encode_lenient({"n": number})
    assert written == json.dumps([{"n": number}], indent=2)[4:-2]
    if math.isfinite(number):
        assert codec.encode({"n": number}) == written


@examples
@given(values(), st.sampled_from([None, 0, 1, "\t"]), st.booleans())
def test_any_text_is_read_as_the_standard_library_reads_it(
    value: Any, indent: Any, escape: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escape)
    assert repr(codec.loads(text) if escape or is_utf8(text) else value) == repr(value)


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@examples
@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
)
def test_any_spelling_of_a_number_is_read_alike_and_kept(spelling: str) -> None:
    raw = f'{{"n":[{spelling}],"m":{spelling}}}'
    assert repr(codec.loads(raw)) == repr(json.loads(raw))
    laid_out = codec.as_in_snapshot(raw)
    assert laid_out == f'{{\n    "n": [\n      {spelling}\n    ],\n    "m": {spelling}\n  }}'


@examples
@given(tasks())
def test_jsonb_gets_what_it_takes_and_the_rest_as_it_was(task: dict[str, Any]) -> None:
    shown = json.loads(codec.for_jsonb(codec.encode(task)))

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return codec.for_text_column(value)
        if isinstance(value, dict):
            return {codec.for_text_column(key): cleaned(item) for key, item in value.items()}
        return [cleaned(item) for item in value] if isinstance(value, list) else value

    assert shown == cleaned(task)
    assert is_utf8(json.dumps(shown, ensure_ascii=False))
    assert "\\u0000" not in json.dumps(shown).replace("\\\\", "")


@examples
@given(texts)
def test_a_cleaned_text_fits_and_a_fitting_text_is_not_cleaned(text: str) -> None:
    cleaned = codec.for_text_column(text)
    assert codec.fits_text_column(cleaned)
    assert len(cleaned) == len(text)
    assert (cleaned == text) is codec.fits_text_column(text)


@examples
@given(values(), values())
def test_values_are_the_same_exactly_if_they_look_the_same(left: Any, right: Any) -> None:
    assert codec.same(left, right) is (repr(left) == repr(right))
    assert codec.same(left, json.loads(json.dumps(left)))


@examples
@given(tasks("t"), tasks("t"))
def test_an_update_of_a_plain_task_stores_what_was_submitted(
    stored: dict[str, Any], submitted: dict[str, Any]
) -> None:
    text = TaskAdapter(None).prepare(submitted, codec.encode(stored)).text
    assert text == codec.encode(submitted)


def through_jsonb(text: str) -> Any:
    """The value of a text after it was a jsonb: keys sorted, each number a decimal one."""

    def number(spelling: str) -> Any:
        plain = f"{Decimal(spelling):f}"
        plain = plain.removeprefix("-") if not Decimal(spelling) else plain
        return json.loads(plain)

    def in_order(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(sorted(dict(pairs).items(), key=lambda pair: (len(pair[0].encode()), pair[0])))

    return json.loads(text, parse_float=number, object_pairs_hook=in_order)


@examples
@given(tasks())
def test_a_rebuilt_row_without_an_edit_is_the_task(task: dict[str, Any]) -> None:
    text = codec.encode(task)
    edits = {
        "edited": ["config_json"],
        "config": through_jsonb(codec.for_jsonb(text)),
        "task_key": task["task_id"],
        **TaskAdapter(None).prepare(task).columns._asdict(),
    }
    assert rebuild(text, edits) == text


offsets = st.none() | st.integers(-12 * 60, 14 * 60).map(
    lambda minutes: timezone(timedelta(minutes=minutes))
)
times = st.builds(
    lambda time, zone: time.replace(tzinfo=zone).isoformat(),
    st.datetimes(datetime(1970, 1, 3), datetime(9999, 12, 29)),
    offsets | st.just(UTC),
)
entries = st.fixed_dictionaries(
    {"timestamp": times, "task_id": keys},
    optional={
        "task_name": texts | values(),
        "task_type": texts,
        "success": st.booleans() | values(),
        "message": texts | values(),
        "duration_seconds": numbers | st.floats() | values(),
        "run_id": keys,
        "extra": values(),
    },
)
USUAL = {
    "timestamp": "2026-09-20T01:21:59.021661+00:00",
    "task_id": "t1",
    "task_name": "Download - Acme",
    "task_type": "download",
    "success": True,
    "message": "done",
    "duration_seconds": 19.810863,
}
usual_entries = st.builds(
    lambda time, key, name, success, message, seconds, run_id: {
        "timestamp": time.replace(tzinfo=UTC).isoformat(),
        "task_id": key,
        "task_name": name,
        "task_type": "download",
        "success": success,
        "message": message,
        "duration_seconds": seconds,
        **({} if run_id is None else {"run_id": run_id}),
    },
    st.datetimes(datetime(1970, 1, 3), datetime(9999, 12, 29)),
    keys,
    texts | values(),
    st.booleans(),
    texts,
    numbers | st.floats(-0.0, 1e9),
    st.none() | st.uuids().map(str),
)


def back_from_row(text: str) -> str:
    """A line's text after it was a row of the database."""
    (line,) = runs.identify([text])
    row = runs.row_of(line)
    if row.line_text is not None:
        return row.line_text
    return json.dumps(runs.entry_of(row.run_id, row, through_jsonb(row.metadata_text)))


@examples
@given(usual_entries)
@example(USUAL | {"duration_seconds": -0.0})
@example(USUAL | {"duration_seconds": 1e16})
@example(USUAL | {"task_name": {"bb": 1, "a": 2}})
@example(USUAL | {"message": "\x7f\x00"})
def test_a_usual_history_line_comes_back_from_its_row(entry: dict[str, Any]) -> None:
    text = runs.line_text(entry)
    assert back_from_row(text) == text


@examples
@given(entries, st.booleans())
def test_any_history_line_comes_back_from_its_row(entry: dict[str, Any], escape: bool) -> None:
    text = json.dumps(entry, ensure_ascii=escape or not is_utf8(str(entry)))
    if is_utf8(text):
        assert back_from_row(text) == text


@examples
@given(st.lists(entries.map(json.dumps) | texts, max_size=8))
def test_ids_of_lines_are_different_and_the_same_when_read_again(lines: list[str]) -> None:
    derived = [
        line.run_id for line in runs.identify(lines) if line.run_id.startswith(runs.DERIVED_PREFIX)
    ]
    assert len(derived) == len(set(derived))
    assert list(runs.identify(lines)) == list(runs.identify(lines))


@examples
@given(entries)
def test_an_entry_is_one_line_that_can_be_read(entry: dict[str, Any]) -> None:
    text = runs.line_text(entry)
    assert len(text.splitlines()) == 1
    line = runs.parse_line(text)
    assert line is not None
    assert line.entry["task_id"] == entry["task_id"]


@examples
@given(values(), values())
def test_two_values_are_the_same_where_the_standard_library_writes_them_alike(
    one: Any, other: Any
) -> None:
    for left, right in ((one, other), (one, json.loads(json.dumps(one))), ([one], [other, one])):
        assert codec.same(left, right) is (json.dumps(left) == json.dumps(right))


@pytest.mark.parametrize(
    ("one", "other"),
    [(math.nan, None), (1, 1.0), (1, True), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
)
def test_what_is_nearly_the_same_is_not(one: Any, other: Any) -> None:
    assert not codec.same({"x": one}, {"x": other})
    assert codec.same({"x": one}, {"x": one})


@examples
@given(tasks())
def test_a_task_known_to_be_finite_has_the_hashes_that_it_has(task: dict[str, Any]) -> None:
    assert hashes_of(task, is_finite=True) == hashes_of(task)
    assert hashes_of(dict(reversed(task.items()))) == hashes_of(task)


def test_a_number_that_is_none_has_another_hash_than_none() -> None:
    for value in (math.nan, math.inf):
        assert hashes_of({"x": value}) != hashes_of({"x": None})
        assert hashes_of({"x": value}) == hashes_of({"x": value})
