"""The two halves of a task: what the operator decides, and what the scheduler reports.

Two writers rarely touch the same half, so files and database are compared, and joined, by halves.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import NamedTuple

import orjson

from datahound_storage.codec import PLAIN, Task
from datahound_storage.records import TaskStatus
from datahound_storage.tasks import parse_time

OPERATOR_STATUSES = frozenset({TaskStatus.PAUSED.value, TaskStatus.DISABLED.value})
SCHEDULE_FIELDS = ("schedule_type", "interval_minutes", "daily_time", "weekly_schedule")
SCHEDULER_FIELDS = frozenset(
    {"last_run", "next_run", "run_count", "consecutive_errors", "last_error", "updated_at"}
)


class Halves(NamedTuple):
    """The operator's half and the scheduler's half of a task, each as plain JSON objects."""

    operator: Task
    scheduler: Task


def halves_of(task: Task) -> Halves:
    """Split a task: `paused` and `disabled` belong to the operator, other states do not."""
    operator = {k: v for k, v in task.items() if k not in SCHEDULER_FIELDS and k != "status"}
    scheduler = {k: v for k, v in task.items() if k in SCHEDULER_FIELDS}
    status = task.get("status")
    if status in OPERATOR_STATUSES:
        operator["status"] = status
    else:
        scheduler["status"] = status
    return Halves(operator, scheduler)


def hashes_of(task: Task, *, is_finite: bool = False) -> tuple[str, str]:
    """The hashes of the operator's and of the scheduler's half, to be compared by `same_half`.

    `is_finite`: the task is known to hold neither NaN nor infinities, which saves looking for them.
    `updated_at` stands beside the scheduler's hash, as a change of either half stamps it; so does
    the status, as it is hidden while the operator's `paused` or `disabled` is in its place.
    """
    operator, scheduler = halves_of(task)
    status = scheduler.pop("status", None)
    stamp = {"updated_at": scheduler.pop("updated_at")} if "updated_at" in scheduler else {}
    hashed = [_hash(part, is_finite) for part in (operator, scheduler, stamp)]
    return hashed[0], _MARK.join((hashed[1], hashed[2], "" if status is None else str(status)))


def former_hashes_of(task: Task) -> tuple[str, str]:
    """The hashes as sidecars of format 1 have them."""
    halves = halves_of(task)
    scheduler = {k: v for k, v in halves.scheduler.items() if k not in ("updated_at", "status")}
    status = halves.scheduler.get("status")
    stamp = _former_hash({k: v for k, v in halves.scheduler.items() if k == "updated_at"})
    parts = (_former_hash(scheduler), stamp, "" if status is None else str(status))
    return _former_hash(halves.operator), _MARK.join(parts)


_MARK = "/"


def parts_of(half: str) -> tuple[list[str], list[str]]:
    """The hashes in that of a half, and what else is in it: the scheduler's has a status."""
    parts = half.split(_MARK)
    return parts[:2], parts[2:]


def of_parts(hashes: list[str], rest: list[str]) -> str:
    """The hash of a half from its `parts_of`."""
    return _MARK.join((*hashes, *rest))


def same_half(left: str, right: str) -> bool:
    """Whether two hashes of the same half mean the same; an unknown status equals any."""
    left_hash, _, left_rest = left.partition(_MARK)
    right_hash, _, right_rest = right.partition(_MARK)
    left_status, right_status = (rest.partition(_MARK)[2] for rest in (left_rest, right_rest))
    same_status = left_status == right_status or "" in (left_status, right_status)
    return left_hash == right_hash and same_status


def _hash(half: Task, is_finite: bool) -> str:
    """A short hash, the same whatever the order of the keys."""
    return blake2b(_canonical(half, is_finite), digest_size=8).hexdigest()


def _former_hash(half: Task) -> str:
    canonical = json.dumps(half, sort_keys=True, default=str)
    return blake2b(canonical.encode("ascii"), digest_size=8).hexdigest()


def _canonical(half: Task, is_finite: bool) -> bytes:
    try:
        encoded = orjson.dumps(half, option=orjson.OPT_SORT_KEYS | PLAIN)
        # It writes null for NaN, too: reading it back tells.
        if is_finite or b"null" not in encoded or orjson.loads(encoded) == half:
            return encoded
    except (orjson.JSONEncodeError, RecursionError):
        pass  # what orjson does not write: integers beyond 64 bits, half surrogate pairs
    return json.dumps(half, sort_keys=True, default=str).encode("ascii")


def join_halves(operator_from: Task, scheduler_from: Task) -> Task:
    """A task with the operator's half of one version and the scheduler's half of another.

    A `next_run` that was computed from another schedule does not come along; of the two times of
    the last change, the later one does.
    """
    joined = {k: v for k, v in operator_from.items() if k not in SCHEDULER_FIELDS}
    joined |= {k: v for k, v in scheduler_from.items() if k in SCHEDULER_FIELDS}
    if any(operator_from.get(k) != scheduler_from.get(k) for k in SCHEDULE_FIELDS):
        joined |= {k: v for k, v in operator_from.items() if k == "next_run"}
        if "next_run" not in operator_from:
            joined.pop("next_run", None)
    if "updated_at" in joined:
        joined["updated_at"] = _later(operator_from, scheduler_from)
    if "status" in operator_from or "status" in scheduler_from:
        joined["status"] = _joined_status(operator_from.get("status"), scheduler_from.get("status"))
    return {name: joined[name] for name in [*operator_from, *joined] if name in joined}


def _later(left: Task, right: Task) -> object:
    known = [
        (instant, task["updated_at"])
        for task in (left, right)
        if (instant := parse_time(task.get("updated_at"))) is not None
    ]
    return max(known, key=lambda pair: pair[0])[1] if known else right.get("updated_at")


def _joined_status(operator: object, scheduler: object) -> object:
    if operator in OPERATOR_STATUSES:
        return operator
    if scheduler in OPERATOR_STATUSES:
        return operator if operator is not None else TaskStatus.ACTIVE.value
    return scheduler
