"""APScheduler's job store on the same server, beside ours without and with the snapshot."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, cast

from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import create_engine

from benchmarks.speed.bounds import OF_PEERS
from benchmarks.speed.measure import Case
from benchmarks.speed.task_cases import ran
from benchmarks.speed.world import Task, World, sample_tasks, texts_of, write_snapshot
from datahound_storage.persistence import SchedulerPersistence

SIZE = 1_000
NAME = f"APScheduler {'.'.join(version('apscheduler').split('.')[:2])}"
_FUNCTION = "benchmarks.speed.peers:run_task"


def run_task(task: Task) -> None:
    """What a job calls; no job is run here."""


class NoBackup:
    """A backup that does nothing after a commit; the rest is the real one's."""

    def __init__(self, backup: Any) -> None:
        self._backup = backup
        self._seen: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backup, name)

    def saw(self, task_key: str, stored: Any) -> None:
        """Know a task as the real one would, which reads it at each refresh."""
        self._seen[task_key] = stored

    def known(self, task_key: str) -> Any:
        """The task as this process saw it last."""
        return self._seen.get(task_key) or self._backup.known(task_key)

    def after_commit(self, *_: Any, **__: Any) -> bool:
        """Leave the snapshot as it is, and do not claim that it shows anything."""
        return False


class Peer:
    """The job store, with an engine whose connections are made already."""

    def __init__(self, world: World, tasks: list[Task]) -> None:
        url = world.database().replace("postgresql://", "postgresql+psycopg://")
        self._engine = create_engine(url)
        self._scheduler = BackgroundScheduler(timezone=UTC)
        self.store = SQLAlchemyJobStore(engine=self._engine)
        self.store.start(self._scheduler, "default")
        for number, task in enumerate(tasks):
            self.store.add_job(self.job(task, number))
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")

    def job(self, task: Task, number: int = 0) -> Job:
        """A job that is to run a task."""
        due = datetime.now(UTC) + timedelta(minutes=15, seconds=number)
        return Job(
            self._scheduler,
            id=task["task_id"],
            trigger=IntervalTrigger(minutes=15, timezone=UTC),
            executor="default",
            func=_FUNCTION,
            args=(),
            kwargs={"task": task},
            name=task["name"],
            misfire_grace_time=1,
            coalesce=True,
            max_instances=1,
            next_run_time=due,
        )

    def close(self) -> None:
        self._engine.dispose()


class PeerCases:
    """The same tasks in both."""

    def __init__(self, world: World, *, with_hook: bool, size: int = SIZE) -> None:
        self.size, self._with_hook = size, with_hook
        self.tasks = sample_tasks(size)
        data_dir = world.data_dir()
        path = data_dir / "scheduler" / "scheduled_tasks.json"
        write_snapshot(path, texts_of(self.tasks))
        self.ours = SchedulerPersistence(data_dir, url=world.database())
        self.ours.load_tasks()
        self._database = cast("Any", self.ours._switch._database)
        self._database._dal.database.run(lambda c: c.execute("VACUUM ANALYZE scheduler_tasks"))
        if not with_hook:
            self._database.backup = NoBackup(self._database.backup)
        self.peer = Peer(world, self.tasks)
        self.random, self._serial = random.Random(size), 0
        self._task: Task = {"task_id": "new-0"}

    def close(self) -> None:
        self.ours.close()
        self.peer.close()

    def case(self, operation: str, **how: Any) -> Case:
        hook, bound = "hook off", OF_PEERS.get(operation)
        if self._with_hook:
            hook, bound = "with the hook", None
        return Case(f"{operation}, {hook}", self.size, bound=bound, against=NAME, **how)

    def cases(self) -> Iterator[Case]:
        """What both can do."""
        store = self.peer.store
        yield self.case(
            "load_tasks",
            ours=lambda _: self.ours.load_tasks(),
            floor=lambda _: store.get_all_jobs(),
        )
        yield self.case(
            "get_task",
            before=self._pick,
            ours=lambda _: self.ours.get_task(self._key),
            floor=lambda _: store.lookup_job(self._key),
        )
        yield self.case("update_task", before=self._to_update, ours=self._update, floor=self._again)
        yield self.case("add_task", before=self._to_add, ours=self._add, floor=self._add_job)
        yield self.case("delete_task", before=self._to_delete, ours=self._delete, floor=self._gone)

    def _pick(self, _: int) -> None:
        self._key = f"task-{self.random.randrange(self.size)}"

    def _to_update(self, number: int) -> None:
        self._pick(number)
        self._task = self.ours.get_task(self._key) or {}
        if not self._with_hook:
            self._database.backup.saw(self._key, self._database._dal.fetch_task(self._key))
        self._task.update(ran(self._task, number))
        self._job = self.peer.job(self._task)

    def _update(self, _: int) -> None:
        if not self.ours.update_task(self._task):
            raise RuntimeError("the task is not there")

    def _again(self, _: int) -> None:
        self.peer.store.update_job(self._job)

    def _to_add(self, _: int) -> None:
        # The one that was added last makes room, so that the size stays.
        self.ours.delete_task(f"new-{self._serial}")
        with suppress(JobLookupError):
            self.peer.store.remove_job(f"new-{self._serial}")
        self._serial += 1
        task = self.tasks[self._serial % self.size]
        self._task = {**task, "task_id": f"new-{self._serial}"}
        self._job = self.peer.job(self._task)

    def _add(self, _: int) -> None:
        if not self.ours.add_task(self._task):
            raise RuntimeError("the task is there already")

    def _add_job(self, _: int) -> None:
        self.peer.store.add_job(self._job)

    def _to_delete(self, number: int) -> None:
        self._to_add(number)
        self._add(number)
        self._add_job(number)

    def _delete(self, _: int) -> None:
        if not self.ours.delete_task(self._task["task_id"]):
            raise RuntimeError("the task is not there")

    def _gone(self, _: int) -> None:
        self.peer.store.remove_job(self._task["task_id"])
