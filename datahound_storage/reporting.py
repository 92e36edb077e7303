"""Reporting that cannot itself fail: the output of a service may be closed, or its disk full."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any


class Reporter(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers may fail, without the call that reports something failing too."""

    def __init__(self, name: str = "datahound_storage") -> None:
        super().__init__(logging.getLogger(name), None)

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        """Log, in the name of the caller's line."""
        options["stacklevel"] = options.get("stacklevel", 1) + 1
        with suppress(Exception):
            super().log(level, msg, *args, **options)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Leave everything as it is."""
        return msg, kwargs


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 task`, `1,500 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
