from __future__ import annotations

import json
from typing import Any

import pytest

from datahound_storage.codec import Task, decode, encode, encode_lenient, for_jsonb
from datahound_storage.postgres.stored import StoredTask, rebuild, stored_from_row
from datahound_storage.tasks import FIELD_ORDER, columns_of
from tests.unit import make_task


def row_edits(task: Task, *edited: str, config: Any = None, **columns: Any) -> dict[str, Any]:
    """What the database says of a row of this task in which some columns were edited."""
    shown = json.loads(for_jsonb(encode_lenient(task)))
    mirrored = columns_of(task)._asdict()
    for name in ("created_at", "updated_at"):
        mirrored[name] = mirrored[name] and mirrored[name].isoformat()
    config = dict(sorted(shown.items())) if config is None else config
    return {"edited": list(edited), "config": config} | mirrored | columns


def test_an_unedited_row_gives_its_text() -> None:
    row = ("t1", 3, "742", 1_000_000, "{text}", None)
    assert stored_from_row(row) == StoredTask("t1", 3, 742, 1_000_000, "{text}")


def test_an_edited_row_is_rebuilt() -> None:
    edits = json.dumps(row_edits(make_task(), "status", status="paused"))
    stored = stored_from_row(("t1", 3, "742", 1, encode(make_task()), edits))
    assert decode(stored.text) == make_task(status="paused")


def test_a_column_edit_keeps_order_and_values_of_the_rest() -> None:
    task = make_task(z=1.0, a="\x00\ud800", big=2**70)
    text = rebuild(encode(task), row_edits(task, "status", status="paused"))
    assert text == encode(task | {"status": "paused"})


def test_columns_that_were_not_edited_do_not_matter() -> None:
    text = rebuild(encode(make_task()), row_edits(make_task(), "status", company="stale"))
    assert text == encode(make_task())


def test_an_edited_time_is_written_into_the_task() -> None:
    task = make_task(updated_at="2026-10-30T15:11:00-07:00")
    edits = row_edits(task, "updated_at", updated_at="2026-10-31T00:00:00+00:00")
    assert decode(rebuild(encode(task), edits))["updated_at"] == "2026-10-30T17:00:00-07:00"


def test_the_key_of_the_row_wins() -> None:
    edits = row_edits(make_task(), "task_key", task_key="renamed")
    task = decode(rebuild(encode(make_task()), edits))
    assert task["task_id"] == "renamed"
    assert list(task) == list(make_task())


class TestEditedConfig:
    def test_an_edit_within_the_config_keeps_order_and_values_of_the_rest(self) -> None:
        task = make_task(z=[1.0, "\x00"], a=1)
        config = dict(sorted(task.items())) | {"z": [1.0, "\ufffd"], "name": "edited", "new": 5}
        text = rebuild(encode(task), row_edits(task, "config_json", config=config))
        assert text == encode(task | {"name": "edited", "new": 5})

    def test_a_key_that_was_removed_is_gone(self) -> None:
        task = make_task(extra={"a": 1, "b": 2})
        config = make_task(extra={"b": 2})
        text = rebuild(encode(task), row_edits(task, "config_json", config=config))
        assert text == encode(config)

    @pytest.mark.parametrize(
        ("before", "after"),
        [(1, 2), (1, True), (0, False), (1, "1"), ([1], [True]), ([{"a": 1}], [{"a": True}])],
    )
    def test_a_value_of_another_type_is_an_edit(self, before: object, after: object) -> None:
        task = make_task(value=before)
        edits = row_edits(task, "config_json", config=make_task(value=after))
        assert repr(decode(rebuild(encode(task), edits))["value"]) == repr(after)

    @pytest.mark.parametrize(
        ("spelled", "as_jsonb"),
        [
            (1e2, "100"),
            (1e16, "10000000000000000"),
            (1e23, "100000000000000000000000"),
            (1e-07, "0.0000001"),
            (1.5e300, "15" + "0" * 299),
            ([1e23], "[100000000000000000000000]"),
        ],
    )
    def test_a_number_that_jsonb_spells_in_its_own_way_is_no_edit(
        self, spelled: object, as_jsonb: str
    ) -> None:
        task = make_task(value=spelled)
        config = make_task(value=json.loads(as_jsonb), name="edited")
        text = rebuild(encode(task), row_edits(task, "config_json", config=config))
        assert text == encode(make_task(value=spelled, name="edited"))

    @pytest.mark.parametrize("key", ["\x00", "a\ud800"])
    def test_a_key_that_jsonb_cannot_hold_is_no_edit(self, key: str) -> None:
        task = make_task(**{key: 1})
        text = rebuild(encode(task), row_edits(task, "config_json"))
        assert text == encode(task)

    def test_not_a_number_stays_where_jsonb_shows_null(self) -> None:
        text = encode_lenient(make_task(value=float("nan")))
        config = make_task(value=None, name="edited")
        after = rebuild(text, row_edits(decode(text), "config_json", config=config))
        assert after == encode_lenient(make_task(value=float("nan"), name="edited"))

    def test_a_column_wins_over_the_config(self) -> None:
        config = make_task(status="running")
        edits = row_edits(make_task(), "config_json", "status", config=config, status="paused")
        assert decode(rebuild(encode(make_task()), edits))["status"] == "paused"

    @pytest.mark.parametrize("config", [[], "text", 5, None, {}])
    def test_a_config_that_is_no_task_still_gives_one(self, config: object) -> None:
        edits = row_edits(make_task(), "config_json") | {"config": config}
        for text in (None, encode(make_task())):
            task = decode(rebuild(text, edits))
            assert task["task_id"] == "t1"
            assert task["status"] == "active"

    @pytest.mark.parametrize("config", ["text", [1], 7])
    def test_a_task_config_that_is_no_object_does_not_break_the_listing(
        self, config: object
    ) -> None:
        edited = make_task(task_config=config)
        for text in (None, encode(make_task())):
            edits = row_edits(make_task(), "config_json", config=edited)
            assert decode(rebuild(text, edits))["name"] == "Download - Acme"


class TestWithoutText:
    def test_a_row_is_listed_in_the_schedulers_order(self) -> None:
        task = make_task(unknown=1)
        after = decode(rebuild(None, row_edits(task)))
        assert after == task
        assert list(after) == [*FIELD_ORDER, "unknown"]

    def test_the_columns_win(self) -> None:
        edits = row_edits(make_task(), status="paused", company="B", schedule_expr="interval:5")
        after = decode(rebuild(None, edits))
        assert (after["status"], after["task_config"]["company"]) == ("paused", "B")
        assert after["interval_minutes"] == 5
