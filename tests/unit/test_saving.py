from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from datahound_storage.codec import decode, encode, encode_lenient
from datahound_storage.errors import InvalidTaskError
from datahound_storage.saving import TaskAdapter, WholeState
from datahound_storage.writes import BulkChange, TaskText
from tests.unit import make_task


@dataclass
class NarrowTask:
    """A class of an older program, which knows some keys only and insists on a name."""

    task_id: str
    name: str
    status: str
    settings: dict[str, Any]
    run_count: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "name": self.name,
            "task_config": {"settings": self.settings},
            "status": self.status,
            "run_count": self.run_count,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NarrowTask:
        settings = data["task_config"]["settings"]
        return cls(data["task_id"], data["name"], data["status"], settings, data["run_count"])


PLAIN = TaskAdapter(None)
NARROW = TaskAdapter(NarrowTask)


class TestPrepare:
    def test_a_new_task_is_stored_as_it_came(self) -> None:
        prepared = PLAIN.prepare(make_task(z=1.0, a=2**70))
        assert prepared.text == encode(make_task(z=1.0, a=2**70))
        assert prepared.task_key == "t1"
        assert prepared.columns.company == "Acme"

    def test_an_unchanged_task_keeps_its_stored_spelling(self) -> None:
        stored = '{\n    "task_id": "t1",\n    "n": 1.50\n  }'
        assert PLAIN.prepare({"task_id": "t1", "n": 1.5}, stored).text == stored

    @pytest.mark.parametrize("value", [1.0, True])
    def test_a_change_of_type_alone_is_a_change(self, value: object) -> None:
        text = PLAIN.prepare(make_task(n=value), encode(make_task(n=1))).text
        assert text == encode(make_task(n=value))

    def test_a_plain_dict_without_a_stored_key_removes_it(self) -> None:
        assert decode(PLAIN.prepare(make_task(), encode(make_task(extra=1))).text) == make_task()

    def test_keys_that_the_class_drops_survive_in_their_places(self) -> None:
        stored = make_task(extra={"b": 1, "a": 2})
        task = NarrowTask.from_dict(stored)
        task.name = "edited"
        after = decode(NARROW.prepare(task.to_dict(), encode(stored)).text)
        assert after == stored | {"name": "edited"}
        assert list(after) == list(stored)
        assert list(after["task_config"]) == list(stored["task_config"])

    def test_a_key_that_the_class_shows_can_be_removed_by_its_user(self) -> None:
        config = {"task_type": "download", "settings": {"a": 1, "b": 2}}
        stored = make_task(task_config=config)
        task = NarrowTask.from_dict(decode(encode(stored)))
        del task.settings["a"]
        after = decode(NARROW.prepare(task.to_dict(), encode(stored)).text)
        assert after["task_config"] == {"task_type": "download", "settings": {"b": 2}}

    def test_an_update_through_the_class_without_a_change_changes_nothing(self) -> None:
        stored = encode(make_task(extra=1.0)).replace('"extra": 1.0', '"extra": 1.00')
        task = NarrowTask.from_dict(decode(stored))
        assert NARROW.prepare(task.to_dict(), stored).text == stored

    def test_the_submitted_task_is_not_changed(self) -> None:
        submitted = NarrowTask("t1", "n", "active", {}).to_dict()
        before = json.dumps(submitted)
        NARROW.prepare(submitted, encode(make_task(extra=1)))
        assert json.dumps(submitted) == before

    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_a_number_that_json_cannot_hold_is_refused_for_new_and_stored_tasks(
        self, number: float
    ) -> None:
        for stored in (None, encode(make_task())):
            with pytest.raises(InvalidTaskError, match="task 't1'"):
                PLAIN.prepare(make_task(n=number), stored)

    @pytest.mark.parametrize(
        "value",
        [datetime(2026, 1, 1, tzinfo=UTC), {1}, object(), 10**5000],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value_that_json_cannot_hold_is_refused_for_new_and_stored_tasks(
        self, value: object
    ) -> None:
        for stored in (None, encode(make_task())):
            with pytest.raises(InvalidTaskError, match="task 't1'"):
                PLAIN.prepare(make_task(n=value), stored)

    def test_a_task_that_contains_itself_is_refused_for_new_and_stored_tasks(self) -> None:
        task = make_task()
        task["task_config"]["settings"]["self"] = task
        for stored in (None, encode(make_task())):
            with pytest.raises(InvalidTaskError, match="contains itself"):
                PLAIN.prepare(task, stored)

    def test_what_a_file_of_the_old_code_held_does_not_stop_other_changes(self) -> None:
        stored = encode_lenient(make_task(n=math.nan))
        after = decode(PLAIN.prepare(make_task(n=math.nan, name="edited"), stored).text)
        assert after["name"] == "edited"
        assert math.isnan(after["n"])

    def test_what_a_file_of_the_old_code_held_may_not_move_to_another_key(self) -> None:
        stored = encode_lenient(make_task(n=math.nan))
        with pytest.raises(InvalidTaskError):
            PLAIN.prepare(make_task(n=math.nan, m=math.nan), stored)


class TestAdapter:
    def test_a_dict_and_an_object_both_become_dicts(self) -> None:
        task = NarrowTask("t1", "n", "active", {})
        assert NARROW.to_dict(task) == NARROW.to_dict(task.to_dict()) == task.to_dict()

    @pytest.mark.parametrize("task", [None, 5, "t1", ["t1"]])
    def test_something_that_is_no_task_is_the_callers_mistake(self, task: object) -> None:
        with pytest.raises(InvalidTaskError):
            PLAIN.to_dict(task)

    @pytest.mark.parametrize("fields", [{"task_id": ""}, {"status": "gone"}])
    def test_an_invalid_task_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidTaskError):
            PLAIN.prepare(PLAIN.to_dict(make_task(**fields)))

    def test_a_task_that_the_class_cannot_take_is_rejected(self) -> None:
        assert NARROW.rejects('{"task_id": "t1"}')
        assert not NARROW.rejects(encode(make_task()))
        assert not PLAIN.rejects('{"task_id": "t1"}')


def stored_texts(*keys: str) -> list[TaskText]:
    return [TaskText(key, encode(make_task(key))) for key in keys]


def save(keys: list[str], present: list[str], listed: set[str] | None) -> BulkChange:
    return WholeState(PLAIN, [make_task(key) for key in keys], listed)(stored_texts(*present))


class TestWholeState:
    def test_the_same_list_changes_nothing(self) -> None:
        change = save(["a", "b"], ["a", "b"], None)
        assert (list(change.write), change.delete, change.order) == ([], [], None)
        assert not change.conflicts

    def test_only_what_differs_is_written(self) -> None:
        tasks = [make_task("a"), make_task("b", name="edited"), make_task("c")]
        change = WholeState(PLAIN, tasks, None)(stored_texts("a", "b"))
        assert [p.task_key for p in change.write] == ["b", "c"]
        assert (change.delete, change.order) == ([], None)

    def test_what_is_missing_is_deleted(self) -> None:
        assert save(["b"], ["a", "b", "c"], {"a", "b", "c"}).delete == ["a", "c"]
        assert save([], ["a"], None).delete == ["a"]

    def test_what_somebody_added_after_the_listing_is_spared(self) -> None:
        change = save(["a"], ["a", "gone", "new"], {"a", "gone"})
        assert (change.delete, change.order) == (["gone"], None)

    def test_what_the_class_rejects_is_spared(self) -> None:
        present = [TaskText("bad", '{"task_id": "bad"}'), *stored_texts("a")]
        change = WholeState(NARROW, [], {"bad", "a"})(present)
        assert change.delete == ["a"]

    def test_another_order_is_kept_and_spared_tasks_come_last(self) -> None:
        assert save(["b", "a"], ["a", "b"], None).order == ["b", "a"]
        assert save(["b", "a"], ["a", "new", "b"], {"a", "b"}).order == ["b", "a", "new"]

    def test_a_new_task_in_front_is_kept_in_front(self) -> None:
        assert save(["new", "a"], ["a"], {"a"}).order == ["new", "a"]

    def test_a_key_given_twice_is_refused_before_anything_is_decided(self) -> None:
        with pytest.raises(InvalidTaskError, match="'a' is twice"):
            WholeState(PLAIN, [make_task("a"), make_task("a")], None)

    def test_one_bad_task_refuses_the_whole_list(self) -> None:
        decide = WholeState(PLAIN, [make_task("a"), make_task("b", n=math.nan)], None)
        with pytest.raises(InvalidTaskError, match="task 'b'"):
            list(decide([]).write)

    def test_the_work_grows_with_the_tasks_and_not_with_their_square(self) -> None:
        hashed = 0

        class CountedKey(str):
            __slots__ = ()

            def __hash__(self) -> int:
                nonlocal hashed
                hashed += 1
                return super().__hash__()

        keys = [CountedKey(f"k{number}") for number in range(200)]
        decide = WholeState(PLAIN, [make_task(key) for key in keys], None)
        list(decide([TaskText(key, encode(make_task(key))) for key in keys]).write)
        assert hashed < 30 * len(keys)
