"""Roles for the tests of the migrations."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.migrations.support import query, value
from tests.servers import TestServer


@pytest.fixture
def role(server: TestServer) -> Iterator[str]:
    """A role that may log in; its password is its name."""
    yield from _make_role(server)


@pytest.fixture
def another_role(server: TestServer) -> Iterator[str]:
    """One more."""
    yield from _make_role(server)


def _make_role(server: TestServer) -> Iterator[str]:
    name = "datahound_test_" + secrets.token_hex(8)
    if not value(server.admin_url, "SELECT rolsuper OR rolcreaterole FROM pg_roles"
                 " WHERE rolname = current_user"):  # fmt: skip
        pytest.skip("the user in TEST_POSTGRES may not create roles")
    query(server.admin_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    yield name
    query(server.admin_url, f"DROP ROLE {name}")
