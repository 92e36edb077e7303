"""Where the scheduler's files are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class StatePaths:
    """The files below one base directory. Absolute, so that a later `chdir` changes nothing."""

    data_dir: Path

    @classmethod
    def below(cls, data_dir: Path | str) -> StatePaths:
        """The paths for a data directory (`<base>/data`)."""
        return cls(Path(os.path.abspath(Path(data_dir).expanduser())))

    @cached_property
    def scheduler_dir(self) -> Path:
        """`<base>/data/scheduler`."""
        return self.data_dir / "scheduler"

    @cached_property
    def tasks_file(self) -> Path:
        """The snapshot."""
        return self.scheduler_dir / "scheduled_tasks.json"

    @cached_property
    def sidecar_file(self) -> Path:
        """What the snapshot shows, and of which database."""
        return self.scheduler_dir / ".scheduled_tasks.state.json"

    @cached_property
    def lock_file(self) -> Path:
        """The lock that the old code takes too."""
        return self.scheduler_dir / ".scheduler.lock"

    @cached_property
    def history_file(self) -> Path:
        """The history, one JSON object a line."""
        return self.data_dir.parent / "logging" / "scheduler" / "task_history.jsonl"

    @cached_property
    def legacy_history_file(self) -> Path:
        """Where older installations wrote the history, with naive local times."""
        return self.scheduler_dir / "task_history.jsonl"

    @cached_property
    def history_state_file(self) -> Path:
        """What was trimmed from the history while the files were the only store."""
        return self.scheduler_dir / ".task_history.state.json"

    @cached_property
    def conflicts_file(self) -> Path:
        """Versions that lost while the files were the only store."""
        return self.scheduler_dir / ".scheduled_tasks.conflicts.jsonl"

    @cached_property
    def history_files(self) -> tuple[Path, Path]:
        """All files that hold history, the older one first."""
        return self.legacy_history_file, self.history_file

    def make_directories(self) -> None:
        """Create the directories. Raises OSError."""
        self.scheduler_dir.mkdir(parents=True, exist_ok=True)
        self.history_file.parent.mkdir(parents=True, exist_ok=True)
