"""What messages tell an operator to run fits the way in which the package is installed."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg

from datahound_storage import advice
from datahound_storage.migrations.state import status_of
from datahound_storage.postgres.errors import translate


def messages() -> list[str]:
    missing: psycopg.Error = pg.UndefinedTable()
    return [status_of(None).message, status_of("0001").message, str(translate(missing, "here"))]


def test_in_a_checkout_both_commands_are_named() -> None:
    for message in messages():
        assert "run `datahound-storage upgrade` (or `alembic upgrade head`)" in message


@pytest.mark.parametrize("is_wheel", [True, False])
def test_alembic_is_not_named_where_its_settings_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_wheel: bool
) -> None:
    package = tmp_path / "site-packages" / "datahound_storage"
    package.mkdir(parents=True)
    if is_wheel:
        # Somebody else's.
        (package / "_alembic").mkdir()
        (package.parent / "alembic.ini").touch()
    monkeypatch.setattr(advice, "PACKAGE", package)
    for message in messages():
        assert "run `datahound-storage upgrade`" in message
        assert "alembic" not in message.replace("`datahound-storage upgrade`", "")
