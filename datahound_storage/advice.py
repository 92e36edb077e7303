"""What messages tell an operator to run, where it depends on how this package is installed."""

from __future__ import annotations

from pathlib import Path

UPGRADE_COMMAND = "datahound-storage upgrade"
PACKAGE = Path(__file__).resolve().parent


def run_upgrade() -> str:
    """What brings the schema to head. Alembic's command needs the checkout and its alembic.ini."""
    hint = " (or `alembic upgrade head`)" if _is_checkout() else ""
    return f"run `{UPGRADE_COMMAND}`{hint}"


def _is_checkout() -> bool:
    return (PACKAGE.parent / "alembic.ini").is_file() and not (PACKAGE / "_alembic").is_dir()
