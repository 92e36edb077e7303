from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from datahound_storage.errors import FileStoreError, SnapshotError
from datahound_storage.files import layout, snapshot
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.saving import TaskAdapter
from datahound_storage.writes import PreparedTask, TaskChange
from tests.unit import as_file, files_limited_to, make_task

GOOD = [make_task("a"), make_task("b")]
SMALL = [{"task_id": "a", "n": [1, {}]}, {"task_id": "ü", "s": "x\n"}]


def prepared(task: dict[str, Any]) -> PreparedTask:
    return TaskAdapter(None).prepare(task)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths.below(tmp_path / "data")
    paths.make_directories()
    return paths


def keys(content: bytes) -> list[str]:
    return [item.task_key for item in snapshot.parse(content)[0]]


def problems(content: bytes) -> list[str]:
    return snapshot.parse(content)[1]


class TestParse:
    @pytest.mark.parametrize("tasks", [[], SMALL, GOOD, [make_task(x=2**70, y="\x00")]])
    def test_a_file_of_the_old_code_comes_back_byte_by_byte(self, tasks: list[Any]) -> None:
        items, found = snapshot.parse(as_file(tasks))
        assert found == []
        assert [item.task for item in items] == tasks
        assert b"".join(layout.assemble(item.text for item in items)) == as_file(tasks)

    def test_every_item_has_its_key_and_the_value_of_its_text(self) -> None:
        for item, task in zip(snapshot.parse(as_file(SMALL))[0], SMALL, strict=True):
            assert item.task_key == task["task_id"]
            assert json.loads(item.text) == item.task == task

    def test_a_byte_order_mark_line_ends_and_raw_letters_do_not_matter(self) -> None:
        text = json.dumps(SMALL, indent=2, ensure_ascii=False).replace("\n", "\r\n") + "\r\n"
        items, found = snapshot.parse(text.encode("utf-8-sig"))
        assert found == []
        assert b"".join(layout.assemble(item.text for item in items)) == as_file(SMALL)

    def test_numbers_keep_their_spelling(self) -> None:
        content = b'[{"task_id": "a", "n": [1.50, 1E5, -0, 1e400, NaN, -Infinity]}]'
        ((item,), found) = snapshot.parse(content)
        text = item.text
        assert found == []
        assert [word.strip(" ,") for word in text.splitlines()[3:9]] == [
            "1.50",
            "1E5",
            "-0",
            "1e400",
            "NaN",
            "-Infinity",
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "empty"),
            (b" \n\t\r\n", "empty"),
            (b"\xef\xbb\xbf", "empty"),
            (b"\x00" * 100, "not a JSON list"),
            (b'{"tasks": []}', "not a JSON list"),
            (b"null", "not a JSON list"),
            (b'"text"', "not a JSON list"),
            (b"garbage", "not a JSON list"),
            (as_file(GOOD).decode().encode("utf-16"), "not UTF-8"),
            (b"[] []", "after the end"),
            (b"[]]", "after the end"),
            (b"[", "item 1"),
            (b"[,]", "item 1"),
            (b'[{"task_id": "a"}', "item 1"),
            (b'[{"task_id": "a"},]', "item 2"),
            (b'[{"task_id": "a"} {"task_id": "b"}]', "item 1"),
            (b'[{"task_id": "a\n"}]', "item 1"),
            (b"[" * 200_000, "item 1"),
        ],
        ids=lambda value: ascii(value[:20]),
    )
    def test_a_file_that_is_no_snapshot_is_damaged_and_says_where(
        self, content: bytes, problem: str
    ) -> None:
        assert len(problems(content)) == 1
        assert problem in problems(content)[0]

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            (None, "must be an object"),
            (5, "must be an object"),
            ("text", "must be an object"),
            (["a"], "must be an object"),
            ({}, "task_id"),
            ({"task_id": None}, "task_id"),
            ({"task_id": 7}, "task_id"),
            ({"task_id": ""}, "task_id"),
            ({"task_id": "  "}, "task_id"),
            ({"task_id": "k" * 300}, "300 characters"),
            ({"task_id": "a\x00"}, "U+0000"),
            ({"task_id": "\ud800"}, "surrogate"),
            ({"task_id": "a"}, "'a' of an item before it"),
            (make_task("x", task_config=[]), "task_config"),
            (make_task("x", task_config={"company": 5}), "company"),
            (make_task("x", status="s" * 33), "33 characters"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_a_bad_item_is_reported_with_its_place_and_hides_no_other(
        self, bad: object, problem: str
    ) -> None:
        content = as_file([make_task("a"), bad, make_task("b")])
        assert keys(content) == ["a", "b"]
        (found,) = problems(content)
        line = as_file([make_task("a")]).count(b"\n") + 1
        assert found.startswith(f"item 2 (line {line}) ")
        assert problem in found

    def test_every_bad_item_is_reported(self) -> None:
        content = as_file([1, make_task("a"), {}, make_task("a"), make_task("b")])
        assert keys(content) == ["a", "b"]
        assert [found.split(" (")[0] for found in problems(content)] == [
            "item 1",
            "item 3",
            "item 4",
        ]

    def test_of_two_items_with_the_same_key_the_first_is_used(self) -> None:
        items, _ = snapshot.parse(as_file([make_task("a"), make_task("a", name="second")]))
        assert [item.task for item in items] == [make_task("a")]

    def test_an_unknown_status_or_key_is_no_damage(self) -> None:
        tasks = [make_task("a", status="sleeping", unknown=[1.0]), {"task_id": "b"}]
        assert problems(as_file(tasks)) == []
        assert keys(as_file(tasks)) == ["a", "b"]

    def test_a_file_torn_at_any_byte_is_damaged_and_its_whole_items_are_read(self) -> None:
        content = json.dumps(SMALL, indent=2, ensure_ascii=False).encode()
        whole = snapshot.parse(content)[0]
        for end in range(len(content)):
            items, found = snapshot.parse(content[:end])
            assert found, end
            assert items == whole[: len(items)], end
        assert problems(content) == []

    def test_a_byte_that_is_not_utf_8_damages_its_own_item_only(self) -> None:
        content = json.dumps([make_task("a"), make_task("b", name="ü"), make_task("c")], indent=2)
        raw = content.encode().replace(b"\\u00fc", b"\xfc")
        assert len(problems(raw)) == 1
        assert "b" not in keys(raw)
        assert keys(raw) == ["a", "c"]

    def test_no_message_shows_a_setting(self) -> None:
        bad = make_task("x", task_config={"company": ["hunter2"], "settings": {"key": "hunter2"}})
        content = as_file([bad, make_task("x", status={"hunter2": 1})]) + b"hunter2"
        assert len(problems(content)) == 3
        assert "hunter2" not in "".join(problems(content))


class TestRead:
    def test_a_missing_file_does_not_exist_and_is_not_damaged(self, tmp_path: Path) -> None:
        found = snapshot.read(tmp_path / "none.json")
        assert (found.exists, found.damaged, found.items) == (False, False, [])

    def test_an_empty_file_is_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "tasks.json").touch()
        found = snapshot.read(tmp_path / "tasks.json")
        assert (found.exists, found.damaged, found.items) == (True, True, [])

    def test_a_file_that_cannot_be_read_is_an_error_and_not_an_empty_one(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(FileStoreError, match="cannot read"):
            snapshot.read(tmp_path)

    def test_a_reading_names_the_bytes_it_saw(self, tmp_path: Path) -> None:
        path = tmp_path / "tasks.json"
        path.write_bytes(as_file(SMALL))
        found = snapshot.read(path)
        assert found.digest == layout.digest(as_file(SMALL)) != layout.digest(b"[]")
        assert found.signature == snapshot.atomic.signature(path)


class TestStore:
    """The files as the store: what was damaged is never overwritten without being kept."""

    def kept_aside(self, paths: StatePaths) -> list[bytes]:
        found = paths.scheduler_dir.glob(f"{paths.tasks_file.name}.damaged-*")
        return [path.read_bytes() for path in found]

    def test_tasks_come_back_in_their_order(self, paths: StatePaths) -> None:
        store = FileStore(paths, 1)
        assert [store.add(prepared(make_task(key))) for key in ("b", "a", "c")] == [True] * 3
        assert not store.add(prepared(make_task("a", name="again")))
        assert store.update("b", lambda _: TaskChange(prepared(make_task("b", name="edited"))))
        assert not store.update("none", lambda _: TaskChange(prepared(make_task("none"))))
        assert store.delete("a")
        assert not store.delete("a")
        expected = [make_task("b", name="edited"), make_task("c")]
        assert paths.tasks_file.read_bytes() == as_file(expected)

    def test_a_torn_file_is_kept_aside_before_the_next_write_wherever_it_is_torn(
        self, paths: StatePaths
    ) -> None:
        content = as_file(SMALL)
        for end in range(0, len(content), 3):
            torn = content[:end]
            paths.tasks_file.write_bytes(torn)
            whole = keys(torn)
            store = FileStore(paths, 1)
            assert [text.task_key for text in store.list_texts()] == whole
            assert paths.tasks_file.read_bytes() == torn
            assert store.add(prepared(make_task("new")))
            assert keys(paths.tasks_file.read_bytes()) == [*whole, "new"]
            assert torn in self.kept_aside(paths)

    @pytest.mark.parametrize(
        "content", [b"", b'{"tasks": []}', as_file([make_task("a"), {"task_id": ""}]), b"\xff\xfe"]
    )
    def test_a_damaged_file_is_kept_aside_once(self, paths: StatePaths, content: bytes) -> None:
        paths.tasks_file.write_bytes(content)
        store = FileStore(paths, 1)
        for key in ("x", "y"):
            assert store.add(prepared(make_task(key)))
        assert self.kept_aside(paths) == [content]
        assert problems(paths.tasks_file.read_bytes()) == []

    @pytest.mark.parametrize("content", [b"", as_file([make_task("a"), {"task_id": ""}])])
    def test_a_change_that_changes_nothing_leaves_a_damaged_file_alone(
        self, paths: StatePaths, content: bytes
    ) -> None:
        paths.tasks_file.write_bytes(content)
        store = FileStore(paths, 1)
        assert not store.delete("none")
        store.list_texts()
        assert paths.tasks_file.read_bytes() == content
        assert self.kept_aside(paths) == []

    def test_damage_is_reported_once_and_item_by_item(
        self, paths: StatePaths, caplog: pytest.LogCaptureFixture
    ) -> None:
        paths.tasks_file.write_bytes(as_file([make_task("a"), {}, 5]))
        store = FileStore(paths, 1)
        with caplog.at_level(logging.ERROR, "datahound_storage"):
            store.list_texts()
            reported = caplog.text
            store.list_texts()
        assert "item 2 " in reported
        assert "item 3 " in reported
        assert str(paths.tasks_file) in reported
        assert caplog.text == reported

    def test_a_damaged_file_that_cannot_be_kept_aside_is_not_overwritten(
        self, paths: StatePaths
    ) -> None:
        with pytest.raises(SnapshotError, match="copy it away by hand"):
            snapshot.set_aside(paths.tasks_file.with_name("missing.json"))

    def test_a_full_disk_leaves_the_old_snapshot(self, paths: StatePaths) -> None:
        paths.tasks_file.write_bytes(as_file(GOOD))
        with files_limited_to(1000), pytest.raises(FileStoreError):
            FileStore(paths, 1).add(prepared(make_task("new")))
        assert paths.tasks_file.read_bytes() == as_file(GOOD)

    def test_a_refused_change_leaves_the_old_snapshot(self, paths: StatePaths) -> None:
        paths.tasks_file.write_bytes(as_file(GOOD))

        def refuse(_: str) -> PreparedTask:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            FileStore(paths, 1).update("a", refuse)
        assert paths.tasks_file.read_bytes() == as_file(GOOD)

    def test_a_snapshot_behind_a_symbolic_link_is_not_written_through(
        self, paths: StatePaths, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere.json"
        elsewhere.write_bytes(as_file(GOOD))
        paths.tasks_file.symlink_to(elsewhere)
        assert FileStore(paths, 1).add(prepared(make_task("new")))
        assert elsewhere.read_bytes() == as_file(GOOD)
        assert keys(paths.tasks_file.read_bytes()) == ["a", "b", "new"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b'[{"task_id": "a"}, 7]', "1 task can be read"),
            (b"[7]", "0 tasks can be read"),
            (as_file(GOOD)[:-1], "2 tasks can be read"),
        ],
    )
    def test_what_can_be_read_is_counted(
        self, paths: StatePaths, caplog: pytest.LogCaptureFixture, content: bytes, words: str
    ) -> None:
        paths.tasks_file.write_bytes(content)
        snapshot.report_damage(paths.tasks_file, snapshot.read(paths.tasks_file))
        assert f"is damaged: {words}, and used" in caplog.text

    def test_the_ids_that_a_file_names(self, paths: StatePaths) -> None:
        assert snapshot.named_ids(paths.tasks_file) == []
        paths.tasks_file.write_bytes(
            b'[{"task_id": "a"}, {"task_id"\n:"\\u00e9\\"", {"task_id": "a"}'
            b', \xff{"task_id": "c\nd"'
        )
        assert snapshot.named_ids(paths.tasks_file) == ["a", 'é"', "c\nd"]
        paths.tasks_file.unlink()
        paths.tasks_file.mkdir()
        with pytest.raises(FileStoreError):
            snapshot.named_ids(paths.tasks_file)

    def test_those_that_were_kept_aside_are_found(self, paths: StatePaths) -> None:
        kept = []
        for content in (b"[", b"[{"):
            paths.tasks_file.unlink(missing_ok=True)
            paths.tasks_file.write_bytes(content)
            kept += [snapshot.set_aside(paths.tasks_file) for _ in range(2)]
        assert snapshot.kept_aside(paths.tasks_file) == [kept[0], kept[2]]
        assert kept[::2] == kept[1::2]
