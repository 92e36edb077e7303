"""A server that crashes forgets the numbers of transactions that changed nothing."""

from __future__ import annotations

from pathlib import Path

import psycopg

from datahound_storage.testing import EmbeddedServer
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task


def count_up(url: str, times: int) -> None:
    """Transactions that get a number, and leave no trace of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(times):
            connection.execute("BEGIN")
            connection.execute("SELECT pg_current_xact_id()")
            connection.execute("ROLLBACK")


def test_a_crash_of_the_server_is_no_restored_dump(
    opened: MakePersistence, base: Path, embedded_directory: Path
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        persistence = opened(base, url=server.url)
        persistence.add_task(make_task("a"))
        with psycopg.connect(server.url) as connection:
            connection.execute("UPDATE scheduler_tasks SET company = 'Another'")
        count_up(server.url, 100)
        # The snapshot notes how far the count is; reading leaves no trace of it on the server.
        assert persistence.load_tasks()[0]["task_config"]["company"] == "Another"
        server.stop("immediate")
        server.start()
        # The same process goes on, with numbers that its snapshot takes for old ones.
        for number in range(50):
            task = persistence.get_task("a")
            task["name"] = str(number)
            assert persistence.update_task(task)
            assert OldCode(base).load()[0]["name"] == str(number)
        assert persistence.health().store == "database"
        persistence.close()
        server.stop("immediate")
        server.start()
        persistence = opened(base, url=server.url)
        assert persistence.health().store == "database"
        assert OldCode(base).load() == persistence.load_tasks()
        persistence.close()
