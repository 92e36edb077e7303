from __future__ import annotations

import pytest

from datahound_storage.postgres.watermark import Watermark


@pytest.mark.parametrize(
    "text", ["10:10:", "10:20:10", "10:20:10,14,19", "1:18446744073709551615:"]
)
def test_a_watermark_is_spelled_as_postgres_spells_it(text: str) -> None:
    assert str(Watermark.parse(text)) == text


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [(1, True), (9, True), (10, False), (11, True), (14, False), (19, True), (20, False)],
)
def test_a_change_is_shown_if_its_transaction_had_ended(stamp: int, shown: bool) -> None:
    assert Watermark.parse("10:20:10,14").shows(stamp) is shown


@pytest.mark.parametrize("text", ["", "10", "10:20", "10:20::", "a:b:", "10:20:x", "10:20:1 2"])
def test_what_is_no_watermark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not enough values|too many values|invalid literal"):
        Watermark.parse(text)
