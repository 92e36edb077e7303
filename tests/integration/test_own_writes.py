"""What a bulk change wrote is not fetched again, unless somebody changed it on its way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fix_persistence import MakePersistence
from tests.migrations.support import query
from tests.scheduler import make_task

# Another application's triggers: they change a row on its way in, and another one beside it.
ON_ITS_WAY = """
CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.task_text := replace(NEW.task_text, '"old"', '"older"');
    NEW.config_json := NEW.task_text::jsonb;
    RETURN NEW;
END $$;
CREATE TRIGGER louder BEFORE INSERT OR UPDATE ON scheduler_tasks
    FOR EACH ROW EXECUTE FUNCTION louder()"""
BESIDE_IT = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scheduler_tasks SET task_text = replace(task_text, '"kept"', '"touched"')
    WHERE task_key = 'other' AND task_text LIKE '%"kept"%';
    RETURN NULL;
END $$;
CREATE TRIGGER touch AFTER UPDATE ON scheduler_tasks
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION touch()"""


@pytest.mark.parametrize(
    ("trigger", "names"), [(ON_ITS_WAY, ["older", "kept"]), (BESIDE_IT, ["old", "touched"])]
)
@pytest.mark.parametrize("first", [False, True], ids=["changed", "imported"])
def test_what_a_trigger_made_of_it_is_what_is_listed(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    trigger: str,
    names: list[str],
    first: bool,
) -> None:
    tasks = [make_task("a", name="old"), make_task("other", name="kept")]
    if first:
        if trigger is BESIDE_IT:
            trigger = trigger.replace("AFTER UPDATE", "AFTER INSERT")
        query(migrated_url, trigger)
        files = opened(base, url=None)
        files.save_tasks(tasks)
        persistence = opened(base, url=migrated_url)
    else:
        persistence = opened(base, url=migrated_url)
        persistence.save_tasks([make_task("a", name="new"), tasks[1]])
        query(migrated_url, trigger)
        listed = persistence.load_tasks()
        listed[0]["name"] = "old"
        persistence.save_tasks(listed)
    assert [task["name"] for task in json.loads(persistence.tasks_file.read_text())] == names
    assert [task["name"] for task in persistence.load_tasks()] == names
