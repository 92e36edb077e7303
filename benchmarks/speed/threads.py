"""Many threads that update at once, beside one thread, on one facade."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from benchmarks.speed.bounds import OF_THREADS
from benchmarks.speed.measure import Case
from benchmarks.speed.task_cases import ran
from benchmarks.speed.world import Task, World, sample_tasks, texts_of, write_snapshot
from datahound_storage.persistence import SchedulerPersistence

SIZE, THREADS = 10_000, 16
# Seconds of each slice: one with all threads, one with a single one, and so on.
SLICE = 2.0


class ThreadCases:
    """A facade that is shared; each thread has tasks of its own."""

    def __init__(self, world: World, size: int = SIZE, seconds: float = SLICE) -> None:
        self.size, self._seconds = size, seconds
        data_dir = world.data_dir()
        path = data_dir / "scheduler" / "scheduled_tasks.json"
        write_snapshot(path, texts_of(sample_tasks(size)))
        self.ours = SchedulerPersistence(data_dir, url=world.database())
        loaded = self.ours.load_tasks()
        self._shares: list[list[Task]] = [loaded[n::THREADS] for n in range(THREADS)]
        self._numbers = [0] * THREADS
        self._failures: list[BaseException] = []

    def close(self) -> None:
        self.ours.close()

    def cases(self) -> Iterator[Case]:
        """One line: seconds for each acknowledged update."""
        yield Case(
            f"update_task, {THREADS} threads at once",
            self.size,
            ours=lambda _: self.seconds_for_each(THREADS),
            floor=lambda _: self.seconds_for_each(1),
            bound=OF_THREADS,
            against="one thread",
            self_timed=True,
        )

    def seconds_for_each(self, count: int) -> float:
        """Let so many threads update for a slice; the seconds for each update."""
        before, began = sum(self._numbers), time.perf_counter()
        ends = began + self._seconds
        threads = [threading.Thread(target=self._work, args=(n, ends)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        return (time.perf_counter() - began) / (sum(self._numbers) - before)

    def _work(self, thread: int, ends: float) -> None:
        try:
            while time.perf_counter() < ends:
                self._update(thread)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._failures.append(error)

    def _update(self, thread: int) -> None:
        mine, number = self._shares[thread], self._numbers[thread]
        task = mine[number % len(mine)]
        task.update(ran(task, task["run_count"] or 0))
        if not self.ours.update_task(task):
            raise RuntimeError("the task is not there")
        self._numbers[thread] = number + 1
