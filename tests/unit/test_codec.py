from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import pytest

from datahound_storage import codec
from datahound_storage.errors import InvalidTaskError
from tests.unit import text_in_list

UNUSUAL_VALUES = [
    pytest.param(0, id="zero"),
    pytest.param(-0.0, id="negative zero"),
    pytest.param(1.0, id="whole float"),
    pytest.param(True, id="bool"),
    pytest.param(None, id="null"),
    pytest.param(2**63, id="beyond 63 bits"),
    pytest.param(2**64, id="beyond 64 bits"),
    pytest.param(-(10**30), id="huge negative integer"),
    pytest.param(9007199254740993, id="integer that no float holds"),
    pytest.param(1e16, id="positive exponent"),
    pytest.param(1e-07, id="negative exponent"),
    pytest.param(1e-05, id="smallest exponent"),
    pytest.param(1.2345e-05, id="smallest exponent with digits"),
    pytest.param(1.7976931348623157e308, id="largest float"),
    pytest.param(5e-324, id="smallest float"),
    pytest.param(0.1, id="0.1"),
    pytest.param("", id="empty string"),
    pytest.param("\x00", id="U+0000"),
    pytest.param("\x7f\x1f\b\f\t\r\n", id="control characters"),
    pytest.param('"\\/', id="quote, backslash, slash"),
    pytest.param("\\u0000", id="backslash before u0000"),
    pytest.param("\ud800", id="lone high surrogate"),
    pytest.param("\udfff\ud800", id="surrogates in the wrong order"),
    pytest.param("😀", id="beyond the first plane"),
    pytest.param("日本語 עברית ไทย", id="scripts"),
    pytest.param("\u2028\u2029\ufeff", id="separators and byte order mark"),
    pytest.param("NaN Infinity -Infinity", id="words that look like numbers"),
    pytest.param("1e999", id="a text that looks like a number"),
    pytest.param([], id="empty list"),
    pytest.param({}, id="empty object"),
    pytest.param({"": {"": [[], {}, [{}]]}}, id="empty keys and nests"),
    pytest.param({"b": 1, "a": 2, "B": 3}, id="keys out of order"),
    pytest.param("-07:00", id="offset"),
]


@pytest.mark.parametrize("value", UNUSUAL_VALUES)
def test_encode_writes_exactly_what_the_old_code_writes(value: object) -> None:
    task = {"task_id": "t", "value": value, "nested": {"values": [value, {"value": value}]}}
    assert codec.encode(task) == text_in_list(task)


@pytest.mark.parametrize("value", UNUSUAL_VALUES)
def test_decode_gives_back_the_value_with_its_type_and_key_order(value: object) -> None:
    task = {"task_id": "t", "value": value, "nested": [value]}
    assert repr(codec.decode(codec.encode(task))) == repr(task)


@pytest.mark.parametrize(
    "text",
    [
        "-0",
        "-0.0",
        "1E5",
        "1e5",
        "1.50",
        "1e400",
        "-1E+400",
        "1e-400",
        "1" + "0" * 400,
        "9" * 17,
        "18446744073709551616",
        "0.1234567890123456789",
        "NaN",
        "-Infinity",
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        '"\\u0000"',
        '{"a": 1, "b": 2, "a": 3}',
        "[" * 300 + "]" * 300,
    ],
)
def test_loads_reads_every_spelling_as_the_standard_library_does(text: str) -> None:
    text = f'{{"value": {text}}}'
    assert repr(codec.loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_encode_refuses_what_is_not_a_finite_number(number: float, depth: int) -> None:
    value: object = number
    for _ in range(depth):
        value = [{"value": value}]
    with pytest.raises(InvalidTaskError, match=r"task 't1'.*NaN or an infinity"):
        codec.encode({"task_id": "t1", "value": value})


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        UUID(int=1),
        Decimal(1),
        {1, 2},
        b"bytes",
        object(),
        1j,
        {("a", "b"): 1},
        Enum("Plain", "A").A,
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_encode_refuses_what_json_has_no_form_for(value: object) -> None:
    with pytest.raises(InvalidTaskError, match="task 't1'"):
        codec.encode({"task_id": "t1", "value": value})


def test_encode_refuses_a_task_that_contains_itself() -> None:
    task: dict[str, object] = {"task_id": "t1"}
    task["self"] = [task]
    with pytest.raises(InvalidTaskError, match="contains itself"):
        codec.encode(task)


def test_encode_refuses_a_nest_too_deep_to_be_written() -> None:
    value: object = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidTaskError, match="nested too deeply"):
        codec.encode({"task_id": "t1", "value": value})


def test_a_refusal_shows_no_setting() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        codec.encode({"task_id": "t1", "settings": {"password": "hunter2", "x": {"hunter2"}}})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_tuple_and_enumeration_members_are_written_by_value() -> None:
    word, number = StrEnum("Word", {"A": "a"}).A, IntEnum("Number", {"ONE": 1}).ONE
    task = {"task_id": "t", "values": (word, number), "word": word}
    assert codec.encode(task) == text_in_list({"task_id": "t", "values": ["a", 1], "word": "a"})


def test_subclasses_of_plain_types_are_written_as_the_plain_types() -> None:
    class Text(str):
        __slots__ = ()

    class Table(dict):  # type: ignore[type-arg]
        pass

    task = Table({"task_id": Text("t"), "value": Table({Text("k"): Text("ä")})})
    assert codec.encode(task) == text_in_list({"task_id": "t", "value": {"k": "ä"}})


def test_encode_lenient_keeps_what_a_file_of_the_old_code_holds() -> None:
    task = {"task_id": "t", "values": [math.nan, math.inf, -math.inf, 1.0, 2**70]}
    assert codec.encode_lenient(task) == text_in_list(task)
    assert repr(codec.decode(codec.encode_lenient(task))) == repr(task)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "x\\u0000y"}', {"a": "x\ufffdy"}),
        ('{"x\\u0000": 1}', {"x\ufffd": 1}),
        ('{"a": "\\ud800"}', {"a": "\ufffd"}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": [NaN, Infinity, -Infinity]}', {"a": [None, None, None]}),
        ('{"a": [1e400, -1e400, 1e-400]}', {"a": [None, None, 0.0]}),
        ('{"a": "NaN", "b": "\\\\u0000"}', {"a": "NaN", "b": "\\u0000"}),
        ('{"a": 18446744073709551616, "b": NaN}', {"a": 2**64, "b": None}),
    ],
)
def test_jsonb_gets_the_nearest_text_that_it_takes(text: str, expected: object) -> None:
    assert repr(json.loads(codec.for_jsonb(text))) == repr(expected)


def test_jsonb_gets_a_harmless_text_as_it_is() -> None:
    text = '{"b": 1.50, "a": "日本"}'
    assert codec.for_jsonb(text) is text


@pytest.mark.parametrize("value", ["\x00", "a\ud800", "\udfff"])
def test_a_text_column_gets_replacement_characters(value: str) -> None:
    assert not codec.fits_text_column(value)
    cleaned = codec.for_text_column(value)
    assert cleaned == value[:-1] + "\ufffd"
    assert codec.fits_text_column(cleaned)


RAW_FORMS = [
    pytest.param('{"task_id":"t","n":[1.50,1E5,-0,1e400],"o":{},"l":[]}', id="compact"),
    pytest.param('{ "task_id" : "t" , "o" : { } , "l" : [ ] }', id="blanks everywhere"),
    pytest.param('{\r\n    "task_id": "t",\r\n    "n": 1.50\r\n  }', id="CRLF"),
    pytest.param('{\n\t\t"task_id": "t",\n\t\t"l": [\n\t\t\t1\n\t\t]\n\t}', id="tabs"),
    pytest.param('{\n    "task_id": "t",\n    "s": "日本 \\u00e9\\n\\/"\n  }', id="raw letters"),
    pytest.param('{"task_id":"t","s":"a\\"b\\\\","{":"},[]:"}', id="marks inside of strings"),
    pytest.param('{"task_id":"t","s":"é\\ud800"}', id="raw letter beside half a surrogate pair"),
    pytest.param('{"task_id":"t","x":[NaN,-Infinity,true,null]}', id="words"),
]


@pytest.mark.parametrize("raw", RAW_FORMS)
def test_any_layout_becomes_the_snapshots_layout_with_the_same_values(raw: str) -> None:
    text = codec.as_in_snapshot(raw)
    assert text.isascii()
    assert repr(json.loads(text)) == repr(json.loads(raw))
    spelled_out = json.loads(raw, parse_float=str, parse_int=str)
    assert json.loads(text, parse_float=str, parse_int=str) == spelled_out


@pytest.mark.parametrize("raw", RAW_FORMS)
def test_the_snapshots_layout_is_the_old_codes(raw: str) -> None:
    plain = json.loads(raw, parse_float=lambda _: 7, parse_int=lambda _: 7)
    text = codec.as_in_snapshot(json.dumps(plain, ensure_ascii=False))
    assert text == text_in_list(plain)


def test_a_text_in_the_snapshots_layout_stays_as_it_is() -> None:
    raw = '{\n    "task_id": "t",\n    "n": 1.50\n  }'
    assert codec.as_in_snapshot(raw) == raw


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1, True), (0, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
)
def test_equal_values_of_other_types_or_orders_are_not_the_same(
    left: object, right: object
) -> None:
    assert left == right
    assert not codec.same(left, right)
    assert codec.same(left, left)


def test_more_decimals_than_a_numeric_has_are_rounded() -> None:
    assert codec.for_jsonb(f'{{"n": 1.{"3" * 17_000}}}') == f'{{"n": {4 / 3}}}'
