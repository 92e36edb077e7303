"""The command line. A module a command; the library does the work, only this package prints."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from datahound_storage import __version__
from datahound_storage.cli import conflicts, reconcile, status, upgrade, verify
from datahound_storage.cli.output import printable
from datahound_storage.errors import StorageError

# A new command: its module, and a line here.
COMMANDS = (upgrade.command, status.command, verify.command, reconcile.command, conflicts.command)

EXIT_FAILED = 2
_EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns an error of the package into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StorageError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            # Not 1, which has a meaning in some commands.
            ctx.exit(_EXIT_INTERRUPTED)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands={command.name or "": command for command in COMMANDS},
)
@click.version_option(__version__, prog_name="datahound-storage")
def cli() -> None:
    """Keep a scheduler's tasks and runs in Postgres, with JSON files that can take over.

    The database is found through DATAHOUND_STORAGE_URL, else DATABASE_URL; without a URL, or with
    an empty DATAHOUND_STORAGE_URL, the JSON files are the store. The files are below
    DATAHOUND_DATA_DIR (default: ./data).

    \b
    A first time, in the scheduler's base directory (or with --data-dir):
      export DATAHOUND_STORAGE_URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE
      datahound-storage upgrade     make the tables, import the files
      datahound-storage status      which store a process started now would use
      datahound-storage verify      do the files show what the database holds?

    \b
    Where they do not, or something was lost:
      datahound-storage reconcile --dry-run   what would a start carry over?
      datahound-storage conflicts             versions that lost; --restore ID brings one back

    Every command ends with exit code 2 and one line on stderr where it could not do its work.
    """


def main() -> None:
    """Run the command line; the entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A task's name must not end a command on a terminal that cannot show it.
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="datahound-storage")
