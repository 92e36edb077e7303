"""What tests/property/test_model.py found: sequences in which something acknowledged was lost."""

from __future__ import annotations

from pathlib import Path

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
