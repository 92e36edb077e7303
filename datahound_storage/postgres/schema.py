"""The tables, as the revisions make them. CI fails where the two differ.

`scheduler_tasks` and `scheduler_runs` have names and meanings that others rely on; what is added to
them has a default or is filled by a trigger, so that code of a previous version keeps working.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    MetaData,
    Sequence,
    String,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

VERSION_TABLE = "datahound_storage_version"

metadata = MetaData()

# Each is owned by its column, so it goes with the table.
_position = Sequence("scheduler_tasks_position_seq", metadata=metadata)
_seq = Sequence("scheduler_runs_seq_seq", metadata=metadata)


class Xid8(UserDefinedType[str]):
    """A full transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The name of the type in SQL."""
        return "xid8"


_instant = DateTime(timezone=True)

tasks = Table(
    "scheduler_tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("task_key", String(255), nullable=False, unique=True),
    Column("task_type", String(64), nullable=False),
    Column("company", String(255), nullable=False),
    Column("config_json", JSONB, nullable=False),
    Column("schedule_type", String(32), nullable=False),
    Column("schedule_expr", String(255), nullable=False),
    Column("timezone", String(64), nullable=False, server_default="UTC"),
    Column("status", String(32), nullable=False),
    Column("created_at", _instant, nullable=False, server_default=func.now()),
    Column("updated_at", _instant, nullable=False, server_default=func.now()),
    # The order in which tasks were added. From a sequence: gaps are fine, ties are not expected.
    Column(
        "position",
        BigInteger,
        nullable=False,
        server_default=_position.next_value(),
    ),
    # The exact JSON text (see codec.py). NULL in rows that other code inserted.
    Column("task_text", Text),
    # Which columns were changed since the text was written, by somebody who left the text alone.
    Column("edited_columns", ARRAY(Text), nullable=False, server_default="{}"),
    # Stamped by a trigger at every change, whoever makes it.
    Column("changed_xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("changed_at", _instant, nullable=False, server_default=text("clock_timestamp()")),
    Index("ix_scheduler_tasks_company", "company"),
    Index("ix_scheduler_tasks_status", "status"),
    Index("ix_scheduler_tasks_changed_xid", "changed_xid"),
)

runs = Table(
    "scheduler_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("task_id", Uuid),
    Column("run_id", String(255), nullable=False, unique=True),
    Column("started_at", _instant, nullable=False),
    Column("finished_at", _instant),
    Column("success", Boolean),
    Column("message", Text),
    Column("duration_ms", BigInteger),
    Column("metadata_json", JSONB),
    Column("task_key", String(255)),
    # Insertion order, which decides between runs that ended at the same time.
    Column("seq", BigInteger, server_default=_seq.next_value()),
    # The history line, where the columns would not give it back exactly.
    Column("line_text", Text),
)
_ended_at = func.coalesce(runs.c.finished_at, runs.c.started_at)
Index("ix_scheduler_runs_task_key_ended_at", runs.c.task_key, _ended_at.desc(), runs.c.seq.desc())
Index("ix_scheduler_runs_ended_at", _ended_at.desc(), runs.c.seq.desc())

# Keys that were deleted, so that a refresh can fetch only what changed.
tombstones = Table(
    "scheduler_task_tombstones",
    metadata,
    Column("task_key", String(255), primary_key=True),
    Column("deleted_xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("deleted_at", _instant, nullable=False, server_default=text("clock_timestamp()")),
    # The text that was deleted; the columns may have said something newer.
    Column("task_text", Text),
    Index("ix_scheduler_task_tombstones_deleted_xid", "deleted_xid"),
)

# One row: what the database knows about itself.
storage = Table(
    "scheduler_storage",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    # Tells this installation's database from another one that a URL may lead to by mistake.
    Column("identity", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
    # Grows at TRUNCATE: a delta is no longer enough then, everything is to be read again.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    # When tasks were first put into the table; NULL while it was never filled.
    Column("filled_at", _instant),
    # Runs that ended before it are gone for good and are not carried over again.
    Column("history_cutoff", _instant),
    # The newest revision that code from before it cannot work with.
    Column("breaking_since", String(32), nullable=False, server_default=text("'0001'")),
    # What meetings carried over, by the mark of the files that may not show it yet.
    Column("carried_over", JSONB, nullable=False, server_default="{}"),
    # The tokens of the last bulk changes, newest first.
    Column("recent_changes", ARRAY(Uuid), nullable=False, server_default="{}"),
    CheckConstraint("only_row", name="ck_scheduler_storage_only_row"),
)

# Versions that lost when files and database met again, kept for the operator.
conflicts = Table(
    "scheduler_conflicts",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task_key", String(255), nullable=False),
    Column("half", String(32), nullable=False),
    Column("kept", String(32), nullable=False),
    Column("lost_text", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("noticed_at", _instant, nullable=False, server_default=text("clock_timestamp()")),
)
