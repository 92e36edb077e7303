"""The facade: what the scheduler and its web UI call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datahound_storage.bases import Bases, identities_of
from datahound_storage.codec import Task, decode
from datahound_storage.fallback import close_switch, open_switch
from datahound_storage.files.lock import cannot
from datahound_storage.files.paths import StatePaths
from datahound_storage.health import Health
from datahound_storage.hooks import BackupHook
from datahound_storage.loading import IsWanted, Loader
from datahound_storage.records import TaskStatus
from datahound_storage.run_persistence import RunPersistence, is_possible
from datahound_storage.saving import TaskAdapter, TaskClass, WholeState
from datahound_storage.settings import Settings, from_environment, normalize_url
from datahound_storage.stamping import get_updated_at, now_like, set_updated_at
from datahound_storage.stores import all_once, once
from datahound_storage.writes import TaskChange, TaskText


class SchedulerPersistence(RunPersistence):
    """Tasks and history of a scheduler, in the database with files beside it, or in the files.

    With a URL (the argument, else the environment) the schema is brought to head, files and
    database are reconciled, and the database serves from then on; should it fail, the files do.
    Without one the files are the store. Either way the same calls give the same results.

    `data_dir` is `<base>/data`. `task_class` is the scheduler's own class (`to_dict`, `from_dict`);
    without it tasks are plain dicts. `hooks` are called after each commit and on each listing while
    the database serves. Safe to share between threads; any number may exist in any number of
    processes.

    Raises SettingsError for a setting that cannot be used, FileStoreError where the directories
    cannot be used.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        task_class: type[TaskClass] | None = None,
        url: str | None = None,
        hooks: Sequence[BackupHook] = (),
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or from_environment()
        if url is not None:
            given = normalize_url(url, "url")
            self._settings = replace(self._settings, url=given, url_variable="url")
        self._paths = StatePaths.below(data_dir)
        self._adapter = TaskAdapter(task_class)
        self._bases = Bases(identities_of(self._paths.data_dir, self._settings.url))
        self._loader = Loader(self._adapter, self._bases)
        self._listed = threading.local()
        self._is_closed = False
        self._make_directories()
        super().__init__(open_switch(self._settings, self._paths))
        self._switch.add_hooks(list(hooks))

    def _make_directories(self) -> None:
        try:
            self._paths.make_directories()
        except OSError as error:
            place = Path(str(error.filename)) if error.filename else self._paths.data_dir
            raise cannot("create", place, error) from error

    @property
    def data_dir(self) -> Path:
        """`<base>/data`, absolute."""
        return self._paths.data_dir

    @property
    def scheduler_dir(self) -> Path:
        """Where the snapshot is."""
        return self._paths.scheduler_dir

    @property
    def tasks_file(self) -> Path:
        """The snapshot."""
        return self._paths.tasks_file

    @property
    def history_file(self) -> Path:
        """The history."""
        return self._paths.history_file

    @property
    def lock_file(self) -> Path:
        """The lock file."""
        return self._paths.lock_file

    # Tasks.

    def load_tasks(self) -> list[Any]:
        """All tasks, in the order in which they were added.

        A task that `task_class` rejects is left out and reported; it stays stored. While the
        database serves, the snapshot shows this list when the call returns.
        """
        return self._load()

    def iter_tasks(self) -> Iterator[Any]:
        """As `load_tasks`, one by one: each is made when it is asked for, so that it can go again.

        They are those of one moment, that of the first. Memory is taken for their texts only, which
        this process has anyway while the database serves.
        """
        for item in self._list():
            made = self._loader.load(item)
            if made is not None:
                yield made

    def _list(self) -> list[TaskText]:
        nothing: list[TaskText] = []
        texts = self._switch.run(lambda store: store.list_texts(), committed=nothing)
        self._listed.keys = {item.task_key for item in texts}
        return texts

    def _load(self, is_wanted: IsWanted | None = None) -> list[Any]:
        return self._loader.load_all(self._list(), is_wanted)

    def get_task(self, task_id: str) -> Any | None:
        """The task, None if there is none (or the class rejects it, which is reported)."""
        if not is_possible(task_id):
            return None
        text = self._switch.run(lambda store: store.get_text(task_id), committed=None)
        if text is None:
            return None
        return self._loader.load(TaskText(task_id, text))

    def add_task(self, task: Any) -> bool:
        """Add a task at the end; False if its id exists. Durable when it returns.

        Raises InvalidTaskError for a task that cannot be stored.
        """
        prepared = self._adapter.prepare(self._adapter.to_dict(task))
        added = self._switch.run(lambda store: store.add(prepared), committed=True)
        if added:
            self._bases.submitted(task, prepared.task_key, prepared.text)
            if hasattr(self._listed, "keys"):
                self._listed.keys.add(prepared.task_key)
        return added

    def update_task(self, task: Any) -> bool:
        """Store what changed in a task and set its `updated_at` to now; False if it is not there.

        What changed is the difference from what the object showed when it was loaded or submitted
        last; what others changed since then stays. If both changed the same field this change wins
        and the other version is kept as a conflict. An object that was neither loaded nor submitted
        here replaces the stored task as given.

        Durable when it returns. Raises InvalidTaskError for a task that cannot be stored; then, and
        where the answer is False, `updated_at` is left alone.
        """
        self._adapter.check(task)
        before = get_updated_at(task)
        base = self._base_of(task, self._adapter.to_dict(task))
        set_updated_at(task, now_like(before, as_text=isinstance(task, dict)))
        updated = False
        try:
            submitted = self._adapter.to_dict(task)
            key: str = submitted["task_id"]

            # As it is now: the change may be done again when the caller has gone on with it.
            strict = self._adapter.strict_text_of(submitted)
            text = strict or self._adapter.text_of(submitted)
            frozen = decode(text)

            def change(stored: str) -> TaskChange:
                return self._adapter.change(frozen, stored, base, strict)

            work = once(change)
            updated = self._switch.run(lambda store: store.update(key, work), committed=True)
        finally:
            if not updated:
                set_updated_at(task, before)
        if updated:
            self._bases.submitted(task, key, text, known=base is not None)
        else:
            self._unlist(key)
        return updated

    def _base_of(self, task: Any, submitted: Task) -> str | None:
        return self._bases.of(task, submitted["task_id"], submitted.get("updated_at"))

    def delete_task(self, task_id: str) -> bool:
        """Delete a task; its history stays. False if there is none. Durable when it returns."""
        if not is_possible(task_id):
            return False
        deleted = self._switch.run(lambda store: store.delete(task_id), committed=True)
        if deleted:
            self._bases.deleted(task_id)
        self._unlist(task_id)
        return deleted

    def _unlist(self, task_id: str) -> None:
        """A task is not there: if it is later, somebody has added it since this thread listed."""
        if hasattr(self._listed, "keys"):
            self._listed.keys.discard(task_id)

    def save_tasks(self, tasks: Iterable[Any]) -> bool:
        """Make a list the whole state, in its order: all or nothing. Durable when it returns.

        Tasks that are missing from it are deleted, but for those that somebody else added after
        this thread last listed the tasks. What others changed in a task since it was loaded stays,
        as with `update_task`; what others deleted since then stays deleted. Raises
        InvalidTaskError, having changed nothing.
        """
        pairs = [(task, self._adapter.to_dict(task)) for task in tasks]
        bases = {t["task_id"]: base for task, t in pairs if (base := self._base_of(task, t))}
        listed = getattr(self._listed, "keys", None)
        decide = WholeState(self._adapter, [submitted for _, submitted in pairs], listed, bases)
        work = all_once(decide)
        self._switch.run(lambda store: store.change_all(work), committed=None)
        for key in decide.deleted:
            self._bases.deleted(key)
        for task, submitted in pairs:
            key = submitted["task_id"]
            self._bases.submitted(task, key, decide.text_of(key), known=key in bases)
        self._listed.keys = set(decide.wanted)
        return True

    def get_active_tasks(self) -> list[Any]:
        """The tasks with status `active`, in the order in which they were added."""
        return self._load(lambda task: task.get("status") == TaskStatus.ACTIVE)

    def get_tasks_by_type(self, task_type: Any) -> list[Any]:
        """The tasks of a type (an enumeration's member or its value), in order of adding."""
        wanted = getattr(task_type, "value", task_type)
        return self._load(lambda task: _config(task, "task_type") == wanted)

    def get_tasks_by_company(self, company: str) -> list[Any]:
        """The tasks of a company, in the order in which they were added."""
        return self._load(lambda task: _config(task, "company") == company)

    # The state of things.

    def health(self) -> Health:
        """Which store serves, since when, why, and how the backup is."""
        return self._switch.health()

    def close(self) -> None:
        """Give up the connections. The last facade that is closed ends the process's attachment.

        A facade made afterwards attaches anew, as at the start of a process.
        """
        if not self._is_closed:
            self._is_closed = True
            close_switch(self._switch)


def _config(task: Task, name: str) -> object:
    config = task.get("task_config")
    return config.get(name) if isinstance(config, dict) else None
