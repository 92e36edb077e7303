"""import snapshot

Brings the files into tables that were never filled: the snapshot's tasks in their order, and the
history's runs. `-x snapshot=PATH` and `-x history=PATH` name the files, else they are those of the
data directory (DATAHOUND_DATA_DIR, default `data`); `-x import=no` leaves them out. Running it
again imports nothing. A snapshot with a fault stops it; a history line that cannot be read costs
only itself.

The rules by which a file's task becomes a row are frozen copies of the package's at this revision.

Revision ID: 0003
Revises: 0002
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import count, islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from alembic import context, op
from alembic.util import CommandError

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BLANK = (" ", "\t", "\r", "\n")
BATCH = 10_000
LOCK_SECONDS = 10.0
PROGRESS_SECONDS = 2.0

TASK_COLUMNS = """id uuid, task_key text, task_type text, company text, schedule_type text,
    schedule_expr text, status text, created_at timestamptz, updated_at timestamptz,
    config_json jsonb, task_text text, timezone text"""
RUN_COLUMNS = """id uuid, task_id uuid, run_id text, task_key text, started_at timestamptz,
    finished_at timestamptz, success boolean, message text, duration_ms bigint,
    metadata_json jsonb, line_text text"""
# Values that are JSON already, and are not to be encoded once more.
JSON_COLUMNS = ("config_json", "metadata_json")

TASKS_WERE_THERE = """EXISTS (SELECT FROM scheduler_tasks)
    OR EXISTS (SELECT FROM scheduler_storage WHERE filled_at IS NOT NULL)"""
RUNS_WERE_THERE = "EXISTS (SELECT FROM scheduler_runs)"


class FileError(CommandError):
    """A file that cannot be imported; nothing was changed."""

    about_files = True


def upgrade() -> None:
    given = context.get_x_argument(as_dictionary=True)
    if context.config.attributes.get("import_files") is False or given.get("import") == "no":
        return
    snapshot, history = find_files(given)
    if context.is_offline_mode():
        print_tasks(snapshot)
        print_runs(history)
    else:
        import_tasks(snapshot)
        import_runs(history)


def downgrade() -> None:
    # The rows stay: they belong to the tables of 0001.
    pass


# ---- The files


def find_files(given: dict[str, str]) -> tuple[Path | None, list[Path]]:
    """The snapshot, if there is one, and the history files, the older one first."""
    data = Path(os.environ.get("DATAHOUND_DATA_DIR", "").strip() or "data").absolute()
    default = data / "scheduler" / "scheduled_tasks.json"
    snapshot = named(given, "snapshot") or (default if default.is_file() else None)
    if explicit := named(given, "history"):
        return snapshot, [explicit]
    histories = (
        data / "scheduler" / "task_history.jsonl",
        data.parent / "logging" / "scheduler" / "task_history.jsonl",
    )
    return snapshot, [path for path in histories if path.is_file()]


def named(given: dict[str, str], name: str) -> Path | None:
    if not given.get(name):
        return None
    path = Path(given[name]).absolute()
    if not path.is_file():
        raise FileError(f"-x {name}={given[name]}: there is no such file. Nothing was changed.")
    return path


def read_tasks(path: Path) -> list[tuple[Any, ...]]:
    """The rows of all tasks in a snapshot; raise FileError at the first fault."""
    try:
        with locked(path.with_name(".scheduler.lock")):
            content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise fault(path, f"is not UTF-8 (byte {error.start})") from error
    timezone = os.environ.get("DATAHOUND_SCHEDULER_TZ", "").strip() or "UTC"
    now, keys = datetime.now(UTC), set[str]()
    rows = []
    for number, (start, end, task) in enumerate(split(path, text), 1):
        problem = problem_of(task)
        if not problem and task["task_id"] in keys:
            problem = f"has the task_id {task['task_id'][:80]!r} of an item before it"
        if problem:
            raise fault(path, f"{item(text, number, start)} {problem}")
        keys.add(task["task_id"])
        rows.append(task_row(task, in_layout(text[start:end]), timezone, now))
    return rows


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that writers of the files take; older code writes them in place."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (ImportError, OSError):
        yield  # no such lock here: nobody writes, or not with it
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise fault(path, f"was held for over {LOCK_SECONDS:g} s") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def fault(path: Path, problem: str) -> FileError:
    return FileError(
        f"{path}: {problem}. Nothing was imported. Correct the file or bring back a good copy, and "
        "run the upgrade again; -x snapshot=PATH names another file, -x import=no leaves it out."
    )


def item(text: str, number: int, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"item {number} (line {line})"


def split(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    """Start, end and value of each item of a JSON list."""
    position = skip(text, 0)
    if position == len(text):
        raise fault(path, "the file is empty")
    if text[position] != "[":
        raise fault(path, "the file is not a JSON list")
    end = skip(text, position + 1)
    if text[end : end + 1] != "]":
        end = yield from items(path, text, end)
    if skip(text, end + 1) != len(text):
        raise fault(path, "there is text after the end of the list")


def items(path: Path, text: str, position: int) -> Generator[tuple[int, int, Any], None, int]:
    """Yield the items from `position` on; return where the list ends."""
    decode = json.JSONDecoder().raw_decode
    for number in count(1):
        start = skip(text, position)
        try:
            value, end = decode(text, start)
        except (ValueError, RecursionError):
            raise fault(path, f"{item(text, number, start)} is torn or not JSON") from None
        yield start, end, value
        position = skip(text, end)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise fault(path, f"{item(text, number, start)} is followed by no comma or bracket")
        position += 1
    return position


def skip(text: str, position: int) -> int:
    while text[position : position + 1] in BLANK:
        position += 1
    return position


def history_lines(paths: list[Path], unreadable: list[str]) -> Iterator["Line"]:
    """The usable lines of several files, each run once; the others go to `unreadable`."""
    seen: set[str] = set()
    for path in paths:
        equal: Counter[str] = Counter()
        for raw in raw_lines(path):
            line = parse_line(raw, equal)
            if line is None:
                unreadable.append(path.name)
            elif line.run_id not in seen:
                seen.add(line.run_id)
                yield line


def raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (stripped for raw in file if (stripped := raw.strip()))
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})") from error


# ---- Online: COPY


def import_tasks(path: Path | None) -> None:
    if path is None:
        return
    if ask(TASKS_WERE_THERE):
        say(f"{path}: not imported, as there have been tasks in the table before")
        return
    started, rows = time.monotonic(), read_tasks(path)
    # The application may run: what it adds now must not mix with the import.
    op.execute("LOCK TABLE scheduler_tasks IN SHARE ROW EXCLUSIVE MODE")
    if not ask(TASKS_WERE_THERE):
        progress = Progress(f"tasks from {path}", started)
        for batch in batches(iter(rows)):
            copy("scheduler_tasks", TASK_COLUMNS, batch)
            progress.add(len(batch))
        progress.end()


def import_runs(paths: list[Path]) -> None:
    if not paths:
        return
    if ask(RUNS_WERE_THERE):
        say("history: not imported, as there are runs in the table")
        return
    progress = Progress(f"runs from {', '.join(map(str, paths))}", time.monotonic())
    bind = op.get_bind()
    rows = bind.exec_driver_sql("SELECT task_key, id FROM scheduler_tasks")
    ids: dict[str, UUID] = {row[0]: row[1] for row in rows}
    cutoff = bind.exec_driver_sql("SELECT max(history_cutoff) FROM scheduler_storage").scalar()
    unreadable: list[str] = []
    lines = history_lines(paths, unreadable)
    wanted = (line for line in lines if cutoff is None or line.ended_at >= cutoff)
    for batch in batches(run_row(line, ids) for line in wanted):
        copy("scheduler_runs", RUN_COLUMNS, batch)
        progress.add(len(batch))
    progress.end(f"; {len(unreadable):,} lines could not be read" if unreadable else "")


def ask(condition: str) -> bool:
    return bool(op.get_bind().exec_driver_sql(f"SELECT {condition}").scalar())


def names(columns: str) -> list[str]:
    return [column.split()[0] for column in columns.split(",")]


def batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def copy(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    driver: Any = op.get_bind().connection.driver_connection
    statement = f"COPY {table} ({', '.join(names(columns))}) FROM STDIN"
    with driver.cursor() as cursor, cursor.copy(statement) as target:
        for row in rows:
            target.write_row(row)


class Progress:
    """A line on stderr every two seconds and at the end: rows and rate."""

    def __init__(self, what: str, started: float) -> None:
        self._what, self._started, self._count = what, started, 0
        self._next = started + PROGRESS_SECONDS

    def add(self, rows: int) -> None:
        """Count rows."""
        self._count += rows
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self.end(" so far")

    def end(self, more: str = "") -> None:
        """Say where it stands."""
        rate = self._count / max(time.monotonic() - self._started, 0.001)
        say(f"imported {self._count:,} {self._what} ({rate:,.0f} rows/s){more}")


def say(text: str) -> None:
    # Reporting must not be what fails: stderr may be closed.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the progress line


# ---- Offline: statements with the rows as a literal


def print_tasks(path: Path | None) -> None:
    if path is None:
        return
    write("LOCK TABLE scheduler_tasks IN SHARE ROW EXCLUSIVE MODE")
    rows = read_tasks(path)
    if rows:
        selected = ", ".join(names(TASK_COLUMNS))
        write(
            f"INSERT INTO scheduler_tasks ({selected})\nSELECT {selected}\n"
            f"FROM {record_set(TASK_COLUMNS, rows)}\n"
            f"WHERE NOT ({TASKS_WERE_THERE})\nORDER BY ordinal"
        )


def print_runs(paths: list[Path]) -> None:
    # Several statements: the first decides for all of them.
    flag = "datahound_storage.import_runs"
    unreadable: list[str] = []
    rows = (run_row(line, {}) for line in history_lines(paths, unreadable))
    selected = ", ".join(names(RUN_COLUMNS))
    found = ", ".join(
        "coalesce((SELECT t.id FROM scheduler_tasks AS t WHERE t.task_key = r.task_key), task_id)"
        if name == "task_id"
        else name
        for name in names(RUN_COLUMNS)
    )
    for number, batch in enumerate(batches(rows)):
        if number == 0:
            write(f"SELECT set_config('{flag}', (NOT {RUNS_WERE_THERE})::text, true)")
        write(
            f"INSERT INTO scheduler_runs ({selected})\nSELECT {found}\n"
            f"FROM {record_set(RUN_COLUMNS, batch)}\n"
            f"WHERE current_setting('{flag}')::boolean\nORDER BY ordinal"
        )


def write(statement: str) -> None:
    # Not op.execute: it would look for :parameters and double backslashes in the rows.
    op.get_context().impl.static_output(f"{statement};")


def record_set(columns: str, rows: list[tuple[Any, ...]]) -> str:
    items = ",\n".join(record(names(columns), n, row) for n, row in enumerate(rows))
    tag = next(f"$rows{n}$" for n in range(10**6) if f"$rows{n}$" not in items)
    return (
        f"jsonb_to_recordset({tag}[\n{items}\n]{tag}::jsonb)\n    AS r (ordinal bigint, {columns})"
    )


def record(columns: list[str], ordinal: int, row: tuple[Any, ...]) -> str:
    values = (
        f'"{name}": {value if name in JSON_COLUMNS else json.dumps(value, default=str)}'
        for name, value in zip(columns, row, strict=True)
        if value is not None
    )
    return f'{{"ordinal": {ordinal}, {", ".join(values)}}}'


# ---- Frozen copies: what a file's task means


def problem_of(task: Any) -> str:
    """What forbids a task as a row; empty if nothing does."""
    if not isinstance(task, dict):
        return f"must be an object, not {type(task).__name__}"
    key = task.get("task_id")
    if not isinstance(key, str) or not key.strip():
        return "needs a task_id that is a text and not empty"
    if len(key) > 255 or not fits(key):
        return f"has a task_id {key[:40]!r} of over 255 characters, with U+0000 or half a pair"
    config = task.get("task_config")
    if config is not None and not isinstance(config, dict):
        return f"(task {key[:80]!r}): task_config must be an object"
    config = config or {}
    for name, value, limit in (
        ("task_config.task_type", config.get("task_type"), 64),
        ("task_config.company", config.get("company"), 255),
        ("schedule_type", task.get("schedule_type"), 32),
        ("status", task.get("status"), 32),
    ):
        if value is not None and (not isinstance(value, str) or len(value) > limit):
            return f"(task {key[:80]!r}): {name} must be a text of at most {limit} characters"
    return ""


def task_row(task: Any, text: str, timezone: str, now: datetime) -> tuple[Any, ...]:
    """The values of TASK_COLUMNS."""
    config = task.get("task_config") or {}
    return (
        uuid4(),
        task["task_id"],
        text_of(config.get("task_type")),
        text_of(config.get("company")),
        text_of(task.get("schedule_type")),
        clean(schedule_expr(task))[:255],
        text_of(task.get("status")),
        parse_time(task.get("created_at")) or now,
        parse_time(task.get("updated_at")) or now,
        for_jsonb(text),
        text,
        timezone,
    )


def text_of(value: Any) -> str:
    return clean(value) if isinstance(value, str) else ""


def schedule_expr(task: dict[str, Any]) -> str:
    kind = task.get("schedule_type")
    if kind == "interval":
        return f"interval:{number_of(task.get('interval_minutes'))}"
    if kind == "daily_time":
        daily = task.get("daily_time")
        return f"daily:{daily if isinstance(daily, str) else ''}"
    if kind != "weekly_schedule":
        return ""
    given = task.get("weekly_schedule")
    week = given if isinstance(given, dict) else {}
    days = week.get("days")
    short = [str(day)[:3].lower() for day in days] if isinstance(days, list) else []
    return f"weekly:{','.join(short)}@{number_of(week.get('interval_minutes'))}"


def number_of(value: Any) -> str:
    return "" if value is None else str(value)[:32]


def parse_time(value: Any) -> datetime | None:
    """The instant of an ISO time; a naive one is the process's local time."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


REFUSED = re.compile("[\x00\ud800-\udfff]")
UNCLEAN = re.compile(r"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|\d[eE][+-]?\d{3,}(?=[\s,\]}])")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


def clean(value: str) -> str:
    return REFUSED.sub("\ufffd", value)


def fits(value: str) -> bool:
    return REFUSED.search(value) is None


def for_jsonb(text: str) -> str:
    """The nearest text that jsonb takes: U+FFFD for what it refuses, null for NaN and the like."""
    if not UNCLEAN.search(text):
        return text
    value = json.loads(text, parse_constant=lambda _: None, parse_float=finite)
    return json.dumps(clean_all(value))


def finite(spelling: str) -> float | None:
    value = float(spelling)
    return value if abs(value) < math.inf else None


def clean_all(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_all(item) for key, item in value.items()}
    return [clean_all(item) for item in value] if isinstance(value, list) else value


def is_plain(text: str) -> bool:
    return text.isascii() and "\x7f" not in text


def in_layout(raw: str) -> str:
    """A task's text in the snapshot's layout, ASCII; numbers keep their spelling."""
    if is_plain(raw) and raw.startswith('{\n    "') and raw.endswith("\n  }") and "\r" not in raw:
        return raw
    return "".join(laid_out(raw))


def laid_out(raw: str) -> Iterator[str]:
    depth, previous = 1, ""
    for match in TOKEN.finditer(raw):
        token = match.group()
        closes = token in ("]", "}")
        depth -= closes
        if previous not in ("[", "{") if closes else previous in ("[", "{", ","):
            yield "\n" + "  " * depth
        if token == ":":  # noqa: S105
            yield ": "
        else:
            yield token if is_plain(token) else encode_basestring_ascii(json.loads(token))
        depth += token in ("[", "{")
        previous = token


# ---- Frozen copies: what a history line means


class Line(NamedTuple):
    """A usable line of the history."""

    run_id: str
    ended_at: datetime
    text: str
    entry: dict[str, Any]


NAMESPACE = UUID("6d1c0f0e-8a3e-5d4b-9b57-3f6a2f0c7a11")
LONGEST = timedelta(days=3650)


def parse_line(raw: bytes, equal: Counter[str]) -> Line | None:
    """A line with its run id, or the one derived from its text and its number among equal ones."""
    try:
        text = raw.decode("utf-8")
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not is_key(entry.get("task_id")):
        return None
    ended_at = parse_time(entry.get("timestamp"))
    if ended_at is None:
        return None
    if is_key(entry.get("run_id")):
        return Line(entry["run_id"], ended_at, text, entry)
    digest = sha256(raw).hexdigest()[:32]
    equal[digest] += 1
    return Line(f"line-{digest}-{equal[digest]}", ended_at, text, entry)


def is_key(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and fits(value)


def run_row(line: Line, task_ids: dict[str, UUID]) -> tuple[Any, ...]:
    """The values of RUN_COLUMNS."""
    entry, key = line.entry, line.entry["task_id"]
    seconds = seconds_of(entry.get("duration_seconds"))
    try:
        started_at = line.ended_at - timedelta(seconds=seconds)
    except OverflowError:
        started_at = line.ended_at
    success, duration = bool(entry.get("success")), round(seconds * 1000)
    message = entry.get("message")
    message = clean(message) if isinstance(message, str) else ""
    kept = {k: entry[k] for k in ("task_name", "task_type", "duration_seconds") if k in entry}
    metadata = for_jsonb(json.dumps({"task_key": key, **kept}))
    said = {
        "timestamp": line.ended_at.isoformat(),
        "task_id": key,
        "task_name": "",
        "task_type": "",
        "success": success,
        "message": message,
        "duration_seconds": duration / 1000,
        **{k: v for k, v in json.loads(metadata).items() if k != "task_key"},
    }
    if not line.run_id.startswith("line-"):
        said["run_id"] = line.run_id
    return (
        uuid4(),
        task_ids.get(key) or uuid5(NAMESPACE, key),
        line.run_id,
        key,
        started_at,
        line.ended_at,
        success,
        message,
        duration,
        metadata,
        # The columns give the line back, or the row keeps it.
        None if json.dumps(said) == line.text and survives(entry) else storable(line),
    )


def survives(entry: dict[str, Any]) -> bool:
    """Whether jsonb gives the metadata back: no exponents, no negative zero, no objects."""
    plain = all(isinstance(entry.get(name, ""), str) for name in ("task_name", "task_type"))
    spelled = repr(entry.get("duration_seconds"))
    return plain and "e" not in spelled and spelled != "-0.0"


def storable(line: Line) -> str:
    return line.text if fits(line.text) else json.dumps(line.entry)


def seconds_of(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return 0.0 if math.isnan(number) else min(max(number, 0.0), LONGEST.total_seconds())
