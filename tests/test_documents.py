"""The documents tell the truth: commands run, tables are complete, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datahound_storage.files import conflicts
from datahound_storage.files.paths import StatePaths
from datahound_storage.writes import Conflict

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PLACEHOLDER = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"

# Lines that are not run: they install, or run this suite.
SKIPPED = ("make ", "pip install ", "git clone ")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN = {
    "sh": "{block}",
    "python": "python - <<'END'\n{block}END\n",
    "sql": f"DATAHOUND_STORAGE_URL={PLACEHOLDER} python sql.py <<'END'\n{{block}}END\n",
}
_SQL = """
import os, sys, psycopg
with psycopg.connect(os.environ["DATAHOUND_STORAGE_URL"]) as connection:
    connection.execute(sys.stdin.read())
"""


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def script(text: str, url: str) -> str:
    """All blocks of a document that can be run, as one script."""
    parts = ["set -euxo pipefail\n"]
    for language, block in _BLOCK.findall(text):
        if language in _RUN:
            lines = [x for x in block.splitlines(keepends=True) if not x.startswith(SKIPPED)]
            parts.append(_RUN[language].format(block="".join(lines)))
    return "".join(parts).replace(PLACEHOLDER, f"'{url}'")


def make_checkout(directory: Path) -> None:
    """A checkout that commands may write to, with the sample as the scheduler's files."""
    shutil.copytree(ROOT / "alembic", directory / "alembic")
    shutil.copy(ROOT / "alembic.ini", directory)
    for name in ("data", "logging"):
        shutil.copytree(ROOT / "examples" / name, directory / name)
    (directory / "sql.py").write_text(_SQL)
    # So that the runbook has something to show, to restore and to forget.
    texts = {key: f'{{"task_id": "{key}"}}' for key in "abcd"}
    lost = [Conflict(key, "operator", "later", text, "a test") for key, text in texts.items()]
    conflicts.append(StatePaths.below(directory / "data").conflicts_file, lost)


@pytest.mark.parametrize("document", names(DOCUMENTS))
def test_the_commands_of_a_document_run(document: str, database_url: str, tmp_path: Path) -> None:
    commands = script((ROOT / document).read_text(), database_url)
    make_checkout(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    if "datahound-storage verify" in commands:
        assert "\nequal\n" in done.stdout
    if "conflicts --restore f3 f4\n" in commands:
        assert "\n2 versions restored in the database\n" in done.stdout
    if "conflicts --forget f1" in commands:
        assert "\n2 conflicts forgotten\n" in done.stdout


def test_there_are_commands_to_run() -> None:
    runbook = script((ROOT / "docs/runbook.md").read_text(), "URL")
    assert runbook.count("datahound-storage") >= 8
    readme = script((ROOT / "README.md").read_text(), "URL")
    assert "datahound-storage upgrade\n" in readme
    assert "EmbeddedServer(" in readme
    assert "SchedulerPersistence(" in readme
    assert "make " not in readme
    assert "pip install" not in readme


def rows_of_tables(text: str, pattern: str) -> set[str]:
    """The names in the first columns of tables."""
    return set(re.findall(rf"^\| `({pattern})` \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("datahound_storage/settings.py", r"DATAHOUND_\w+|DATABASE_URL"),
        ("tests/servers.py", r"TEST_POSTGRES\w*"),
    ],
)
def test_the_readme_has_a_row_for_every_variable_and_no_other(source: str, pattern: str) -> None:
    code = (ROOT / source).read_text()
    known = set(re.findall(rf'"({pattern})"', code))
    assert known
    assert rows_of_tables((ROOT / "README.md").read_text(), pattern) == known


def test_the_readme_tells_the_defaults() -> None:
    from datahound_storage.settings import Settings

    readme, settings = (ROOT / "README.md").read_text(), Settings()
    for name, value in (
        ("DATAHOUND_SCHEDULER_TZ", settings.timezone),
        ("DATAHOUND_STORAGE_TIMEOUT_SECONDS", f"{settings.operation_timeout:g}"),
        ("DATAHOUND_DATA_DIR", settings.data_dir),
    ):
        assert f"| `{name}` | `{value}` |" in readme
    assert settings.auto_upgrade
    assert not settings.echo


@pytest.mark.parametrize("document", names(DOCUMENTS))
def test_links_and_paths_lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if not x.startswith("https://")]
    named = re.findall(r"`((?:datahound_storage|tests|docs|alembic)/[\w/.-]+)`", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    missing += [x for x in named if "NNNN" not in x and "NAME" not in x and not (ROOT / x).exists()]
    assert missing == []


def test_every_test_that_proves_a_guarantee_exists() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    proofs = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(proofs) > 50
    missing = [
        (path, name)
        for path, name in proofs
        if not (ROOT / path).exists() or f"def {name}" not in (ROOT / path).read_text()
    ]
    assert missing == []


def test_every_guarantee_names_a_proof() -> None:
    promised = (ROOT / "docs/guarantees.md").read_text().partition("## What is not promised")[0]
    rows = [x for x in promised.splitlines() if x.startswith("| ") and "proved by" not in x]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row] == []


def test_every_command_is_in_the_readme() -> None:
    from datahound_storage.cli import COMMANDS

    readme = (ROOT / "README.md").read_text()
    assert [c.name for c in COMMANDS if f"datahound-storage {c.name}" not in readme] == []


def test_the_runbook_tells_what_an_edit_of_each_column_does() -> None:
    from datahound_storage.postgres import schema

    runbook = (ROOT / "docs/runbook.md").read_text()
    table = runbook.partition("| column of `scheduler_tasks` |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", "".join(first))) == sorted(schema.tasks.c.keys())


def test_the_readme_tells_what_a_task_must_hold() -> None:
    from datahound_storage.records import TaskStatus

    readme = (ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| `status` |"))
    assert set(re.findall(r"`(\w+)`", row)) == {"status", *TaskStatus}
