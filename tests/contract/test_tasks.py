"""The facade's contract for tasks, on both stores."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import InvalidTaskError
from tests.fix_persistence import MakePersistence
from tests.scheduler import EXAMPLES, OldCode, Task, TaskType, make_task

SAMPLE = EXAMPLES / "data/scheduler/scheduled_tasks.json"

ODD_VALUES: dict[str, Any] = {
    "integer": 1,
    "float": 1.0,
    "small": 1e-07,
    "large": 1e300,
    "beyond 64 bits": 2**200,
    "negative": -(10**40),
    "zero byte": "a\x00b",
    "half a pair": "\ud800",
    "emoji": "\U0001f600",
    "scripts": "中文 עברית ไทย ελληνικά",
    "empty": [{}, [], "", None, True, False],
    "nested": {"z": 1, "a": {"y": [1, 1.0, "1"]}},
    "zero\x00key": "-07:00",
    "time": "2026-10-30T15:11:00.627903-07:00",
}


def test_an_empty_store_lists_nothing(persistence: SchedulerPersistence) -> None:
    assert persistence.load_tasks() == []


def test_a_task_comes_back_as_it_was(persistence: SchedulerPersistence) -> None:
    task = make_task("odd", **ODD_VALUES)
    assert persistence.add_task(task)
    for found in (persistence.get_task("odd"), persistence.load_tasks()[0]):
        assert json.dumps(found) == json.dumps(task)


def test_the_snapshot_is_what_the_old_code_would_have_written(
    persistence: SchedulerPersistence,
) -> None:
    tasks = [make_task("b", **ODD_VALUES), make_task("a")]
    for task in tasks:
        persistence.add_task(task)
    assert persistence.tasks_file.read_text() == json.dumps(tasks, indent=2)
    assert persistence.delete_task("a")
    assert persistence.delete_task("b")
    assert json.loads(persistence.tasks_file.read_text()) == []


def test_the_sample_comes_back_exactly(make: MakePersistence, base: Path) -> None:
    tasks = json.loads(SAMPLE.read_text())
    OldCode(base).save(tasks)
    persistence = make()
    assert json.dumps(persistence.load_tasks()) == json.dumps(tasks)
    assert persistence.tasks_file.read_bytes() == SAMPLE.read_bytes()
    assert [json.dumps(persistence.get_task(t["task_id"])) for t in tasks] == [
        json.dumps(t) for t in tasks
    ]


def test_tasks_are_listed_in_the_order_of_adding(persistence: SchedulerPersistence) -> None:
    for key in ("m", "z", "a"):
        persistence.add_task(make_task(key))
    persistence.update_task(make_task("m"))
    persistence.delete_task("z")
    persistence.add_task(make_task("z"))
    assert [task["task_id"] for task in persistence.load_tasks()] == ["m", "a", "z"]


def test_adding_an_existing_id_is_refused_and_changes_nothing(
    persistence: SchedulerPersistence,
) -> None:
    assert persistence.add_task(make_task("a", name="first"))
    assert not persistence.add_task(make_task("a", name="second"))
    assert persistence.get_task("a")["name"] == "first"


def test_an_update_is_stored_and_stamped(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    task = make_task("a", name="new")
    before = task["updated_at"]
    assert persistence.update_task(task)
    assert task["updated_at"] > before
    assert "+" not in task["updated_at"]
    assert persistence.get_task("a") == task


def test_an_update_keeps_the_offset_of_its_time(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    task = make_task("a", updated_at="2026-10-30T15:11:00.627903-07:00")
    assert persistence.update_task(task)
    assert task["updated_at"].endswith("-07:00")


def test_updating_a_missing_task_is_false_and_leaves_it_alone(
    persistence: SchedulerPersistence,
) -> None:
    task = make_task("a")
    assert not persistence.update_task(task)
    assert task == make_task("a")
    assert persistence.load_tasks() == []


def test_deleting(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    assert persistence.delete_task("a")
    assert not persistence.delete_task("a")
    assert persistence.get_task("a") is None


@pytest.mark.parametrize("task_id", ["", "x" * 300, "a\x00b", "b\ud800", "missing", None, 7])
def test_an_impossible_id_is_not_found(persistence: SchedulerPersistence, task_id: Any) -> None:
    assert persistence.get_task(task_id) is None
    assert not persistence.delete_task(task_id)
    assert persistence.health().reason != ""


def test_the_reason_names_what_is_empty(
    opened: MakePersistence, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(base, url="").health().reason == "url is empty"
    monkeypatch.setenv("DATAHOUND_STORAGE_URL", "")
    assert opened(base).health().reason == "DATAHOUND_STORAGE_URL is empty"
    monkeypatch.delenv("DATAHOUND_STORAGE_URL")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert "neither DATAHOUND_STORAGE_URL nor DATABASE_URL" in opened(base).health().reason


def test_filters(persistence: SchedulerPersistence) -> None:
    other = {"task_type": "prepare", "company": "Bolt", "settings": {}}
    persistence.add_task(make_task("a"))
    persistence.add_task(make_task("b", status="paused"))
    persistence.add_task(make_task("c", task_config=other))
    assert _ids(persistence.get_active_tasks()) == ["a", "c"]
    assert _ids(persistence.get_tasks_by_type("download")) == ["a", "b"]
    assert _ids(persistence.get_tasks_by_type(TaskType.PREPARE)) == ["c"]
    assert _ids(persistence.get_tasks_by_company("Bolt")) == ["c"]
    assert _ids(persistence.get_tasks_by_company("nobody")) == []


BAD_TASKS = [
    pytest.param(make_task(""), "task_id", id="empty id"),
    pytest.param(make_task("x" * 300), "300 characters", id="long id"),
    pytest.param(make_task("a\x00"), "U\\+0000", id="zero byte in the id"),
    pytest.param({"name": "no id"}, "task_id", id="no id"),
    pytest.param(make_task("a", run_count=float("nan")), "NaN", id="NaN"),
    pytest.param(make_task("a", task_config={"x": float("inf")}), "infinity", id="infinity"),
    pytest.param(make_task("a", status="sleeping"), "status", id="unknown status"),
    pytest.param(make_task("a", status="x" * 40), "status", id="long status"),
    pytest.param(make_task("a", task_config=[1]), "task_config", id="no object"),
    pytest.param(make_task("a", task_config={"company": "c" * 256}), "company", id="long company"),
    pytest.param(make_task("a", task_config={"company": 7}), "company", id="company a number"),
    pytest.param(make_task("a", extra={1, 2}), "set", id="a set"),
]


@pytest.mark.parametrize(("task", "words"), BAD_TASKS)
def test_a_bad_task_is_refused_with_a_reason_and_nothing_is_half_done(
    persistence: SchedulerPersistence, task: dict[str, Any], words: str
) -> None:
    persistence.add_task(make_task("a", name="good"))
    before = persistence.tasks_file.read_bytes()
    serving = persistence.health().store
    for attempt in (
        persistence.add_task,
        persistence.update_task,
        lambda bad: persistence.save_tasks([make_task("b"), bad]),
    ):
        with pytest.raises(InvalidTaskError, match=words):
            attempt(dict(task))
    assert persistence.tasks_file.read_bytes() == before
    assert _ids(persistence.load_tasks()) == ["a"]
    assert persistence.health().store == serving


def test_an_error_shows_no_settings(persistence: SchedulerPersistence) -> None:
    task = make_task("a", task_config={"settings": {"password": "hunter2", "x": float("nan")}})
    with pytest.raises(InvalidTaskError) as raised:
        persistence.add_task(task)
    assert "hunter2" not in str(raised.value)


def test_nonsense_of_the_old_code_is_kept_and_can_be_written_back(
    make: MakePersistence, base: Path
) -> None:
    OldCode(base).save([make_task("a", average=float("nan"), top=float("inf"))])
    persistence = make()
    task = persistence.load_tasks()[0]
    task["name"] = "changed"
    assert persistence.update_task(task)
    assert '"average": NaN' in persistence.tasks_file.read_text()
    task["fresh"] = float("nan")
    with pytest.raises(InvalidTaskError):
        persistence.update_task(task)


def test_numbers_keep_their_spelling_in_the_snapshot(make: MakePersistence, base: Path) -> None:
    OldCode(base).save([make_task("a", factor=7)])
    file = base / "data/scheduler/scheduled_tasks.json"
    file.write_text(file.read_text().replace('"factor": 7', '"factor": 1.50e2'))
    persistence = make()
    persistence.add_task(make_task("b"))
    assert '"factor": 1.50e2' in persistence.tasks_file.read_text()


# Saving the whole state.


def test_saving_makes_the_list_the_whole_state_in_its_order(
    persistence: SchedulerPersistence,
) -> None:
    for key in ("a", "b", "c"):
        persistence.add_task(make_task(key))
    persistence.load_tasks()
    wanted = [make_task("d"), make_task("c", name="new"), make_task("a")]
    assert persistence.save_tasks(wanted)
    assert json.dumps(persistence.load_tasks()) == json.dumps(wanted)
    assert persistence.tasks_file.read_text() == json.dumps(wanted, indent=2)


def test_saving_nothing_deletes_everything(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    persistence.load_tasks()
    assert persistence.save_tasks([])
    assert persistence.load_tasks() == []


def test_saving_spares_what_somebody_else_added_since_the_last_listing(
    make: MakePersistence,
) -> None:
    persistence, other = make(), make()
    persistence.add_task(make_task("a"))
    persistence.add_task(make_task("b"))
    listed = persistence.load_tasks()
    other.add_task(make_task("theirs"))
    assert persistence.save_tasks(listed[:1])
    assert _ids(persistence.load_tasks()) == ["a", "theirs"]


def test_saving_deletes_what_the_same_thread_added_itself(
    persistence: SchedulerPersistence,
) -> None:
    persistence.load_tasks()
    persistence.add_task(make_task("mine"))
    persistence.save_tasks([make_task("a")])
    assert _ids(persistence.load_tasks()) == ["a"]


def test_what_a_thread_listed_is_its_own_affair(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    listed = persistence.load_tasks()
    thread = threading.Thread(
        target=lambda: (persistence.add_task(make_task("b")), persistence.load_tasks())
    )
    thread.start()
    thread.join()
    persistence.save_tasks(listed)
    assert _ids(persistence.load_tasks()) == ["a", "b"]


def test_saving_an_id_twice_is_refused(persistence: SchedulerPersistence) -> None:
    with pytest.raises(InvalidTaskError, match="twice"):
        persistence.save_tasks([make_task("a"), make_task("a")])
    assert persistence.load_tasks() == []


# The scheduler's own class.


def test_tasks_are_of_the_given_class(make: MakePersistence) -> None:
    persistence = make(task_class=Task)
    task = Task.from_dict(make_task("a"))
    assert persistence.add_task(task)
    task.run_count = 3
    before = task.updated_at
    assert persistence.update_task(task)
    assert before is not None
    assert task.updated_at is not None
    assert task.updated_at > before
    assert persistence.load_tasks() == [task]
    assert persistence.get_task("a") == task
    assert persistence.get_active_tasks() == [task]


def test_keys_that_the_class_drops_survive_its_updates(make: MakePersistence, base: Path) -> None:
    stored = make_task("a", unknown={"deep": [1, 1.0]})
    stored["task_config"]["new_option"] = 1.0
    OldCode(base).save([stored])
    persistence = make(task_class=Task)
    task = persistence.load_tasks()[0]
    task.name = "renamed"
    assert persistence.update_task(task)
    raw = json.loads(persistence.tasks_file.read_text())[0]
    expected = {**stored, "name": "renamed", "updated_at": task.updated_at.isoformat()}
    assert json.dumps(raw) == json.dumps(expected)
    task.name = "again"
    assert persistence.save_tasks([task])
    raw = json.loads(persistence.tasks_file.read_text())[0]
    assert raw["unknown"] == {"deep": [1, 1.0]}
    assert raw["task_config"]["new_option"] == 1.0


def test_a_task_that_the_class_rejects_neither_hides_nor_deletes_others(
    make: MakePersistence, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = make_task("strange", task_config={"task_type": "brand_new", "company": "Acme"})
    OldCode(base).save([make_task("a"), strange, make_task("b")])
    persistence = make(task_class=Task)
    tasks = persistence.load_tasks()
    assert [task.task_id for task in tasks] == ["a", "b"]
    assert "strange" in caplog.text
    assert persistence.get_task("strange") is None
    persistence.save_tasks(tasks[:1])
    assert _ids(OldCode(base).load()) == ["a", "strange"]


def test_a_failing_update_leaves_the_object_alone(make: MakePersistence) -> None:
    persistence = make(task_class=Task)
    task = Task.from_dict(make_task("a"))
    before = task.updated_at
    assert not persistence.update_task(task)
    assert task.updated_at == before


# Several users.


def test_two_facades_see_each_other(make: MakePersistence) -> None:
    one, two = make(), make()
    one.add_task(make_task("a"))
    assert _ids(two.load_tasks()) == ["a"]
    two.update_task(make_task("a", name="two"))
    assert one.get_task("a")["name"] == "two"
    two.delete_task("a")
    assert one.load_tasks() == []


def test_threads_lose_nothing(persistence: SchedulerPersistence) -> None:
    def work(number: int) -> None:
        for index in range(10):
            assert persistence.add_task(make_task(f"{number}-{index}"))
            assert persistence.update_task(make_task(f"{number}-{index}", run_count=1))
        assert persistence.delete_task(f"{number}-0")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"{number}-{index}" for number in range(6) for index in range(1, 10)}
    tasks = persistence.load_tasks()
    assert {task["task_id"] for task in tasks} == expected
    assert {task["run_count"] for task in tasks} == {1}
    assert json.loads(persistence.tasks_file.read_text()) == tasks


def test_paths_are_those_of_the_contract(persistence: SchedulerPersistence, base: Path) -> None:
    assert persistence.data_dir == base / "data"
    assert persistence.scheduler_dir == base / "data/scheduler"
    assert persistence.tasks_file == base / "data/scheduler/scheduled_tasks.json"
    assert persistence.history_file == base / "logging/scheduler/task_history.jsonl"
    assert persistence.lock_file == base / "data/scheduler/.scheduler.lock"


def _ids(tasks: list[Any]) -> list[str]:
    return [task["task_id"] for task in tasks]


def test_tasks_can_be_gone_through_one_by_one(persistence: SchedulerPersistence) -> None:
    tasks = [make_task(key, **ODD_VALUES) for key in "bca"]
    persistence.save_tasks(tasks)
    steps = persistence.iter_tasks()
    first = next(steps)
    persistence.delete_task("c")
    assert json.dumps([first, *steps]) == json.dumps(tasks)
    first["name"] = "changed"
    assert persistence.update_task(first)
    assert [task["name"] for task in persistence.iter_tasks()] == ["changed", tasks[2]["name"]]


def test_going_through_the_tasks_makes_them_one_at_a_time(
    make: MakePersistence,
) -> None:
    class Counted(Task):
        made = 0

        @classmethod
        def from_dict(cls, data: dict[str, Any]) -> Task:
            Counted.made += 1
            return super().from_dict(data)

    persistence = make(task_class=Counted)
    persistence.save_tasks([make_task(key) for key in "abc"])
    Counted.made = 0
    steps = persistence.iter_tasks()
    next(steps)
    assert Counted.made == 1
