"""The SQL of each revision is linted for what hurts a live table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datahound_storage.migrations.state import revisions
from tests.migrations import support
from tests.migrations.test_upgrade import alembic

STEPS = list(zip(("base", *revisions()), revisions(), strict=False))


def squawk(script: str) -> tuple[int, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["squawk", "--config", str(support.ROOT / ".squawk.toml"), "--reporter", "gcc"]
    done = subprocess.run(
        command,
        input=script,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
def test_a_revision_is_kind_to_live_tables(step: tuple[str, str]) -> None:
    code, script, errors = alembic("", "upgrade", ":".join(step), "--sql")
    assert code == 0, errors
    code, found = squawk(script)
    assert code == 0, f"explain an exception above the statement, or in .squawk.toml:\n{found}"


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("CREATE INDEX i ON scheduler_runs (success)", "require-concurrent-index-creation"),
        ("ALTER TABLE scheduler_runs ALTER COLUMN seq SET NOT NULL", "adding-not-nullable-field"),
        ("ALTER TABLE scheduler_runs RENAME COLUMN seq TO number", "renaming-column"),
    ],
)
def test_what_hurts_is_found(statement: str, rule: str) -> None:
    bounds = "SET lock_timeout = '2s';\nSET statement_timeout = '30min';\n"
    code, found = squawk(f"{bounds}{statement};\n")
    assert code != 0
    assert rule in found
