"""Printing: rich tables on a terminal, aligned text elsewhere, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from datahound_storage.reporting import counted

__all__ = ["counted", "print_facts", "print_json", "print_table", "printable", "say"]

Row = Sequence[object]


def say(text: str = "") -> None:
    """Print a line."""
    click.echo(printable(text))


def print_json(value: Any) -> None:
    """Print a JSON value."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_facts(facts: Iterable[Row]) -> None:
    """Print names and values, aligned."""
    _print_aligned([(f"{name}:", value) for name, value in facts])


def print_table(title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Print a table; nothing where it has no rows."""
    cells = [[printable(str(value)) for value in row] for row in rows]
    if not cells:
        return
    if sys.stdout.isatty():
        _print_rich(title, columns, cells)
    else:
        click.echo(f"\n{title}")
        _print_aligned([[column.upper() for column in columns], *cells], indent="  ")


def _print_rich(title: str, columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name is no markup
    click.echo()
    Console().print(table)


def _print_aligned(rows: list[Row], indent: str = "") -> None:
    cells = [[printable(str(value)) for value in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(f"{indent}{line}".rstrip())


def printable(text: str) -> str:
    """The text with control characters escaped: a task's name must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
