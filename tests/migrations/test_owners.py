"""Tables of one role, upgraded by another one: their owner can use all that comes beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datahound_storage.errors import SchemaError
from datahound_storage.migrations import SchemaState, downgrade, status, upgrade
from tests.migrations import support
from tests.migrations.support import query
from tests.migrations.test_upgrade import script_of

OWNERS = """
SELECT relname, relowner::regrole::text FROM pg_class
WHERE relname ~ '^(scheduler|datahound)' AND relkind IN ('r', 'S')
UNION ALL SELECT proname, proowner::regrole::text FROM pg_proc WHERE proname ~ '^scheduler'"""


@pytest.fixture
def app_url(role: str, database_url: str) -> Iterator[str]:
    """Old tables of a role that is no superuser, seen by it."""
    query(database_url, f"GRANT CREATE ON SCHEMA public TO {role}")
    url = support.with_user(database_url, role, role)
    query(url, (support.LEGACY + support.LEGACY_ROWS).encode())
    yield url
    # What is left would keep the role from being dropped.
    query(database_url, f"DROP OWNED BY {role} CASCADE")


def check(url: str, role: str) -> None:
    owners = query(url, OWNERS)
    assert len(owners) >= 15
    assert {owner for _, owner in owners} == {role}


def test_a_superuser_leaves_the_owner_everything(
    database_url: str,
    app_url: str,
    role: str,
) -> None:
    assert upgrade(database_url).state is SchemaState.CURRENT
    check(database_url, role)
    assert status(app_url).state is SchemaState.CURRENT
    query(app_url, "DELETE FROM scheduler_tasks WHERE task_key = 'first'")
    assert query(app_url, "SELECT task_key FROM scheduler_task_tombstones") == [("first",)]
    assert downgrade(app_url, "0001").found == "0001"
    assert upgrade(app_url).state is SchemaState.CURRENT


def test_so_does_a_script(database_url: str, app_url: str, role: str) -> None:
    support.apply_script(database_url, script_of("upgrade", "head", x=[]))
    check(database_url, role)
    assert upgrade(app_url).state is SchemaState.CURRENT


def test_a_member_of_the_owner_may_upgrade(
    another_role: str, database_url: str, app_url: str, role: str
) -> None:
    query(database_url, f"GRANT {role} TO {another_role}")
    query(database_url, f"GRANT CREATE ON SCHEMA public TO {another_role}")
    assert upgrade(support.with_user(database_url, another_role, another_role)).usable
    check(database_url, role)
    query(database_url, f"DROP OWNED BY {another_role}")


def test_a_third_ones_table_is_not_taken_away(
    another_role: str, database_url: str, app_url: str, role: str
) -> None:
    upgrade(database_url, "0001")
    query(database_url, "CREATE SEQUENCE scheduler_tasks_position_seq;"
          f"ALTER SEQUENCE scheduler_tasks_position_seq OWNER TO {another_role}")  # fmt: skip
    with pytest.raises(SchemaError, match="same owner"):
        upgrade(database_url)
    assert status(database_url).found == "0001"
    query(database_url, f"DROP OWNED BY {another_role}")
