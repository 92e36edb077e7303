"""The sidecar: which state of which database the snapshot beside it shows.

It is written, durably, before the snapshot is renamed, and names the hash of the old and of the new
snapshot, so that either is recognised as ours after a crash. The first line is small and can be
read alone; the rest holds the two hashes of each task.

Format 1 hashed tasks and snapshots otherwise. It is understood, and kept by who only adds to it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from datahound_storage.codec import decode
from datahound_storage.files import atomic
from datahound_storage.files.lock import cannot
from datahound_storage.halves import former_hashes_of, hashes_of

FORMER, FORMAT = 1, 2
Hashes = tuple[str, str]


@dataclass(frozen=True)
class SidecarHeader:
    """What the snapshot shows.

    `database` and `incarnation` say of which database, `watermark` and `epoch` of which state,
    `shown_us` is the time of the newest change in it (microseconds since 1970). `before` and
    `after` are the hashes of the old and the new snapshot, `replaced` and `file` their signatures.
    """

    database: str = ""
    incarnation: str = ""
    epoch: int = 0
    watermark: str = ""
    shown_us: int = 0
    file: tuple[int, int, int] | None = None
    replaced: tuple[int, int, int] | None = None
    before: str = ""
    after: str = ""

    def recognises(self, digest: str, signature: tuple[int, int, int] | None) -> bool:
        """Whether a snapshot is the one that we wrote last, or the one that it was to replace.

        The latter only if it is that very file: somebody who takes back what we wrote last, as by
        deleting the task that was added, makes the same content anew.
        """
        return digest == self.after or (digest == self.before and signature == self.replaced)


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says: `tasks` of the new snapshot, `previous` where the old one differs.

    `shown_since` are versions that the files showed after that, and which the database may have;
    None stands for a deletion that it may have done as well. All hashes are those of `format`.
    """

    header: SidecarHeader
    tasks: dict[str, Hashes] = field(default_factory=dict)
    previous: dict[str, Hashes | None] = field(default_factory=dict)
    shown_since: dict[str, list[Hashes | None]] = field(default_factory=dict)
    format: int = FORMAT

    def settled(self, unpublished: atomic.Signature | None) -> Sidecar:
        """Without `previous`, as one of the two snapshots stands, or stood when it was changed.

        After a crash the old one stands beside this sidecar, and the new one, `unpublished`, beside
        both: whoever then changes or replaces the old one has not seen what the new one was to
        show. Without that the new one was published, and who changed it has seen it.
        """
        if self.is_published(unpublished):
            return replace(self, previous={})
        older = {**self.tasks, **self.previous}
        tasks = {key: hashes for key, hashes in older.items() if hashes is not None}
        # No file is the one that the rest of the header speaks of.
        return replace(self, header=replace(self.header, file=None), tasks=tasks, previous={})

    def is_published(self, unpublished: atomic.Signature | None) -> bool:
        """Whether the snapshot shows what this says, or did before somebody changed it."""
        file = self.header.file
        # Not by the inode: a copy has another one, and another file may have got that.
        return file is None or unpublished is None or unpublished[1:] != tuple(file[1:])


_WATERMARK = re.compile(r"(\d+:\d+:[\d,]*)?")
_TEXTS = ("database", "incarnation", "watermark", "before", "after")


def _header(value: dict[str, Any]) -> SidecarHeader:
    """A header of the right types. Raises ValueError, TypeError or KeyError for anything else."""
    files = {name: value.get(name) for name in ("file", "replaced")}
    well_formed = (
        all(isinstance(value[name], str) for name in _TEXTS)
        and all(type(value[name]) is int for name in ("epoch", "shown_us"))
        and _WATERMARK.fullmatch(value["watermark"]) is not None
        and all(file is None or _is_signature(file) for file in files.values())
    )
    if not well_formed:
        raise ValueError("a header of other types")
    tuples = {name: None if file is None else tuple(file) for name, file in files.items()}
    return SidecarHeader(**{**value, **tuples})


def _is_signature(file: Any) -> bool:
    return len(file) == 3 and all(type(part) is int for part in file)


def task_line(task_key: str, hashes: Hashes) -> str:
    """The line of one task, to be cached by the caller."""
    return f"{orjson.dumps(task_key).decode()}:{orjson.dumps(hashes).decode()}"


def line_hashes(line: str) -> Hashes:
    """The hashes that the line of a task holds."""
    ((operator, scheduler),) = orjson.loads(f"{{{line}}}").values()
    return operator, scheduler


def encode(
    header: SidecarHeader,
    lines: Iterable[str],
    previous: dict[str, Hashes | None],
    shown_since: dict[str, list[Hashes | None]] | None = None,
    form: int = FORMAT,
) -> bytes:
    """The bytes of a sidecar."""
    value = {"format": form, **header.__dict__, "previous": previous}
    first = orjson.dumps(value | ({"shown_since": shown_since} if shown_since else {}))
    joined = ",\n".join(lines).encode()
    return b"".join((first[:-1], b',"tasks":{\n', joined, b"\n}}\n"))


class Previous:
    """The sidecar that is about to be replaced, to be read only where it is wanted back.

    Kept open, as its name will lead to another file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise cannot("read", self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # Nothing was written through it: a failure takes nothing back that was done.
            with suppress(OSError):
                self._file.close()

    def content(self) -> bytes | None:
        """Its bytes, None where there was none. Raises FileStoreError."""
        if self._file is None:
            return None
        try:
            self._file.seek(0)
            return self._file.read()
        except OSError as error:
            raise cannot("read", self._path, error) from error


def settle(path: Path, unpublished: atomic.Signature | None) -> None:
    """Write down which snapshot is about to be changed, before what tells it is overwritten.

    Callers hold the file lock. Raises FileStoreError.
    """
    known = read(path)
    if known is None or not known.previous:
        return
    _rewrite(path, known.settled(unpublished))


def note_shown(path: Path, texts: Mapping[str, str | None]) -> None:
    """Take down what the files show of some tasks that the database may show as well; None: gone.

    Callers hold the file lock, and have made the files show it. Raises FileStoreError.
    """
    known = read(path)
    if known is None or not texts:
        return
    hashed = hashes_of if known.format == FORMAT else former_hashes_of
    shown = {key: [*known.shown_since.get(key, ())] for key in texts}
    for key, text in texts.items():
        shown[key].append(None if text is None else hashed(decode(text)))
    _rewrite(path, replace(known, shown_since={**known.shown_since, **shown}))


def _rewrite(path: Path, known: Sidecar) -> None:
    lines = (task_line(key, hashes) for key, hashes in known.tasks.items())
    encoded = encode(known.header, lines, known.previous, known.shown_since, known.format)
    atomic.replace(path, encoded)


def begin(path: Path) -> None:
    """Write one that says nothing yet, but tells these files from others. Raises FileStoreError."""
    header = SidecarHeader(after=secrets.token_hex(16))
    atomic.replace(path, encode(header, (), {}))


def header_digest(path: Path) -> str | None:
    """What tells whether the sidecar was written anew, but for notes; None where there is none."""
    found = content(path)
    try:
        value = orjson.loads(found or b"")
        # Settling it takes the file away.
        names = sorted(SidecarHeader.__dataclass_fields__.keys() - {"file"})
        told = [value["after"], *(value.get(name) for name in names)]
    except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
        return None
    return blake2b(orjson.dumps(told), digest_size=16).hexdigest()


def content(path: Path) -> bytes | None:
    """The bytes of the sidecar, None where there is none. Raises FileStoreError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot("read", path, error) from error


def read(path: Path) -> Sidecar | None:
    """The sidecar, None where there is none or it says nothing. Raises FileStoreError."""
    found = content(path)
    if found is None:
        return None
    try:
        value = orjson.loads(found)
        form = value.pop("format")
        if form not in (FORMER, FORMAT):
            return None
        tasks = {key: (str(a), str(b)) for key, (a, b) in value.pop("tasks").items()}
        previous = {k: v and (str(v[0]), str(v[1])) for k, v in value.pop("previous").items()}
        since = {
            key: [v and (str(v[0]), str(v[1])) for v in shown]
            for key, shown in value.pop("shown_since", {}).items()
        }
        header = _header(value)
        return Sidecar(header, tasks, previous, since, form) if header.database else None
    except (orjson.JSONDecodeError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        # It is made to be disposable: without it the sides meet as strangers, nothing is deleted.
        return None


def forget(path: Path) -> None:
    """Remove the sidecar, durably: what the snapshot shows is not known any more.

    Raises FileStoreError.
    """
    try:
        path.unlink(missing_ok=True)
        atomic.sync_directory(path.parent)
    except OSError as error:
        raise cannot("remove", path, error) from error
