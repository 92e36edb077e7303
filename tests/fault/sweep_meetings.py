"""The operations of the sweep in which files and database meet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from datahound_storage import SchedulerPersistence
from datahound_storage.files.history import remember_cutoff
from tests.fault.sweep_operations import Operation, bare, changed
from tests.fault.sweep_world import OLD, Task, World
from tests.scheduler import make_task


class LoadAfterFileEdit(Operation):
    """An editor, or the old code, has changed the snapshot under a process that shows it."""

    name = "load_tasks of an edited snapshot"
    reads = True

    def meddle(self, world: World, mark: str) -> None:
        world.old_code.save(changed(world.old_code.load(), "target", name=mark))

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.load_tasks()

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        return changed(tasks, "target", name=mark)

    def accepts(self, answer: Any, tasks: list[Task]) -> bool:
        return [task["name"] for task in answer] == [task["name"] for task in tasks]


class LoadAfterRowEdit(Operation):
    """An operator has changed a row."""

    name = "load_tasks of an edited row"
    reads = True
    modes = ("database",)

    def meddle(self, world: World, mark: str) -> None:
        world.edit_company("target", mark)

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.load_tasks()

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        config = next(task["task_config"] for task in tasks if task["task_id"] == "target")
        return changed(tasks, "target", task_config={**config, "company": mark})

    def accepts(self, answer: Any, tasks: list[Task]) -> bool:
        companies = [task["task_config"]["company"] for task in tasks]
        return [task["task_config"]["company"] for task in answer] == companies


class Attach(Operation):
    """A start that carries over: tasks edited, added and deleted, runs on one side only, a trim."""

    name = "attach"
    attaches = True
    modes = ("database",)

    def prepare(self, world: World, mark: str) -> None:
        world.forget_trims()
        world.close()
        world.old_code.save(self._edited(world.old_code.load(), mark))
        world.add_line(f"file {mark}")
        world.add_run(f"table {mark}")
        world.add_run(f"trimmed {mark}", OLD)
        remember_cutoff(world.paths.history_state_file, datetime.now(UTC) - timedelta(days=30))

    def _edited(self, tasks: list[Task], mark: str) -> list[Task]:
        kept = [task for task in tasks if not task["task_id"].startswith("spare")]
        return [*changed(kept, "target", name=mark), make_task(f"spare-{mark}")]

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        kept = [task for task in tasks if not task["task_id"].startswith("spare")]
        return [*changed(kept, "target", name=mark), bare(f"spare-{mark}")]

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return True

    def appear(self, mark: str) -> set[str]:
        return {f"file {mark}", f"table {mark}"}

    def vanish(self, mark: str) -> set[str]:
        return {f"trimmed {mark}"}


class AttachToFiles(Operation):
    """A start with the files alone: it makes the directories, and has to find what is there."""

    name = "attach"
    attaches = True
    modes = ("files",)

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.load_tasks() != []
