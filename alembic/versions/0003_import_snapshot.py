"""import snapshot

Brings the files into tables that were never filled: the snapshot's tasks in their order, and the
history's runs. `-x snapshot=PATH` and `-x history=PATH` name the files, else they are those of the
data directory (DATAHOUND_DATA_DIR, default `data`); `-x import=no` leaves them out. Running it
again imports nothing. A faulty item or line stops it and is named by its position;
`-x on_error=quarantine` lists them all and goes on with the others. Whatever stops it, a kill too,
nothing was imported then: it is one transaction. `datahound-storage upgrade` has options of its
own for all of these, and a message names those of the command that runs.

Files of any size are read piece by piece. What is in them is put in temporary tables first, so that
the tasks are locked for the last step only.

The rules by which a file's task becomes a row are frozen copies of the package's at this revision.

Revision ID: 0003
Revises: 0002
"""

import codecs
import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import count, islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from alembic import context, op
from alembic.util import CommandError

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

BLANK, NEWLINE = (" ", "\t", "\r", "\n"), "\n"
# What follows an item.
ENDS = (*BLANK, ",", "]")
BATCH = 10_000
# A batch of tasks as one literal: a server takes 256 MB, and whoever reads the script some less.
PRINTED_TASKS = 1_000
PIECE = 1 << 20
# What has no end within so many characters is torn.
LONGEST_ITEM = 64 << 20
LOCK_SECONDS = 10.0
PROGRESS_SECONDS = 2.0
# What tells that a task is there, where it cannot be read.
TASK_ID = '"task_id"'

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


class Faults:
    """What to do about an item or a line that cannot be used: stop, or tell and leave it out."""

    def __init__(self, given: dict[str, str]) -> None:
        choice = given.get("on_error", "stop")
        if choice not in ("stop", "quarantine"):
            raise FileError(f"{option('on_error', choice)}: it is stop or quarantine. {standing()}")
        self._quarantine = choice == "quarantine"
        self._tasks = self._lines = 0

    def add_task(self, path: Path, problem: str, tasks: int = 1) -> None:
        """Raise FileError, or tell what costs so many tasks."""
        if not self._quarantine:
            raise fault(path, problem, may_leave_out=True)
        self._tasks += tasks
        say(f"left out: {path}: {problem}")

    def add_line(self, path: Path, problem: str, has_end: bool) -> None:
        """Raise FileError, or tell it; the latter in any case of a line that has no end."""
        if has_end and not self._quarantine:
            raise fault(path, problem, may_leave_out=True)
        self._lines += 1
        say(f"left out: {path}: {problem}")

    def end(self, imported: tuple[int, int] | None) -> None:
        """Say how many were left out, and how many tasks and runs were imported, if that is known.

        Nothing where nothing was left out: the lines before say it all.
        """
        if not (self._tasks or self._lines):
            return
        done = ""
        if imported is not None:
            done = f"imported {counted(imported[0], 'task')} and {counted(imported[1], 'run')}, "
        lines = counted(self._lines, "line")
        left = f"left out {counted(self._tasks, 'task')} and {lines} of the history"
        say(f"{done}{left}; the files have them still")


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def by_alembic() -> bool:
    """Whether Alembic's command line is at work, and not `datahound-storage` or a program."""
    config = getattr(context, "config", None)
    return getattr(getattr(config, "cmd_opts", None), "cmd", None) is not None


def option(name: str, value: str) -> str:
    """An option with its value, as whoever reads a message would have to write it."""
    return f"-x {name}={value}" if by_alembic() else f"--{name.replace('_', '-')} {value}"


def command(options: str = "") -> str:
    """What runs the upgrade, with options."""
    if by_alembic():
        return f"`alembic {options and f'{options} '}upgrade head`"
    return f"`datahound-storage upgrade{options and f' {options}'}`"


def standing() -> str:
    """What there is after a failure: the revisions before this one are committed."""
    if getattr(context, "config", None) is None or context.is_offline_mode():
        return "Nothing was imported."
    return (
        f"Nothing was imported: the tables stand at revision {down_revision}, without what the "
        "files hold."
    )


def upgrade() -> None:
    given = context.get_x_argument(as_dictionary=True)
    if context.config.attributes.get("import_files") is False or given.get("import") == "no":
        return
    faults, (snapshot, history) = Faults(given), find_files(given)
    if context.is_offline_mode():
        print_tasks(snapshot, faults)
        print_runs(history, faults)
        faults.end(None)
    else:
        faults.end(import_files(snapshot, history, faults))


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
        raise FileError(f"{option(name, given[name])}: there is no such file. {standing()}")
    return path


def read_tasks(path: Path, faults: Faults) -> Iterator[tuple[Any, ...]]:
    """The rows of the tasks in a snapshot, in its order."""
    timezone = os.environ.get("DATAHOUND_SCHEDULER_TZ", "").strip() or "UTC"
    now, keys = datetime.now(UTC), set[str]()
    with contextlib.closing(copy_of(path)) as file:
        for item in Snapshot(path, file, faults):
            problem = problem_of(item.task) if is_utf8(item.text) else "is not UTF-8"
            if not problem and item.task["task_id"] in keys:
                problem = f"has the task_id {item.task['task_id'][:80]!r} of an item before it"
            if problem:
                faults.add_task(path, f"{item.place} {problem}")
                continue
            keys.add(item.task["task_id"])
            yield task_row(item.task, in_layout(item.text), timezone, now)


def copy_of(path: Path) -> IO[bytes]:
    """What a file holds now; in a nameless one if it is large, as the lock is not held for long."""
    try:
        with locked(path.with_name(".scheduler.lock")), path.open("rb") as file:
            content = tempfile.SpooledTemporaryFile(PIECE)  # noqa: SIM115 - the caller closes it
            shutil.copyfileobj(file, content, PIECE)
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})") from error
    content.seek(0)
    return content


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


def fault(path: Path, problem: str, may_leave_out: bool = False) -> FileError:
    quarantine = ""
    if may_leave_out:
        again = command(option("on_error", "quarantine"))
        quarantine = f", or run {again}, which lists all that is wrong and goes on without it"
    none = "-x import=no" if by_alembic() else "--no-import"
    return FileError(
        f"{path}: {problem}. {standing()} Correct the file or bring back a good copy, and run "
        f"{command()} again{quarantine}. {option('snapshot', 'PATH')} and "
        f"{option('history', 'PATH')} name other files, {none} leaves them out."
    )


class Item(NamedTuple):
    """An item of the list: where it is, its text as it stands there, its value."""

    place: str
    text: str
    task: Any


class Snapshot:
    """Takes a JSON list apart item by item, and holds a piece of it at a time."""

    def __init__(self, path: Path, file: IO[bytes], faults: Faults) -> None:
        self._path, self._file, self._faults = path, file, faults
        # A byte that is not UTF-8 costs its own item only.
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text, self._at = "", 0
        self._line, self._counted = 1, 0

    def __iter__(self) -> Iterator[Item]:
        mark = self._next()
        if mark != "[":
            raise fault(self._path, f"the file is {'not a JSON list' if mark else 'empty'}")
        self._at += 1
        if self._next() != "]" and not (yield from self._items()):
            return
        self._at += 1
        if self._next():
            problem = "there is text after the end of the list"
            self._faults.add_task(self._path, problem, self._count_rest())

    def _items(self) -> Generator[Item, None, bool]:
        """Yield the items; return whether the list has an end."""
        for number in count(1):
            self._next()
            place = f"item {number} (line {self._count_lines()})"
            found = self._value()
            if found is None:
                lost = max(1, self._count_rest())
                self._faults.add_task(
                    self._path,
                    f"{place} is torn or not JSON; nothing after it could be read: "
                    f"{counted(lost, 'task')} with it, by their task_id",
                    lost,
                )
                return False
            yield Item(place, *found)
            mark = self._next()
            if mark == "]":
                break
            if mark != ",":
                lost = self._count_rest()
                problem = f"{place} is followed by no comma or bracket"
                if lost:
                    problem += f"; {counted(lost, 'task')} after it could not be read"
                self._faults.add_task(self._path, problem, lost)
                return False
            self._at += 1
        return True

    def _value(self) -> tuple[str, Any] | None:
        while True:
            found = self._try_value()
            # Where the piece ends, the rest of the item or of a number may be in the next one.
            if found is not None and self._text[found[0] : found[0] + 1] in ENDS:
                break
            if len(self._text) - self._at > LONGEST_ITEM or not self._read_on():
                break
        if found is None:
            return None
        start, (self._at, value) = self._at, found
        return self._text[start : self._at], value

    def _try_value(self) -> tuple[int, Any] | None:
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, self._at)
        except (ValueError, RecursionError):
            return None
        return end, value

    def _next(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self._text[self._at : self._at + 1] in BLANK:
                self._at += 1
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _count_rest(self) -> int:
        """How many tasks there are in what cannot be read, by the word that each of them has."""
        found = self._text.count(TASK_ID, self._at)
        while data := self._file.read(PIECE):
            end = self._text[len(self._text) - len(TASK_ID) + 1 :]
            self._text, self._at = end + self._decode(data), 0
            found += self._text.count(TASK_ID)
        return found

    def _count_lines(self) -> int:
        self._line += self._text.count(NEWLINE, self._counted, self._at)
        self._counted = self._at
        return self._line

    def _read_on(self) -> bool:
        self._count_lines()
        self._text, self._at, self._counted = self._text[self._at :], 0, 0
        # As much again as there is: an item of many pieces is not tried for each of them.
        data = self._file.read(max(PIECE, len(self._text)))
        self._text += self._decode(data, not data)
        return bool(data)


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def history_lines(path: Path, faults: Faults) -> Iterator["Line"]:
    """The usable lines of a file."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                stripped = raw.strip()
                line = parse_line(stripped) if stripped else None
                if line is not None:
                    yield line
                elif stripped:
                    # A last line without an end is being written, or a crash has torn it.
                    problem = f"line {number} is no JSON object with a task_id and a timestamp"
                    faults.add_line(path, problem, has_end=raw.endswith(b"\n"))
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})") from error


# ---- Online: COPY


def import_files(snapshot: Path | None, histories: list[Path], faults: Faults) -> tuple[int, int]:
    """Bring in what the files hold; return how many tasks and how many runs.

    The runs first, as they lock nobody out.
    """
    tasks = runs = 0
    with_tasks = snapshot is not None and stage_tasks(snapshot, faults)
    if histories:
        runs = import_runs(histories, faults, with_tasks)
    if snapshot is not None and with_tasks:
        tasks = insert_tasks(snapshot)
    return tasks, runs


def stage_tasks(path: Path, faults: Faults) -> bool:
    """Put the tasks in a temporary table; False where the tasks are not to be imported."""
    if ask(TASKS_WERE_THERE):
        say(f"{path}: not imported, as there have been tasks in the table before")
        return False
    stage("incoming_tasks", TASK_COLUMNS, read_tasks(path, faults), "task", path)
    return True


def insert_tasks(path: Path) -> int:
    # The application may run: what it adds now must not mix with the import.
    op.execute("LOCK TABLE scheduler_tasks IN SHARE ROW EXCLUSIVE MODE")
    if ask(TASKS_WERE_THERE):
        raise FileError(
            f"somebody has added tasks while {path} was read. {standing()} Run {command()} again, "
            "which then leaves the tasks as they are."
        )
    columns = ", ".join(names(TASK_COLUMNS))
    statement = f"INSERT INTO scheduler_tasks ({columns}) SELECT {columns} FROM incoming_tasks AS i"
    return insert(statement, "incoming_tasks", "task", path)


def import_runs(paths: list[Path], faults: Faults, with_tasks: bool) -> int:
    if ask(RUNS_WERE_THERE):
        say("history: not imported, as there are runs in the table")
        return 0
    places = ", ".join(map(str, paths))
    stage("incoming_runs", STAGED_RUN_COLUMNS, staged_runs(paths, faults), "run", places)
    for statement in NUMBER_EQUAL_LINES:
        op.execute(statement)
    source = "incoming_tasks" if with_tasks else "scheduler_tasks"
    values = {
        "task_id": "coalesce(t.id, i.task_id)",
        "run_id": "i.run_id || coalesce(n.number::text, '')",
    }
    return insert(
        f"INSERT INTO scheduler_runs ({', '.join(names(RUN_COLUMNS))}) SELECT "
        + ", ".join(values.get(name, f"i.{name}") for name in names(RUN_COLUMNS))
        + f" FROM incoming_runs AS i LEFT JOIN {source} AS t ON t.task_key = i.task_key"
        " LEFT JOIN incoming_numbers AS n ON n.ordinal = i.ordinal",
        "incoming_runs",
        "run",
        places,
        " ON CONFLICT (run_id) DO NOTHING",
    )


# A line without an id of its own gets one from its text and its number among the file's equal
# lines. The server counts them: there may be millions.
STAGED_RUN_COLUMNS = f"file integer, digest text, {RUN_COLUMNS}"
NUMBER_EQUAL_LINES = (
    """
    CREATE TEMP TABLE incoming_numbers ON COMMIT DROP AS
    SELECT ordinal, row_number() OVER (PARTITION BY file, digest ORDER BY ordinal) AS number
    FROM incoming_runs WHERE digest IS NOT NULL
    """,
    "CREATE INDEX ON incoming_numbers (ordinal)",
    "ANALYZE incoming_numbers",
)


def staged_runs(paths: list[Path], faults: Faults) -> Iterator[tuple[Any, ...]]:
    """The rows of STAGED_RUN_COLUMNS, without those that were pruned."""
    bind = op.get_bind()
    cutoff = bind.exec_driver_sql("SELECT max(history_cutoff) FROM scheduler_storage").scalar()
    for number, path in enumerate(paths):
        for line in history_lines(path, faults):
            if cutoff is None or line.ended_at >= cutoff:
                digest = None if line.run_id else digest_of(line)
                unnumbered = line if digest is None else line._replace(run_id=f"line-{digest}-")
                yield (number, digest, *run_row(unnumbered, {}))


def stage(
    table: str, columns: str, rows: Iterable[tuple[Any, ...]], noun: str, place: Path | str
) -> None:
    """Put rows in a temporary table, numbered in their order."""
    op.execute(f"CREATE TEMP TABLE {table} (ordinal bigint, {columns}) ON COMMIT DROP")
    progress = Progress("read", noun, place)
    numbered = ((number, *row) for number, row in enumerate(rows))
    for batch in batches(numbered):
        copy(table, f"ordinal bigint, {columns}", batch)
        progress.add(len(batch))
    op.execute(f"CREATE INDEX ON {table} (ordinal)")
    op.execute(f"ANALYZE {table}")


def insert(statement: str, table: str, noun: str, place: Path | str, end: str = "") -> int:
    """Insert what was staged as `i`, batch by batch in its order; return how many were new."""
    bind, progress = op.get_bind(), Progress("imported", noun, place)
    last = bind.exec_driver_sql(f"SELECT max(ordinal) FROM {table}").scalar()
    for start in range(0, -1 if last is None else last + 1, BATCH):
        part = f" WHERE i.ordinal >= {start} AND i.ordinal < {start + BATCH} ORDER BY i.ordinal"
        progress.add(bind.exec_driver_sql(f"{statement}{part}{end}").rowcount)
    progress.end()
    return progress.count


def ask(condition: str) -> bool:
    return bool(op.get_bind().exec_driver_sql(f"SELECT {condition}").scalar())


def names(columns: str) -> list[str]:
    return [column.split()[0] for column in columns.split(",")]


def batches(rows: Iterator[tuple[Any, ...]], size: int = BATCH) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(rows, size)):
        yield batch


def copy(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    driver: Any = op.get_bind().connection.driver_connection
    statement = f"COPY {table} ({', '.join(names(columns))}) FROM STDIN"
    with driver.cursor() as cursor, cursor.copy(statement) as target:
        for row in rows:
            target.write_row(row)


class Progress:
    """A line on stderr every two seconds and at the end: rows and rate."""

    def __init__(self, verb: str, noun: str, place: Path | str) -> None:
        self._verb, self._noun, self._place = verb, noun, place
        self.count = 0
        self._started = time.monotonic()
        self._next = self._started + PROGRESS_SECONDS

    def add(self, rows: int) -> None:
        """Count rows."""
        self.count += rows
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self.end(" so far")

    def end(self, more: str = "") -> None:
        """Say where it stands."""
        rate = self.count / max(time.monotonic() - self._started, 0.001)
        what = f"{self._verb} {counted(self.count, self._noun)} from {self._place}"
        say(f"{what} ({rate:,.0f} rows/s){more}")


def say(text: str) -> None:
    # Reporting must not be what fails: stderr may be closed.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the progress line


# ---- Offline: statements with the rows as a literal


def print_tasks(path: Path | None, faults: Faults) -> None:
    if path is None:
        return
    write("LOCK TABLE scheduler_tasks IN SHARE ROW EXCLUSIVE MODE")
    flag, selected = "datahound_storage.import_tasks", ", ".join(names(TASK_COLUMNS))
    for number, batch in enumerate(batches(read_tasks(path, faults), PRINTED_TASKS)):
        if number == 0:
            write(f"SELECT set_config('{flag}', (NOT ({TASKS_WERE_THERE}))::text, true)")
        write(
            f"INSERT INTO scheduler_tasks ({selected})\nSELECT {selected}\n"
            f"FROM {record_set(TASK_COLUMNS, batch)}\n"
            f"WHERE current_setting('{flag}')::boolean\nORDER BY ordinal"
        )


def print_runs(paths: list[Path], faults: Faults) -> None:
    # Several statements: the first decides for all of them.
    flag = "datahound_storage.import_runs"
    rows = (run_row(line, {}) for line in identified(paths, faults))
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


def identified(paths: list[Path], faults: Faults) -> Iterator["Line"]:
    """The usable lines of several files, each run once and with an id."""
    seen: set[str] = set()
    for path in paths:
        equal: Counter[str] = Counter()
        for line in history_lines(path, faults):
            known = identify(line, equal)
            if known.run_id not in seen:
                seen.add(known.run_id)
                yield known


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
# The last one: more decimals than a numeric has.
UNCLEAN = re.compile(
    r"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|\d[eE][+-]?\d{3,}(?=[\s,\]}])|\.\d{16000}"
)
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


def parse_line(raw: bytes) -> Line | None:
    """A line; its run id is empty where it has none of its own."""
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
    return Line(entry["run_id"] if is_key(entry.get("run_id")) else "", ended_at, text, entry)


def identify(line: Line, equal: Counter[str]) -> Line:
    """The line with its run id, or one derived from its text and its number among equal ones."""
    if line.run_id:
        return line
    digest = digest_of(line)
    equal[digest] += 1
    return line._replace(run_id=f"line-{digest}-{equal[digest]}")


def digest_of(line: Line) -> str:
    return sha256(line.text.encode("utf-8")).hexdigest()[:32]


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
