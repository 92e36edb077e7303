"""The data migration: files come in whole and once, or not at all."""

from __future__ import annotations

import fcntl
import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import codec, runs, tasks
from datahound_storage.errors import InvalidTaskError, SnapshotError
from datahound_storage.migrations import downgrade, status, upgrade
from tests.migrations import support
from tests.migrations.support import HISTORY, SNAPSHOT, query, value
from tests.migrations.test_upgrade import wait_for

revision = support.load_revision("0003_import_snapshot")

TASK: dict[str, Any] = {
    "task_id": "one",
    "name": "One",
    "task_config": {"task_type": "download", "company": "A"},
    "schedule_type": "interval",
    "status": "active",
    "interval_minutes": 5,
    "created_at": "2024-01-01T00:00:00",
    "updated_at": "2024-01-02T00:00:00.5-07:00",
}


def task(**changes: Any) -> dict[str, Any]:
    return {**TASK, **changes}


# Texts of single tasks as files may hold them.
ODD_TASKS = [
    json.dumps(task(name="naïve ½ \U0001f600"), ensure_ascii=False),
    json.dumps(task(name="naïve"), indent=2),
    json.dumps(task(name="nul \x00 in it", task_config={"company": "a\x00b"})),
    json.dumps(task(name="half \ud800 a pair", status="\udfff")),
    json.dumps(task(score=float("nan"), low=float("-inf"), list=[float("inf"), {}, [], [1]])),
    '{"task_id":"one","big":123456789012345678901234567890,"exp":1E400,"tiny":1e-400,"one":1.0}',
    '{ "task_id" : "one" ,\r\n\t"a":[ ] , "b" : { } , "zero" : -0.0, "e": 1e5, "x": 1.50 }',
    '{"task_id": "one", "name": "first", "name": "again"}',
    json.dumps(task(schedule_type="daily_time", daily_time="01:00:00")),
    json.dumps(task(schedule_type="daily_time", daily_time=7)),
    json.dumps(
        task(
            schedule_type="weekly_schedule",
            weekly_schedule={"days": ["monday", "Wednesday", 3], "interval_minutes": 60},
        )
    ),
    json.dumps(task(schedule_type="weekly_schedule", weekly_schedule=None)),
    json.dumps(task(schedule_type="weekly_schedule", weekly_schedule={"days": ["x" * 300] * 99})),
    json.dumps(task(schedule_type="cron")),
    json.dumps(task(interval_minutes=None, task_config=None, status=None, company=None)),
    json.dumps(task(interval_minutes=10**40, created_at="yesterday", updated_at=3)),
    json.dumps(task(created_at="0001-01-01T00:00:00+14:00", updated_at="9999-12-31T23:59:59")),
    json.dumps({"task_id": "x" * 255}),
    '{"task_id": "one", "text": "a \\" quote, \\\\ and {[:,]} \\u00e9"}',
]
BAD_TASKS: list[Any] = [
    7,
    None,
    [],
    {},
    {"task_id": ""},
    {"task_id": "  "},
    {"task_id": 7},
    {"task_id": "x" * 256},
    {"task_id": "a\x00"},
    {"task_id": "\ud800"},
    task(task_config=[]),
    task(task_config={"task_type": 7}),
    task(task_config={"task_type": "x" * 65}),
    task(task_config={"company": "x" * 256}),
    task(schedule_type=["interval"]),
    task(schedule_type="x" * 33),
    task(status="x" * 33),
    task(status=True),
]
LINE: dict[str, Any] = {
    "timestamp": "2024-03-01T12:00:00.123456+00:00",
    "task_id": "one",
    "task_name": "One",
    "task_type": "download",
    "success": True,
    "message": "",
    "duration_seconds": 19.810863,
}


def line(**changes: Any) -> str:
    return json.dumps({**LINE, **changes})


ODD_LINES = [
    line(),
    line(run_id="own"),
    line(run_id=""),
    line(run_id=7),
    line(run_id="x" * 256),
    line(timestamp="2024-03-01T12:00:00"),
    line(timestamp="2024-03-01T04:00:00-08:00"),
    line(duration_seconds=3),
    line(duration_seconds="long"),
    line(duration_seconds=-1),
    line(duration_seconds=1e300),
    line(duration_seconds=True),
    line(message=None, success="yes"),
    line(message="nul \x00, half \ud800"),
    line(task_name="nul \x00", more=[1, 2]),
    json.dumps({**LINE, "message": "naïve"}, ensure_ascii=False),
    json.dumps(LINE, separators=(",", ":")),
    json.dumps({"timestamp": "0001-01-01T00:00:00+00:00", "task_id": "one"}),
    '{"timestamp": "2024-03-01T12:00:00+00:00", "task_id": "one", "duration_seconds": NaN}',
]
BAD_LINES = [
    "{",
    "7",
    "[]",
    "not json",
    line(task_id=None),
    line(task_id=""),
    line(task_id="x" * 256),
    line(timestamp=None),
    line(timestamp="soon"),
    line()[:40],
]


def names_of(columns: str) -> list[str]:
    return list(revision.names(columns))


# ---- The frozen rules are those of the package. Where the package's change, a new revision is due.


@pytest.mark.parametrize("raw", [*ODD_TASKS, "sample"])
def test_a_task_becomes_the_row_that_the_package_makes(raw: str) -> None:
    content = SNAPSHOT.read_text(encoding="utf-8") if raw == "sample" else f"[{raw}]"
    file = io.BytesIO(content.encode("utf-8", "surrogatepass"))
    for _, found, read in revision.Snapshot(Path("f"), file, revision.Faults({})):
        text = revision.in_layout(found)
        assert text == codec.as_in_snapshot(found)
        assert repr(codec.decode(text)) == repr(read)
        made = revision.task_row(read, text, "CET", None)
        row = dict(zip(names_of(revision.TASK_COLUMNS), made, strict=True))
        wanted = tasks.columns_of(tasks.check(read))._asdict()
        assert {name: row[name] for name in wanted} == wanted
        assert row["config_json"] == codec.for_jsonb(text)
        assert (row["task_text"], row["timezone"]) == (text, "CET")


@pytest.mark.parametrize("bad", BAD_TASKS)
def test_what_the_package_refuses_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidTaskError):
        tasks.check(bad)
    assert revision.problem_of(bad)


@pytest.mark.parametrize("raw", ODD_TASKS)
def test_what_the_package_takes_is_taken(raw: str) -> None:
    assert revision.problem_of(tasks.check(json.loads(raw))) == ""


def test_lines_become_the_rows_that_the_package_makes() -> None:
    sample = HISTORY.read_text(encoding="utf-8").splitlines()
    texts = [*ODD_LINES, *BAD_LINES, *ODD_LINES, *sample[:200]]
    equal: Counter[str] = Counter()
    read = [revision.parse_line(text.encode()) for text in texts]
    mine = [revision.identify(found, equal) for found in read if found is not None]
    wanted = list(runs.identify(texts))
    assert [tuple(found) for found in mine] == [tuple(found) for found in wanted]
    for found, other in zip(mine, wanted, strict=True):
        made = revision.run_row(found, {})
        row = dict(zip(names_of(revision.RUN_COLUMNS), made, strict=True))
        package = runs.row_of(other)._asdict()
        assert row.pop("task_id") == runs.unknown_task_id(package["task_key"])
        assert row.pop("id").version == package.pop("id").version == 4
        package["metadata_json"] = package.pop("metadata_text")
        assert row == package


# ---- What comes into the tables


def test_the_sample_is_imported(database_url: str) -> None:
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    listed = query(
        database_url, "SELECT task_key, task_text FROM scheduler_tasks ORDER BY position"
    )
    written = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert [key for key, _ in listed] == [item["task_id"] for item in written]
    joined = ",\n  ".join(text for _, text in listed)
    assert f"[\n  {joined}\n]" == SNAPSHOT.read_text(encoding="utf-8").rstrip("\n")
    lines = query(database_url, "SELECT metadata_json ->> 'task_key', finished_at, duration_ms"
                  " FROM scheduler_runs ORDER BY seq")  # fmt: skip
    assert len(lines) == 1500
    assert lines[0][0] == "952a3927-cdd7-4675-bb63-0a5251596e8d"
    assert lines[0][2] == 19811
    unknown = "SELECT count(DISTINCT task_key) FROM scheduler_runs WHERE task_id NOT IN (SELECT id"
    assert value(database_url, f"{unknown} FROM scheduler_tasks)") == 3


def place(folder: Path, content: bytes) -> str:
    path = folder / "tasks.json"
    path.write_bytes(content)
    return f"snapshot={path}"


def test_odd_values_come_through(database_url: str, tmp_path: Path) -> None:
    items = [raw.replace('"one"', f'"{n}"', 1) for n, raw in enumerate(ODD_TASKS)]
    content = ("\ufeff [" + " ,".join(items) + " ] \n").encode("utf-8", "surrogatepass")
    upgrade(database_url, x=[place(tmp_path, content)])
    found = query(database_url, "SELECT task_text FROM scheduler_tasks ORDER BY position")
    assert [text for (text,) in found] == [codec.as_in_snapshot(item) for item in items]
    assert "NaN" in found[4][0]
    nulls = "config_json ->> 'score' IS NULL AND config_json ? 'score'"
    assert value(database_url, f"SELECT count(*) FROM scheduler_tasks WHERE {nulls}") == 1


def test_times_that_are_missing_are_now(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url, x=[place(tmp_path, b'[{"task_id": "a"}]')])
    assert value(database_url, "SELECT now() - created_at < interval '1 minute'"
                 " FROM scheduler_tasks WHERE created_at = updated_at")  # fmt: skip


def test_the_time_zones_label_is_the_setting(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHOUND_SCHEDULER_TZ", "US/Pacific")
    upgrade(database_url, x=[place(tmp_path, b'[{"task_id": "a"}]')])
    assert value(database_url, "SELECT timezone FROM scheduler_tasks") == "US/Pacific"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"{}", "not a JSON list"),
        (b"null", "not a JSON list"),
        (b'[\n{"task_id": "a"},\n{"task_id": "b", "na', r"item 2 \(line 3\) is torn"),
        (b'[{"task_id": "a"}', r"item 1 \(line 1\) is followed by no comma"),
        (b'[{"task_id": "a"},]', r"item 2 \(line 1\) is torn or not JSON"),
        (b'[{"task_id": "a"}] []', "text after the end of the list"),
        (b'[{"task_id": "a"},\n {"task_id": "a"}]', r"item 2 \(line 2\) has the task_id 'a' of an"),
        (b'[{"task_id": "a"},\n\n 7]', r"item 2 \(line 3\) must be an object, not int"),
        (b'[{"task_id": ""}]', r"item 1 \(line 1\) needs a task_id"),
        (b'[{"task_id": "a", "status": 7}]', r"item 1 \(line 1\) \(task 'a'\): status must be"),
        (b'[{"task_id": "\xff"}]', "not UTF-8"),
        (b"[" * 100_000, "item 1"),
    ],
)
def test_a_bad_snapshot_stops_it(
    database_url: str, tmp_path: Path, content: bytes, words: str
) -> None:
    x = [place(tmp_path, content), f"history={HISTORY}"]
    with pytest.raises(SnapshotError, match=words) as caught:
        upgrade(database_url, x=x)
    assert str(tmp_path / "tasks.json") in str(caught.value)
    assert "run `datahound-storage upgrade` again" in str(caught.value)
    assert "the tables stand at revision 0002, without what the files hold" in str(caught.value)
    assert "-x" not in str(caught.value)
    assert (tmp_path / "tasks.json").read_bytes() == content
    assert status(database_url).found == "0002"
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 0
    assert value(database_url, "SELECT count(*) FROM scheduler_runs") == 0
    assert value(database_url, "SELECT filled_at FROM scheduler_storage") is None
    # What the message says helps.
    upgrade(database_url, x=[place(tmp_path, b'[{"task_id": "a"}]')])
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 1


@pytest.mark.parametrize("name", ["snapshot", "history"])
def test_a_file_that_was_named_must_be_there(database_url: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(SnapshotError, match=f"--{name} .*there is no such file"):
        upgrade(database_url, x=[f"{name}={tmp_path / 'none'}"])


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation: a snapshot, and a history in both places."""
    data = tmp_path / "data"
    (data / "scheduler").mkdir(parents=True)
    (data / "scheduler" / "scheduled_tasks.json").write_text(json.dumps([task()]))
    old = [line(timestamp="2023-03-01T12:00:00"), line(run_id="both"), "torn by a crash {"]
    (data / "scheduler" / "task_history.jsonl").write_text("\n".join(old))
    (tmp_path / "logging" / "scheduler").mkdir(parents=True)
    new = [line(run_id="both"), line(), line(), "", line(task_id="gone")]
    (tmp_path / "logging" / "scheduler" / "task_history.jsonl").write_text("\n".join(new) + "\n")
    monkeypatch.setenv("DATAHOUND_DATA_DIR", str(data))
    return data


def counts(url: str) -> tuple[int, int]:
    tables = ("scheduler_tasks", "scheduler_runs")
    tasks, runs = (value(url, f"SELECT count(*) FROM {table}") for table in tables)
    return tasks, runs


def test_the_data_directory_is_the_default(
    database_url: str, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    upgrade(database_url)
    assert counts(database_url) == (1, 5)
    said = capfd.readouterr()
    assert said.out == ""
    assert "imported 1 task from" in said.err
    assert "imported 5 runs from" in said.err
    assert "task_history.jsonl: line 3 is no JSON object with a task_id" in said.err
    assert "imported 1 task and 5 runs, left out 0 tasks and 1 line of the history;" in said.err
    # The older file first; the run that is in both, once.
    listed = query(database_url, "SELECT run_id, task_id = (SELECT id FROM scheduler_tasks)"
                   " FROM scheduler_runs ORDER BY seq")  # fmt: skip
    assert [belongs for _, belongs in listed] == [True, True, True, True, False]
    assert listed[1][0] == "both"
    assert listed[2][0][:-1] == listed[3][0][:-1]


def test_the_working_directory_is_the_default_of_that(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATAHOUND_DATA_DIR")
    monkeypatch.chdir(data_dir.parent)
    upgrade(database_url)
    assert counts(database_url) == (1, 5)


def test_nothing_is_there_to_import(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upgrade(database_url)
    assert counts(database_url) == (0, 0)


def test_it_can_be_left_out(database_url: str, migrated_url: str, data_dir: Path) -> None:
    upgrade(database_url, import_files=False)
    assert counts(database_url) == (0, 0)
    downgrade(database_url, "0002")
    upgrade(database_url, x=["import=no"])
    assert counts(database_url) == (0, 0)


def test_going_back_keeps_the_rows_and_forward_brings_none(
    database_url: str, data_dir: Path
) -> None:
    upgrade(database_url)
    query(database_url, "DELETE FROM scheduler_tasks")
    downgrade(database_url, "0002")
    assert counts(database_url) == (0, 5)
    upgrade(database_url)
    assert counts(database_url) == (0, 5)


def test_a_table_with_rows_is_left_alone(database_url: str, data_dir: Path) -> None:
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    upgrade(database_url)
    assert counts(database_url) == (3, 3)


def test_an_empty_snapshot_fills_nothing(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url, x=[place(tmp_path, b"[]")])
    assert value(database_url, "SELECT filled_at FROM scheduler_storage") is None


def test_runs_that_were_pruned_stay_away(database_url: str, data_dir: Path) -> None:
    upgrade(database_url, "0002")
    query(database_url, "UPDATE scheduler_storage SET history_cutoff = '2024-01-01'")
    upgrade(database_url)
    assert counts(database_url) == (1, 4)


def test_it_waits_for_writers_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, json.dumps([task()]).encode())
    lock = tmp_path / ".scheduler.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(revision, "LOCK_SECONDS", 0.1)
        with pytest.raises(revision.FileError, match=r"held for over 0\.1 s"):
            revision.copy_of(tmp_path / "tasks.json")
    with revision.copy_of(tmp_path / "tasks.json") as content:
        assert json.load(content) == [task()]


def test_who_adds_a_task_at_the_last_moment_stops_the_import(database_url: str) -> None:
    upgrade(database_url, "0002")
    with psycopg.connect(database_url) as late, ThreadPoolExecutor(1) as pool:
        late.execute("INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json,"
                     " schedule_type, schedule_expr, status)"
                     " VALUES (gen_random_uuid(), 'late', '', '', '{}', '', '', '')")  # fmt: skip
        going = pool.submit(upgrade, database_url, x=support.IMPORT_SAMPLE)
        wait_for(database_url, "SELECT 1 FROM pg_locks WHERE NOT granted")
        late.commit()
        with pytest.raises(SnapshotError, match="somebody has added tasks"):
            going.result(30)
    assert query(database_url, "SELECT task_key FROM scheduler_tasks") == [("late",)]
    assert value(database_url, "SELECT count(*) FROM scheduler_runs") == 0


def test_a_number_of_more_decimals_than_a_numeric_has_comes_in(
    database_url: str, tmp_path: Path
) -> None:
    number = f"1.{'3' * 17_000}"
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task()]).replace('"interval_minutes": 5', f'"n": {number}'))
    upgrade(database_url, x=[f"snapshot={path}"])
    assert value(database_url, "SELECT config_json ->> 'n' FROM scheduler_tasks") == str(4 / 3)
    assert number in value(database_url, "SELECT task_text FROM scheduler_tasks")
