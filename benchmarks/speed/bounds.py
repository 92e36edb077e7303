"""The most that each ratio may be: what `make bench-check` holds.

docs/performance.md says which of them are not what was wished for, and why.
"""

from __future__ import annotations

# By the number of tasks.
SIZES = (100, 1_000, 10_000, 100_000)
OF_TASKS: dict[str, tuple[float, float, float, float]] = {
    "add_task": (1.5, 1.3, 1.2, 1.1),
    "update_task": (1.5, 1.3, 1.2, 1.1),
    "delete_task": (1.5, 1.3, 1.2, 1.1),
    "get_task": (2, 2, 2, 2),
    "load_tasks, changed by another process": (1.3, 1.2, 1.2, 1.2),
    "load_tasks": (1, 0.7, 0.7, 0.7),
    "get_active_tasks": (1, 0.7, 0.7, 0.7),
    "save_tasks, all changed": (2, 1.5, 1.4, 1.4),
    "first import": (1.5, 1.4, 1.3, 1.3),
}
OF_RUNS = {"log_task_execution": 1.6, "get_task_history": 1.3, "clear_old_history": 1.2}
# Many threads beside one: five times as many updates a second.
OF_THREADS = 0.2
# Ours beside APScheduler's job store: half as fast again, in what waits for no disk.
OF_PEERS = {
    "load_tasks": 0.67,
    "get_task": 0.67,
    "update_task": 0.67,
    "add_task": 0.67,
    "delete_task": 0.67,
}
