"""The operations on tasks, beside their floors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.speed.bounds import OF_TASKS, SIZES
from benchmarks.speed.floors import Floor, row_of
from benchmarks.speed.measure import Case
from benchmarks.speed.world import Task, World, sample_tasks, texts_of, write_snapshot
from datahound_storage.codec import encode
from datahound_storage.persistence import SchedulerPersistence


def bound_of(operation: str, size: int) -> float | None:
    """The most that the ratio may be, None for other sizes than those of the table."""
    return OF_TASKS[operation][SIZES.index(size)] if size in SIZES else None


def ran(task: Task, number: int) -> Task:
    """The task after one more run, as the scheduler reports it."""
    now = datetime.now().isoformat()
    return {**task, "run_count": number + 1, "last_run": now, "updated_at": now}


class TaskCases:
    """The same tasks on both sides."""

    def __init__(self, world: World, size: int) -> None:
        self.world, self.size = world, size
        self.tasks = sample_tasks(size)
        self.url = world.database()
        self.data_dir = world.data_dir()
        write_snapshot(self.data_dir / "scheduler" / "scheduled_tasks.json", texts_of(self.tasks))
        self.ours = SchedulerPersistence(self.data_dir, url=self.url)
        self.floor = Floor(world.database(), world.data_dir(), self.tasks)
        self.floor.fill()
        self.floor.write_files()
        self.peer = psycopg.connect(self.url, autocommit=True)
        for connection in (self.peer, self.floor.connection):
            connection.execute("VACUUM ANALYZE scheduler_tasks")
        self.random = random.Random(size)
        self._next: Any = None

    def close(self) -> None:
        self.ours.close()
        self.peer.close()
        self.floor.connection.close()

    def case(self, operation: str, **how: Any) -> Case:
        return Case(operation, self.size, bound=bound_of(operation, self.size), **how)

    def pick(self, _: int) -> None:
        self._next = self.random.randrange(self.size)

    def single(self) -> Iterator[Case]:
        """The operations on one task."""
        yield self.case("update_task", before=self._to_update, ours=self._update, floor=self._raw)
        yield self.case("add_task", before=self._to_add, ours=self._add, floor=self._raw_add)
        yield self.case("delete_task", before=self._to_delete, ours=self._delete, floor=self._gone)
        yield self.case(
            "get_task",
            before=self.pick,
            ours=lambda _: self.ours.get_task(f"task-{self._next}"),
            floor=lambda _: self.floor.get(f"task-{self._next}"),
        )

    def _to_update(self, number: int) -> None:
        self.pick(number)
        task = self.ours.get_task(f"task-{self._next}")
        task.update(ran(task, number))
        text = encode(task)
        self._task, self._row = task, row_of(task, text, 0)

    def _update(self, _: int) -> None:
        if not self.ours.update_task(self._task):
            raise RuntimeError("the task is not there")

    def _raw(self, _: int) -> None:
        self.floor.update(self._next, self._row)

    def _to_add(self, number: int) -> None:
        # The one that was added last makes room, so that the size stays.
        if number:
            self._gone(0)
            self._delete(0)
        self._task = {**self.tasks[number % self.size], "task_id": f"new-{number}"}
        self._row = row_of(self._task, encode(self._task), 10_000_000 + number)

    def _add(self, _: int) -> None:
        if not self.ours.add_task(self._task):
            raise RuntimeError("the task is there already")

    def _raw_add(self, _: int) -> None:
        self.floor.add(self._row)

    def _to_delete(self, number: int) -> None:
        if number == 0:
            self._gone(0)
            self._delete(0)
        self._to_add(0)
        self._add(0)
        self._raw_add(0)

    def _delete(self, _: int) -> None:
        if not self.ours.delete_task(self._task["task_id"]):
            raise RuntimeError("the task is not there")

    def _gone(self, _: int) -> None:
        self.floor.delete(self._row[0])

    def listing(self) -> Iterator[Case]:
        """All tasks, with and without a change by somebody else."""
        yield self.case(
            "load_tasks, changed by another process",
            before=self._change_by_peer,
            ours=lambda _: self.ours.load_tasks(),
            floor=lambda _: (self.floor.list_all(), self.floor.write_files())[0],
        )
        self.ours.load_tasks()
        for operation in ("load_tasks", "get_active_tasks"):
            yield self.case(
                operation,
                ours=lambda _, name=operation: getattr(self.ours, name)(),
                floor=lambda _: self.floor.list_all(),
            )

    def _change_by_peer(self, number: int) -> None:
        self.pick(number)
        text = encode(ran(self.tasks[self._next], number))
        self.peer.execute(
            "UPDATE scheduler_tasks SET config_json = %s, task_text = %s, edited_columns = '{}' "
            "WHERE task_key = %s",
            (text, text, f"task-{self._next}"),
        )

    def saving(self) -> Iterator[Case]:
        """All tasks at once."""
        yield self.case(
            "save_tasks, all changed",
            before=self._change_all,
            ours=lambda _: self.ours.save_tasks(self._all),
            floor=lambda _: self.floor.save_all(self._rows),
        )

    def _change_all(self, number: int) -> None:
        self._all = self.ours.load_tasks()
        for task in self._all:
            task.update(ran(task, number))
        self._rows = [row_of(task, encode(task), n) for n, task in enumerate(self._all)]

    def importing(self) -> Iterator[Case]:
        """The first start with a database that has the tables and no tasks."""
        self._fresh: tuple[str, Path, Floor] | None = None
        self._template = self.world.database()
        yield self.case(
            "first import",
            before=self._to_import,
            ours=self._import,
            floor=lambda _: self._fresh and self._fresh[2].import_file(self._file),
            most=20,
        )
        self._forget_import()

    def _to_import(self, _: int) -> None:
        self._forget_import()
        data_dir, url = self.world.data_dir(), self.world.database(self._template)
        self._file = data_dir / "scheduler" / "scheduled_tasks.json"
        write_snapshot(self._file, self.floor.texts)
        floor = Floor(self.world.database(self._template), self.world.data_dir(), [])
        floor.texts, floor.encoded = self.floor.texts, self.floor.encoded
        floor._lines = self.floor._lines
        self._fresh = (url, data_dir, floor)
        self._started: SchedulerPersistence | None = None

    def _import(self, _: int) -> SchedulerPersistence | None:
        if self._fresh:
            self._started = SchedulerPersistence(self._fresh[1], url=self._fresh[0])
        return self._started

    def _forget_import(self) -> None:
        if self._fresh is None:
            return
        if self._started is not None:
            if self._started.health().store != "database":
                raise RuntimeError("the database does not serve")
            self._started.close()
        floor = self._fresh[2]
        url = floor.connection.info.dsn
        floor.connection.close()
        self.world.drop(self._fresh[0])
        self.world.drop(url)
        self._fresh = None
