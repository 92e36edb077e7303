from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from datahound_storage.bases import Bases, Identities, LoadedTask
from datahound_storage.codec import encode
from tests.unit import make_task

TEXT = encode(make_task())
STAMP = make_task()["updated_at"]


@dataclass
class Plain:
    task_id: str = "t1"


@dataclass(slots=True)
class Slotted:
    task_id: str = "t1"


@pytest.fixture
def identities() -> Identities:
    return Identities()


@pytest.fixture
def bases(identities: Identities) -> Bases:
    return Bases(identities)


def in_another_thread(bases: Bases, task: object, updated_at: object) -> str | None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(bases.of(task, "t1", updated_at)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "task", [LoadedTask(make_task()), Plain(), Slotted()], ids=["dict", "object", "slots"]
)
def test_a_loaded_object_is_known_in_every_thread_and_facade_whatever_became_of_it(
    bases: Bases, identities: Identities, task: object
) -> None:
    bases.loaded(task, "t1", "text")
    assert bases.of(task, "t1", "another time") == "text"
    assert in_another_thread(bases, task, None) == "text"
    assert Bases(identities).of(task, "t1", None) == "text"
    assert Bases(Identities()).of(task, "t1", STAMP) is None


@pytest.mark.parametrize("task", [make_task(), Slotted(), Plain()])
def test_a_submitted_object_is_known(bases: Bases, task: object) -> None:
    bases.submitted(task, "t1", "text")
    assert bases.of(task, "t1", None) == "text"
    bases.submitted(task, "t1", "newer")
    assert bases.of(task, "t1", None) == "newer"


def test_an_equal_object_is_another_one(bases: Bases) -> None:
    first = Plain()
    bases.loaded(first, "t1", TEXT)
    assert bases.of(Plain(), "t1", None) is None
    submitted = make_task()
    bases.submitted(submitted, "t1", TEXT)
    assert bases.of(make_task(), "t2", STAMP) is None


def test_a_task_under_another_id_is_not_known(bases: Bases) -> None:
    task = Plain()
    bases.loaded(task, "t1", "text")
    assert bases.of(task, "t2", None) is None


def test_nothing_is_kept_of_objects_that_are_gone(bases: Bases, identities: Identities) -> None:
    tasks = [Plain() for _ in range(100)]
    for task in tasks:
        bases.loaded(task, "t1", "text")
    assert len(identities._known) == 100
    del tasks, task
    gc.collect()
    assert not identities._known


def test_what_has_to_be_kept_alive_is_bounded(bases: Bases, identities: Identities) -> None:
    tasks = [make_task(str(n)) for n in range(20_100)]
    for task in tasks:
        bases.submitted(task, task["task_id"], "text")
    assert len(identities._kept) == 20_000
    assert bases.of(tasks[0], "0", None) is None
    assert bases.of(tasks[-1], "20099", None) == "text"


COPIES: list[Any] = [dict, copy.deepcopy, copy.copy, lambda task: {**task, "name": "new"}]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_known_by_its_stamp_in_the_thread_that_saw_it(bases: Bases, copied: Any) -> None:
    task = LoadedTask(make_task())
    bases.loaded(task, "t1", TEXT)
    other = copied(task)
    assert bases.of(other, "t1", STAMP) == TEXT
    assert bases.of(other, "t1", "2026-01-01T00:00:00") is None
    assert bases.of(other, "t1", None) is None
    assert in_another_thread(bases, other, STAMP) is None


def test_a_copy_of_a_copy_is_known(bases: Bases) -> None:
    bases.loaded(LoadedTask(make_task()), "t1", TEXT)
    newer = encode(make_task(updated_at="newer"))
    bases.submitted(make_task(), "t1", newer, known=True)
    assert bases.of(make_task(), "t1", "newer") == newer


def test_a_stranger_is_not_taken_for_a_copy_of_what_was_only_submitted(bases: Bases) -> None:
    bases.submitted(make_task(), "t1", TEXT)
    assert bases.of(make_task(), "t1", STAMP) is None


def test_what_its_thread_deleted_is_a_new_task_when_it_comes_back(bases: Bases) -> None:
    task = LoadedTask(make_task())
    bases.loaded(task, "t1", TEXT)
    bases.deleted("t1")
    assert bases.of(task, "t1", STAMP) is None
    assert in_another_thread(bases, task, None) == TEXT
    bases.loaded(task, "t1", "again")
    assert bases.of(task, "t1", None) == "again"


def test_a_loaded_task_is_a_dict_to_everybody() -> None:
    task = LoadedTask(make_task())
    assert task == make_task()
    assert repr(task) == repr(make_task())
    assert json.dumps(task) == json.dumps(make_task())
    assert copy.deepcopy(task) == pickle.loads(pickle.dumps(task)) == make_task()
