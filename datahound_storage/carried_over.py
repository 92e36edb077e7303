"""What a meeting carried over, until the snapshot shows it.

Where the disk is full, or the process dies, the meeting is committed but sidecar and snapshot are
as before. The next meeting would take the same changes for new ones, and undo what was done in the
database since. So the database remembers them, in the transaction of the meeting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import orjson

from datahound_storage.files.sidecar import FORMAT, FORMER, Hashes, Sidecar, SidecarHeader
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.former import Translation


@dataclass(frozen=True)
class CarriedOver:
    """What the files showed at a meeting.

    `newest_us`: the time of the database's newest change. `tasks`: the hashes where they are not
    those of the sidecar, None for tasks that were gone. `seen`: how many notes there were on each
    task. `order`: of all tasks, if it was changed. `format`: of the hashes, as in a sidecar.
    """

    newest_us: int
    tasks: dict[str, Hashes | None]
    seen: dict[str, int]
    order: list[str] | None
    format: int = FORMAT

    def encode(self) -> str:
        """As the database keeps it."""
        return orjson.dumps(self).decode()

    @classmethod
    def decode(cls, text: str | None) -> CarriedOver | None:
        """None where nothing is kept, or nothing that this version understands."""
        try:
            value = orjson.loads(text or "")
            tasks = {key: pair and (pair[0], pair[1]) for key, pair in value.pop("tasks").items()}
            # The version with the former hashes named no format.
            found = cls(tasks=tasks, **{"format": FORMER, **value})
            return found if found.format in (FORMER, FORMAT) else None
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError, IndexError):
            return None

    @property
    def is_empty(self) -> bool:
        """Whether the files were as their sidecar says."""
        return not self.tasks and not self.seen and self.order is None

    def translated(self, translation: Translation) -> CarriedOver:
        """The same in the hashes of this version."""
        if self.format == FORMAT:
            return self
        return replace(self, tasks=translation.hashes(self.tasks), format=FORMAT)

    def added_to(self, known: Sidecar | None) -> Sidecar:
        """The sidecar as it would be, had it been written after the meeting."""
        known = known or Sidecar(SidecarHeader())
        merged = {**known.tasks, **self.tasks}
        tasks = {key: hashes for key, hashes in merged.items() if hashes is not None}
        if self.order is not None:
            ordered = {key: tasks[key] for key in self.order if key in tasks}
            tasks = ordered | tasks
        since = {key: shown[self.seen.get(key, 0) :] for key, shown in known.shown_since.items()}
        header = replace(known.header, shown_us=max(known.header.shown_us, self.newest_us))
        return Sidecar(header, tasks, {}, {key: shown for key, shown in since.items() if shown})


def carried_over(
    known: Sidecar | None,
    found: Snapshot,
    shown: Mapping[str, Hashes],
    newest_us: int,
    *,
    reordered: bool,
) -> CarriedOver:
    """What is to be remembered of a meeting of files that show the tasks `shown`."""
    before = known.tasks if known is not None else {}
    is_complete = found.exists and not found.damaged
    gone = [key for key in before if key not in shown] if is_complete else []
    changed = {key: hashes for key, hashes in shown.items() if before.get(key) != hashes}
    notes = known.shown_since if known is not None else {}
    return CarriedOver(
        newest_us=newest_us,
        tasks={**changed, **dict.fromkeys(gone)},
        seen={key: len(versions) for key, versions in notes.items()},
        order=list(shown) if reordered else None,
    )
