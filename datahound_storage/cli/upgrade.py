"""`upgrade`: bring the schema to a revision, and the files into tables that were never filled."""

from __future__ import annotations

import os
from pathlib import Path

import click

from datahound_storage import migrations
from datahound_storage.bootstrap import make_dal
from datahound_storage.cli.options import (
    DATA_DIR_VARIABLE,
    json_option,
    required_url,
    with_settings,
)
from datahound_storage.cli.output import counted, print_json, say
from datahound_storage.cli.probe import Rows, count_rows
from datahound_storage.files.paths import StatePaths
from datahound_storage.settings import Settings, describe_url

# A wrong name is told even where the tables are filled and nothing would be imported.
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("upgrade", short_help="Bring the schema to head, import the files once.")
@with_settings
@click.option("--revision", default="head", show_default=True, help="Where to stop.")
@click.option("--snapshot", type=EXISTING, help="Import this file's tasks.")
@click.option("--history", type=EXISTING, help="Import this file's runs.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "quarantine"]),
    default="stop",
    show_default=True,
    help="A faulty item or line: stop, or list it and go on without it.",
)
@click.option("--no-import", is_flag=True, help="Make the tables only.")
@json_option
def command(
    settings: Settings,
    revision: str,
    snapshot: Path | None,
    history: Path | None,
    on_error: str,
    no_import: bool,
    as_json: bool,
) -> None:
    """Bring the schema to head; import the files into tables that were never filled.

    Safe to repeat, and to run from any number of hosts at once: one works, the others wait and find
    it done. Without --snapshot and --history the files are those of the data directory, as far as
    they exist. It is what `alembic upgrade head` does from a checkout, and what a process does at
    its start unless DATAHOUND_STORAGE_AUTO_UPGRADE is off.

    \b
    Exit code
      0  the schema is at the revision: upgraded, or nothing to do
      2  could not be done: no URL, no connection, no permission, a newer schema, unusable files
    """
    url = required_url(settings)
    # The revisions import nothing of this package: this variable is how they find the files.
    os.environ[DATA_DIR_VARIABLE] = str(StatePaths.below(settings.data_dir).data_dir)
    arguments = [f"snapshot={snapshot}"] if snapshot else []
    arguments += [f"history={history}"] if history else []
    arguments.append(f"on_error={on_error}")
    before = migrations.status(url).found
    after = migrations.upgrade(url, revision, x=arguments, import_files=not no_import).found
    dal = make_dal(settings, url)
    try:
        rows = count_rows(dal)
    finally:
        dal.close()
    if as_json:
        print_json({"from": before, "to": after, **rows._asdict()})
    else:
        _tell(describe_url(url), before, after, rows)


def _tell(place: str, before: str | None, after: str | None, rows: Rows) -> None:
    if before == after:
        say(f"{place} is at revision {after} already: nothing to do.")
    else:
        say(f"{place}: upgraded from {before or 'no tables'} to revision {after}.")
    say(f"The tables hold {counted(rows.tasks, 'task')} and {counted(rows.runs, 'run')}.")
