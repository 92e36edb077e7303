"""`conflicts`: the versions of tasks that lost: list, look at, restore, forget those settled."""

from __future__ import annotations

import json
from typing import Any

import click

from datahound_storage.cli import restoring
from datahound_storage.cli.kept import (
    Difference,
    Kept,
    Places,
    UnknownIdError,
    differences,
    open_places,
)
from datahound_storage.cli.options import json_option, with_settings
from datahound_storage.cli.output import (
    counted,
    print_facts,
    print_json,
    print_table,
    printable,
    say,
)
from datahound_storage.codec import decode
from datahound_storage.settings import Settings

EXIT_UNKNOWN = 1


@click.command("conflicts", short_help="Versions of tasks that lost, kept for you.")
@with_settings
@click.option("--task", metavar="KEY", help="List those of one task.")
@click.option("--show", metavar="ID", help="Print the version that lost, SETTINGS INCLUDED.")
@click.option(
    "--restore", metavar="ID", multiple=True, help="Make it the task again; more ids can follow."
)
@click.option("--forget", metavar="ID", multiple=True, help="Delete it; more ids can follow.")
@click.option("--dry-run", is_flag=True, help="With --restore, --forget: list what would be done.")
@click.argument("more", metavar="[ID]...", nargs=-1)
@json_option
def command(
    settings: Settings,
    task: str | None,
    show: str | None,
    restore: tuple[str, ...],
    forget: tuple[str, ...],
    dry_run: bool,
    more: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the versions of tasks that lost against another change, and were kept.

    They are in the table scheduler_conflicts; those that lost while the files were the only store
    are in a file beside the snapshot, and have an `f` in their id. Where there is no URL, or the
    database does not serve, those of the file alone are listed, and that is said.

    `kept` is the side (or `later`: the later of two writers) whose version stays. A list shows no
    settings. --show prints a version in full, and how it differs from the task as it is stored now.
    What is settled can be forgotten; nothing else ever deletes it.

    --restore makes versions the tasks again, all or none: the half that lost, or all of the task
    where all of it lost or where it is gone. What is replaced is kept as a conflict in its place.
    It is done in the database, after files and database have met as at a start; in the files where
    there is no URL or the table cannot be read. Processes see it with their next listing.

    \b
    Exit code
      0  done; none kept is no error
      1  there is no conflict with this id: nothing was changed
      2  the table is needed and does not serve, or the file does not; or two versions of the same
         task were to be restored
    """
    if sum((task is not None, show is not None, bool(restore), bool(forget))) > 1:
        raise click.UsageError("--task, --show, --restore and --forget exclude each other.")
    if (dry_run or more) and not (restore or forget):
        raise click.UsageError("--dry-run, and ids by themselves, belong to --restore or --forget.")
    with open_places(settings) as places:
        try:
            if restore:
                found = places.pick([*restore, *more])
                _restore(settings, places, found, dry_run, as_json)
            else:
                _act(places, task, show, (*forget, *more), dry_run, as_json)
        except UnknownIdError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            raise SystemExit(EXIT_UNKNOWN) from error


def _act(
    places: Places,
    task: str | None,
    show: str | None,
    forget: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    if show is not None:
        _show(places, places.pick([show])[0], as_json)
    elif forget:
        _forget(places, places.pick(forget), dry_run, as_json)
    else:
        found = [k for k in places.all() if task is None or k.conflict.task_key == task]
        _list(places, found, as_json)


def _list(places: Places, found: list[Kept], as_json: bool) -> None:
    if as_json:
        print_json({"problem": places.problem, "conflicts": [_as_json(kept) for kept in found]})
        return
    if places.problem is not None:
        say(f"only those in the file; the table is not read: {places.problem}")
    say(f"{counted(len(found), 'conflict')} kept")
    _print(found)


def _print(found: list[Kept]) -> None:
    rows = [
        (kept.id, c.task_key, c.half, c.kept, _when(kept), c.reason)
        for kept in found
        for c in [kept.conflict]
    ]
    print_table("Conflicts", ("id", "task", "half", "kept", "when", "reason"), rows)


def _when(kept: Kept) -> str:
    return kept.noticed_at.isoformat(sep=" ", timespec="seconds")


def _as_json(kept: Kept) -> dict[str, Any]:
    conflict = kept.conflict
    return {
        "id": kept.id,
        "task_key": conflict.task_key,
        "half": conflict.half,
        "kept": conflict.kept,
        "reason": conflict.reason,
        "noticed_at": kept.noticed_at.isoformat(),
    }


def _forget(places: Places, found: list[Kept], dry_run: bool, as_json: bool) -> None:
    if not dry_run:
        places.forget(found)
    if as_json:
        print_json({"done": not dry_run, "forgotten": [_as_json(kept) for kept in found]})
        return
    number = counted(len(found), "conflict")
    say(f"{number} would be forgotten" if dry_run else f"{number} forgotten")
    _print(found)


def _restore(
    settings: Settings, places: Places, found: list[Kept], dry_run: bool, as_json: bool
) -> None:
    if dry_run:
        store, done = places.store, restoring.preview(places, found)
    else:
        store, done = restoring.restore(settings, places, found)
    if as_json:
        restored = [{**_as_json(kept), "what": what} for kept, what in done]
        print_json({"done": not dry_run, "store": store, "restored": restored})
        return
    verb = "would be restored" if dry_run else "restored"
    place = "the database" if store == "database" else "the JSON files"
    say(f"{counted(len(done), 'version')} {verb} in {place}")
    told = _WOULD if dry_run else _WHAT
    rows = [(kept.id, kept.conflict.task_key, kept.conflict.half, told[w]) for kept, w in done]
    print_table("Tasks", ("id", "task", "half", "what"), rows)


_WHAT = {
    "added": "was gone, and is there again",
    "replaced": "what stood there is kept as a conflict",
    "the same": "was the same already",
}
_WOULD = {
    "added": "is gone, and would be there again",
    "replaced": "what stands there would be kept as a conflict",
    "the same": "is the same already",
}


def _show(places: Places, kept: Kept, as_json: bool) -> None:
    lost, stored = decode(kept.conflict.lost_text), places.stored(kept.conflict.task_key)
    found = [] if stored is None else differences(lost, stored)
    if as_json:
        fields = [{"field": d.field, "half": d.half, **d.values} for d in found]
        print_json({**_as_json(kept), "lost": lost, "stored": stored, "differences": fields})
        return
    facts = {**_as_json(kept), "noticed_at": _when(kept)}
    print_facts((name.replace("_", " "), value) for name, value in facts.items())
    if stored is None:
        say()
        say("The task is not stored any more.")
    elif not found:
        say()
        say("The stored task is the same by now.")
    columns = ("field", "half", "lost", "stored now")
    print_table("Differences from the stored task", columns, map(_row, found))
    say()
    say("The version that lost")
    for line in kept.conflict.lost_text.replace("\n  ", "\n").splitlines():
        say(line)


def _row(found: Difference) -> list[str]:
    values = found.values
    cells = [json.dumps(values[s]) if s in values else "(none)" for s in ("lost", "stored")]
    return [found.field, found.half, *cells]
