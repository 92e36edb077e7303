"""`upgrade`: bring the schema to a revision, and the files into tables that were never filled."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from datahound_storage.cli.probe import Rows, count_rows, was_filled
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import InvalidArgumentError
from datahound_storage.files.paths import StatePaths
from datahound_storage.migrations import SchemaState, SchemaStatus
from datahound_storage.settings import Settings, describe_url

# A wrong name is told even where the tables are filled and nothing would be imported.
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
# The revision that imports the files: a schema that has it imports nothing any more.
_IMPORT = "0003"
_ONCE = "only where this run makes the tables, or finds them unfilled at revision 0001 or 0002"


@click.command(
    "upgrade", short_help="Make the tables or bring them to head; import the files once."
)
@with_settings
@click.option(
    "--revision",
    default="head",
    show_default=True,
    metavar="REVISION",
    help="Where to stop: a number such as 0003, or head, the newest.",
)
@click.option(
    "--snapshot",
    type=EXISTING,
    help=f"Import this file's tasks, not the data directory's; {_ONCE}.",
)
@click.option(
    "--history", type=EXISTING, help=f"Import this file's runs, not the data directory's; {_ONCE}."
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "quarantine"]),
    default="stop",
    show_default=True,
    help="A faulty item of the snapshot or line of the history: import nothing, or list it, count "
    "the tasks and lines that it costs, and go on without them.",
)
@click.option("--no-import", is_flag=True, help="Make the tables only; a start imports the files.")
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

    The files are imported once, on the way to revision 0003. Where the schema is newer and the
    tables are still empty nothing is imported, and that is told: `datahound-storage reconcile`, or
    the first start of the scheduler, carries the files over then. An import that stops at a fault
    leaves the tables at revision 0002, without what the files hold; run it again when it is mended.

    A schema that is newer than this version but can be used is left as it is.

    \b
    Exit code
      0  the schema is at the revision: upgraded, or nothing to do
      2  could not be done: no URL, no connection, no permission, a newer schema that this version
         cannot use, unusable files, or files were named that cannot be imported any more
    """
    if no_import and (snapshot or history):
        raise click.UsageError("--no-import excludes --snapshot and --history.")
    named = {"snapshot": snapshot, "history": history}
    files = {name: path for name, path in named.items() if path is not None}
    done = _upgrade(_Asked(settings, required_url(settings), revision, files, on_error, no_import))
    if as_json:
        head = {"from": done.before.found, "to": done.after.found}
        print_json({**head, **done.rows._asdict(), "note": done.note})
    else:
        _tell(describe_url(required_url(settings)), done)


@dataclass(frozen=True)
class _Asked:
    """What the command was asked for. `files`: those that were named, by option."""

    settings: Settings
    url: str = field(repr=False)
    revision: str
    files: dict[str, Path]
    on_error: str
    no_import: bool

    @property
    def paths(self) -> StatePaths:
        return StatePaths.below(self.settings.data_dir)

    @property
    def x(self) -> list[str]:
        """The same as Alembic's arguments."""
        files = [f"{name}={path}" for name, path in self.files.items()]
        return [*files, f"on_error={self.on_error}"]

    @property
    def options(self) -> str:
        """The options that name files; empty without any."""
        return " and ".join(f"--{name}" for name in self.files)


class _Done(NamedTuple):
    """Where the schema was and is, what the tables hold, what is to be said about the files."""

    before: SchemaStatus
    after: SchemaStatus
    rows: Rows
    note: str | None


def _upgrade(asked: _Asked) -> _Done:
    # The revisions import nothing of this package: this variable is how they find the files.
    os.environ[DATA_DIR_VARIABLE] = str(asked.paths.data_dir)
    dal = make_dal(asked.settings, asked.url)
    try:
        before = migrations.status(asked.url)
        if asked.files and not _imports(asked, before):
            _require_filled(asked, before, dal)
        after = migrations.upgrade(
            asked.url, asked.revision, x=asked.x, import_files=not asked.no_import
        )
        return _Done(before, after, count_rows(dal), _note(asked, before, after, was_filled(dal)))
    finally:
        dal.close()


def _imports(asked: _Asked, before: SchemaStatus) -> bool:
    """Whether the upgrade passes the revision that imports; also where that is unclear."""
    target = asked.revision
    if before.state is SchemaState.BREAKING:
        return True  # the upgrade itself refuses
    return (before.found or "") < _IMPORT and not (target.isdecimal() and target < _IMPORT)


def _require_filled(asked: _Asked, before: SchemaStatus, dal: StorageDAL) -> None:
    """Raise InvalidArgumentError where files are named that should be, and would not be, imported.

    Where the tables were filled before, it is the same command once more.
    """
    if before.found is not None and was_filled(dal):
        return
    raise InvalidArgumentError(
        f"{asked.options} would have no effect: files are imported {_ONCE}. Nothing was changed. "
        f"Put the files where the scheduler has them ({asked.paths.tasks_file}, "
        f"{asked.paths.history_file}) and run `datahound-storage reconcile`, which carries them "
        "over."
    )


def _note(asked: _Asked, before: SchemaStatus, after: SchemaStatus, filled: bool) -> str | None:
    """What is to be said about the files, None where the import has said it."""
    if asked.no_import:
        return "The files were not imported, as --no-import says."
    if (after.found or "") < _IMPORT:
        return f"The files were not imported: that is what revision {_IMPORT} does."
    if (before.found or "") < _IMPORT:
        return None if asked.files else _nothing_there(asked.paths)
    if not filled:
        return _not_imported(asked.paths)
    return f"{asked.options} had no effect: the tables were filled before." if asked.files else None


def _nothing_there(paths: StatePaths) -> str | None:
    if paths.tasks_file.is_file():
        return None
    return (
        f"No tasks were imported: there is no {paths.tasks_file}. If that is not where the "
        "scheduler has its files, run `datahound-storage reconcile` with the right --data-dir."
    )


def _not_imported(paths: StatePaths) -> str:
    return (
        f"The files were not imported: files are imported {_ONCE}. The first start of the "
        f"scheduler carries over what {paths.data_dir} holds; to do it now: "
        "`datahound-storage reconcile`."
    )


def _tell(place: str, done: _Done) -> None:
    before, after = done.before.found, done.after.found
    if before == after:
        say(f"{place}: {_standing(done.after)}")
    else:
        say(f"{place}: upgraded from {before or 'no tables'} to revision {after}.")
    rows = done.rows
    say(f"The tables hold {counted(rows.tasks, 'task')} and {counted(rows.runs, 'run')}.")
    if done.note is not None:
        say(done.note)


def _standing(schema: SchemaStatus) -> str:
    if schema.state is SchemaState.CURRENT:
        return f"the schema is at revision {schema.found}, the newest: nothing to do."
    if schema.state is SchemaState.AHEAD:
        return f"nothing to do: {schema.message}"
    return f"the schema is at revision {schema.found} already: nothing to do."
