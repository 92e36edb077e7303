"""The facade's part for runs."""

from __future__ import annotations

from contextlib import suppress

from datahound_storage.codec import fits_text_column
from datahound_storage.errors import InvalidArgumentError
from datahound_storage.fallback import StoreSwitch
from datahound_storage.reporting import Reporter
from datahound_storage.runs import HistoryEntry, new_entry
from datahound_storage.tasks import MAX_KEY

log = Reporter()

# More than a table can hold, and the most that a bigint can say.
_ALL_RUNS = 2**63 - 1
# In days; no run is older, and no clock counts back much further.
_A_MILLENNIUM = 365_000


class RunPersistence:
    """The history, in the store that serves."""

    def __init__(self, switch: StoreSwitch) -> None:
        self._switch = switch

    def log_task_execution(
        self,
        task_id: str,
        success: bool,
        message: str = "",
        duration_seconds: float = 0,
        task_name: str = "",
        task_type: str = "",
    ) -> None:
        """Keep a run that ends now. Never raises: a failure is reported and the loop goes on.

        In the table and the file when it returns; where only the file serves, on disk.
        """
        try:
            kind = getattr(task_type, "value", task_type)
            entry = new_entry(task_id, success, message, duration_seconds, task_name, kind)
            self._switch.run(lambda store: store.log_run(entry), committed=None)
        except Exception:
            with suppress(Exception):  # whatever a stranger's id does when it is shown
                log.error("a run of task %r could not be kept", str(task_id)[:80], exc_info=True)

    def get_task_history(self, task_id: str | None = None, limit: int = 100) -> list[HistoryEntry]:
        """The newest `limit` entries (of that task), newest end first.

        Raises InvalidArgumentError for a negative limit.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise InvalidArgumentError(f"limit must be a whole number, not negative: {limit!r}.")
        if limit == 0 or not (task_id is None or is_possible(task_id)):
            return []
        most = min(limit, _ALL_RUNS)
        return self._switch.run(lambda store: store.history(task_id, most), committed=[])

    def clear_old_history(self, days_to_keep: float = 30) -> int:
        """Remove the runs that ended more than so many days ago; return how many.

        From table and file alike, by the database's clock while it serves. Lines that cannot be
        parsed are kept. Raises InvalidArgumentError for a negative number.
        """
        if not 0 <= days_to_keep < float("inf"):
            raise InvalidArgumentError(f"days_to_keep must not be negative: {days_to_keep!r}.")
        days = min(days_to_keep, _A_MILLENNIUM)
        return self._switch.run(lambda store: store.trim_history(days), committed=0)


def is_possible(task_id: object) -> bool:
    """Whether a store could hold a task with this id."""
    return isinstance(task_id, str) and 0 < len(task_id) <= MAX_KEY and fits_text_column(task_id)
