from __future__ import annotations

import random
from typing import Any

from datahound_storage.codec import encode
from datahound_storage.files import layout
from datahound_storage.files.sidecar import line_hashes
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes, DatabaseState
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.saving import TaskAdapter
from datahound_storage.view import LookingAhead, TaskView, look_at
from tests.unit import make_task

STATE = DatabaseState("id", "incarnation", 0, True, Watermark(1, 1, frozenset()))


def stored(key: str, position: int, **fields: Any) -> StoredTask:
    return StoredTask(key, position, 1, 1, encode(make_task(key, **fields)))


def reading(*tasks: StoredTask, full: bool = False, deleted: tuple[str, ...] = ()) -> Changes:
    return Changes(STATE, full, list(tasks), [(key, 1) for key in deleted], 1)


def shown(view: TaskView) -> list[str]:
    return [item.task_key for item in view.texts()]


def test_tasks_stand_in_order_however_they_come() -> None:
    view = TaskView()
    view.apply(reading(stored("b", 2), stored("a", 1), stored("c", 2), full=True))
    assert shown(view) == ["a", "b", "c"]
    view.apply(reading(stored("first", 0), stored("last", 9)))
    view.apply(reading(stored("a", 8)))
    view.apply(reading(stored("e", 9), deleted=("b",)))
    assert shown(view) == ["first", "c", "a", "e", "last"]


def test_any_sequence_of_readings_gives_the_order_of_the_positions() -> None:
    choose = random.Random(7)
    view, places = TaskView(), dict[str, int]()
    for _ in range(300):
        key, position = f"k{choose.randrange(20)}", choose.randrange(40)
        if choose.random() < 0.3:
            view.apply(reading(deleted=(key,)))
            places.pop(key, None)
        else:
            view.apply(reading(stored(key, position)))
            places[key] = position
        assert shown(view) == sorted(places, key=lambda key: (places[key], key))


def test_only_what_is_another_counts_as_touched() -> None:
    view = TaskView()
    assert view.apply(reading(stored("a", 1), stored("b", 2), full=True)) == {"a", "b"}
    assert view.apply(reading(stored("a", 1), stored("b", 2, name="x"))) == {"b"}
    assert view.apply(reading(stored("a", 1), full=True)) == {"b"}
    assert view.apply(reading(deleted=("b", "c"))) == set()


def test_the_digest_and_the_lines_are_those_of_the_texts() -> None:
    view = TaskView()
    assert view.digest() == layout.digest(b"[]")
    tasks = [stored(key, n) for n, key in enumerate("abc")]
    view.apply(reading(*tasks, full=True))
    content = b"".join(layout.assemble(task.text for task in tasks))
    assert view.digest() == layout.digest(content)
    assert line_hashes(view.line("b") or "") == hashes_of(make_task("b"))
    assert list(view.sidecar_lines()) == list(view.lines().values())


def test_a_text_in_another_layout_has_no_digest_of_its_own() -> None:
    view = TaskView()
    odd = StoredTask("a", 1, 1, 1, ' {"task_id": "a"}')
    view.apply(reading(odd, full=True))
    assert view.digest() is None
    view.apply(reading(deleted=("a",)))
    assert view.digest() == layout.digest(b"[]")
    view.apply(reading(odd))
    assert view.digest() is None
    view.apply(reading(stored("a", 1)))
    assert view.digest() is not None
    inner = '{"task_id": "a", "x": [1,\n  {}]}'
    assert layout.text_digest(inner) is None


def test_a_look_counts_for_its_own_text_only() -> None:
    view = TaskView()
    other = look_at("a", encode(make_task("a", name="other")))
    view.apply(reading(stored("a", 1), full=True), {"a": other})
    assert view.line("a") == look_at("a", stored("a", 1).text).sidecar_line
    right = look_at("b", stored("b", 2).text)._replace(sidecar_line="known")
    view.apply(reading(stored("b", 2)), {"b": right})
    assert view.line("b") == "known"


def test_looking_ahead_gives_the_looks_of_many_while_it_lasts() -> None:
    ahead = LookingAhead()
    many = [TaskAdapter(None).prepare(make_task(f"t{n}")) for n in range(300)]
    for prepared in many:
        ahead.note(prepared)
    with ahead.looking():
        pass
    assert ahead.looks == {p.task_key: look_at(p.task_key, p.text) for p in many}
    ahead.look(many[0])
