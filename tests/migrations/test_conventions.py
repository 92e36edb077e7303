"""What every revision keeps to."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datahound_storage.migrations.state import revisions, scripts
from tests.migrations import support

FILES = sorted(support.VERSIONS.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_named_by_number_verb_and_noun(path) -> None:
    assert re.fullmatch(r"\d{4}_[a-z]+(_[a-z]+)+\.py", path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_revision_is_its_number_and_follows_the_one_before(path) -> None:
    module = support.load_revision(path.stem)
    number = int(path.name[:4])
    assert module.revision == f"{number:04}"
    assert module.down_revision == (f"{number - 1:04}" if number > 1 else None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_revision_imports_nothing_that_moves_on(path) -> None:
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or "."
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    ours = {name for name in imported if name.split(".")[0] in ("datahound_storage", "tests", "")}
    others = {name for name in imported if name.split(".")[0] in ("orjson", "click", "rich")}
    assert not ours | others


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(support.ROOT / "alembic", tmp_path / "alembic")
    for name in ("alembic.ini", "Makefile"):
        shutil.copy(support.ROOT / name, tmp_path)
    return tmp_path


def make_revision(checkout: Path, words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-o", "install", "revision", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(
        [*command, f"m={words}"], cwd=checkout, capture_output=True, text=True, check=False
    )


def test_make_revision_writes_the_next_file_with_the_rules(checkout: Path) -> None:
    done = make_revision(checkout, "add priority")
    assert done.returncode == 0, done.stderr
    number = f"{len(FILES) + 1:04}"
    (path,) = (checkout / "alembic" / "versions").glob(f"{number}_*.py")
    assert path.name == f"{number}_add_priority.py"
    text = path.read_text(encoding="utf-8")
    assert f'down_revision: str | None = "{revisions()[-1]}"' in text.replace("'", '"')
    for rule in ("CONCURRENTLY", "NOT VALID", "downgrade loses no", f"breaking_since = '{number}'"):
        assert rule in text


@pytest.mark.parametrize("words", ["", "priority", "Add priority", "add; priority"])
def test_make_revision_wants_a_verb_and_a_noun(checkout: Path, words: str) -> None:
    done = make_revision(checkout, words)
    assert done.returncode != 0
    assert 'make revision m="verb noun"' in done.stderr
    assert len(list((checkout / "alembic" / "versions").glob("*.py"))) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_rules_of_the_template_are_left(path: Path) -> None:
    assert "Strike each out when it is met" not in path.read_text(encoding="utf-8")


def test_the_folder_is_no_package() -> None:
    # It would shadow the library of the same name.
    assert not (support.ROOT / "alembic" / "__init__.py").exists()
    assert not (support.VERSIONS / "__init__.py").exists()


def test_the_scripts_of_this_checkout_are_used() -> None:
    assert scripts() == support.ROOT / "alembic"
    assert list(revisions()) == [path.name[:4] for path in FILES]


def test_no_environment_configures_the_hosts_logging() -> None:
    for path in (support.ROOT / "alembic" / "env.py", support.ROOT / "alembic.ini"):
        text = path.read_text(encoding="utf-8")
        assert "fileConfig" not in text
        assert "[loggers]" not in text
