"""Facades on either store, and what they are made of, closed at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.dal import StorageDAL
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.pool import Database

MakePersistence = Callable[..., SchedulerPersistence]


def as_another(url: str, name: str) -> str:
    """The URL of the same database for what stands for another process: a switch of its own."""
    return f"{url}{'&' if '?' in url else '?'}application_name={name}"


@pytest.fixture(params=["files", "database"])
def store(request: pytest.FixtureRequest) -> str:
    """Each test that uses it runs on both stores: nobody may be able to tell them apart."""
    return str(request.param)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The scheduler's base directory."""
    return tmp_path / "base"


@pytest.fixture
def store_url(store: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of a migrated, empty database; None for the files."""
    return request.getfixturevalue("migrated_url") if store == "database" else None


@pytest.fixture
def opened() -> Iterator[MakePersistence]:
    """Makes facades and closes them."""
    facades: list[SchedulerPersistence] = []

    def make(base: Path, **options: Any) -> SchedulerPersistence:
        facades.append(SchedulerPersistence(base / "data", **options))
        return facades[-1]

    yield make
    for facade in facades:
        facade.close()


@pytest.fixture
def make(opened: MakePersistence, base: Path, store_url: str | None) -> MakePersistence:
    """Makes facades on the test's store; keywords are passed on."""
    return lambda **options: opened(base, url=store_url, **options)


@pytest.fixture
def persistence(make: MakePersistence) -> SchedulerPersistence:
    """A facade on the test's store, with plain dicts for tasks."""
    return make()


@pytest.fixture
def dal(migrated_url: str) -> Iterator[StorageDAL]:
    """A data-access object on a database with the tables."""
    made = StorageDAL(Database(migrated_url))
    yield made
    made.close()


@pytest.fixture
def paths(base: Path) -> StatePaths:
    """The state files of `base`, their directories made."""
    made = StatePaths.below(base / "data")
    made.make_directories()
    return made
