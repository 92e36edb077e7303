"""A way back that one of its steps will refuse is refused before the first step is taken.

Each step is committed by itself. If the last one refuses, the others have dropped what they drop.
A revision whose downgrade would lose something says so by a function `refuse_loss`, which raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alembic import context
from alembic.runtime.migration import RevisionStep


def ask_before_the_first_step() -> None:
    """Have the revisions asked, once Alembic knows which of them are to be undone."""
    migrations: Any = context.get_context()
    # Alembic has no public place between the plan and its first step.
    plan = migrations._migrations_fn

    def asked(heads: Any, of: Any) -> Iterable[Any]:
        steps = list(plan(heads, of))
        for step in steps:
            if isinstance(step, RevisionStep) and step.is_downgrade:
                _ask(step, migrations)
        return steps

    migrations._migrations_fn = asked


def _ask(step: RevisionStep, migrations: Any) -> None:
    refuse = getattr(step.revision.module, "refuse_loss", None)
    if refuse is None:
        return
    if not migrations.as_sql:
        refuse()
        return
    migrations.impl.emit_begin()
    refuse()
    migrations.impl.emit_commit()
