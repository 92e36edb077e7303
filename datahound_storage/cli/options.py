"""Options that the commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from datahound_storage.errors import SettingsError
from datahound_storage.settings import (
    URL_VARIABLE,
    Settings,
    from_environment,
    normalize_url,
    why_no_url,
)

DATA_DIR_VARIABLE = "DATAHOUND_DATA_DIR"

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_url_option = click.option(
    "--url",
    metavar="URL",
    help=f"The database's URL, instead of {URL_VARIABLE}. A password in it can be seen by other "
    "users of this machine while the command runs.",
)
_data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help=f"Where the scheduler's files are, instead of {DATA_DIR_VARIABLE} (default: data): the "
    "directory that holds scheduler/scheduled_tasks.json.",
)


def with_settings(command: Command) -> Command:
    """Give a command `--url` and `--data-dir`; it gets `settings`."""

    @_url_option
    @_data_dir_option
    @wraps(command)
    def wrapper(*args: Any, url: str | None, data_dir: Path | None, **options: Any) -> Any:
        return command(*args, settings=_settings(url, data_dir), **options)

    return wrapper


def _settings(url: str | None, data_dir: Path | None) -> Settings:
    settings = from_environment()
    if url is not None:
        settings = replace(settings, url=normalize_url(url, "--url"), url_variable="--url")
    return settings if data_dir is None else replace(settings, data_dir=data_dir)


def required_url(settings: Settings) -> str:
    """The URL; raise SettingsError where there is none."""
    if settings.url is None:
        raise SettingsError(
            f"no database: {why_no_url(settings)}. Set {URL_VARIABLE} to "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or give --url."
        )
    return settings.url
