"""A standby: it cannot serve, until it is promoted; and not then if it lagged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage.testing import EmbeddedServer
from tests import servers
from tests.fault.fix_faults import CALLS, Told, bounded, check_left, fill, secret_task
from tests.fault.proxy import Proxy
from tests.fault.standby import PRIMARY_SETTINGS, Standby, execute, value
from tests.fix_persistence import MakePersistence


@pytest.fixture
def primary() -> Iterator[EmbeddedServer]:
    """A server that has a standby."""
    with (
        servers.embedded_directory() as directory,
        EmbeddedServer(directory, settings={**PRIMARY_SETTINGS, "fsync": "off"}) as server,
    ):
        yield server


@pytest.fixture
def standby(primary: EmbeddedServer) -> Iterator[Standby]:
    """Its standby."""
    with servers.embedded_directory() as directory, Standby(directory, primary) as standby:
        yield standby


def test_a_standby_is_left_and_its_promotion_found(
    opened: MakePersistence, base: Path, primary: EmbeddedServer, standby: Standby, told: Told
) -> None:
    persistence = opened(base, url=primary.url)
    fill(persistence)
    persistence.close()
    standby.wait_for(primary.url)
    primary.stop()
    with bounded():
        persistence = opened(base, url=standby.url)
    assert "standby" in told.fallen_back(persistence)
    for name in ("update_task", "add_task", "log_task_execution"):
        assert CALLS[name].make(persistence) == CALLS[name].answer
    persistence.close()
    standby.promote()
    persistence = opened(base, url=standby.url)
    assert persistence.health().store == "database"
    assert {t["task_id"]: t["name"] for t in persistence.load_tasks()} == {
        "a": "changed", "b": "Task b", "c": "Task c",
    }  # fmt: skip
    assert value(standby.url, "SELECT count(*) FROM scheduler_tasks") == 3
    assert value(standby.url, "SELECT count(*) FROM scheduler_runs") == 2
    assert value(standby.url, "SELECT count(*) FROM scheduler_conflicts") == 0


def test_a_server_that_becomes_read_only_is_left(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    name = value(migrated_url, "SELECT current_database()")
    execute(
        migrated_url,
        f"ALTER DATABASE {name} SET default_transaction_read_only = on",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    with bounded():
        assert CALLS["update_task"].make(persistence) is True
    assert "read-only" in told.fallen_back(persistence)
    check_left(persistence, CALLS["update_task"])


def busy(connection: psycopg.Connection[Any], others: str) -> None:
    """What others do on the standby after its promotion."""
    for _ in range(0 if others == "quiet" else 50):
        connection.execute("SELECT pg_current_xact_id()")
    if others == "written since":
        connection.execute("UPDATE scheduler_tasks SET timezone = 'Europe/Berlin'")


OTHERS = ["quiet", "busy since", "written since"]


@pytest.mark.parametrize("others", OTHERS)
def test_a_standby_that_lagged_is_refused(
    opened: MakePersistence,
    base: Path,
    primary: EmbeddedServer,
    standby: Standby,
    told: Told,
    others: str,
) -> None:
    """Also where other transactions have been counted on it since, more than the primary's."""
    persistence = opened(base, url=primary.url)
    fill(persistence)
    standby.wait_for(primary.url)
    standby.cut_off()
    for number in range(3):
        assert persistence.add_task(secret_task(f"not there {number}"))
    shown = persistence.tasks_file.read_bytes()
    persistence.close()
    primary.stop("immediate")
    standby.promote()
    with psycopg.connect(standby.url, autocommit=True) as connection:
        busy(connection, others)
    persistence = opened(base, url=standby.url)
    assert "older than what" in told.fallen_back(persistence)
    assert persistence.tasks_file.read_bytes() == shown
    assert value(standby.url, "SELECT count(*) FROM scheduler_tasks") == 2
    assert persistence.update_task(secret_task("not there 1", name="goes on"))
    assert value(standby.url, "SELECT count(*) FROM scheduler_tasks") == 2


@pytest.mark.parametrize("others", OTHERS)
def test_a_failover_to_a_standby_that_lagged_is_noticed_while_running(
    opened: MakePersistence,
    base: Path,
    primary: EmbeddedServer,
    standby: Standby,
    told: Told,
    others: str,
) -> None:
    """One address, behind which the servers change."""
    with Proxy(primary.url) as address:
        persistence = opened(base, url=address.url)
        fill(persistence)
        standby.wait_for(primary.url)
        standby.cut_off()
        for number in range(3):
            assert persistence.add_task(secret_task(f"not there {number}"))
        shown = persistence.tasks_file.read_bytes()
        primary.stop("immediate")
        standby.promote()
        with psycopg.connect(standby.url, autocommit=True) as connection:
            busy(connection, others)
        address.lead_to(standby.url)
        assert len(persistence.load_tasks()) == 5
        assert "older" in told.fallen_back(persistence)
        assert persistence.tasks_file.read_bytes() == shown
