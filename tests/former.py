"""Sidecars as the version before wrote them: it hashed tasks and snapshots otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psycopg

from datahound_storage import SchedulerPersistence
from datahound_storage.files import layout, sidecar
from datahound_storage.files.paths import StatePaths
from datahound_storage.files_side import look_at_files
from datahound_storage.halves import hashes_of
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task

Tasks = list[dict[str, Any]]

SCHEDULER = ("last_run", "next_run", "run_count", "consecutive_errors", "last_error")


def _hash(half: dict[str, Any]) -> str:
    content = json.dumps(half, sort_keys=True).encode()
    return blake2b(content, digest_size=8).hexdigest()


def former_hashes(task: dict[str, Any]) -> list[str]:
    """The hashes of the two halves."""
    by_operator = task.get("status") in ("paused", "disabled")
    apart = {*SCHEDULER, "updated_at", *(() if by_operator else ("status",))}
    status = "" if by_operator else task.get("status") or ""
    scheduler = _hash({k: v for k, v in task.items() if k in SCHEDULER})
    stamp = _hash({k: v for k, v in task.items() if k == "updated_at"})
    operator = _hash({k: v for k, v in task.items() if k not in apart})
    return [operator, f"{scheduler}/{stamp}/{status}"]


def former_digest(content: bytes) -> str:
    """The digest of a snapshot."""
    return blake2b(content, digest_size=16).hexdigest()


class Former:
    """Rewrites what this version has hashed; `shown`: all snapshots that it can be about."""

    def __init__(self, shown: Iterable[bytes]) -> None:
        contents = [b"[]", *shown]
        tasks = [task for content in contents for task in json.loads(content)]
        self._digests = {layout.digest(content): former_digest(content) for content in contents}
        self._hashes = {hashes_of(task): former_hashes(task) for task in tasks}

    def rewrite(self, path: Path) -> None:
        """Make a sidecar one of format 1."""
        told = json.loads(path.read_bytes())
        assert told["format"] == 2
        told["format"] = 1
        for name in ("before", "after"):
            told[name] = told[name] and self._digests[told[name]]
        for name in ("tasks", "previous"):
            told[name] = self.of_each(told[name])
        since = told.get("shown_since", {}).items()
        told["shown_since"] = {key: [self._of(v) for v in shown] for key, shown in since}
        path.write_text(json.dumps(told))

    def of_each(self, hashes: dict[str, list[str] | None]) -> dict[str, list[str] | None]:
        """The hashes of some tasks; None stays."""
        return {key: self._of(pair) for key, pair in hashes.items()}

    def _of(self, pair: list[str] | None) -> list[str] | None:
        return None if pair is None else self._hashes[pair[0], pair[1]]


class World:
    """Files and database that were equal, and a sidecar of the format `form` that says so."""

    def __init__(self, opened: MakePersistence, base: Path, url: str, form: int) -> None:
        self._opened, self._base, self.url, self.form = opened, base, url, form
        self.data_dir = base / "data"
        self.paths = StatePaths.below(self.data_dir)
        self._shown: list[bytes] = []

    def fill(self, **options: Any) -> SchedulerPersistence:
        here = self._opened(self._base, **{"url": self.url, **options})
        for key in "abc":
            self.look()
            assert here.add_task(make_task(key))
        self.look()
        return here

    def look(self) -> None:
        """Take note of what the snapshot, and a new one beside it, shows."""
        for path in self.paths.tasks_file.parent.glob("*scheduled_tasks.json*"):
            if path.suffix in (".json", ".tmp"):
                self._shown.append(path.read_bytes())

    def upgrade(self) -> None:
        """From here on the sidecar is one that the version before has left."""
        self.look()
        if self.form == 1:
            Former(self._shown).rewrite(self.paths.sidecar_file)

    def remember_as_before(self) -> None:
        """So is what the database remembers of a meeting."""
        if self.form == 2:
            return
        mark = look_at_files(self.paths).mark
        with psycopg.connect(self.url) as connection:
            query = "SELECT value FROM scheduler_storage, jsonb_each(carried_over)"
            [[[when, text]]] = connection.execute(query).fetchall()
            told = json.loads(text)
            assert told.pop("format") == 2
            told["tasks"] = Former(self._shown).of_each(told["tasks"])
            kept = json.dumps({mark: [when, json.dumps(told)]})
            connection.execute("UPDATE scheduler_storage SET carried_over = %s", (kept,))

    def remembered(self) -> set[str]:
        """The tasks of which the database remembers what a meeting carried over."""
        query = "SELECT value ->> 1 FROM scheduler_storage, jsonb_each(carried_over)"
        with psycopg.connect(self.url) as connection:
            found = connection.execute(query).fetchall()
        return {key for (text,) in found for key in json.loads(text)["tasks"]}

    def move(self) -> None:
        """As if the database had been moved to another cluster since."""
        told = json.loads(self.paths.sidecar_file.read_bytes())
        self.paths.sidecar_file.write_text(json.dumps({**told, "incarnation": "another"}))

    def edit(self, change: Callable[[Tasks], Tasks]) -> None:
        """What old code makes of the snapshot."""
        OldCode(self._base).save(change(OldCode(self._base).load()))

    def set(self, key: str, **changes: Any) -> None:
        self.edit(lambda tasks: [{**t, **changes} if t["task_id"] == key else t for t in tasks])

    def there(self) -> SchedulerPersistence:
        """Another host on the same database."""
        return self._opened(self._base.parent / "elsewhere", url=self.url)

    def set_there(self, key: str, **changes: Any) -> None:
        there = self.there()
        assert there.update_task({**there.get_task(key), **changes})
        there.close()

    def delete_there(self, key: str) -> None:
        assert self.there().delete_task(key)

    def meet(self) -> list[tuple[str, str, int]]:
        here = self._opened(self._base, url=self.url)
        tasks = here.load_tasks()
        here.close()
        return [(task["task_id"], task["name"], task["run_count"]) for task in tasks]

    def conflicts(self) -> list[tuple[str, str, str]]:
        query = "SELECT task_key, half, kept FROM scheduler_conflicts ORDER BY 1, 2"
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()

    def form_found(self) -> int:
        return int(json.loads(self.paths.sidecar_file.read_bytes())["format"])

    def require_format_two(self) -> None:
        """What was written is as if there had never been another format."""
        content = self.paths.tasks_file.read_bytes()
        known = sidecar.read(self.paths.sidecar_file)
        assert known is not None
        assert known.tasks == {task["task_id"]: hashes_of(task) for task in json.loads(content)}
        assert (known.format, known.header.after) == (2, layout.digest(content))
