"""What was acknowledged, in memory: it tells what must be true when everybody has met again.

Every write puts values into a task that no other write ever uses, so a value tells who wrote it.
The model remembers of each value whether its write was acknowledged, and which writes took its
place and had seen it: what a caller's object showed, or what stood in the row or the file. Who
overwrites what he has not seen must leave it where `datahound-storage conflicts` shows it.

Known and accepted: a call that never returned has taken effect or not, wholly; the change of one
that died between commit and snapshot stays. A call that is answered with False by the files, after
an outage in the middle of it, may have taken effect in the database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Task = Mapping[str, Any]

OPERATOR = ("name", "interval_minutes", "note", "description")
SCHEDULER = ("last_run", "last_error")
PAUSED = "paused"


class BrokenLawError(AssertionError):
    """Something that must be true is not."""


def law(holds: object, otherwise: str) -> None:
    """Something that must be true."""
    if not holds:
        raise BrokenLawError(otherwise)


class Value(NamedTuple):
    """A value that one write put into one field of one task."""

    task_key: str
    field: str
    value: Any


@dataclass(eq=False)
class Write:
    """A write of one value, or a deletion (`value` is None), and what has replaced it since."""

    value: Value | None
    acknowledged: bool
    life: object = None
    is_sure: bool = True
    took_effect: bool = False
    replaced_by: list[Write] = field(default_factory=list)


class Lost(NamedTuple):
    """A version that is kept as a conflict."""

    task_key: str
    half: str
    kept: str
    task: Task


@dataclass
class Found:
    """What there is after everybody has met: tasks, conflicts, the messages of all runs."""

    tasks: dict[str, Task]
    lost: list[Lost]
    in_table: list[str]
    in_file: list[str]

    def life(self, key: str) -> object:
        """Tells a task from one of the same name before it; None: it is not there."""
        return self.tasks.get(key, {}).get("description")

    def shows(self, value: Value) -> bool:
        return bool(value.value == self.tasks.get(value.task_key, {}).get(value.field))

    def lost_value(self, value: Value) -> bool:
        half = "operator" if value.field in OPERATOR else "scheduler"
        return any(
            lost.task_key == value.task_key
            and lost.half in (half, "task")
            and lost.task.get(value.field) == value.value
            for lost in self.lost
        )


@dataclass
class Counts:
    """How often a task has run by its `run_count`, and how many lives began or ended."""

    acknowledged: int = 0
    unknown: int = 0
    largest: int = 0
    lives: int = 0


class Model:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.writes: dict[Value, Write] = {}
        self.counts: dict[str, Counts] = {}
        self.runs: dict[str, bool] = {}
        self._old: set[str] = set()
        self._gone: set[str] = set()
        self._trimming = False

    # What happens.

    def wrote(self, new: Task, seen: Task | None, *, acknowledged: bool) -> None:
        """A task was written by somebody who had seen `seen` of it (None: it is a new task)."""
        key = new["task_id"]
        counts = self.counts.setdefault(key, Counts())
        counts.lives += seen is None
        for name in (*OPERATOR, *SCHEDULER):
            if new[name] is not None and (seen is None or new[name] != seen[name]):
                write = Write(Value(key, name, new[name]), acknowledged, new["description"])
                self._replace(key, name, seen, write)
        if seen is not None and new["run_count"] != seen["run_count"]:
            counts.acknowledged += acknowledged
            counts.unknown += not acknowledged
            counts.largest = max(counts.largest, new["run_count"] if acknowledged else 0)

    def _replace(self, key: str, name: str, seen: Task | None, write: Write) -> None:
        if write.value is not None:
            self.writes[write.value] = write
        if seen is not None and seen[name] is not None:
            self.writes[Value(key, name, seen[name])].replaced_by.append(write)

    def deleted(
        self, seen: Task, *, acknowledged: bool, sure: bool = True, took_effect: bool = False
    ) -> None:
        """A task was deleted where it showed `seen`; not `sure`: there, or on the other side.

        `took_effect`: seen to be gone there, though nobody was told. If the other side edits it
        then, that version comes back, and not the one that was deleted.
        """
        deletion = Write(None, acknowledged, is_sure=sure, took_effect=took_effect)
        self.counts[seen["task_id"]].lives += 1
        for name in (*OPERATOR, *SCHEDULER):
            self._replace(seen["task_id"], name, seen, deletion)

    def logged(self, message: str, *, acknowledged: bool, old: bool = False) -> None:
        """A run was logged; `old`: one that ended long ago, so that trimming removes it."""
        self.runs[message] = acknowledged and not (old and self._trimming)
        if old:
            self._old.add(message)

    def trimmed(self, *, acknowledged: bool) -> None:
        """The old runs were removed. Those that are logged later may be left out, too."""
        self._trimming = True
        for message in self._old:
            self.runs[message] = False
            if acknowledged:
                self._gone.add(message)

    # What must be true.

    def check(self, found: Found) -> None:
        """Hold what is there against what was acknowledged."""
        for write in self.writes.values():
            if write.acknowledged:
                self._check_kept(write, found)
        for key, task in found.tasks.items():
            self._check_shown(key, task, found)
            self._check_count(key, task, found)
        self._check_runs(found)

    def _check_kept(self, write: Write, found: Found) -> None:
        value = write.value
        assert value is not None
        # A run alone revives nothing; a task that was added again has a half of its own.
        if value.field in SCHEDULER and found.life(value.task_key) != write.life:
            return
        law(_is_kept(write, found), f"acknowledged and lost: {value}")

    def _check_shown(self, key: str, task: Task, found: Found) -> None:
        values = [Value(key, n, task[n]) for n in (*OPERATOR, *SCHEDULER) if task[n] is not None]
        for value in values:
            law(value in self.writes, f"nobody ever wrote {value}")
            for later in self.writes[value].replaced_by:
                if later.value is not None and later.acknowledged:
                    law(_has_lost(later, found), f"{value} is back, replaced by {later.value}")
        operator = [self.writes[value] for value in values if value.field in OPERATOR]
        law(any(not _was_deleted(write) for write in operator), f"{key!r} is back from the dead")
        paused = str(task["note"]).startswith(PAUSED)
        law(paused is (task["status"] == PAUSED), f"{key!r}: {task['note']}, but {task['status']}")

    def _check_count(self, key: str, task: Task, found: Found) -> None:
        counts, shown = self.counts[key], task["run_count"]
        if counts.lives > 1:
            return
        across = [c for c in found.lost if c.task_key == key and c.kept != "later"]
        if not any(c.half in ("scheduler", "task") for c in across):
            most = counts.acknowledged + counts.unknown
            law(
                counts.acknowledged <= shown <= most,
                f"{key!r} ran {counts.acknowledged} to {most} times, not {shown}",
            )
        most_shown = max([shown, *(c.task["run_count"] for c in across)])
        law(most_shown >= counts.largest, f"{key!r} had run {counts.largest} times")

    def _check_runs(self, found: Found) -> None:
        for place, messages in (("table", found.in_table), ("file", found.in_file)):
            times = Counter(messages)
            for message, acknowledged in self.runs.items():
                law(
                    times[message] <= 1, f"run {message!r} is {times[message]} times in the {place}"
                )
                law(times[message] or not acknowledged, f"run {message!r} is not in the {place}")
            unknown = times.keys() - self.runs.keys()
            law(not unknown, f"runs in the {place} that nobody logged: {unknown}")
        back = self._gone & {*found.in_table}
        law(not back, f"trimmed runs are back: {back}")


def _is_kept(write: Write, found: Found) -> bool:
    """Whether a value is shown, kept as a conflict, or replaced by one of which that is true."""
    if write.value is None:
        return True
    if found.shows(write.value) or found.lost_value(write.value):
        return True
    return any(_is_kept_by(later, write, found) for later in write.replaced_by)


def _is_kept_by(later: Write, write: Write, found: Found) -> bool:
    if later.value is None and write.value is not None:
        # Where the answer got lost: has the task, in the life that it had then, gone?
        is_done = later.acknowledged or later.took_effect
        return is_done or found.life(write.value.task_key) != write.life
    return _is_kept(later, found)


def _has_lost(write: Write, found: Found) -> bool:
    """Whether a write lost a conflict, or what came after it did."""
    if write.value is not None and found.lost_value(write.value):
        return True
    return any(later.value is None or _has_lost(later, found) for later in write.replaced_by)


def _was_deleted(write: Write) -> bool:
    deletions = [later for later in write.replaced_by if later.value is None]
    return any(deletion.acknowledged and deletion.is_sure for deletion in deletions)
