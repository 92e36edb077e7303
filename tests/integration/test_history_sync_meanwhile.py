"""Nothing is lost, doubled or revived by what happens while table and file are compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from datahound_storage import history_sync
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError
from datahound_storage.files import history
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.shown_runs import FilesChangedError, ShownRuns, open_runs
from datahound_storage.files.trimming import trim
from datahound_storage.history_sync import sync_history, sync_last_runs
from datahound_storage.runs import line_text, new_entry, row_of_new
from tests.integration.test_history_sync import COUNT, NOW, line, store, stored, write
from tests.migrations.support import value


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[], object],
    *,
    times: int = 1,
    done: list[int] | None = None,
) -> list[int]:
    """Do something after the files were read, before what is found is carried over."""
    done = [] if done is None else done
    rows = ShownRuns.rows

    def rows_and_act(shown: ShownRuns, encoding: str) -> Iterator[bytes]:
        yield from rows(shown, encoding)
        if len(done) < times:
            act()
            done.append(1)

    monkeypatch.setattr(ShownRuns, "rows", rows_and_act)
    return done


def test_a_run_that_is_logged_meanwhile_is_not_appended_again(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(paths.history_file, line("1"))
    store(dal, line("1"), line("table"))

    def log() -> None:
        entry = new_entry("a", True, "meanwhile", 1.5, "Task", "download")
        text = line_text(entry)
        history.append(paths.history_file, [text], durable=False)
        made = row_of_new(entry, text)
        assert made is not None
        dal.add_run(made)

    done = meanwhile(monkeypatch, log)
    mark = sync_history(dal, paths, 5)
    assert done
    messages = [json.loads(text)["message"] for text in history.texts(paths.history_file)]
    assert messages == ["1", "meanwhile", "table"]
    assert mark == history.mark(paths.history_file)


@pytest.mark.parametrize("appends", [True, False])
def test_a_line_that_comes_meanwhile_gets_its_row(
    dal: StorageDAL,
    paths: StatePaths,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    appends: bool,
) -> None:
    """From a process that has fallen back; at the latest by what is done after the mark."""
    write(paths.history_file, line("1"))
    if appends:
        store(dal, line("table"))
    done = meanwhile(
        monkeypatch, lambda: history.append(paths.history_file, [line("late")], durable=True)
    )
    sync_last_runs(dal, paths, sync_history(dal, paths, 5))
    assert done
    assert set(stored(migrated_url)) == {"1", "late", *(["table"] if appends else [])}


def test_a_line_that_is_completed_while_it_is_read_is_one_line(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    paths.history_file.write_text(f"{line('1')}\n{line('2')[:-5]}")
    with open_runs(paths.history_files) as shown:
        rows = shown.rows("utf-8")
        found = next(rows)
        with paths.history_file.open("a") as file:
            file.write(f"{line('2')[-5:]}\n{line('3')}\n")
        assert (found + b"".join(rows)).count(b"\n") == 1
        assert shown.marks[-1].size == len(line("1")) + 1


@pytest.mark.parametrize("stands", ["file", "table"])
def test_after_a_trim_it_compares_again(
    dal: StorageDAL,
    paths: StatePaths,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    stands: str,
) -> None:
    write(paths.history_file, line("old", 40), line("new"))
    if stands == "table":
        store(dal, line("also old", 41), line("table"))

    def trim_all() -> None:
        cutoff = NOW - timedelta(days=30)
        dal.purge_task_runs(older_than=cutoff)
        trim(paths.history_file, cutoff)

    done = meanwhile(monkeypatch, trim_all)
    mark = sync_history(dal, paths, 5)
    assert done
    assert mark == history.mark(paths.history_file)
    expected = ["new"] if stands == "file" else ["table", "new"]
    assert stored(migrated_url) == expected
    assert sorted(json.loads(t)["message"] for t in history.texts(paths.history_file)) == sorted(
        expected
    )


@pytest.mark.parametrize("where", ["database", "files"])
def test_what_is_trimmed_meanwhile_is_not_appended(
    dal: StorageDAL,
    paths: StatePaths,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The file had none of it, so that it stays the same file."""
    write(paths.history_file, line("1"))
    store(dal, line("1"), line("old", 40), line("table"))
    fill = history_sync.Spool.fill

    def fill_and_trim(spool: history_sync.Spool, texts: Iterator[str]) -> None:
        fill(spool, texts)
        if where == "database":
            dal.purge_task_runs(older_than=NOW - timedelta(days=30))
        else:
            history.remember_cutoff(paths.history_state_file, NOW - timedelta(days=30))

    monkeypatch.setattr(history_sync.Spool, "fill", fill_and_trim)
    sync_history(dal, paths, 5)
    messages = [json.loads(text)["message"] for text in history.texts(paths.history_file)]
    assert messages == ["1", "table"]


def test_what_is_trimmed_meanwhile_is_not_inserted(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    dal.purge_task_runs(older_than=NOW - timedelta(days=30))
    store(dal, line("old", 40), line("new"))
    assert stored(migrated_url) == ["new"]


def test_a_file_that_is_written_over_is_read_again(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place, as an editor or the old code does it."""
    write(paths.history_file, line("1"), line("2"), line("3"))
    inode = os.stat(paths.history_file).st_ino
    done = meanwhile(
        monkeypatch, lambda: write(paths.history_file, line("9"), line("2"), line("3"))
    )
    sync_history(dal, paths, 5)
    assert done
    assert os.stat(paths.history_file).st_ino == inode
    assert stored(migrated_url) == ["9", "2", "3"]


def test_a_file_that_never_stays_the_same_does_not_hold_up_a_start(
    dal: StorageDAL,
    paths: StatePaths,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(paths.history_file, line("1"))

    def replace() -> None:
        another = f"{line(str(len(done) + 2))}\n".encode()
        history.atomic.replace(paths.history_file, paths.history_file.read_bytes() + another)

    done: list[int] = []
    meanwhile(monkeypatch, replace, times=99, done=done)
    mark = sync_history(dal, paths, 5)
    assert len(done) == 3
    assert "written anew again and again" in caplog.text
    sync_last_runs(dal, paths, mark)
    assert stored(migrated_url) == ["1", "2", "3", "4"]


def test_nothing_is_appended_to_another_file(dal: StorageDAL, paths: StatePaths) -> None:
    """All of that one would have to be in memory to tell what it lacks."""
    write(paths.history_file, line("1"))
    with open_runs(paths.history_files) as shown:
        meeting = history_sync._Meeting(dal, paths, shown)
        now = history.mark(paths.history_file)
        for place in (now._replace(inode=now.inode + 1), now._replace(size=now.size + 1)):
            with pytest.raises(FilesChangedError):
                meeting._append([line("2")], place)
    assert history.mark(paths.history_file) == now


def test_many_lines_are_appended_in_parts_and_once(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_sync, "_AT_ONCE", 1000)
    lines = [line(f"run {n}", 2 - n / 1000) for n in range(50)]
    store(dal, *lines)
    # One that closes a torn line off, and one after each part.
    paths.history_file.write_text("{torn")
    append, appended = history.append, 0

    def append_and_log(path: Path, texts: list[str], *, durable: bool) -> None:
        nonlocal appended
        append(path, texts, durable=durable)
        appended += 1
        append(path, [line(f"late {appended}", 0)], durable=False)

    monkeypatch.setattr(history, "append", append_and_log)
    mark = sync_history(dal, paths, 5)
    sync_last_runs(dal, paths, mark)
    texts = list(history.texts(paths.history_file))
    assert appended > 5
    assert [text for text in texts if '"run ' in text] == lines
    assert len(texts) == 1 + 50 + appended
    assert value(migrated_url, COUNT) == 50 + appended


def test_lines_that_cannot_be_set_aside_are_reported_after_the_table_has_all(
    dal: StorageDAL,
    paths: StatePaths,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(paths.history_file, line("1"))
    store(dal, line("table", message="x" * (2 << 20)))
    monkeypatch.setattr("datahound_storage.history_sync.Spool.__init__", in_no_directory)
    mark = sync_history(dal, paths, 5, goes_on=True)
    assert "the history file could not follow, the next start mends it: cannot" in caplog.text
    assert set(stored(migrated_url)) == {"1", "table"}
    assert mark == history.mark(paths.history_file)
    with pytest.raises(FileStoreError, match="cannot write a temporary file"):
        sync_history(dal, paths, 5)
    monkeypatch.undo()
    sync_history(dal, paths, 5)
    assert len(list(history.texts(paths.history_file))) == 2


spool_in = history_sync.Spool.__init__


def in_no_directory(spool: history_sync.Spool, directory: Path) -> None:
    spool_in(spool, directory / "missing")
