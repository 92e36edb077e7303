"""What tests/property/test_model.py found: sequences in which something acknowledged was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task


def test_old_code_takes_back_what_was_written_last(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("kept"))
    persistence.add_task(make_task("deleted"))
    persistence.close()
    # The file is what it was before the last write, to the byte.
    OldCode(base).save(OldCode(base).load()[:1])
    assert opened(base, url=migrated_url).load_tasks() == [make_task("kept")]


def test_a_meeting_whose_snapshot_could_not_be_written_is_repeated(
    opened: MakePersistence, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    persistence = opened(base, url=migrated_url)
    OldCode(base).save([make_task("added in the files")])

    def fail(path: Path, content: bytes) -> atomic.Signature:
        raise FileStoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "prepare", fail)
        assert persistence.add_task(make_task("added meanwhile"))
    assert persistence.add_task(make_task("added later"))
    assert persistence.health().store == "database"
    assert OldCode(base).load() == persistence.load_tasks()
    assert len(OldCode(base).load()) == 3
