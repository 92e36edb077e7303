from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from datahound_storage import runs
from datahound_storage.records import SchedulerRunRecord

LINE = {
    "timestamp": "2026-09-20T01:21:59.021661+00:00",
    "task_id": "t1",
    "task_name": "Download - Acme",
    "task_type": "download",
    "success": True,
    "message": "done",
    "duration_seconds": 19.810863,
}


@pytest.fixture
def pacific(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's local time is eight hours behind UTC."""
    monkeypatch.setenv("TZ", "PST8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def only_line(text: str) -> runs.Line:
    (line,) = runs.identify([text])
    return line


def text_from_row(row: runs.RunRow) -> str:
    if row.line_text is not None:
        return row.line_text
    return json.dumps(runs.entry_of(row.run_id, row, json.loads(row.metadata_text)))


def test_a_new_entry_has_the_keys_of_a_history_line_in_order_and_a_run_id() -> None:
    entry = runs.new_entry("t1", True, "done", 1.5, "name", "download")
    assert list(entry) == [*LINE, "run_id"]
    assert UUID(entry["run_id"]).version == 4
    assert datetime.fromisoformat(entry["timestamp"]).utcoffset() == timedelta(0)
    assert entry["run_id"] != runs.new_entry("t1", True, "", 0, "", "")["run_id"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_duration_that_is_no_number_becomes_null_and_the_line_stays_json(number: float) -> None:
    entry = runs.new_entry("t1", True, "done", number, "name", "download")
    text = runs.line_text(entry)
    assert json.loads(text) == entry | {"duration_seconds": None}
    assert "\n" not in text


def test_a_message_that_is_no_text_becomes_its_text() -> None:
    error = ValueError("no rows")
    entry = runs.new_entry("t1", False, error, 1.5, "name", "download")  # type: ignore[arg-type]
    assert json.loads(runs.line_text(entry)) == entry | {"message": "no rows"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"message": ""},
        {"message": "日本 😀"},
        {"message": "\x00"},
        # Two halves become one letter in the file.
        {"message": "\ud83d\ude00"},
        {"message": "\ud800"},
        {"message": None},
        {"message": ["a", 1.5]},
        {"message": object()},
        {"success": None},
        {"success": 1},
        {"duration_seconds": 0},
        {"duration_seconds": 0.0},
        {"duration_seconds": -0.0},
        {"duration_seconds": -1.5},
        {"duration_seconds": True},
        {"duration_seconds": 1e-05},
        {"duration_seconds": 1e16},
        {"duration_seconds": 1e300},
        {"duration_seconds": 0.1 + 0.2},
        {"duration_seconds": 99999999.99999999},
        {"duration_seconds": 86400 * 3651.5},
        {"duration_seconds": 5},
        {"duration_seconds": 2**70},
        {"duration_seconds": -(2**63) - 1},
        {"duration_seconds": math.nan},
        {"duration_seconds": "three"},
        {"task_id": ""},
        {"task_id": None},
        {"task_id": "a\x00"},
        {"task_id": "x" * 300},
        {"task_name": 5, "task_type": None},
    ],
    ids=lambda changes: ascii(changes)[:40],
)
def test_the_row_of_a_new_entry_is_that_of_its_line(changes: dict[str, object]) -> None:
    entry = runs.new_entry("t1", True, "done", 1.5, "name", "download") | changes
    text = runs.line_text(entry)
    made, line = runs.row_of_new(entry, text), runs.parse_line(text)
    if made is None or line is None:
        assert made is line is None
        return
    expected = runs.row_of(line)
    assert json.loads(made.metadata_text) == json.loads(expected.metadata_text)
    metadata_text = expected.metadata_text
    assert made._replace(id=expected.id, metadata_text=metadata_text) == expected


@pytest.mark.parametrize("message", ["a\nb\r\n", "\x00", "\ud800", "日本\u2028", '"\\'])
def test_any_message_is_one_line_and_comes_back(message: str) -> None:
    entry = runs.new_entry("t1", False, message, 1.5, "name", "download")
    text = runs.line_text(entry)
    assert len(text.splitlines()) == 1
    line = runs.parse_line(text)
    assert line is not None
    assert line.entry == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        json.dumps(LINE)[:-5],
        json.dumps(LINE) * 2,
        "[1]",
        "5",
        "null",
        "\x00" * 20,
        "[" * 100_000,
        json.dumps(LINE | {"task_id": ""}),
        json.dumps(LINE | {"task_id": None}),
        json.dumps(LINE | {"task_id": 5}),
        json.dumps(LINE | {"task_id": "k" * 256}),
        json.dumps(LINE | {"task_id": "\x00"}),
        json.dumps(LINE | {"task_id": "\ud800"}),
        json.dumps(LINE | {"timestamp": None}),
        json.dumps(LINE | {"timestamp": "yesterday"}),
        json.dumps(LINE | {"timestamp": 1758331319.02}),
        json.dumps({k: v for k, v in LINE.items() if k != "task_id"}),
        json.dumps({k: v for k, v in LINE.items() if k != "timestamp"}),
        json.dumps(LINE)[:-1] + ', "x": ' + "1" * 5000 + "}",
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_what_is_no_history_line_is_none_and_no_failure(text: str) -> None:
    assert runs.parse_line(text) is None
    assert list(runs.identify([text])) == []


def test_an_old_line_is_read_with_its_instant() -> None:
    line = runs.parse_line(json.dumps(LINE))
    assert line is not None
    assert line.ended_at == datetime(2026, 9, 20, 1, 21, 59, 21661, tzinfo=UTC)
    assert (line.run_id, line.entry) == ("", LINE)


def test_a_naive_time_of_an_older_installation_is_local_time(pacific: None) -> None:
    line = runs.parse_line(json.dumps(LINE | {"timestamp": "2026-09-20T01:21:59"}))
    assert line is not None
    assert line.ended_at == datetime(2026, 9, 20, 9, 21, 59, tzinfo=UTC)


@pytest.mark.parametrize("run_id", [None, 5, "", "x" * 256, "\x00", ["x"]])
def test_a_line_with_an_unusable_run_id_gets_a_derived_one(run_id: object) -> None:
    line = only_line(json.dumps(LINE | {"run_id": run_id}))
    assert line.run_id.startswith(runs.DERIVED_PREFIX)
    assert len(line.run_id) <= 255


def test_a_lines_own_run_id_is_taken() -> None:
    assert only_line(json.dumps(LINE | {"run_id": "mine"})).run_id == "mine"


def test_equal_lines_get_different_ids_and_the_same_ones_when_read_again() -> None:
    other = json.dumps(LINE | {"message": "other"})
    texts = [json.dumps(LINE), other, json.dumps(LINE), "torn {", json.dumps(LINE)]
    first = [line.run_id for line in runs.identify(texts)]
    assert len(set(first)) == 4
    assert first == [line.run_id for line in runs.identify(iter(texts))]


def test_a_derived_id_does_not_depend_on_the_lines_around() -> None:
    other = json.dumps(LINE | {"message": "other"})
    alone = only_line(other).run_id
    assert [line.run_id for line in runs.identify([json.dumps(LINE), other])][1] == alone


LINES = [
    pytest.param(LINE, id="as the scheduler writes it"),
    pytest.param(LINE | {"run_id": "5d3b5a3e"}, id="with a run id"),
    pytest.param(LINE | {"run_id": "line-5d3b5a3e-1"}, id="with a run id that looks derived"),
    pytest.param(LINE | {"duration_seconds": 0}, id="integer duration"),
    pytest.param(LINE | {"duration_seconds": 0.1 + 0.2}, id="duration to the last digit"),
    pytest.param(LINE | {"duration_seconds": -1.5}, id="negative duration"),
    pytest.param(LINE | {"duration_seconds": 1e300}, id="endless duration"),
    pytest.param(LINE | {"duration_seconds": 10**400}, id="duration beyond floats"),
    pytest.param(LINE | {"duration_seconds": True}, id="bool duration"),
    pytest.param(LINE | {"duration_seconds": "12"}, id="text duration"),
    pytest.param(LINE | {"duration_seconds": None}, id="null duration"),
    pytest.param(LINE | {"duration_seconds": math.nan}, id="NaN duration"),
    pytest.param(LINE | {"message": None}, id="null message"),
    pytest.param(LINE | {"message": {"a": [1]}}, id="object message"),
    pytest.param(LINE | {"message": "a\x00b\ud800"}, id="message that Postgres refuses"),
    pytest.param(LINE | {"task_name": "\x00"}, id="name that jsonb refuses"),
    pytest.param(LINE | {"task_name": None}, id="null name"),
    pytest.param(LINE | {"success": None}, id="null success"),
    pytest.param(LINE | {"success": "yes"}, id="text success"),
    pytest.param(LINE | {"success": 1}, id="integer success"),
    pytest.param(LINE | {"extra": {"b": 1, "a": 2}}, id="more keys"),
    pytest.param(dict(reversed(LINE.items())), id="keys in another order"),
    pytest.param({k: LINE[k] for k in ("timestamp", "task_id")}, id="no more than it must have"),
    pytest.param(LINE | {"timestamp": "2026-09-20T01:21:59"}, id="naive local time"),
    pytest.param(LINE | {"timestamp": "2026-09-20T01:21:59Z"}, id="Z"),
    pytest.param(LINE | {"timestamp": "2026-09-20T01:21:59.1234567-07:00"}, id="seven digits"),
    pytest.param(LINE | {"timestamp": "0001-01-02T00:00:00+00:00"}, id="first days"),
]


@pytest.mark.parametrize("entry", LINES)
def test_a_line_comes_back_from_its_row_as_it_was(entry: dict[str, object]) -> None:
    text = json.dumps(entry)
    assert text_from_row(runs.row_of(only_line(text))) == text


@pytest.mark.parametrize("entry", LINES)
def test_a_row_holds_nothing_that_postgres_refuses(entry: dict[str, object]) -> None:
    row = runs.row_of(only_line(json.dumps(entry)))
    for value in (row.run_id, row.task_key, row.message, row.metadata_text, row.line_text):
        assert value is None or not {"\x00", "\ud800"} & set(value)
    assert "\\u0000" not in row.metadata_text
    assert "\\ud800" not in row.metadata_text
    assert "NaN" not in row.metadata_text
    assert row.started_at <= (row.finished_at or row.started_at)
    assert 0 <= (row.duration_ms or 0) < 2**63
    assert isinstance(row.success, bool)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LINE, separators=(",", ":")),
        json.dumps(LINE | {"message": "日本"}, ensure_ascii=False),
        json.dumps(LINE).replace("19.810863", "19.8108630"),
        json.dumps(LINE).replace("19.810863", "1.9810863E1"),
        json.dumps(LINE | {"message": "a/b"}).replace("/", "\\/"),
        json.dumps(LINE)[:-1] + ', "message": "again"}',
    ],
)
def test_another_spelling_of_a_line_comes_back_too(text: str) -> None:
    assert text_from_row(runs.row_of(only_line(text))) == text


def test_the_usual_line_needs_no_copy_of_its_text() -> None:
    entry = runs.new_entry("t1", True, "done", 19.810863, "name", "download")
    assert runs.row_of(only_line(runs.line_text(entry))).line_text is None


def test_a_row_starts_its_duration_before_it_ends() -> None:
    row = runs.row_of(only_line(json.dumps(LINE | {"duration_seconds": 90.5})))
    assert row.finished_at is not None
    assert row.finished_at - row.started_at == timedelta(seconds=90.5)
    assert row.duration_ms == 90_500
    assert json.loads(row.metadata_text)["task_key"] == "t1"


def test_the_row_of_a_record_keeps_its_values_and_cleans_its_texts() -> None:
    now = datetime.now(UTC)
    record = SchedulerRunRecord(
        id=uuid4(),
        task_id=None,
        run_id="r",
        started_at=now,
        finished_at=None,
        success=None,
        message="a\x00",
        duration_ms=None,
        metadata_json={"task_name": "\ud800"},
    )
    row = runs.row_of_record(record, "t1")
    assert (row.id, row.run_id, row.task_key, row.started_at) == (record.id, "r", "t1", now)
    assert (row.finished_at, row.success, row.duration_ms) == (None, None, None)
    assert (row.message, row.metadata_text) == ("a\ufffd", '{"task_name": "\\ufffd"}')


def test_a_run_that_goes_on_has_an_entry() -> None:
    now = datetime.now(UTC)
    row = runs.RunRow(uuid4(), "r", "t1", now, None, None, None, None, "{}", None)
    entry = runs.entry_of("r", row, {})
    assert list(entry) == [*LINE, "run_id"]
    assert (entry["timestamp"], entry["success"], entry["message"]) == (now.isoformat(), None, "")


def test_the_logical_id_of_an_unknown_task_depends_on_its_key_only() -> None:
    assert runs.unknown_task_id("a") == runs.unknown_task_id("a")
    assert runs.unknown_task_id("a") != runs.unknown_task_id("b")
