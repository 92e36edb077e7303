"""Runs commands beside an installation's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from datahound_storage.cli import cli
from tests.situations import Installation

Call = Callable[..., Result]
URL = "DATAHOUND_STORAGE_URL"
# Nobody listens on port 1.
DEAD_URL = "postgresql://user:hush@127.0.0.1:1/nowhere"


@pytest.fixture
def mine(base: Path, migrated_url: str) -> Installation:
    """An installation with no tasks yet."""
    return Installation(base, migrated_url)


@pytest.fixture
def call(base: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command with the base directory's files; without a URL where none is given."""

    def call(*arguments: str, url: str | None = None) -> Result:
        monkeypatch.setenv("DATAHOUND_DATA_DIR", str(base / "data"))
        env = {} if url is None else {URL: url}
        return CliRunner(env=env).invoke(cli, arguments)

    return call


def failed(result: Result, *words: str) -> None:
    """It ended with exit code 2 and one line on stderr, and told no secrets."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.output
    for word in words:
        assert word in result.stderr
