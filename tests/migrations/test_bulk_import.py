"""Files of any size and any state: piece by piece, whole or not at all, each fault named."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import runs
from datahound_storage.errors import SnapshotError
from datahound_storage.migrations import SchemaState, status, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_import import counts, line, task
from tests.migrations.test_upgrade import alembic, start

revision = support.load_revision("0003_import_snapshot")


def write_history(path: Path, count: int) -> str:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(line(message=f"run {number}", task_id=f"task-{number % 50}") + "\n")
    return f"history={path}"


def write_tasks(path: Path, count: int, **more: Any) -> str:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = json.dumps(task(task_id=f"task-{number}", **more), indent=2)
            file.write(f"{',' if number else '['}\n{text}")
        file.write("\n]\n")
    return f"snapshot={path}"


# ---- Faults, by their position


BAD = [
    '{"task_id": "a"}',
    '{"task_id": "b", "status": 7}',
    '{"task_id": "a", "again": true}',
    "7",
    '{"task_id": "c\xff"}',
    '{"task_id": "d"}',
]
BAD_ITEMS = [
    r"item 2 \(line 2\) \(task 'b'\): status must be a text",
    r"item 3 \(line 3\) has the task_id 'a' of an item before it",
    r"item 4 \(line 4\) must be an object, not int",
    r"item 5 \(line 5\) is not UTF-8",
]


@pytest.fixture
def bad_files(tmp_path: Path) -> list[str]:
    snapshot, history = tmp_path / "tasks.json", tmp_path / "history.jsonl"
    snapshot.write_bytes(("[" + ",\n".join(BAD) + "]").encode("latin-1"))
    history.write_text("\n".join([line(), "", "torn {", line(task_id=""), line(run_id="x"), "{"]))
    return [f"snapshot={snapshot}", f"history={history}"]


def test_quarantine_lists_each_fault_and_goes_on(
    database_url: str, bad_files: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert upgrade(database_url, x=[*bad_files, "on_error=quarantine"]).state is SchemaState.CURRENT
    said = capfd.readouterr().err
    for words in BAD_ITEMS:
        assert re.search(f"left out: .*tasks.json: {words}", said)
    for number in (3, 4, 6):
        assert f"history.jsonl: line {number} is no JSON object with a task_id" in said
    assert "imported 2 tasks and 2 runs, left out 4 tasks and 3 lines of the history; the" in said
    assert query(database_url, "SELECT task_key FROM scheduler_tasks ORDER BY position") == [
        ("a",), ("d",)
    ]  # fmt: skip
    assert counts(database_url) == (2, 2)


def test_without_it_the_first_fault_stops_all(database_url: str, bad_files: list[str]) -> None:
    snapshot, history = bad_files
    with pytest.raises(SnapshotError, match=BAD_ITEMS[0] + r".*--on-error quarantine`, which"):
        upgrade(database_url, x=[snapshot, history])
    # The snapshot is read first; a good one does not come in without its history.
    good = write_tasks(Path(snapshot.partition("=")[2]), 3)
    with pytest.raises(SnapshotError, match=r"history.jsonl: line 3 is no JSON object"):
        upgrade(database_url, x=[good, history])
    assert status(database_url).found == "0002"
    assert counts(database_url) == (0, 0)


@pytest.mark.parametrize(
    ("content", "words", "left_out"),
    [
        (
            '[{"task_id": "a"},\n{"task_id": "b", "na',
            r"item 2 \(line 2\) is torn or not JSON; nothing after it.*: 1 task with it",
            "1 task",
        ),
        ('[{"task_id": "a"}, {', r"item 2 \(line 1\) is torn .*: 1 task with it", "1 task"),
        (
            '[{"task_id": "a"}, {"task_id": "b", {"task_id": "c"}, {"task_id": "d"}]',
            r"item 2 \(line 1\) is torn or not JSON.*: 3 tasks with it, by their task_id",
            "3 tasks",
        ),
        (
            '[{"task_id": "a"}\n{"task_id": "b"}]',
            r"item 1 \(line 1\) is followed by no comma or bracket; 1 task after it",
            "1 task",
        ),
        ('[{"task_id": "a"} x', r"item 1 \(line 1\) is followed by no comma or bracket\n", None),
        ('[{"task_id": "a"}] x', "there is text after the end of the list", None),
        ('[{"task_id": "a"}] [{"task_id": "b"}]', "there is text after the end", "1 task"),
    ],
)
def test_what_comes_before_a_tear_can_be_had(
    database_url: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    content: str,
    words: str,
    left_out: str | None,
) -> None:
    (tmp_path / "tasks.json").write_text(content)
    upgrade(database_url, x=[f"snapshot={tmp_path / 'tasks.json'}", "on_error=quarantine"])
    assert counts(database_url) == (1, 0)
    said = capfd.readouterr().err
    assert re.search(words, said)
    if left_out is not None:
        assert f"imported 1 task and 0 runs, left out {left_out} and 0 lines of the hist" in said


def test_tasks_that_cannot_be_read_are_counted_across_pieces(tmp_path: Path) -> None:
    items = ",".join('{"task_id": "b", "text": "' + "x" * length + '"}' for length in range(300))
    file = tmp_path / "tasks.json"
    file.write_text('[{"task_id": "a"}, {torn, ' + items + "]")
    for piece in (1, 7, 64, 1 << 20):
        revision = support.load_revision("0003_import_snapshot")
        revision.PIECE = piece
        faults = revision.Faults({"on_error": "quarantine"})
        with file.open("rb") as content:
            assert len(list(revision.Snapshot(file, content, faults))) == 1
        assert faults._tasks == 300


@pytest.mark.parametrize("content", ["", "{}", "not JSON"])
def test_what_is_no_list_is_no_quarantine(database_url: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(SnapshotError, match=r"the file is (empty|not a JSON list)"):
        upgrade(database_url, x=[f"snapshot={tmp_path / 'tasks.json'}", "on_error=quarantine"])


def test_a_last_line_without_an_end_stops_nothing(
    database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{line()}\n{line()[:30]}")
    upgrade(database_url, x=[f"history={path}"])
    assert counts(database_url) == (0, 1)
    assert "left out: " in capfd.readouterr().err


def test_a_wrong_word_is_told(database_url: str) -> None:
    with pytest.raises(SnapshotError, match="--on-error ignore: it is stop or quarantine"):
        upgrade(database_url, x=["on_error=ignore"])


# ---- Piece by piece


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_it_does_not_matter_where_a_piece_ends(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(revision, "PIECE", piece)
    items = ['{"a": "naïve ½ \U0001f600 ] , \\" }"}', "12345", "[ ]", '"x"', "-1.5e10", "true"]
    content = "\ufeff [" + " ,\n\n".join(items) + "\n] \n"
    reader = revision.Snapshot(Path("f"), io.BytesIO(content.encode()), revision.Faults({}))
    found = list(reader)
    assert [item.text for item in found] == items
    assert [item.task for item in found] == [json.loads(text) for text in items]
    assert found[5].place == "item 6 (line 11)"


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_tear_is_found_at_once_or_after_a_bound(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(revision, "PIECE", piece)
    monkeypatch.setattr(revision, "LONGEST_ITEM", 50)
    content = b'[{"a": 1},\n{"b": "' + b"x" * 100_000
    file, read = io.BytesIO(content), []
    count = revision.Snapshot._count_rest

    def count_rest(self: Any) -> int:
        read.append(file.tell())
        return int(count(self))

    monkeypatch.setattr(revision.Snapshot, "_count_rest", count_rest)
    with pytest.raises(revision.FileError, match=r"item 2 \(line 2\) is torn"):
        list(revision.Snapshot(Path("f"), file, revision.Faults({})))
    assert read[0] < 5000  # from there on tasks are counted, and nothing is tried any more


def test_many_batches_keep_order_numbers_and_keys(database_url: str, tmp_path: Path) -> None:
    # Equal lines far from each other, in two files, over several batches.
    data = tmp_path / "data"
    (data / "scheduler").mkdir(parents=True)
    snapshot = write_tasks(data / "scheduler" / "scheduled_tasks.json", 10_050)
    assert snapshot
    texts = [line(message=f"run {n % 7000}", task_id=f"task-{n % 50}") for n in range(21_000)]
    texts[100] = texts[15_000] = line(run_id="own")
    path = data / "scheduler" / "task_history.jsonl"
    path.write_text("\n".join(texts) + "\n")
    upgrade(database_url, x=[snapshot, f"history={path}"])
    wanted = list(dict.fromkeys(found.run_id for found in runs.identify(texts)))
    listed = query(database_url, "SELECT run_id FROM scheduler_runs ORDER BY seq")
    assert [run_id for (run_id,) in listed] == wanted
    keys = query(database_url, "SELECT task_key FROM scheduler_tasks ORDER BY position")
    assert keys == [(f"task-{n}",) for n in range(10_050)]
    unknown = "SELECT count(*) FROM scheduler_runs r LEFT JOIN scheduler_tasks t ON"
    joined = f"{unknown} t.id = r.task_id AND t.task_key = r.task_key WHERE t.id IS NULL"
    assert value(database_url, joined) == 1  # the run with an id of its own is of task "one"


MEASURED = """
import resource, sys
from datahound_storage.migrations import upgrade
upgrade(sys.argv[1], "0002")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
upgrade(sys.argv[1], x=sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory_for(url: str, *x: str) -> int:
    """By how many kB the memory of a process grew at the most while it imported."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, url, *x],
        capture_output=True,
        text=True,
        cwd=support.ROOT,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


def test_memory_does_not_grow_with_the_files(database_url: str, tmp_path: Path) -> None:
    # 57 MB of tasks and 56 MB of lines: read whole, they would take several times as much.
    snapshot = write_tasks(tmp_path / "tasks.json", 12_000, description="x" * 4500)
    path = tmp_path / "history.jsonl"
    with path.open("w") as file:
        file.writelines(line(message=f"{n} " + "x" * 4500) + "\n" for n in range(12_000))
    size = sum((tmp_path / name).stat().st_size for name in ("tasks.json", "history.jsonl"))
    assert size > 100_000_000
    assert memory_for(database_url, snapshot, f"history={path}") < 70_000
    assert counts(database_url) == (12_000, 12_000)


def test_progress_has_a_rate(
    database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    history = write_history(tmp_path / "history.jsonl", 1500)
    upgrade(database_url, x=[write_tasks(tmp_path / "tasks.json", 3), history])
    said = capfd.readouterr().err
    assert re.search(r"imported 3 tasks from \S+tasks\.json \([\d,]+ rows/s\)\n", said)
    assert re.search(r"imported 1,500 runs from \S+history\.jsonl \([\d,]+ rows/s\)\n", said)


def test_progress_is_told_on_the_way(
    database_url: str,
    tmp_path: Path,
) -> None:
    progress, said = revision.Progress("read", "run", "a file"), []
    progress._next = 0.0
    revision.say, old = said.append, revision.say
    try:
        progress.add(5)
        progress.add(5)  # less than two seconds later
    finally:
        revision.say = old
    assert [re.sub(r"\(.*\)", "()", text) for text in said] == ["read 5 runs from a file () so far"]


# ---- Killed


BUSY = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (query LIKE %s OR EXISTS (
      SELECT FROM pg_stat_progress_copy AS p
      WHERE p.pid = pg_stat_activity.pid AND p.tuples_processed > %s))"""


def wait_for(url: str, like: str, tuples: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := query(url, BUSY, [like, tuples]):
            return int(found[0][0])
        time.sleep(0.002)  # the other process works
    raise AssertionError("it never came to this point")


@pytest.mark.parametrize(
    ("like", "tuples"),
    [("none", 500), ("INSERT INTO scheduler_runs%incoming_runs%", 10**9)],
    ids=["while it copies", "while it inserts"],
)
def test_killed_in_the_middle_it_has_done_nothing_and_does_it_again(
    database_url: str, tmp_path: Path, like: str, tuples: int
) -> None:
    x = [write_tasks(tmp_path / "tasks.json", 500),
         write_history(tmp_path / "history.jsonl", 40_000)]  # fmt: skip
    upgrade(database_url, "0002")
    options = [word for argument in x for word in ("-x", argument)]
    process = start(database_url, "-m", "alembic", *options, "upgrade", "head")
    session = wait_for(database_url, like, tuples)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -9
    query(database_url, "SELECT pg_terminate_backend(%s, 10000)", [session])
    assert counts(database_url) == (0, 0)
    assert value(database_url, "SELECT filled_at FROM scheduler_storage") is None
    assert status(database_url).found == "0002"
    assert upgrade(database_url, x=x).state is SchemaState.CURRENT
    assert counts(database_url) == (500, 40_000)


def test_run_again_it_changes_nothing(database_url: str, tmp_path: Path) -> None:
    x = [write_tasks(tmp_path / "tasks.json", 20), write_history(tmp_path / "history.jsonl", 100)]
    looks = (
        "SELECT * FROM scheduler_tasks ORDER BY id",
        "SELECT * FROM scheduler_runs ORDER BY id",
    )
    upgrade(database_url, x=x)
    before = [query(database_url, look) for look in looks]
    upgrade(database_url, x=x)
    query(database_url, "UPDATE datahound_storage_version SET version_num = '0002'")
    write_tasks(tmp_path / "tasks.json", 30)
    write_history(tmp_path / "history.jsonl", 120)
    upgrade(database_url, x=x)
    assert [query(database_url, look) for look in looks] == before


def test_tasks_that_come_in_meanwhile_stop_it(database_url: str, tmp_path: Path) -> None:
    x = [write_tasks(tmp_path / "tasks.json", 5), write_history(tmp_path / "history.jsonl", 60_000)]
    upgrade(database_url, "0002")
    options = [word for argument in x for word in ("-x", argument)]
    process = start(database_url, "-m", "alembic", *options, "upgrade", "head")
    wait_for(database_url, "none", 500)
    query(
        database_url,
        "INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, schedule_type,"
        " schedule_expr, status) VALUES (gen_random_uuid(), 'mine', '', '', '{}', '', '', '')",
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "somebody has added tasks while" in out
    assert counts(database_url) == (1, 0)
    assert alembic(database_url, *options, "upgrade", "head")[0] == 0
    assert counts(database_url) == (1, 60_000)
