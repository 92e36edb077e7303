"""Prints the statements of `--sql`: a script that keeps to one schema from its start to its end.

What runs online sees to that for each transaction; a script has to say it itself.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from datahound_storage.migrations.refusing import ask_before_the_first_step
from datahound_storage.postgres.schema import VERSION_TABLE

# A DROP must not find a table of the same name further on in the search path of whoever runs the
# script. Where there is no schema it shall find nothing: NULL would mean the role's own path.
_ONE_SCHEMA = """
SELECT set_config('search_path', coalesce(quote_ident(current_schema()), ''), true)
""".strip()


def print_script(bounds: str) -> None:
    """Print what Alembic was asked for, with `bounds` in front."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table=VERSION_TABLE,
        transaction_per_migration=True,
    )
    impl: Any = context.get_context().impl
    impl.static_output(bounds)
    impl.emit_begin = _begin_in_one_schema(impl)
    ask_before_the_first_step()
    with context.begin_transaction():
        context.run_migrations()


def _begin_in_one_schema(impl: Any) -> Any:
    """Alembic's way to begin, of this script alone; it begins again after each autocommit block."""
    begin = impl.emit_begin

    def emit_begin() -> None:
        begin()
        impl.static_output(_ONE_SCHEMA + impl.command_terminator)

    return emit_begin
