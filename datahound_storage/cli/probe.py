"""What a process that started now would find. Reads only; prints nothing."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from datahound_storage import migrations
from datahound_storage.belonging import is_another, shows_newer
from datahound_storage.bootstrap import make_dal
from datahound_storage.codec import Task, decode
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import DatabaseError, DatabaseUnavailableError, SchemaError
from datahound_storage.files import history
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Sidecar
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.files_side import FilesSide, look_at_files
from datahound_storage.migrations import SchemaStatus
from datahound_storage.postgres.changes import Changes
from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.run_table import entry_of_stored
from datahound_storage.runs import HistoryEntry
from datahound_storage.settings import Settings, describe_url, why_no_url

LAST_RUNS = 5


@dataclass
class Files:
    """The snapshot with its sidecar, as they are."""

    paths: StatePaths
    snapshot: Snapshot
    sidecar: Sidecar | None

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote the snapshot, and nobody has changed it since."""
        found = self.snapshot
        header = self.sidecar.header if self.sidecar is not None else None
        return header is not None and header.recognises(found.digest, found.signature)

    @property
    def written_at(self) -> datetime | None:
        """When the snapshot was written last, None where there is none."""
        signature = self.snapshot.signature
        return signature and datetime.fromtimestamp(signature.mtime_ns / 1e9, UTC)


class Contents(NamedTuple):
    """What a store holds: how many tasks with each status, how many runs, the newest ones."""

    tasks: Counter[str]
    runs: int
    last_runs: list[HistoryEntry]


@dataclass
class Finding:
    """Which store would serve and why; `serves`: whether that is the one that is configured.

    `contents` is None where they cannot be read yet, as the schema is to be upgraded first.
    """

    store: Literal["database", "files"]
    reason: str
    serves: bool = True
    place: str | None = None
    schema: SchemaStatus | None = None
    contents: Contents | None = None


class Rows(NamedTuple):
    """How many rows the two tables hold."""

    tasks: int
    runs: int


def read_files(settings: Settings) -> Files:
    """Look at the files. Raises FileStoreError where they cannot be read."""
    paths = StatePaths.below(settings.data_dir)
    side = look_at_files(paths)
    return Files(paths, side.snapshot, side.sidecar)


def find_store(settings: Settings, files: Files) -> Finding:
    """Find out which store a process that started now would use. Raises FileStoreError."""
    if settings.url is None:
        return Finding("files", why_no_url(settings), contents=_contents_of_files(files))
    finding = Finding("database", "", place=describe_url(settings.url))
    dal = make_dal(settings, settings.url)
    try:
        _look(dal, settings, files, finding)
    except DatabaseError as error:
        finding.store, finding.serves, finding.reason = "files", False, str(error)
        finding.contents = _contents_of_files(files)
    finally:
        dal.close()
    return finding


def _look(dal: StorageDAL, settings: Settings, files: Files, finding: Finding) -> None:
    finding.schema = schema = dal.database.run(migrations.inspect).result
    require_writable(dal)
    finding.reason = f"{settings.url_variable} leads to {finding.place}"
    if not schema.usable:
        if not (schema.upgradable and settings.auto_upgrade):
            raise SchemaError(schema.message)
        _require_may_upgrade(dal)
        # The tables are not yet those that this version reads.
        finding.reason += f"; the start upgrades the schema, or now: `{schema.command}`"
        return
    changes = dal.read_changes(None)
    _require_belonging(dal, changes, files)
    statuses = Counter(_status(decode(task.text)) for task in changes.tasks)
    newest = [entry_of_stored(run) for run in dal.newest_runs(None, LAST_RUNS)]
    finding.contents = Contents(statuses, count_rows(dal).runs, newest)


def require_writable(dal: StorageDAL) -> None:
    """Raise DatabaseUnavailableError where nothing can be written."""

    def is_read_only(connection: DeadlineConnection) -> bool:
        row = connection.execute("SHOW transaction_read_only").fetchone()
        return row == ("on",)

    if dal.database.run(is_read_only).result:
        raise DatabaseUnavailableError(
            f"{dal.database.place} is a standby or read-only: let the URL lead to the primary."
        )


def _require_may_upgrade(dal: StorageDAL) -> None:
    """Raise SchemaError where a start could not bring the schema to head."""
    query = "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
    schema, may_create = dal.database.run(lambda c: c.execute(query).fetchone()).result or (None, 0)
    if schema is None:
        raise SchemaError(
            "the search path of the URL names no schema that exists: create the schema, or correct "
            "options=-csearch_path in the URL."
        )
    if not may_create:
        raise SchemaError(
            f"this role may not create tables in schema {schema}: run `datahound-storage upgrade` "
            f"once as the owner, or GRANT CREATE ON SCHEMA {schema} to it."
        )


def _require_belonging(dal: StorageDAL, changes: Changes, files: Files) -> None:
    """Raise DatabaseError where a start would refuse to let the sides meet."""
    problem = why_apart(dal, changes, files)
    if problem is not None:
        raise DatabaseError(
            f"{problem}. Correct the URL or restore a newer state; or choose a side: "
            "`datahound-storage reconcile --dry-run` shows both, and what each choice would do."
        )


def why_apart(dal: StorageDAL, changes: Changes, files: Files) -> str | None:
    """Why a start would refuse to let the sides meet; None where it would not."""
    side = FilesSide(files.snapshot, files.sidecar)
    if is_another(side, changes):
        return "another database wrote the snapshot than the one that the URL leads to"
    if shows_newer(side, changes, dal):
        return "the database is older than what the snapshot shows (a restored dump?)"
    return None


def _status(task: Task) -> str:
    # `None` would read as if it were a status.
    status = task.get("status")
    return "without a status" if status is None or status == "" else str(status)


def _contents_of_files(files: Files) -> Contents:
    statuses = Counter(_status(item.task) for item in files.snapshot.items)
    lines = history.newest(files.paths.history_files, None, sys.maxsize)
    return Contents(statuses, len(lines), [line.entry for line in lines[:LAST_RUNS]])


def count_rows(dal: StorageDAL) -> Rows:
    """Count the rows; works at every revision."""
    query = "SELECT (SELECT count(*) FROM scheduler_tasks), (SELECT count(*) FROM scheduler_runs)"
    counted = dal.database.run(lambda c: c.execute(query).fetchone(), bulk=True).result
    return Rows(*counted) if counted else Rows(0, 0)


def was_filled(dal: StorageDAL) -> bool:
    """Whether the tables hold tasks, or have ever held some; works at every revision."""
    query = (
        "SELECT to_regclass('scheduler_storage') IS NOT NULL, EXISTS (SELECT FROM scheduler_tasks)"
    )
    has_state, has_tasks = dal.database.run(lambda c: c.execute(query).fetchone()).result or (0, 0)
    if has_tasks or not has_state:
        return bool(has_tasks)
    query = "SELECT EXISTS (SELECT FROM scheduler_storage WHERE filled_at IS NOT NULL)"
    return dal.database.run(lambda c: c.execute(query).fetchone()).result == (True,)
