"""The two sides, opened for a command that needs both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datahound_storage import migrations
from datahound_storage.bootstrap import make_dal
from datahound_storage.cli.options import DATA_DIR_VARIABLE, required_url
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError, SchemaError
from datahound_storage.files.paths import StatePaths
from datahound_storage.settings import Settings


def existing_paths(settings: Settings) -> StatePaths:
    """Where the files are. Raises FileStoreError where there is no such directory."""
    paths = StatePaths.below(settings.data_dir)
    if not paths.scheduler_dir.is_dir():
        raise FileStoreError(
            f"there is no directory {paths.scheduler_dir}: set {DATA_DIR_VARIABLE} or give "
            "--data-dir."
        )
    return paths


@contextmanager
def database_at_head(settings: Settings) -> Iterator[StorageDAL]:
    """The database, with a schema that fits; it is not upgraded, and closed at the end.

    Raises SettingsError without a URL, SchemaError with the command to run, DatabaseError.
    """
    dal = make_dal(settings, required_url(settings))
    try:
        schema = dal.database.run(migrations.inspect).result
        if not schema.usable:
            raise SchemaError(schema.message)
        yield dal
    finally:
        dal.close()
