"""What every revision keeps to."""

from __future__ import annotations

import ast
import re

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
