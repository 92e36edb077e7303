"""The floor: plain psycopg and plain durable files, which know nothing but what they are to do.

The statements are prepared and run in autocommit on tables like ours, triggers included; the texts
are encoded beforehand, and files are written as the design wants them: the sidecar, then the
snapshot, each to a temporary file that is synced, renamed, and its directory synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg

from benchmarks.speed.world import Task, texts_of
from datahound_storage.tasks import columns_of

Row = tuple[Any, ...]
_BLOCK = 256
_COLUMNS = (
    "task_key, task_type, company, schedule_type, schedule_expr, status, created_at, updated_at, "
    "config_json, task_text, id, timezone"
)
_INSERT = f"INSERT INTO scheduler_tasks ({_COLUMNS}) VALUES ({', '.join(['%s'] * 12)})"
_UPDATE = """
UPDATE scheduler_tasks SET task_type = %s, company = %s, schedule_type = %s, schedule_expr = %s,
    status = %s, created_at = %s, updated_at = %s, config_json = %s, task_text = %s,
    edited_columns = '{}'
WHERE task_key = %s"""
_DELETE = "DELETE FROM scheduler_tasks WHERE task_key = %s"
_GET = "SELECT task_text FROM scheduler_tasks WHERE task_key = %s"
_LIST = "SELECT task_text FROM scheduler_tasks ORDER BY position"
_COPY = f"COPY scheduler_tasks ({_COLUMNS}) FROM STDIN"
_INCOMING = f"""
CREATE TEMP TABLE incoming ON COMMIT DROP AS SELECT {_COLUMNS} FROM scheduler_tasks LIMIT 0"""
_COPY_INCOMING = f"COPY incoming ({_COLUMNS}) FROM STDIN"
_UPDATE_ALL = """
UPDATE scheduler_tasks AS t SET task_type = i.task_type, company = i.company,
    schedule_type = i.schedule_type, schedule_expr = i.schedule_expr, status = i.status,
    created_at = i.created_at, updated_at = i.updated_at, config_json = i.config_json,
    task_text = i.task_text, edited_columns = '{}'
FROM incoming AS i WHERE t.task_key = i.task_key"""


def row_of(task: Task, text: str, number: int) -> Row:
    """The values of a row, ready to be sent."""
    return (*columns_of(task), text, text, f"00000000-0000-0000-0000-{number:012d}", "UTC")


def joined(before: bytes, parts: list[bytes], between: bytes, after: bytes) -> Iterator[bytes]:
    """The parts of a file in blocks, which is faster than as a whole where they are many."""
    for start in range(0, len(parts), _BLOCK):
        yield (between if start else before) + between.join(parts[start : start + _BLOCK])
    yield after


def write_durably(path: Path, blocks: Iterable[bytes]) -> None:
    """Put content in the place of a file, durably."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    for block in blocks:
        if os.write(descriptor, block) < len(block):
            raise OSError("the disk is full")
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


class Floor:
    """Tasks in a database and in files, by the shortest way."""

    def __init__(self, url: str, data_dir: Path, tasks: list[Task]) -> None:
        self.connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        self.tasks, self.texts = tasks, texts_of(tasks)
        self.encoded = [text.encode() for text in self.texts]
        self._lines = [
            f'"task-{n}":["{"0" * 16}","{"0" * 40}"]'.encode() for n in range(len(tasks))
        ]
        self._snapshot = data_dir / "scheduler" / "scheduled_tasks.json"
        self._sidecar = data_dir / "scheduler" / ".scheduled_tasks.state.json"

    def fill(self) -> None:
        """The tasks, by COPY."""
        with self.connection.cursor().copy(_COPY) as copy:
            for number, (task, text) in enumerate(zip(self.tasks, self.texts, strict=True)):
                copy.write_row(row_of(task, text, number))

    def write_files(self) -> None:
        """The sidecar and the snapshot, joined from what is encoded already."""
        header = b'{"format":1,"database":"%s","before":"%s","after":"%s"' % ((b"0" * 32,) * 3)
        header += b',"tasks":{\n'
        write_durably(self._sidecar, joined(header, self._lines, b",\n", b"\n}}"))
        write_durably(self._snapshot, joined(b"[\n  ", self.encoded, b",\n  ", b"\n]"))

    def add(self, row: Row) -> None:
        self.connection.execute(_INSERT, row)
        self.encoded.append(row[9].encode())
        self._lines.append(self._lines[0])
        self.write_files()

    def update(self, number: int, row: Row) -> None:
        self.connection.execute(_UPDATE, (*row[1:10], row[0]))
        self.encoded[number] = row[9].encode()
        self.write_files()

    def delete(self, task_key: str) -> None:
        """Delete the task that was added last."""
        self.connection.execute(_DELETE, (task_key,))
        self.encoded.pop()
        self._lines.pop()
        self.write_files()

    def get(self, task_key: str) -> Any:
        row = self.connection.execute(_GET, (task_key,)).fetchone()
        return orjson.loads(row[0]) if row else None

    def list_all(self) -> list[Any]:
        return [orjson.loads(row[0]) for row in self.connection.execute(_LIST).fetchall()]

    def save_all(self, rows: list[Row]) -> None:
        with self.connection.transaction():
            self.connection.execute(_INCOMING)
            with self.connection.cursor().copy(_COPY_INCOMING) as copy:
                for row in rows:
                    copy.write_row(row)
            self.connection.execute(_UPDATE_ALL)
        self.encoded = [row[9].encode() for row in rows]
        self.write_files()

    def import_file(self, path: Path) -> None:
        """Parse a snapshot, copy it into the table, write it and its sidecar."""
        parsed = orjson.loads(path.read_bytes())
        with self.connection.cursor().copy(_COPY) as copy:
            for number, (task, text) in enumerate(zip(parsed, self.texts, strict=True)):
                copy.write_row(row_of(task, text, number))
        self.write_files()
