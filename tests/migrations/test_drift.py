"""The tables in the code and those made by the revisions are the same, however they came about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pytest_alembic.tests import (
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)

from datahound_storage.migrations import upgrade
from datahound_storage.migrations.compare import OPTIONS
from datahound_storage.migrations.config import make_engine
from datahound_storage.postgres import schema
from tests.migrations import support

# pytest-alembic's own tests, run here with the fixtures below.
__all__ = [
    "test_model_definitions_match_ddl",
    "test_single_head_revision",
    "test_up_down_consistency",
    "test_upgrade",
]


@pytest.fixture
def alembic_config() -> dict[str, Any]:
    return {"file": str(support.ROOT / "alembic.ini")}


@pytest.fixture
def alembic_engine(database_url: str) -> Iterator[sa.Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def differences(url: str) -> list[Any]:
    options = dict(OPTIONS)
    with make_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, schema.metadata))


def adopt(url: str, legacy: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(legacy.encode())
    upgrade(url)


def test_no_difference_when_created(migrated_url: str) -> None:
    assert differences(migrated_url) == []


@pytest.mark.parametrize("kind", support.LEGACY_DATABASES)
def test_no_difference_when_adopted(database_url: str, kind: str) -> None:
    adopt(database_url, support.LEGACY_DATABASES[kind])
    assert differences(database_url) == []


@pytest.mark.parametrize("kind", support.LEGACY_DATABASES)
def test_adopted_is_what_is_created(database_url: str, migrated_url: str, kind: str) -> None:
    adopt(database_url, support.LEGACY_DATABASES[kind])
    created, adopted = support.schema_of(migrated_url), support.schema_of(database_url)
    adopted["indexes"] = [index for index in adopted["indexes"] if index[0] != "dashboard"]
    assert adopted == created


def test_the_code_makes_the_same_tables(database_url: str, migrated_url: str) -> None:
    engine = make_engine(database_url)
    schema.metadata.create_all(engine)
    assert support.tables_of(database_url) == support.tables_of(migrated_url)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE scheduler_tasks ADD COLUMN more int",
        "ALTER TABLE scheduler_tasks DROP COLUMN task_text",
        "ALTER TABLE scheduler_tasks ALTER COLUMN company DROP NOT NULL",
        "ALTER TABLE scheduler_tasks ALTER COLUMN timezone SET DEFAULT 'CET'",
        "ALTER TABLE scheduler_tasks ALTER COLUMN changed_at DROP DEFAULT",
        "ALTER TABLE scheduler_runs ALTER COLUMN duration_ms TYPE integer",
        "ALTER TABLE scheduler_storage DROP CONSTRAINT ck_scheduler_storage_only_row",
        "ALTER TABLE scheduler_runs DROP CONSTRAINT scheduler_runs_run_id_key",
        "DROP INDEX ix_scheduler_tasks_changed_xid",
        "DROP INDEX ix_scheduler_runs_ended_at",
        "CREATE INDEX ix_scheduler_runs_more ON scheduler_runs (success)",
        "DROP TABLE scheduler_conflicts",
    ],
)
def test_a_difference_is_seen(migrated_url: str, statement: str) -> None:
    support.query(migrated_url, statement)
    assert differences(migrated_url) != []


def test_what_belongs_to_others_is_no_difference(migrated_url: str) -> None:
    support.query(migrated_url, "CREATE TABLE jobs (id int)")
    support.query(migrated_url, "CREATE INDEX by_message ON scheduler_runs (message)")
    assert differences(migrated_url) == []
