"""The way back as a script (`alembic downgrade --sql`)."""

from __future__ import annotations

import psycopg
import pytest

from datahound_storage.migrations import SchemaState, status, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import script_of


def test_a_script_finds_no_tables_further_on_in_the_search_path(database_url: str) -> None:
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    query(database_url, 'CREATE SCHEMA "My Schema"')
    mine = support.with_search_path(database_url, '"My\\ Schema",public')
    upgrade(mine)
    query(mine, 'DROP TABLE "My Schema".scheduler_conflicts')
    support.apply_script(mine, script_of("downgrade", "head:base", x=[]))
    names = query(database_url, "SELECT relnamespace::regnamespace::text FROM pg_class"
                  " WHERE relname LIKE 'scheduler%' AND relkind = 'r'")  # fmt: skip
    assert names == [("public",)] * 5
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40


def test_a_script_that_finds_no_schema_of_its_own_touches_no_other(database_url: str) -> None:
    upgrade(database_url)
    script = "SET search_path = nowhere;\n" + script_of("downgrade", "head:0001", x=[])
    with pytest.raises(psycopg.Error):
        support.apply_script(database_url, script)
    assert status(database_url).state is SchemaState.CURRENT
