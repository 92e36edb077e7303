"""What all tests share: the Postgres server, databases in it, and a clean environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

pytest_plugins = ["tests.fix_persistence", "tests.fix_cli", "tests.fault.fix_faults"]


def pytest_report_header() -> str:
    """Name the server, as a result without it says little; this starts it."""
    try:
        server = servers.get()
    except servers.NoServerError as error:
        return f"postgres: none ({error})"
    return f"postgres: {server.version}, {server.kind} ({server.why})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many faults were tried: a sweep that found nothing to try would pass as well."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    lines = [line for r in reports for name, line in r.user_properties if name == "faults"]
    if lines:
        terminalreporter.section("faults injected")
        for line in dict.fromkeys(lines):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own settings out of the tests."""
    for name in list(os.environ):
        if name.startswith("DATAHOUND_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server() -> Iterator[servers.TestServer]:
    """The Postgres server of this run."""
    yield servers.get()
    servers.close()


@pytest.fixture
def embedded_directory() -> Iterator[Path]:
    """A directory for an `EmbeddedServer` that a test may break as it likes."""
    with servers.embedded_directory() as directory:
        yield directory


@pytest.fixture
def database_url(server: servers.TestServer) -> Iterator[str]:
    """An empty database."""
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def migrated_template(server: servers.TestServer) -> Iterator[str]:
    """A database with all revisions, to be copied and never to be connected to."""
    from datahound_storage.migrations import upgrade

    url = server.create_database()
    upgrade(url)
    yield url
    server.drop_database(url)


@pytest.fixture
def migrated_url(server: servers.TestServer, migrated_template: str) -> Iterator[str]:
    """A database with all revisions and no rows."""
    url = server.create_database(migrated_template)
    yield url
    server.drop_database(url)
