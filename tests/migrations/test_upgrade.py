"""The upgrade: alone, by many at once, by those who may not, with and without a database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage.errors import (
    DatabaseUnavailableError,
    LockTimeoutError,
    SchemaError,
    SnapshotError,
)
from datahound_storage.migrations import SchemaState, environment, inspect, status, upgrade
from datahound_storage.migrations.lock import lock_key
from datahound_storage.migrations.state import revisions
from tests.migrations import support
from tests.migrations.support import query, value
from tests.servers import TestServer

HEAD = revisions()[-1]
BY_API = "import sys; from datahound_storage.migrations import upgrade; upgrade(sys.argv[1])"


def start(
    url: str | None, *command: str, cwd: Path = support.ROOT, **extra: str
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(support.ROOT)}
    if url is not None:
        environment["DATAHOUND_STORAGE_URL"] = url
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env={**environment, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alembic(url: str | None, *arguments: str, **more: Any) -> tuple[int, str, str]:
    """Exit code, output (its failures too) and errors of Alembic's command line in a checkout."""
    process = start(url, "-m", "alembic", *arguments, **more)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


# ---- Alone


def test_the_five_states(database_url: str) -> None:
    seen = [status(database_url)]
    upgrade(database_url, "0001")
    seen.append(status(database_url))
    seen.append(upgrade(database_url))
    support.make_newer(database_url, breaking=False)
    seen.append(status(database_url))
    support.make_newer(database_url, breaking=True)
    seen.append(status(database_url))
    assert [(s.state.value, s.found, s.head) for s in seen] == [
        ("missing", None, HEAD),
        ("behind", "0001", HEAD),
        ("current", HEAD, HEAD),
        ("ahead", "9999", HEAD),
        ("breaking", "9999", HEAD),
    ]
    assert [s.usable for s in seen] == [False, False, True, True, False]
    upgrade_command = "datahound-storage upgrade"
    assert [s.command for s in seen[:3]] == [upgrade_command, upgrade_command, ""]
    assert [s.command for s in seen[3:]] == ["pip install --upgrade datahound-storage"] * 2
    assert all(f"`{s.command}`" in s.message for s in seen if s.command)


def test_a_newer_schema_that_records_nothing_is_not_used(database_url: str) -> None:
    upgrade(database_url, "0004")
    query(database_url, "UPDATE datahound_storage_version SET version_num = '9999'")
    assert status(database_url).state is SchemaState.BREAKING
    query(database_url, "DROP TABLE scheduler_storage")
    assert status(database_url).state is SchemaState.BREAKING


@pytest.mark.parametrize("since", [*revisions(), "9998"])
def test_what_a_newer_schema_records_decides(database_url: str, since: str) -> None:
    upgrade(database_url)
    query(database_url, "UPDATE datahound_storage_version SET version_num = '9999'")
    query(database_url, "UPDATE scheduler_storage SET breaking_since = %s", [since])
    assert status(database_url).usable is (since in revisions())


def test_an_older_release_upgrades_nothing_of_a_newer_one(database_url: str) -> None:
    upgrade(database_url)
    support.make_newer(database_url, breaking=False)
    assert upgrade(database_url).found == "9999"
    code, out, errors = alembic(database_url, "upgrade", "head")
    assert (code, out) == (0, "")
    assert "at revision 9999" in errors
    assert "but can use" in errors
    for arguments in (("downgrade", "0001"), ("upgrade", "0001"), ("downgrade", "-1")):
        code, out, _ = alembic(database_url, *arguments)
        assert (code, out.startswith("FAILED: the schema is at revision 9999")) == (255, True)
    assert status(database_url).found == "9999"


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_look_leaves_the_transaction_as_it_was(migrated_url: str, autocommit: bool) -> None:
    idle, busy = psycopg.pq.TransactionStatus.IDLE, psycopg.pq.TransactionStatus.INTRANS
    with psycopg.connect(migrated_url, autocommit=autocommit) as connection:
        assert inspect(connection).state is SchemaState.CURRENT
        assert connection.info.transaction_status == idle
        with connection.transaction():
            assert inspect(connection).state is SchemaState.CURRENT
            assert connection.info.transaction_status == busy


def test_a_look_takes_rows_of_any_shape(migrated_url: str) -> None:
    rows = psycopg.rows.dict_row
    with psycopg.connect(migrated_url, row_factory=rows) as connection:
        assert inspect(connection).found == HEAD


def test_nothing_is_printed(database_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    upgrade(database_url, import_files=False)
    assert capfd.readouterr() == ("", "")


def test_a_newer_schema_is_told(database_url: str) -> None:
    upgrade(database_url)
    support.make_newer(database_url, breaking=True)
    words = f"at revision 9999, which this version does not know .its newest is {HEAD}"
    with pytest.raises(SchemaError, match=words):
        upgrade(database_url)
    code, out, _ = alembic(database_url, "upgrade", "head")
    assert code != 0
    assert out.startswith("FAILED: the schema is at revision 9999")


def test_another_applications_history_is_left_alone(database_url: str) -> None:
    query(database_url, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    query(database_url, "INSERT INTO alembic_version VALUES ('theirs')")
    assert upgrade(database_url).found == HEAD
    assert query(database_url, "SELECT * FROM alembic_version") == [("theirs",)]
    assert query(database_url, "SELECT * FROM datahound_storage_version") == [(HEAD,)]


def test_the_urls_search_path_decides_the_schema(database_url: str, migrated_url: str) -> None:
    query(database_url, 'CREATE SCHEMA "My Schema"')
    mine = support.with_search_path(database_url, '"My\\ Schema",public')
    assert upgrade(mine, x=support.IMPORT_SAMPLE).state is SchemaState.CURRENT
    assert status(database_url).state is SchemaState.MISSING
    made = query(database_url, "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class"
                 " WHERE relname ~ '^(ix_)?(scheduler|datahound)'")  # fmt: skip
    assert made == [('"My Schema"',)]
    # A second installation beside it.
    upgrade(database_url)
    assert support.tables_of(database_url) == support.tables_of(migrated_url)
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 0


def test_a_search_path_without_a_schema_is_told(database_url: str) -> None:
    lost = support.with_search_path(database_url, "nowhere")
    with pytest.raises(SchemaError, match=r"create the schema, or correct options=-csearch_path"):
        upgrade(lost)
    assert status(lost).state is SchemaState.MISSING


# ---- Not permitted, not reachable


def test_a_role_that_may_create_nothing_is_told_whom_to_ask(database_url: str, role: str) -> None:
    query(database_url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(SchemaError) as caught:
        upgrade(support.with_user(database_url, role, role))
    message = str(caught.value)
    assert f"role {role} may not create tables in schema public" in message
    assert (
        "run `datahound-storage upgrade` (or `alembic upgrade head`) once as the owner" in message
    )
    assert f"GRANT CREATE ON SCHEMA public TO {role}" in message
    assert support.tables_of(database_url)["columns"] == []


def test_a_role_that_owns_no_table_is_told(database_url: str, role: str) -> None:
    query(database_url, support.LEGACY.encode())
    query(database_url, f"GRANT CREATE ON SCHEMA public TO {role}")
    with pytest.raises(SchemaError, match=f"role {role} may not change the tables of another"):
        upgrade(support.with_user(database_url, role, role))
    query(database_url, f"REVOKE CREATE ON SCHEMA public FROM {role}")


def test_a_role_without_rights_can_look(database_url: str, role: str) -> None:
    upgrade(database_url)
    query(database_url, f"GRANT SELECT ON datahound_storage_version TO {role}")
    assert upgrade(support.with_user(database_url, role, role)).state is SchemaState.CURRENT
    query(database_url, f"REVOKE SELECT ON datahound_storage_version FROM {role}")


def test_no_server_is_told_without_the_password() -> None:
    url = "postgresql://somebody:s3cret@127.0.0.1:1/tasks"
    for act in (status, upgrade):
        with pytest.raises(DatabaseUnavailableError) as caught:
            act(url)
        assert "s3cret" not in str(caught.value)
    code, out, errors = alembic(url, "upgrade", "head")
    assert code != 0
    assert out.startswith("FAILED: cannot connect to 127.0.0.1:1/tasks")
    assert "s3cret" not in out + errors


def test_a_missing_url_is_told() -> None:
    code, out, _ = alembic(None, "upgrade", "head")
    assert code != 0
    assert out.startswith("FAILED: no database: set DATAHOUND_STORAGE_URL or DATABASE_URL")


def test_an_empty_url_is_told_to_mean_no_database() -> None:
    platform = "postgresql://somebody:s3cret@127.0.0.1:1/x"
    code, out, errors = alembic("", "upgrade", "head", DATABASE_URL=platform)
    assert code != 0
    assert "DATAHOUND_STORAGE_URL is set to an empty value, which means that the JSON" in out
    assert "Set it to postgresql://" in out
    assert "unset it to use DATABASE_URL" in out
    assert "s3cret" not in out + errors


# ---- The command line


def test_the_command_line_anywhere(database_url: str, tmp_path: Path) -> None:
    ini = str(support.ROOT / "alembic.ini")
    code, out, errors = alembic(database_url, "-c", ini, "upgrade", "head", cwd=tmp_path)
    assert (code, out) == (0, "")
    assert errors == "".join(f"revision {name} applied\n" for name in revisions())
    assert alembic(database_url, "-c", ini, "check", cwd=tmp_path)[0] == 0
    assert alembic(database_url, "-c", ini, "current", cwd=tmp_path)[1] == f"{HEAD} (head)\n"


def test_the_command_line_tells_of_a_bad_snapshot(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('[{"task_id": ')
    torn = f"snapshot={tmp_path / 'torn.json'}"
    code, out, _ = alembic(database_url, "-x", torn, "upgrade", "head")
    assert code != 0
    assert out.startswith(f"FAILED: {tmp_path / 'torn.json'}: item 1 (line 1) is torn")


# ---- Many at once


def test_sixteen_processes_at_once(database_url: str) -> None:
    sample = {"DATAHOUND_DATA_DIR": str(support.ROOT / "examples" / "data")}
    log_versions(database_url)
    commands = [("-m", "alembic", "upgrade", "head"), ("-c", BY_API, database_url)] * 8
    processes = [start(database_url, *command, **sample) for command in commands]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * 16, ends
    assert status(database_url).state is SchemaState.CURRENT
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40
    assert value(database_url, "SELECT count(*) FROM scheduler_runs") == 1500
    # Each revision once, and all of them by one process.
    applied = query(database_url, "SELECT version_num FROM applied ORDER BY n")
    assert [name for (name,) in applied] == list(revisions())
    assert len(query(database_url, "SELECT DISTINCT process FROM applied")) == 1
    tellers = [errors for errors, _ in ends if "applied" in errors]
    assert len(tellers) <= 1


# Whoever applies a revision writes it down; the version table is made by the first one.
LOG_VERSIONS = """
CREATE TABLE applied (n serial, version_num text, process int);
CREATE FUNCTION log_version() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
    INSERT INTO applied (version_num, process) VALUES (NEW.version_num, pg_backend_pid());
    RETURN NULL;
END $f$;
CREATE TABLE datahound_storage_version (
    version_num varchar(32) NOT NULL CONSTRAINT datahound_storage_version_pkc PRIMARY KEY);
CREATE TRIGGER log AFTER INSERT OR UPDATE ON datahound_storage_version
    FOR EACH ROW EXECUTE FUNCTION log_version();
"""


def log_versions(url: str) -> None:
    query(url, LOG_VERSIONS)


WAITS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'waits'"


def test_a_holder_that_is_killed_frees_the_others(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        # The first revision wants to adopt this table: whoever works on it waits.
        connection.execute("CREATE TABLE scheduler_tasks (id uuid)")
        killed = start(database_url, "-c", BY_API, database_url)
        holders = wait_for(database_url, HOLDERS)
        waiting = start(database_url, "-c", BY_API, database_url, PGAPPNAME="waits")
        # By then it has asked for the lock several times, and has nothing but that connection.
        wait_for(database_url, f"{WAITS} AND backend_start < now() - interval '1 s'")
        assert len(query(database_url, WAITS)) == 1
        assert query(database_url, HOLDERS) == holders
        killed.kill()
        killed.communicate(timeout=30)
        connection.rollback()
    out, errors = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, ""), errors
    assert status(database_url).state is SchemaState.CURRENT


HOLDERS = """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (
    SELECT oid FROM pg_database WHERE datname = current_database())"""


def wait_for(url: str, look: str) -> list[tuple[Any, ...]]:
    """The rows of a query as soon as there are any."""
    for _ in range(600):
        if found := query(url, look):
            return found
        time.sleep(0.05)
    raise AssertionError(f"in vain: {look}")


# What a revision may see of its surroundings: noted by the trigger that notes versions.
BOUNDS = """
CREATE TABLE bounds (version_num text, xid xid8, lock text, statement text);
CREATE FUNCTION note_bounds() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
    INSERT INTO bounds VALUES (NEW.version_num, pg_current_xact_id(),
        current_setting('lock_timeout'), current_setting('statement_timeout'));
    RETURN NULL;
END $f$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON datahound_storage_version
    FOR EACH ROW EXECUTE FUNCTION note_bounds();
"""


def test_each_revision_has_a_transaction_with_timeouts_of_its_own(database_url: str) -> None:
    log_versions(database_url)
    query(database_url, BOUNDS)
    upgrade(database_url)
    found = query(database_url, "SELECT * FROM bounds ORDER BY version_num")
    assert [row[0] for row in found] == list(revisions())
    assert len({row[1] for row in found}) == len(revisions())
    # Those that ask for strong locks in short attempts leave their transaction with less.
    wanted = {name: ("2s" if name in ("0003", "0007") else "50ms", "30min") for name in revisions()}
    assert {row[0]: row[2:] for row in found} == wanted


def test_what_is_committed_stays_where_a_later_revision_fails(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "torn.json").write_text('[{"task_id": ')
    with pytest.raises(SnapshotError, match="torn"):
        upgrade(database_url, x=[f"snapshot={tmp_path / 'torn.json'}"])
    assert status(database_url).found == "0002"


def test_the_statement_timeout_of_migrations_is_not_that_of_the_role(database_url: str) -> None:
    name = value(database_url, "SELECT current_database()")
    query(database_url, f'ALTER DATABASE "{name}" SET statement_timeout = 200')
    with psycopg.connect(database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("CREATE TABLE scheduler_tasks (id uuid)")
        waiting = pool.submit(upgrade, database_url, "0001")
        wait_for(database_url, HOLDERS)
        time.sleep(0.5)  # longer than the database's own limit, shorter than that for locks
        connection.rollback()
        assert waiting.result(30).found == "0001"


@pytest.fixture
def old(database_url: str) -> Iterator[psycopg.Connection]:
    """A transaction for whose end an index has to wait."""
    upgrade(database_url, "0001")
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        yield connection


def test_an_index_does_not_wait_for_ever(
    database_url: str, old: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "LOCK_TIMEOUT_ALONE", "100ms")
    with pytest.raises(LockTimeoutError, match="end it"):
        upgrade(database_url, lock_wait=0.0)
    old.rollback()
    assert upgrade(database_url).state is SchemaState.CURRENT


def test_an_index_may_wait_longer_than_the_role(database_url: str, old: psycopg.Connection) -> None:
    name = value(database_url, "SELECT current_database()")
    for limit in ("statement_timeout", "lock_timeout"):
        query(database_url, f'ALTER DATABASE "{name}" SET {limit} = 200')
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upgrade, database_url)
        wait_for(database_url, "SELECT pid FROM pg_stat_activity WHERE query ~ 'CONCURRENTLY'"
                 " AND wait_event_type = 'Lock' AND now() - query_start > '0.5 s'")  # fmt: skip
        old.rollback()
        assert waiting.result(30).state is SchemaState.CURRENT


def test_threads_on_their_own_databases(server: TestServer) -> None:
    urls = [server.create_database() for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            states = [found.state for found in pool.map(upgrade, urls)]
        assert states == [SchemaState.CURRENT] * 4
    finally:
        for url in urls:
            server.drop_database(url)


@pytest.fixture
def held(database_url: str) -> Iterator[psycopg.Connection]:
    """Another process that is upgrading."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"SELECT pg_advisory_xact_lock({lock_key('public')})".encode())
        yield connection


def test_the_wait_for_another_process_is_bounded(
    database_url: str, held: psycopg.Connection
) -> None:
    started = time.monotonic()
    with pytest.raises(LockTimeoutError, match="another process has been upgrading") as caught:
        upgrade(database_url, lock_wait=0.5)
    assert time.monotonic() - started < 5
    # The message has a query that finds the process.
    look = str(caught.value).partition("look for it with: ")[2]
    assert [row[2] for row in query(database_url, look)] == [held.info.backend_pid]


def test_a_waiting_process_finds_it_done(
    database_url: str, held: psycopg.Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upgrade, database_url)
        time.sleep(0.3)
        assert not waiting.done()
        held.commit()
        assert waiting.result(30).state is SchemaState.CURRENT


@pytest.mark.parametrize("breaking", [False, True])
def test_a_newer_release_that_was_at_work_meanwhile_is_found(
    database_url: str, held: psycopg.Connection, breaking: bool
) -> None:
    held.rollback()
    upgrade(database_url)
    query(database_url, "UPDATE datahound_storage_version SET version_num = '0001'")
    held.execute(f"SELECT pg_advisory_xact_lock({lock_key('public')})".encode())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upgrade, database_url)
        time.sleep(0.3)  # it has seen the old revision, and waits
        support.make_newer(database_url, breaking=breaking)
        held.commit()
        if breaking:
            with pytest.raises(SchemaError, match=r"at revision 9999.* cannot use"):
                waiting.result(30)
        else:
            assert waiting.result(30).state is SchemaState.AHEAD


def test_an_upgraded_schema_needs_no_lock(database_url: str) -> None:
    upgrade(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute(f"SELECT pg_advisory_xact_lock({lock_key('public')})".encode())
        assert upgrade(database_url, lock_wait=0).state is SchemaState.CURRENT


def test_other_schemas_are_not_waited_for(database_url: str, held: psycopg.Connection) -> None:
    query(database_url, "CREATE SCHEMA mine")
    mine = support.with_search_path(database_url, "mine")
    assert upgrade(mine, lock_wait=0).state is SchemaState.CURRENT


def test_a_table_in_use_is_waited_for(database_url: str) -> None:
    upgrade(database_url, "0001")
    with psycopg.connect(database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT count(*) FROM scheduler_tasks")
        waiting = pool.submit(upgrade, database_url)
        time.sleep(2.5)  # longer than a revision waits: the next attempt is under way
        assert not waiting.done()
        connection.commit()
        assert waiting.result(30).state is SchemaState.CURRENT


def test_a_table_in_use_is_not_waited_for_forever(database_url: str) -> None:
    upgrade(database_url, "0001")
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT count(*) FROM scheduler_tasks")
        with pytest.raises(LockTimeoutError, match="in use by a long transaction"):
            upgrade(database_url, lock_wait=0.1)
    assert status(database_url).found == "0001"
    assert upgrade(database_url).state is SchemaState.CURRENT


def test_a_lost_lock_rolls_the_revision_back(database_url: str) -> None:
    holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = ("
    holder += "SELECT oid FROM pg_database WHERE datname = current_database())"
    with psycopg.connect(database_url) as connection, ThreadPoolExecutor(1) as pool:
        # The first revision wants to adopt this table, and waits.
        connection.execute("CREATE TABLE scheduler_tasks (id uuid)")
        waiting = pool.submit(upgrade, database_url, "0001")
        for _ in range(100):
            if found := query(database_url, holder):
                break
            time.sleep(0.02)
        query(database_url, "SELECT pg_terminate_backend(%s)", found[0])
        connection.rollback()
        with pytest.raises(SchemaError, match="holds the upgrade lock broke"):
            waiting.result(30)
    assert status(database_url).state is SchemaState.MISSING
    assert support.tables_of(database_url)["columns"] == []
    assert upgrade(database_url).state is SchemaState.CURRENT


def test_another_thread_is_waited_for_in_bounds(database_url: str) -> None:
    from datahound_storage import migrations

    release = threading.Event()

    def hold() -> None:
        with migrations._one_thread(1):
            release.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    try:
        with pytest.raises(LockTimeoutError, match="another thread"):
            upgrade(database_url, lock_wait=0.1)
    finally:
        release.set()
        other.join()


# ---- Without a database


ODD = [
    '{"task_id": "a", "text": "it\'s 100% :name $rows0$ \\\\ \\" \\n \\u0000 \\ud800", "n": 1.50}',
    '{"task_id": "b", "nan": NaN, "time": "01:00:00", "created_at": "2024-01-01T00:00:00-08:00"}',
    '{"task_id": "A", "name": "naïve"}',
]
ROWS = {
    "scheduler_tasks": "SELECT task_key, task_type, company, config_json::text, schedule_type,"
    " schedule_expr, timezone, status, task_text, position, edited_columns FROM scheduler_tasks"
    " ORDER BY position",
    "scheduler_runs": "SELECT run_id, started_at, finished_at, success, message, duration_ms,"
    " metadata_json::text, task_key, line_text, seq, task_id = (SELECT id FROM scheduler_tasks t"
    " WHERE t.task_key = r.task_key), CASE WHEN task_key = 'gone' THEN task_id END"
    " FROM scheduler_runs r ORDER BY seq",
    "scheduler_storage": "SELECT epoch, filled_at IS NOT NULL FROM scheduler_storage",
    "datahound_storage_version": "SELECT * FROM datahound_storage_version",
}


@pytest.fixture
def odd_files(tmp_path: Path) -> list[str]:
    snapshot, history = tmp_path / "tasks.json", tmp_path / "history.jsonl"
    sample = support.SNAPSHOT.read_text(encoding="utf-8").rstrip().removesuffix("]")
    snapshot.write_text(f"{sample}, {','.join(ODD)}]", encoding="utf-8")
    line = '{"timestamp": "2024-03-01T12:00:00+00:00", "task_id": "gone", "message": "a\'b%s"}'
    sample = support.HISTORY.read_text(encoding="utf-8")
    history.write_text(f"{line}\n{sample}{line}\n", encoding="utf-8")
    return [f"snapshot={snapshot}", f"history={history}"]


def script_of(*arguments: str, x: list[str]) -> str:
    options = [word for argument in x for word in ("-x", argument)]
    code, out, errors = alembic("", *options, *arguments, "--sql")
    assert code == 0, errors
    return out


@pytest.mark.parametrize("legacy", [None, *support.LEGACY_DATABASES])
def test_offline_ends_where_online_does(
    server: TestServer, database_url: str, odd_files: list[str], legacy: str | None
) -> None:
    online = server.create_database()
    if legacy:
        for url in (online, database_url):
            query(url, (support.LEGACY_DATABASES[legacy] + support.LEGACY_ROWS).encode())
    upgrade(online, x=odd_files)
    support.apply_script(database_url, script_of("upgrade", "head", x=odd_files))
    assert support.schema_of(database_url) == support.schema_of(online)
    for look in ROWS.values():
        assert query(database_url, look) == query(online, look)
    assert value(online, "SELECT count(*) FROM scheduler_tasks") == (3 if legacy else 43)
    assert upgrade(database_url).state is SchemaState.CURRENT
    server.drop_database(online)


@pytest.mark.parametrize("legacy", [None, support.LEGACY])
def test_offline_runs_in_psql(
    server: TestServer,
    database_url: str,
    odd_files: list[str],
    legacy: str | None,
    tmp_path: Path,
) -> None:
    # More tasks than one statement has.
    snapshot = Path(odd_files[0].partition("=")[2])
    more = ",".join(json.dumps({"task_id": f"more-{n}"}) for n in range(1500))
    snapshot.write_text(snapshot.read_text(encoding="utf-8")[:-1] + f",{more}]", encoding="utf-8")
    online = server.create_database()
    if legacy:
        for url in (online, database_url):
            query(url, (legacy + support.LEGACY_ROWS).encode())
    upgrade(online, x=odd_files)
    script = tmp_path / "upgrade.sql"
    script.write_text(script_of("upgrade", "head", x=odd_files), encoding="utf-8")
    support.psql(database_url, script)
    assert support.schema_of(database_url) == support.schema_of(online)
    for look in ROWS.values():
        assert query(database_url, look) == query(online, look)
    assert value(online, "SELECT count(*) FROM scheduler_tasks") == (3 if legacy else 1543)
    # A second time it stops at what the first one made, and changes nothing.
    with pytest.raises(AssertionError, match="already exists"):
        support.psql(database_url, script)
    for look in ROWS.values():
        assert query(database_url, look) == query(online, look)
    server.drop_database(online)


def test_offline_stops_at_a_bad_item_and_prints_the_others_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text('[{"task_id": "good"}, 7]')
    arguments = ("-x", f"snapshot={path}", "upgrade", "head", "--sql")
    code, out, errors = alembic("", *arguments)
    assert code != 0
    assert "item 2 (line 1) must be an object" in out + errors
    assert "run `alembic -x on_error=quarantine upgrade head`, which lists all" in out + errors
    assert "-x snapshot=PATH and -x history=PATH" in out + errors
    assert "stand at revision" not in out + errors  # nothing was made
    code, out, errors = alembic("", "-x", "on_error=quarantine", *arguments)
    assert code == 0
    assert "good" in out
    assert "left out: " in errors
    assert "left out" not in out
    assert "left out 1 task and 0 lines of the history" in errors


def test_offline_leaves_other_schemas_alone(database_url: str) -> None:
    query(database_url, support.LEGACY.encode())
    before = support.schema_of(database_url)
    query(database_url, "CREATE SCHEMA mine")
    mine = support.with_search_path(database_url, "mine,public")
    support.apply_script(mine, script_of("upgrade", "head", x=[]))
    assert support.schema_of(database_url) == before
    assert status(mine).state is SchemaState.CURRENT


def test_offline_brings_nothing_into_a_table_that_was_filled(
    database_url: str, odd_files: list[str]
) -> None:
    upgrade(database_url, "0002")
    query(database_url, "UPDATE scheduler_storage SET filled_at = now()")
    query(database_url, "INSERT INTO scheduler_runs (id, run_id, started_at)"
          " VALUES (gen_random_uuid(), 'r', now())")  # fmt: skip
    support.apply_script(database_url, script_of("upgrade", "0002:head", x=odd_files))
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 0
    assert value(database_url, "SELECT count(*) FROM scheduler_runs") == 1


def test_offline_downgrade_refuses_rows(database_url: str) -> None:
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    with pytest.raises(psycopg.errors.RaiseException, match="hold rows"):
        support.apply_script(database_url, script_of("downgrade", "head:base", x=[]))
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40
    support.apply_script(database_url, script_of("downgrade", "head:base", x=["drop=yes"]))
    assert support.tables_of(database_url)["columns"] == []


def test_offline_the_lock_timeout_holds_to_the_end(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in support.statements(script_of("upgrade", "head", x=[])):
            connection.execute(statement.encode())
        assert connection.execute("SHOW lock_timeout").fetchone() == ("2s",)


def test_offline_sets_timeouts_and_needs_no_url() -> None:
    bounds = "SET lock_timeout = '2s';\nSET statement_timeout = '30min';"
    assert script_of("upgrade", "head", x=[]).startswith(bounds)
