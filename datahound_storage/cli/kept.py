"""The versions that lost: those in the table and those in the file. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from datahound_storage.cli.access import database_at_head, existing_paths
from datahound_storage.codec import Task, decode, same
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import DatabaseError, DatabaseUnavailableError, StorageError
from datahound_storage.files import conflicts, snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.halves import halves_of
from datahound_storage.health import StoreName
from datahound_storage.settings import Settings, why_no_url
from datahound_storage.writes import Conflict

_ABSENT: Any = object()
_FILE_MARK = "f"


class Kept(NamedTuple):
    """A version that lost. Its id is the number in the table, or `f` and the line in the file."""

    id: str
    conflict: Conflict
    noticed_at: datetime

    @property
    def is_in_file(self) -> bool:
        """Whether the file has it."""
        return self.id.startswith(_FILE_MARK)

    @property
    def number(self) -> int:
        """Its number in the table, or its line in the file."""
        return int(self.id.removeprefix(_FILE_MARK))


class UnknownIdError(StorageError):
    """There is no conflict with this id."""


@dataclass
class Places:
    """Where conflicts are kept. `problem`: why the table cannot be read, None where it can be."""

    paths: StatePaths
    dal: StorageDAL | None
    problem: str | None
    patience: float

    def all(self) -> list[Kept]:
        """All that are kept, oldest first. Raises DatabaseError, FileStoreError."""
        found = [
            Kept(f"{_FILE_MARK}{noted.line}", noted.conflict, noted.noticed_at)
            for noted in conflicts.read(self.paths.conflicts_file)
        ]
        if self.dal is not None:
            found += [Kept(str(k.id), k.conflict, k.noticed_at) for k in self.dal.conflicts()]
        return sorted(found, key=lambda kept: kept.noticed_at)

    @property
    def store(self) -> StoreName:
        """Where tasks are restored."""
        return "files" if self.dal is None else "database"

    def pick(self, ids: Sequence[str]) -> list[Kept]:
        """Those with these ids. Raises UnknownIdError, and what `all` raises."""
        known = {kept.id: kept for kept in self.all()}
        unknown = [wanted for wanted in dict.fromkeys(ids) if wanted not in known]
        if unknown and self.problem is not None and not unknown[0].startswith(_FILE_MARK):
            raise DatabaseUnavailableError(
                f"conflict {unknown[0][:40]!r} would be in the table, which cannot be read: "
                f"{self.problem}"
            )
        if unknown:
            raise UnknownIdError(
                f"there is no conflict {unknown[0][:40]!r}: `datahound-storage conflicts` lists "
                "them. Nothing was changed."
            )
        return [known[wanted] for wanted in dict.fromkeys(ids)]

    def forget(self, kept: Sequence[Kept]) -> None:
        """Delete them where they are kept. Raises DatabaseError, FileStoreError."""
        in_table = [one.number for one in kept if not one.is_in_file]
        if self.dal is not None and in_table:
            self.dal.forget_conflicts(in_table)
        lines = [one.number for one in kept if one.is_in_file]
        if lines:
            with locked(self.paths.lock_file, self.patience):
                conflicts.forget(self.paths.conflicts_file, lines)

    def stored(self, task_key: str) -> Task | None:
        """The task as it is now, None if it is not there. Raises DatabaseError, FileStoreError."""
        text = self.stored_text(task_key)
        return None if text is None else decode(text)

    def stored_text(self, task_key: str) -> str | None:
        """The text of the task, None if it is not there. Raises DatabaseError, FileStoreError."""
        if self.dal is not None:
            found = self.dal.fetch_task(task_key)
            return None if found is None else found.text
        items = snapshot.read(self.paths.tasks_file).items
        return next((item.text for item in items if item.task_key == task_key), None)


@contextmanager
def open_places(settings: Settings) -> Iterator[Places]:
    """Table and file; the file alone where there is no URL, or none that serves.

    Raises FileStoreError where there is neither a table nor a directory.
    """
    dal: StorageDAL | None = None
    problem = f"no database: {why_no_url(settings)}."
    with ExitStack() as opened:
        if settings.url is not None:
            try:
                dal = opened.enter_context(database_at_head(settings))
            except DatabaseError as error:
                problem = str(error)
        paths = existing_paths(settings) if dal is None else StatePaths.below(settings.data_dir)
        yield Places(paths, dal, problem if dal is None else None, settings.operation_timeout)


class Difference(NamedTuple):
    """A field in which two versions of a task differ, and the half that it belongs to."""

    field: str
    half: str
    lost: Any
    stored: Any

    @property
    def values(self) -> dict[str, Any]:
        """`lost` and `stored`, as far as the field is there."""
        both = {"lost": self.lost, "stored": self.stored}
        return {name: value for name, value in both.items() if value is not _ABSENT}


def differences(lost: Task, stored: Task) -> list[Difference]:
    """The fields in which a version that lost differs from the stored one, inner ones by path."""
    operator = halves_of(lost).operator.keys() | halves_of(stored).operator.keys()
    return [
        Difference(path, "operator" if name in operator else "scheduler", *values)
        for name in {**stored, **lost}
        for path, *values in _compare(name, lost.get(name, _ABSENT), stored.get(name, _ABSENT))
    ]


def _compare(path: str, lost: Any, stored: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(lost, dict) and isinstance(stored, dict):
        for name in {**stored, **lost}:
            yield from _compare(
                f"{path}.{name}", lost.get(name, _ABSENT), stored.get(name, _ABSENT)
            )
    elif lost is _ABSENT or stored is _ABSENT or not same(lost, stored):
        yield path, lost, stored
