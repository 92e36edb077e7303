"""`status`: which store a process started now would use, and how it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from datahound_storage.cli.options import json_option, with_settings
from datahound_storage.cli.output import counted, print_facts, print_json, print_table, say
from datahound_storage.cli.probe import Contents, Files, Finding, find_store, read_files
from datahound_storage.runs import HistoryEntry
from datahound_storage.settings import Settings

EXIT_FILES_INSTEAD = 1
_RUN_COLUMNS = ("ended", "task", "type", "result", "seconds", "message")
_LONGEST_MESSAGE = 60


@click.command("status", short_help="Which store would a process use, and how is it?")
@with_settings
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """Show which store a process started now would use, why, and what it holds.

    \b
    Exit code
      0  the store that is configured can serve
      1  a URL is set, but the database cannot serve: the files would
      2  a setting cannot be used, or the files cannot be read
    """
    files = read_files(settings)
    finding = find_store(settings, files)
    if as_json:
        print_json(_as_json(files, finding))
    else:
        _tell(files, finding)
    if not finding.serves:
        raise SystemExit(EXIT_FILES_INSTEAD)


def _tell(files: Files, finding: Finding) -> None:
    facts: list[tuple[str, str]] = [("store", _store(finding)), ("why", finding.reason)]
    if finding.schema is not None:
        facts.append(("schema", finding.schema.message))
    if finding.contents is not None:
        facts += _contents(finding.contents)
    facts += [("snapshot", _snapshot(files)), ("history", str(files.paths.history_file))]
    print_facts(facts)
    if files.snapshot.damaged:
        _tell_damage(files, finding)
    if finding.contents is not None:
        print_table("Last runs", _RUN_COLUMNS, map(_run_row, finding.contents.last_runs))


def _tell_damage(files: Files, finding: Finding) -> None:
    """What is damaged in the snapshot, what would be used, and what to do."""
    name, readable = files.paths.tasks_file.name, counted(len(files.snapshot.items), "task")
    say()
    say("The snapshot is damaged")
    for problem in files.snapshot.problems:
        say(f"  damaged: {problem}")
    if finding.store == "database":
        used = f"the database, and what the {readable} that can be read add; nothing is deleted"
        do = "look in the kept file for tasks and edits that the database lacks; make them again"
    else:
        used = f"the {readable} that can be read, and nothing else"
        do = "mend the file before a process writes; or add later what only the kept file has"
        if not finding.serves:
            do += "; or first let the database serve, which may have them (see `why`)"
    kept = f"before it is written again the file is kept, as {name}.damaged-TIME"
    print_facts([("  used", used), ("  kept", kept), ("  to do", do)])


def _store(finding: Finding) -> str:
    if finding.store == "database":
        return f"database ({finding.place})"
    return "JSON files" if finding.serves else "JSON files, AS THE DATABASE CANNOT SERVE"


def _contents(contents: Contents) -> list[tuple[str, str]]:
    statuses = ", ".join(f"{number} {status}" for status, number in contents.tasks.most_common())
    number = counted(contents.tasks.total(), "task")
    tasks = f"{number} ({statuses})" if statuses else number
    return [("tasks", tasks), ("runs", counted(contents.runs, "run"))]


def _snapshot(files: Files) -> str:
    if files.written_at is None:
        is_new = not files.paths.scheduler_dir.is_dir()
        hint = ", and its directory, too: is the --data-dir right?" if is_new else ""
        return f"{files.paths.tasks_file}: missing{hint}"
    age = timedelta(seconds=round((datetime.now(UTC) - files.written_at).total_seconds()))
    if files.snapshot.damaged:
        writer = "DAMAGED (see below)"
    elif files.is_ours:
        writer = "as this package wrote it"
    elif files.sidecar is None:
        writer = "this package has not written it yet"
    else:
        writer = "changed since it was last equal to the database; the next start carries it over"
    return f"{files.paths.tasks_file}: written {age} ago, {writer}"


def _run_row(entry: HistoryEntry) -> list[str]:
    names = ("timestamp", "task_name", "task_type", "success", "duration_seconds", "message")
    values = (entry.get(key) for key in names)
    ended, name, kind, success, seconds, message = ("" if v is None else str(v) for v in values)
    result = {"True": "ok", "False": "FAILED"}.get(success, success)
    return [
        ended[:19],
        name or str(entry.get("task_id", "")),
        kind,
        result,
        seconds,
        message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 3]}...",
    ]


def _as_json(files: Files, finding: Finding) -> dict[str, Any]:
    schema, contents = finding.schema, finding.contents
    return {
        "store": finding.store,
        "serves": finding.serves,
        "reason": finding.reason,
        "database": finding.place,
        "schema": schema and {"state": schema.state, "found": schema.found, "head": schema.head},
        "tasks": contents and dict(contents.tasks),
        "runs": contents and contents.runs,
        "last_runs": contents and contents.last_runs,
        "snapshot": {
            "path": str(files.paths.tasks_file),
            "exists": files.snapshot.exists,
            "written_at": files.written_at and files.written_at.isoformat(),
            "ours": files.is_ours,
            "problems": files.snapshot.problems,
        },
    }
