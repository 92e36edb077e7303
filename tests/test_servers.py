"""The harness itself: databases of a test's own, and a server that comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import psycopg
import pytest

from datahound_storage.errors import StorageError
from datahound_storage.testing import EmbeddedServer
from tests import servers


def _run(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def _value(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def test_a_database_is_empty_and_of_its_own(server: servers.TestServer, database_url: str) -> None:
    other = server.create_database()
    _run(database_url, "CREATE TABLE mine (value integer)")
    assert _value(other, "SELECT to_regclass('mine')") is None
    server.drop_database(other)


def test_a_database_is_copied_from_a_template(
    server: servers.TestServer, database_url: str
) -> None:
    _run(database_url, "CREATE TABLE kept AS SELECT 42 AS value")
    copy = server.create_database(template=database_url)
    assert _value(copy, "SELECT value FROM kept") == 42
    server.drop_database(copy)


def test_a_database_is_dropped_under_its_users(server: servers.TestServer) -> None:
    url = server.create_database()
    with psycopg.connect(url) as connection:
        server.drop_database(url)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_only_databases_of_the_tests_are_dropped(server: servers.TestServer) -> None:
    with pytest.raises(ValueError, match="not a database of these tests"):
        server.drop_database(server.admin_url)


def test_the_server_is_the_one_of_the_process(server: servers.TestServer) -> None:
    assert servers.get() is server
    assert _value(server.admin_url, "SHOW server_version") == server.version


def test_a_wrong_choice_is_an_error() -> None:
    with pytest.raises(servers.NoServerError, match="must be auto, container, embedded"):
        servers._choose("sqlite:///:memory:")


def test_a_url_without_a_server_is_an_error() -> None:
    with pytest.raises(servers.NoServerError, match="does not serve") as caught:
        servers._choose("postgresql://someone:a-secret@127.0.0.1:1/x")
    assert "a-secret" not in str(caught.value)


def test_the_url_of_a_server_is_used(server: servers.TestServer) -> None:
    chosen = servers._choose(server.admin_url)
    assert (chosen.kind, chosen.version) == ("url", server.version)


def test_no_docker_engine_leads_to_the_embedded_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(servers.NoServerError):
        servers._choose("container")
    chosen = servers._choose("auto")
    chosen.stop()
    assert chosen.kind == "embedded"
    assert "no container" in chosen.why


@pytest.mark.parametrize(("tcp", "mode"), [(False, "immediate"), (True, "fast")])
def test_the_embedded_server_comes_back(
    embedded_directory: Path, tcp: bool, mode: Literal["fast", "immediate"]
) -> None:
    embedded = EmbeddedServer(embedded_directory, tcp=tcp)
    with embedded:
        url, pid = embedded.url, embedded.pid
        _run(url, "CREATE TABLE kept AS SELECT 42 AS value")
        embedded.stop(mode)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        embedded.start()
        assert embedded.url == url
        assert embedded.pid != pid
        assert _value(url, "SELECT value FROM kept") == 42


def test_the_embedded_server_fits_below_a_deep_directory(embedded_directory: Path) -> None:
    with EmbeddedServer(embedded_directory / ("d" * 100)) as embedded:
        assert _value(embedded.url, "SELECT 1") == 1


def test_the_embedded_server_takes_its_directory_as_text(embedded_directory: Path) -> None:
    with EmbeddedServer(str(embedded_directory)) as embedded:
        assert _value(embedded.url, "SELECT 1") == 1
        assert (embedded_directory / "data" / "PG_VERSION").exists()


def test_the_embedded_server_says_why_it_does_not_start(embedded_directory: Path) -> None:
    with pytest.raises(StorageError, match="max_connections"):
        EmbeddedServer(embedded_directory, settings={"max_connections": "none"}).start()
    with pytest.raises(StorageError, match="there are: 16, 18"):
        EmbeddedServer(embedded_directory, version=9)
