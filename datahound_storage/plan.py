"""What files and database are to become where they meet: versions of tasks, and a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from datahound_storage.codec import Task, decode
from datahound_storage.tasks import columns_of, parse_time
from datahound_storage.writes import BulkChange, Conflict, LazyWrites, PreparedTask


class Version(NamedTuple):
    """A task on one side: its text, and when it was last changed there.

    `stamp`: as the database says; None: as the task says of itself. The rest is worked out when it
    is asked for: most tasks are the same on both sides, and their texts tell that.
    """

    task_key: str
    text: str
    stamp: datetime | None = None

    @property
    def task(self) -> Task:
        """Its value."""
        return decode(self.text)

    @property
    def changed_at(self) -> datetime | None:
        """When it was last changed, if that is known."""
        return self.stamp or parse_time(self.task.get("updated_at"))


@dataclass
class Plan:
    """What is to be done to the database, what was lost on the way, and what to tell."""

    write: list[Version] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    order: list[str] | None = None
    conflicts: list[Conflict] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    @property
    def change(self) -> BulkChange:
        """The change to the database, in one transaction with what is kept of the losers."""
        write = LazyWrites(lambda: map(prepared_of, self.write))
        return BulkChange(write, self.delete, self.order, tuple(self.conflicts))


def prepared_of(version: Version) -> PreparedTask:
    """A version, ready for the database."""
    return PreparedTask(columns_of(version.task), version.text)


def lost_version(key: str, half: str, kept: str, version: Version, reason: str) -> Conflict:
    """A version that loses, to be kept."""
    return Conflict(key, half, kept, version.text, reason)
