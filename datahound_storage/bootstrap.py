"""From the environment to a data-access object on a schema that fits."""

from __future__ import annotations

from collections.abc import Mapping

from datahound_storage import migrations
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import SchemaError
from datahound_storage.postgres.pool import Database
from datahound_storage.settings import Settings, from_environment


def get_storage_dal_from_env(environ: Mapping[str, str] | None = None) -> StorageDAL | None:
    """The data-access object for the URL in the environment, None where there is none.

    Brings the schema to head first, unless DATAHOUND_STORAGE_AUTO_UPGRADE is off. Raises
    SettingsError for a URL that cannot be used, DatabaseError where the database does not serve,
    SchemaError where the schema does not fit.
    """
    settings = from_environment(environ)
    if settings.url is None:
        return None
    dal = make_dal(settings, settings.url)
    prepare_schema(dal, auto_upgrade=settings.auto_upgrade)
    return dal


def make_dal(settings: Settings, url: str) -> StorageDAL:
    """A data-access object; connects at its first use."""
    database = Database(url, timeout=settings.operation_timeout, echo=settings.echo)
    return StorageDAL(database, timezone=settings.timezone)


def prepare_schema(dal: StorageDAL, *, auto_upgrade: bool) -> None:
    """Make sure that the schema fits this code; bring it to head where that is allowed.

    Imports no files: that is done where files and database meet.
    """
    status = dal.database.run(migrations.inspect).result
    if status.usable:
        return
    if not (status.upgradable and auto_upgrade):
        raise SchemaError(status.message)
    migrations.upgrade(dal.database.url, import_files=False)
