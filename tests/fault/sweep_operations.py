"""The operations of the facade that the sweep tries, and what each is to leave behind.

Values are new in each trial (`mark` is unique), so that nothing has to be reset between trials.
"""

from __future__ import annotations

from typing import Any, ClassVar

from datahound_storage import SchedulerPersistence
from tests.fault.sweep_world import Task, World, without_stamp
from tests.scheduler import make_task

BOTH = ("files", "database")


class Operation:
    """One operation. The default is one that changes nothing."""

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = BOTH
    # Made by the child itself, with no facade before it.
    attaches: ClassVar[bool] = False
    # Shows the tasks of the store that serves.
    reads: ClassVar[bool] = False

    def prepare(self, world: World, mark: str) -> None:
        """Before the process of the trial starts."""

    def meddle(self, world: World, mark: str) -> None:
        """What a stranger does after that process has looked and before it acts."""

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        """The operation itself, in the process that is to fail; `tasks` is what it has loaded."""
        raise NotImplementedError

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        """The tasks when it is done."""
        return tasks

    def appear(self, mark: str) -> set[str]:
        """The runs that are there when it is done."""
        return set()

    def vanish(self, mark: str) -> set[str]:
        """The runs that are gone when it is done."""
        return set()

    def accepts(self, answer: Any, tasks: list[Task]) -> bool:
        """Whether an answer is that of success. `tasks`: those that it should find or leave."""
        return answer is True

    def elsewhere(self, world: World, tasks: list[Task], mark: str) -> list[Task]:
        """What another host does to the database while the process is dead; the tasks then."""
        return self._edit_row(world, tasks, "keep-2", mark)

    def _edit_row(self, world: World, tasks: list[Task], key: str, mark: str) -> list[Task]:
        world.edit_company(key, mark)
        config = next(task["task_config"] for task in tasks if task["task_id"] == key)
        return changed(tasks, key, task_config={**config, "company": mark})

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        """The next operation of another process, which tidies up too. Raises AssertionError."""
        assert facade.update_task(task_of(facade, "target", name=f"next {mark}"))


def task_of(facade: SchedulerPersistence, key: str, **changes: Any) -> Task:
    """A stored task with changes."""
    task = facade.get_task(key)
    assert isinstance(task, dict), f"task {key!r} is gone"
    return task | changes


def changed(tasks: list[Task], key: str, **changes: Any) -> list[Task]:
    """The tasks with one of them changed."""
    return [{**task, **changes} if task["task_id"] == key else task for task in tasks]


def bare(key: str, **changes: Any) -> Task:
    """A task as `Sight` shows it."""
    return without_stamp(make_task(key, **changes))


class AddTask(Operation):
    name = "add_task"

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.add_task(make_task(f"new-{mark}"))

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        return [*tasks, bare(f"new-{mark}")]

    def elsewhere(self, world: World, tasks: list[Task], mark: str) -> list[Task]:
        world.delete_row(f"new-{mark}")
        return [task for task in tasks if task["task_id"] != f"new-{mark}"]

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        key = f"new-{mark}"
        assert facade.get_task(key) or facade.add_task(make_task(key))
        assert facade.delete_task(key)


class UpdateTask(Operation):
    name = "update_task"

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.update_task(
            next(t for t in tasks if t["task_id"] == "target") | {"name": mark}
        )

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        return changed(tasks, "target", name=mark)

    def elsewhere(self, world: World, tasks: list[Task], mark: str) -> list[Task]:
        return self._edit_row(world, tasks, "target", mark)


class DeleteTask(Operation):
    name = "delete_task"

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.delete_task("victim")

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        return [task for task in tasks if task["task_id"] != "victim"]

    def elsewhere(self, world: World, tasks: list[Task], mark: str) -> list[Task]:
        # As it was: a stale picture of the last meeting would show it as deleted in the files.
        victim = next((task for task in tasks if task["task_id"] == "victim"), None)
        if victim is not None:
            return tasks
        world.add_row(make_task("victim"))
        return [*tasks, bare("victim")]

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        assert facade.get_task("victim") is None or facade.delete_task("victim")
        assert facade.add_task(make_task("victim"))


class SaveTasks(Operation):
    """Changes one, deletes one, adds two and turns the order round: all or nothing."""

    name = "save_tasks"

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.save_tasks(self._wanted(tasks, mark))

    def _wanted(self, tasks: list[Task], mark: str) -> list[Task]:
        kept = [t for t in reversed(tasks) if not t["task_id"].startswith("spare")]
        added = [make_task(f"spare-{mark}-{number}") for number in (1, 2)]
        return [*added[:1], *changed(kept, "target", name=mark), *added[1:]]

    def tasks_after(self, tasks: list[Task], mark: str) -> list[Task]:
        return [without_stamp(task) for task in self._wanted(tasks, mark)]

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        assert facade.save_tasks(self._wanted(facade.load_tasks(), f"{mark}-next"))


class LogRun(Operation):
    """Appends to a file whose last line a crash has left torn."""

    name = "log_task_execution"

    def prepare(self, world: World, mark: str) -> None:
        world.tear_line(f'{{"torn": "{mark}')

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.log_task_execution("keep-1", True, f"run {mark}", 0.25, "a name", "download")

    def appear(self, mark: str) -> set[str]:
        return {f"run {mark}"}

    def accepts(self, answer: Any, tasks: list[Task]) -> bool:
        return answer is None

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        facade.log_task_execution("keep-1", True, f"next {mark}")
        found = world.look()
        assert found.lines[f"next {mark}"] == 1, "the next run is swallowed"
        assert found.runs is None or found.runs[f"next {mark}"] == 1


class ClearHistory(Operation):
    name = "clear_old_history"

    def prepare(self, world: World, mark: str) -> None:
        world.forget_trims()
        world.tear_line(f"not a run {mark}\n")
        world.add_old_run(f"old {mark}")

    def perform(self, facade: SchedulerPersistence, mark: str, tasks: list[Task]) -> Any:
        return facade.clear_old_history(30)

    def vanish(self, mark: str) -> set[str]:
        return {f"old {mark}"}

    def accepts(self, answer: Any, tasks: list[Task]) -> bool:
        return isinstance(answer, int)

    def follow(self, world: World, facade: SchedulerPersistence, mark: str) -> None:
        world.add_old_run(f"older {mark}")
        facade.clear_old_history(30)
        found = world.look()
        left = {f"old {mark}", f"older {mark}"} & {*found.lines, *(found.runs or ())}
        assert not left, f"the next trim left {left}"
