"""`reconcile`: let files and database meet now; choose a side where they do not belong together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import NoReturn

import click

from datahound_storage import by_hand
from datahound_storage.attach import Keep
from datahound_storage.by_hand import Preview, Sides, Standing
from datahound_storage.cli.access import database_at_head, existing_paths
from datahound_storage.cli.options import json_option, required_url, with_settings
from datahound_storage.cli.output import (
    counted,
    print_facts,
    print_json,
    print_table,
    printable,
    say,
)
from datahound_storage.cli.probe import require_writable
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import DivergedError, SnapshotError
from datahound_storage.files.paths import StatePaths
from datahound_storage.settings import Settings

EXIT_CHOICE_NEEDED = 1
_MEANING = {
    Keep.BOTH: "nothing is deleted; of each task the version with the later updated_at stays",
    Keep.FILES: "the database becomes what the snapshot shows",
    Keep.DATABASE: "the snapshot becomes what the database holds",
}


@click.command("reconcile", short_help="Let files and database meet now; choose a side.")
@with_settings
@click.option(
    "--keep",
    type=click.Choice([keep.value for keep in Keep]),
    help="Choose a side, where files and database may not meet by themselves.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many tasks to show.",
)
@json_option
def command(settings: Settings, keep: str | None, dry_run: bool, limit: int, as_json: bool) -> None:
    """Let files and database meet, as the start of a process does.

    What was written to the files while the database was out of sight goes to the database, and the
    snapshot shows the result. A version that loses is kept: see `datahound-storage conflicts`.

    Where the database is another one than wrote the snapshot, or older than it, nothing is changed,
    and both sides are shown. --keep is the choice then: `both` deletes nothing, and of a task that
    differs the later version stays; `files` makes the database what the snapshot shows; `database`
    makes the snapshot what the database holds. Runs are never chosen between: each side gets those
    of the other. Processes that have fallen back stay on the files until they are restarted.

    Run it as the user of the scheduler. The schema is not upgraded.

    \b
    Exit code
      0  done, or nothing to do
      1  a choice is needed: nothing was changed, see --keep
      2  could not be done: no URL, no connection, another schema, unusable files
    """
    required_url(settings)
    paths = existing_paths(settings)
    # The command tells what the library would log.
    logging.getLogger("datahound_storage").addHandler(logging.NullHandler())
    chosen = None if keep is None else Keep(keep)
    with database_at_head(settings) as dal:
        require_writable(dal)
        try:
            if dry_run:
                found = by_hand.preview(dal, paths, chosen)
            else:
                found = by_hand.reconcile(dal, paths, settings.operation_timeout, chosen)
        except DivergedError as error:
            _refuse(error, dal, paths, as_json)
    if as_json:
        head = {"done": not dry_run, "keep": keep, "nothing_to_do": found.is_empty}
        print_json({**head, **asdict(found)})
    else:
        _tell(found, dry_run, limit)


def _tell(found: Preview, dry_run: bool, limit: int) -> None:
    if found.is_empty:
        say("nothing to do: files and database show the same")
        return
    say("This would be done:" if dry_run else "Done:")
    print_facts([(f"  {what}", value) for what, value in _summary(found)])
    for problem in found.damage:
        say(f"  damaged: {problem}")
    if found.emptied:
        say(f"  {_emptied(found, dry_run)}")
    rows = _rows(found, "would be " if dry_run else "")
    print_table("Tasks", ("task", "what"), rows[:limit])
    if len(rows) > limit:
        say(f"  and {len(rows) - limit:,} more (--limit shows more of them)")


def _summary(found: Preview) -> list[tuple[str, str]]:
    facts = [
        ("database", _database_part(found)),
        ("files", _files_part(found)),
        ("kept as conflicts", counted(len(found.lost), "version")),
    ]
    if found.damage:
        kept = "damaged; it is kept aside beside the new one, its name ends with .damaged-TIME"
        facts.append(("snapshot", kept))
    return facts


def _database_part(found: Preview) -> str:
    return _listed(
        (len(found.to_database), "task", "written"),
        (len(found.deleted_in_database), "task", "deleted"),
        (found.runs_to_database, "run", "added"),
        (found.runs_pruned, "run", "pruned, as the history was trimmed"),
    )


def _files_part(found: Preview) -> str:
    parts = _listed(
        (len(found.to_files), "task", "written to the snapshot"),
        (len(found.deleted_in_files), "task", "removed from it"),
        (found.runs_to_files, "run", "added to the history"),
    )
    return f"{parts}; the order of the tasks is made the same" if found.reordered else parts


def _listed(*parts: tuple[int, str, str]) -> str:
    texts = [f"{counted(number, noun)} {done}" for number, noun, done in parts if number]
    return ", ".join(texts) or "as it is"


def _emptied(found: Preview, dry_run: bool) -> str:
    number = counted(len(found.deleted_in_database), "task")
    tense = "would be" if dry_run else "were"
    text = f"ALL {number} of the database {tense} deleted, as none of them is in the files"
    if len(found.deleted_in_database) == 1:
        tense = "would be" if dry_run else "was"
        text = f"the only task of the database {tense} deleted, as it is not in the files"
    if len(found.lost) < len(found.deleted_in_database):
        return text
    return f"{text}; to bring them back: `datahound-storage conflicts --restore ID ...`"


def _rows(found: Preview, would_be: str) -> list[tuple[str, str]]:
    """Each task once, with all that is done to it and the reason, if there is one to tell."""
    deeds: dict[str, list[str]] = {}
    for keys, deed in (
        (found.to_database, "written to the database"),
        (found.deleted_in_database, "deleted in the database"),
        (found.to_files, "written to the snapshot"),
        (found.deleted_in_files, "removed from the snapshot"),
    ):
        for key in keys:
            deeds.setdefault(key, []).append(f"{would_be}{deed}")
    for key, reason in zip(found.lost, found.lost_reasons, strict=True):
        deeds.setdefault(key, []).append(f"{would_be}kept as a conflict: {reason}")
    for key, report in _told(found):
        deeds.setdefault(key, []).append(report)
    return [(key, "; ".join(texts)) for key, texts in deeds.items()]


def _told(found: Preview) -> Iterable[tuple[str, str]]:
    """What the log says of tasks, but for those that are kept as conflicts, with a reason."""
    keys = {*found.to_database, *found.to_files, *found.deleted_in_files}
    names = {f"task {key!r}": key for key in keys.difference(found.lost)}
    kept = tuple(f"task {key!r}" for key in found.lost)
    for report in found.reports:
        name = next((n for n in names if report.startswith((f"{n} ", f"{n}:"))), None)
        if name is not None:
            yield names[name], report.removeprefix(name).lstrip(": ")
        elif not report.startswith(kept):
            yield "", report


def _refuse(error: DivergedError, dal: StorageDAL, paths: StatePaths, as_json: bool) -> NoReturn:
    """Show both sides and what each choice would do; end with the exit code for it."""
    sides = Sides(dal, paths)
    standing, choices = sides.standing(), {keep: _choice(sides, keep) for keep in _MEANING}
    if as_json:
        given = {k: c if isinstance(c, str) else asdict(c) for k, c in choices.items()}
        head = {"done": False, "keep": None, "refused": str(error)}
        print_json({**head, "sides": asdict(standing), "choices": given})
    else:
        _show(standing)
        for keep, choice in choices.items():
            say()
            say(f"--keep {keep}: {_MEANING[keep]}")
            told = [("cannot be done", choice)] if isinstance(choice, str) else _summary(choice)
            print_facts([(f"  {what}", value) for what, value in told])
    click.echo(f"error: {printable(str(error))}", err=True)
    raise SystemExit(EXIT_CHOICE_NEEDED)


def _choice(sides: Sides, keep: Keep) -> Preview | str:
    try:
        return sides.preview(keep)
    except SnapshotError as error:
        return str(error)


def _show(standing: Standing) -> None:
    rows: Iterable[tuple[str, object, object]] = [
        ("tasks", standing.tasks_in_files, standing.tasks_in_database),
        ("only here", standing.only_in_files, standing.only_in_database),
        ("different", standing.different, standing.different),
        ("newest change", _at(standing.files_newest), _at(standing.database_newest)),
        ("database", standing.files_of or "unknown", standing.database),
        ("state shown", _at(standing.files_show), ""),
    ]
    print_table("Both sides", ("", "files", "database"), rows)


def _at(time: datetime | None) -> str:
    return "" if time is None else time.isoformat(sep=" ", timespec="seconds")
