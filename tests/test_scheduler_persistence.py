"""The file path, the database path and the bootstrap import, as the scheduler uses them.

Runs by itself (`python -m unittest tests.test_scheduler_persistence`) and starts its own PostgreSQL
server where none is given; see TEST_POSTGRES in the README.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from datahound_storage import SchedulerPersistence
from datahound_storage.bootstrap import get_storage_dal_from_env
from tests import servers
from tests.scheduler import EXAMPLES, OldCode, Task, make_task


def setUpModule() -> None:
    servers.get()


class SchedulerTestCase(unittest.TestCase):
    """A base directory of its own, and an environment without settings."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.base = Path(folder.name)
        ours = {n for n in os.environ if n.startswith("DATAHOUND_") or n == "DATABASE_URL"}
        clean = {name: value for name, value in os.environ.items() if name not in ours}
        environment = mock.patch.dict(os.environ, clean, clear=True)
        environment.start()
        self.addCleanup(environment.stop)

    def make(self, **options: Any) -> SchedulerPersistence:
        persistence = SchedulerPersistence(self.base / "data", **options)
        self.addCleanup(persistence.close)
        return persistence

    def copy_sample(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Put the sample's files in place; return its tasks and its history."""
        for part in ("data", "logging"):
            shutil.copytree(EXAMPLES / part, self.base / part)
        history = self.base / "logging/scheduler/task_history.jsonl"
        entries = [json.loads(line) for line in history.read_text().splitlines()]
        return OldCode(self.base).load(), entries


class UsesTheStore:
    """What a scheduler does all day; the same on either path."""

    def test_a_day_of_a_scheduler(self: Any) -> None:
        persistence = self.make(task_class=Task)
        task = Task.from_dict(make_task("nightly"))
        self.assertTrue(persistence.add_task(task))
        self.assertFalse(persistence.add_task(task))
        due = persistence.get_active_tasks()
        self.assertEqual([found.task_id for found in due], ["nightly"])
        due[0].run_count += 1
        self.assertTrue(persistence.update_task(due[0]))
        persistence.log_task_execution("nightly", True, "fine", 1.25, "Nightly", "download")
        self.assertEqual(persistence.get_task("nightly").run_count, 1)
        entry = persistence.get_task_history("nightly")[0]
        self.assertEqual((entry["message"], entry["duration_seconds"]), ("fine", 1.25))
        line = persistence.history_file.read_text().splitlines()[-1]
        self.assertEqual(json.loads(line), entry)
        self.assertEqual(OldCode(self.base).load()[0]["run_count"], 1)
        self.assertEqual(persistence.clear_old_history(30), 0)
        self.assertTrue(persistence.delete_task("nightly"))
        self.assertEqual(persistence.load_tasks(), [])
        self.assertEqual(OldCode(self.base).load(), [])

    def test_saving_the_whole_state(self: Any) -> None:
        tasks, _ = self.copy_sample()
        persistence = self.make()
        listed = persistence.load_tasks()
        self.assertEqual(json.dumps(listed), json.dumps(tasks))
        self.assertTrue(persistence.save_tasks(listed[::-1][:10]))
        self.assertEqual(persistence.load_tasks(), tasks[::-1][:10])
        self.assertEqual(OldCode(self.base).load(), tasks[::-1][:10])


class FilePathTest(UsesTheStore, SchedulerTestCase):
    """No URL: the JSON files are the store."""

    def test_the_files_serve(self) -> None:
        self.assertIsNone(get_storage_dal_from_env())
        self.assertEqual(self.make().health().store, "files")


class DatabasePathTest(UsesTheStore, SchedulerTestCase):
    """A URL in the environment, and nothing else."""

    def setUp(self) -> None:
        super().setUp()
        server = servers.get()
        url = server.create_database()
        self.addCleanup(server.drop_database, url)
        os.environ["DATAHOUND_STORAGE_URL"] = url

    def test_the_database_serves(self) -> None:
        self.assertEqual(self.make().health().store, "database")

    def test_the_rows_are_there(self) -> None:
        persistence = self.make()
        persistence.add_task(make_task("a"))
        persistence.log_task_execution("a", True)
        dal = get_storage_dal_from_env()
        assert dal is not None
        self.addCleanup(dal.close)
        record = dal.get_task("a")
        assert record is not None
        self.assertEqual(record.config_json, make_task("a"))
        self.assertEqual(record.schedule_expr, "interval:15")
        self.assertEqual(len(dal.list_task_runs(task_key="a")), 1)

    def test_bootstrap_imports_the_files_once(self) -> None:
        tasks, history = self.copy_sample()
        for _ in range(2):
            persistence = self.make()
            self.assertEqual(json.dumps(persistence.load_tasks()), json.dumps(tasks))
            found = persistence.get_task_history(limit=5000)
            self.assertEqual(json.dumps(found), json.dumps(history[::-1]))
            persistence.close()

    def test_unsetting_the_url_rolls_back(self) -> None:
        persistence = self.make()
        persistence.add_task(make_task("a"))
        persistence.close()
        os.environ["DATAHOUND_STORAGE_URL"] = ""
        persistence = self.make()
        self.assertEqual(persistence.health().store, "files")
        self.assertEqual(persistence.load_tasks(), [make_task("a")])


if __name__ == "__main__":
    unittest.main()
