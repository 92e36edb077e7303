"""History lines on their way to the history file: little of them in memory, however many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

from datahound_storage.files.lock import cannot

# More than that goes to a file without a name, on the disk of the history.
_IN_MEMORY = 1 << 20


class Spool:
    """Lines without their ends, kept until they are taken out again, in order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=str(directory))  # noqa: SIM115
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def fill(self, texts: Iterable[str]) -> None:
        """Keep these lines instead of any others. Raises FileStoreError."""
        self.count = 0
        try:
            self._file.seek(0)
            self._file.truncate()
            for text in texts:
                self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
                self.count += 1
        except OSError as error:
            raise cannot("write a temporary file in", self._directory, error) from error

    def batches(self, size: int) -> Iterator[list[str]]:
        """The lines, in lists of about so many bytes. Raises FileStoreError."""
        try:
            self._file.seek(0)
            while found := self._file.readlines(size):
                yield [raw[:-1].decode("utf-8", "surrogatepass") for raw in found]
        except OSError as error:
            raise cannot("read a temporary file in", self._directory, error) from error
