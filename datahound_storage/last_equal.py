"""What files and database showed when they were last equal, as a meeting needs to know it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from datahound_storage.files.sidecar import Hashes
from datahound_storage.halves import same_half

# The halves of a task, as they stand in its hashes.
OPERATOR, SCHEDULER = 0, 1


class Base:
    """What both sides showed when they were last equal: for each task the hashes of its halves.

    `shown_since` are versions that the files showed later, and the database perhaps as well.
    `at` is the time of the newest change then, by the database's clock.
    """

    def __init__(
        self,
        tasks: Mapping[str, Hashes],
        shown_since: Mapping[str, Collection[Hashes | None]] | None = None,
        at: datetime | None = None,
    ) -> None:
        self.at = at
        self._tasks = tasks
        self._shown_since = shown_since or {}

    def was_reordered(self, files: Iterable[str]) -> bool:
        """Whether tasks in the files were moved; new ones at the end move nothing."""
        found = list(files)
        kept = set(found)
        known = [key for key in self._tasks if key in kept]
        return found != [*known, *(key for key in found if key not in self._tasks)]

    def knows(self, key: str) -> bool:
        """Whether the task was there."""
        return key in self._tasks

    def had_exactly(self, key: str, hashes: Hashes) -> bool:
        """Whether the task was as it is now, stamp and status included."""
        return self._tasks.get(key) == hashes

    def stands(self, key: str, half: int, in_files: str, in_database: str) -> bool:
        """Whether the files never changed a half, as far as can be told.

        Not where it was there and back again: the task was deleted and added anew, or the files
        have shown, since then, what is in the database now.
        """
        there_and_back = self.was_removed_since(key) or (
            self.was_changed_since(key, half) and not same_half(in_files, in_database)
        )
        return self.had(key, half, in_files) and not there_and_back

    def had(self, key: str, half: int, digest: str) -> bool:
        """Whether a half was as it is now."""
        known = self._tasks.get(key)
        return known is not None and same_half(known[half], digest)

    def was_in_files(self, key: str) -> bool:
        """Whether the files have shown the task, then or since."""
        return self.knows(key) or key in self._shown_since

    def was_shown_since(self, key: str, half: int, digest: str) -> bool:
        """Whether the files have shown this half since, in a version the database may have."""
        versions = self._shown_since.get(key, ())
        return any(v is not None and same_half(v[half], digest) for v in versions)

    def was_changed_since(self, key: str, half: int) -> bool:
        """Whether the files have shown another version of this half since."""
        versions = self._shown_since.get(key, ())
        return any(v is not None and not self.had(key, half, v[half]) for v in versions)

    def was_removed_since(self, key: str) -> bool:
        """Whether the files have lacked the task since, as the database perhaps did as well."""
        return None in self._shown_since.get(key, ())
