"""Sidecars of format 1, read as if they were of format 2.

They hash tasks and snapshots otherwise, and a hash does not tell of what it is. But it only matters
whether it is that of a task on one of the two sides, and those can be hashed both ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from datahound_storage.codec import decode
from datahound_storage.files import snapshot
from datahound_storage.files.sidecar import FORMAT, Hashes, Sidecar
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.halves import former_hashes_of, hashes_of, of_parts, parts_of

# Before a hash of something that is on neither side, so that it is not like any that is.
_GONE = "former:"


def with_digest_of_now(known: Sidecar, found: Snapshot, path: Path) -> Sidecar:
    """The sidecar with the digest of the snapshot beside it, if it names that content.

    Raises FileStoreError.
    """
    if known.format == FORMAT:
        return known
    former, header = snapshot.former_digest(path, found.signature), known.header
    after = found.digest if header.after == former else header.after
    before = found.digest if header.before == former else header.before
    return replace(known, header=replace(header, after=after, before=before))


class Translation:
    """From the hashes of format 1 to those of format 2, for tasks with these texts.

    Nothing is hashed before something has to be translated.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts

    @cached_property
    def _known(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for task in map(decode, set(self._texts)):
            for former, now in zip(former_hashes_of(task), hashes_of(task), strict=True):
                known.update(zip(parts_of(former)[0], parts_of(now)[0], strict=True))
        return known

    def sidecar(self, known: Sidecar) -> Sidecar:
        """The sidecar, in format 2."""
        if known.format == FORMAT:
            return known
        since = known.shown_since.items()
        return replace(
            known,
            tasks={key: self._pair(pair) for key, pair in known.tasks.items()},
            previous=self.hashes(known.previous),
            shown_since={
                key: [pair and self._pair(pair) for pair in shown] for key, shown in since
            },
            format=FORMAT,
        )

    def hashes(self, former: dict[str, Hashes | None]) -> dict[str, Hashes | None]:
        """The hashes of some tasks; None stays."""
        return {key: pair and self._pair(pair) for key, pair in former.items()}

    def _pair(self, former: Hashes) -> Hashes:
        operator, scheduler = former
        return self._half(operator), self._half(scheduler)

    def _half(self, former: str) -> str:
        hashes, rest = parts_of(former)
        return of_parts([self._known.get(part, f"{_GONE}{part}") for part in hashes], rest)
