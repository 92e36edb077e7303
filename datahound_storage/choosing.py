"""What an operator chooses where files and database are not allowed to meet by themselves."""

from __future__ import annotations

from collections.abc import Mapping

from datahound_storage.plan import Plan, Version, lost_version

_CHOSEN = "the operator chose the other side"


def choose_files(files: Mapping[str, Version], database: Mapping[str, Version]) -> Plan:
    """The files become the whole state, as the operator decided; what that costs is kept."""
    changed = {k: v for k, v in files.items() if k not in database or database[k].text != v.text}
    gone = [key for key in database if key not in files]
    lost = [key for key in (*changed, *gone) if key in database]
    natural = [*(k for k in database if k in files), *(k for k in files if k not in database)]
    return Plan(
        write=list(changed.values()),
        delete=gone,
        order=None if list(files) == natural else list(files),
        conflicts=[lost_version(key, "task", "files", database[key], _CHOSEN) for key in lost],
    )


def choose_database(files: Mapping[str, Version], database: Mapping[str, Version]) -> Plan:
    """The database stays as it is, as the operator decided; what only the files show is kept."""
    lost = [k for k, v in files.items() if k not in database or database[k].text != v.text]
    return Plan(
        conflicts=[lost_version(key, "task", "database", files[key], _CHOSEN) for key in lost]
    )
