"""How files and database meet again: a plan, worked out without touching either.

Three versions of each task are compared half by half: the one that both sides showed when they were
last equal (known by its hashes), the one in the files, and the one in the database. Nothing here
reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from datahound_storage.codec import decode, encode_lenient, same
from datahound_storage.files.sidecar import Hashes
from datahound_storage.halves import hashes_of, join_halves, same_half
from datahound_storage.last_equal import OPERATOR, SCHEDULER, Base
from datahound_storage.plan import Plan, Version, lost_version

# A clock further ahead than this cannot be trusted to tell which change is newer.
CLOCK_TOLERANCE = timedelta(minutes=5)
HALF_NAMES = ("operator", "scheduler")


@dataclass(frozen=True)
class Meeting:
    """The sides as they are. `base` is None where they never met.

    `files_complete`: a task missing from the files was deleted there (not just unreadable).
    `deleted_at`: when the database saw the deletion of keys; they may be there again. `buried`: the
    keys that were deleted there since the sides were last equal, with the text that they had, None
    where it is not known. `was_emptied`: all tasks were, at once and without a trace of each.
    """

    base: Base | None
    files: Mapping[str, Version]
    database: Mapping[str, Version]
    files_complete: bool = True
    deleted_at: Mapping[str, datetime] = field(default_factory=dict)
    buried: Mapping[str, str | None] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    was_emptied: bool = False

    def plan(self) -> Plan:
        """Work out what to do, in the order of the files."""
        plan = Plan()
        for key, version in self.files.items():
            if key in self.database:
                self._meet(plan, key, version, self.database[key])
            else:
                self._only_in_files(plan, key, version)
        for key, version in self.database.items():
            if key not in self.files:
                self._only_in_database(plan, key, version)
        if self.base is not None and self.files_complete and self.base.was_reordered(self.files):
            plan.order = [*self.files, *(key for key in self.database if key not in self.files)]
        return plan

    def _only_in_files(self, plan: Plan, key: str, version: Version) -> None:
        if self._was_buried(key, version):
            reason = "deleted there, after a change that got lost on its way back"
            plan.conflicts.append(lost_version(key, "task", "database", version, reason))
            plan.reports.append(f"task {key!r} was deleted in the database; it stays deleted")
            return
        if self.base is None:
            gone = self.deleted_at.get(key)
            if gone is not None and not _is_newer(version.changed_at, gone, self.now):
                plan.conflicts.append(
                    lost_version(key, "task", "database", version, "deleted there")
                )
                plan.reports.append(f"task {key!r} was deleted in the database; it stays deleted")
                return
        elif self.base.knows(key) and not self.base.was_removed_since(key):
            operator = hashes_of(version.task)[OPERATOR]
            if self.base.had(key, OPERATOR, operator):
                return  # deleted in the database; what the scheduler did does not revive it
            plan.reports.append(
                f"task {key!r} was deleted in the database but edited in the files: it is kept"
            )
        elif self._may_have_been_deleted(key, version):
            plan.reports.append(
                f"task {key!r} was deleted in the database, which may not have known what the "
                "files show of it: it is kept"
            )
        plan.write.append(version)

    def _may_have_been_deleted(self, key: str, version: Version) -> bool:
        """Whether a deletion may be undone here: it cannot be told what it has seen."""
        if self.base is None or not (key in self.buried or self.was_emptied):
            return False
        operator = hashes_of(version.task)[OPERATOR]
        removed = self.base.was_removed_since(key)
        return removed or self.base.was_shown_since(key, OPERATOR, operator)

    def _was_buried(self, key: str, version: Version) -> bool:
        """Whether the database has deleted a change that was done to both sides.

        Then the base does not know it, and it looks as if only the files had made it.
        """
        text = self.buried.get(key)
        if text is None or self.base is None:
            return False
        operator = hashes_of(version.task)[OPERATOR]
        was_on_both = self.base.was_shown_since(key, OPERATOR, operator)
        return was_on_both and same_half(hashes_of(decode(text))[OPERATOR], operator)

    def _only_in_database(self, plan: Plan, key: str, version: Version) -> None:
        base = self.base
        if base is None or not base.was_in_files(key) or not self.files_complete:
            return
        if key in self.buried:
            return  # deleted there too, and added anew: the files' deletion was of the old one
        operator = hashes_of(version.task)[OPERATOR]
        was_on_both = base.was_shown_since(key, OPERATOR, operator)
        if not (base.had(key, OPERATOR, operator) or was_on_both):
            plan.reports.append(
                f"task {key!r} was deleted in the files but edited in the database: it is kept"
            )
            return
        plan.delete.append(key)
        if (reason := self._doubt(base, key, operator)) is not None:
            plan.conflicts.append(lost_version(key, "task", "files", version, reason))
            plan.reports.append(
                f"task {key!r} was deleted, as it is missing from the files; its last version "
                "is kept in scheduler_conflicts"
            )

    def _doubt(self, base: Base, key: str, operator: str) -> str | None:
        """Why a deletion in the files may not have been meant, None where there is no such doubt.

        It is carried out all the same, as nearly always somebody did mean it. The text is kept.
        """
        if not base.had(key, OPERATOR, operator):  # it rests on a note: others may do the same
            return "missing from the files, which had it like this after an outage"
        if any(base.knows(known) for known in self.files):
            return None
        # Old code takes a file that it cannot read for an empty one, and writes that back.
        return "missing from the files, with all other tasks"

    def _meet(self, plan: Plan, key: str, files: Version, database: Version) -> None:
        if files.text == database.text:
            return
        hashes = (hashes_of(files.task), hashes_of(database.task))
        if self._stands_exactly(key, *hashes):
            return
        if (
            self.base is not None
            and self.base.had_exactly(key, hashes[1])
            and not self.base.was_shown_since(key, OPERATOR, hashes[0][OPERATOR])
        ):
            plan.write.append(files)
            return
        if (
            self.base is not None
            and key in self.buried
            and not self.base.was_removed_since(key)
            and self.base.had(key, OPERATOR, hashes[0][OPERATOR])
        ):
            return  # deleted and added anew: what the scheduler did to the old one is not its own
        if self.base is None and hashes[0] == hashes[1]:
            # Rows without a text were rebuilt: the file still has order and spelling.
            if not _is_newer(database.changed_at, files.changed_at, self.now):
                plan.write.append(files)
            return
        from_files = [
            self._files_win(plan, key, half, files, database, (hashes[0][half], hashes[1][half]))
            for half in (OPERATOR, SCHEDULER)
        ]
        if any(from_files):
            plan.write.append(_joined(from_files, files, database))

    def _stands_exactly(self, key: str, in_files: Hashes, in_database: Hashes) -> bool:
        base = self.base
        return (
            base is not None
            and base.had_exactly(key, in_files)
            and all(
                base.stands(key, half, in_files[half], in_database[half])
                for half in (OPERATOR, SCHEDULER)
            )
        )

    def _files_win(
        self,
        plan: Plan,
        key: str,
        half: int,
        files: Version,
        database: Version,
        hashes: tuple[str, str],
    ) -> bool:
        """Whether the files' version of one half is the one to keep."""
        in_files, in_database = hashes
        if same_half(in_files, in_database):
            return False
        base = self.base
        if base is not None and base.knows(key):
            if base.stands(key, half, in_files, in_database):
                return False
            if base.had(key, half, in_database):
                if half == OPERATOR and base.was_shown_since(key, half, in_files):
                    _keep_what_was_taken_back(plan, key, database, base)
                return True
        if base is not None and base.was_shown_since(key, half, in_database):
            # The files showed it as well, before they were changed to what they are; or somebody
            # made the same change in the database, which never got ours.
            if half == OPERATOR:
                reason = "changed in the files, which had shown this version after an outage"
                plan.conflicts.append(
                    lost_version(key, HALF_NAMES[half], "files", database, reason)
                )
                plan.reports.append(
                    f"task {key!r}: the operator's half of the files was kept, which came after "
                    "what the database has; that is in scheduler_conflicts"
                )
            return True
        wins = _is_newer(files.changed_at, database.changed_at, self.now)
        kept, lost = ("files", database) if wins else ("database", files)
        reason = "changed on both sides; the newer change was kept"
        plan.conflicts.append(lost_version(key, HALF_NAMES[half], kept, lost, reason))
        plan.reports.append(
            f"task {key!r}: the {HALF_NAMES[half]}'s half was changed in the files and in the "
            f"database; the version of the {kept} was kept, the other one is in scheduler_conflicts"
        )
        return wins


def _keep_what_was_taken_back(plan: Plan, key: str, database: Version, base: Base) -> None:
    """The database may have had what the files show, and somebody has taken it back there.

    It looks as if it had never got there, which is why the files win.
    """
    if base.at is None or database.changed_at is None or database.changed_at <= base.at:
        return
    reason = "changed since, perhaps back from what the files have shown after an outage"
    plan.conflicts.append(lost_version(key, HALF_NAMES[OPERATOR], "files", database, reason))
    plan.reports.append(
        f"task {key!r}: the operator's half of the files was kept, which the database may have "
        "had before; its version is in scheduler_conflicts"
    )


def _is_newer(files: datetime | None, database: datetime | None, now: datetime) -> bool:
    """Whether the files' change is newer; not where its time cannot be trusted, nor in a tie."""
    if files is None or files > now + CLOCK_TOLERANCE:
        return False
    return database is None or files > database


def _joined(from_files: list[bool], files: Version, database: Version) -> Version:
    if all(from_files):
        return files
    sides = [files if wins else database for wins in from_files]
    task = join_halves(sides[OPERATOR].task, sides[SCHEDULER].task)
    for version in (files, database):
        if same(task, version.task):
            return version
    return Version(task["task_id"], encode_lenient(task))
