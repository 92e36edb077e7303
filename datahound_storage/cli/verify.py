"""`verify`: do the files show what the database holds?"""

from __future__ import annotations

import click

from datahound_storage.cli.access import database_at_head, existing_paths
from datahound_storage.cli.options import json_option, required_url, with_settings
from datahound_storage.cli.output import counted, print_json, print_table, say
from datahound_storage.cli.probe import read_files, why_apart
from datahound_storage.settings import Settings
from datahound_storage.verify import VerifyReport, compare

EXIT_DIFFERENT = 1
_CARRY_OVER = "what a start would carry over: datahound-storage reconcile --dry-run"
# Without --keep, what this names would refuse.
_APART = (
    "{}: correct the URL, or choose a side: datahound-storage reconcile --keep both|files|database "
    "(with --dry-run: see what it would do)"
)
_UNREAD = (
    "tasks in a damaged file only: mend them in a copy and add them again; delete the damaged file "
    "that was kept aside when nothing in it is needed any more"
)


@click.command("verify", short_help="Do the files show what the database holds?")
@with_settings
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many differences to show.",
)
@json_option
def command(settings: Settings, limit: int, as_json: bool) -> None:
    """Compare files and database, task by task and run by run.

    Changes nothing. A scheduler may be running: a difference counts only if it is still the same a
    second later. The names of differing fields are shown, their values are not. A task counts as
    different, too, that only a damaged snapshot names, also one that was kept aside, if it is not
    in the database and was never deleted there: it was left out, and has to be added by hand.

    \b
    Exit code
      0  equal: the files could take over now
      1  different
      2  could not be checked: no URL, no connection, another schema, unreadable files
    """
    report, apart = _compare(settings)
    if as_json:
        print_json(report.as_json())
    else:
        _tell(report, limit, apart)
    if not report.equal:
        raise SystemExit(EXIT_DIFFERENT)


def _compare(settings: Settings) -> tuple[VerifyReport, str | None]:
    """What differs, and why the two sides would not be let meet, None where they would."""
    required_url(settings)
    paths = existing_paths(settings)
    with database_at_head(settings) as dal:
        report = compare(dal, paths, patience=settings.operation_timeout)
        if report.equal:
            return report, None
        return report, why_apart(dal, dal.read_changes(None), read_files(settings))


def _tell(report: VerifyReport, limit: int, apart: str | None) -> None:
    say(
        f"database: {counted(report.tasks_in_database, 'task')}, "
        f"{counted(report.runs_in_table, 'run')}"
    )
    say(
        f"files:    {counted(report.tasks_in_snapshot, 'task')}, "
        f"{counted(report.runs_in_file, 'run')}"
    )
    for note in _notes(report):
        say(f"  {note}")
    differences = _differences(report)
    print_table("Differences", ("what", "which", "where"), differences[:limit])
    if len(differences) > limit:
        say(f"  and {len(differences) - limit:,} more (--limit shows more of them)")
    if report.equal:
        say("equal")
        return
    say(f"DIFFERENT: {counted(len(differences), 'difference')}")
    if report.tasks_unread:
        say(_UNREAD)
    if len(differences) > len(report.tasks_unread):
        say(_APART.format(apart) if apart else _CARRY_OVER)


def _notes(report: VerifyReport) -> list[str]:
    notes = {
        "of runs that the database has pruned: they stay gone": report.runs_trimmed,
        "that cannot be read as runs": report.lines_unusable,
    }
    texts = [f"{counted(number, 'line')} {what}" for what, number in notes.items() if number]
    if report.in_motion:
        texts.append(f"{counted(report.in_motion, 'change')} under way while reading: not counted")
    return texts


def _differences(report: VerifyReport) -> list[tuple[str, str, str]]:
    rows = [("snapshot", "damaged", problem) for problem in report.snapshot_problems]
    rows += [("task", d.task_key, ", ".join(d.fields)) for d in report.tasks_different]
    rows += [("task", key, "only in the database") for key in report.tasks_only_in_database]
    rows += [("task", key, "only in the snapshot") for key in report.tasks_only_in_snapshot]
    rows += [("task", t.task_key, f"only in {t.file}, unread") for t in report.tasks_unread]
    rows += [("tasks", "all", "not in the same order")] if report.order_differs else []
    rows += [("run", run_id, "not the same") for run_id in report.runs_different]
    rows += [("run", run_id, "only in the table") for run_id in report.runs_only_in_table]
    rows += [("run", run_id, "only in the history file") for run_id in report.runs_only_in_file]
    return rows
