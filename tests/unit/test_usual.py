"""What is told of a line without parsing it is what parsing it tells."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datahound_storage.files.usual import LINE, Days, lines_of, time_text
from datahound_storage.runs import line_text, new_entry, parse_line

CUTOFF = datetime(2026, 9, 20, 12, tzinfo=UTC)
ENTRY = new_entry("t1", True, "done", 1.5, "name", "download") | {"run_id": "r1"}
USUAL = line_text(ENTRY | {"timestamp": "2026-09-20T01:21:59.021661+00:00"})

texts = st.text(max_size=12)
entries = st.builds(
    lambda time, key, message, seconds, run_id, names: (
        {
            "timestamp": time.replace(tzinfo=UTC).isoformat(),
            "task_id": key,
            "task_name": names[0],
            "task_type": names[1],
            "success": len(key) % 2 == 0,
            "message": message,
            "duration_seconds": seconds,
        }
        | ({} if run_id is None else {"run_id": run_id})
    ),
    st.datetimes(),
    texts,
    texts,
    st.floats() | st.integers(),
    st.none() | texts,
    st.tuples(texts, texts),
)


def damaged(text: str, place: int, other: str) -> str:
    place %= len(text)
    return text[:place] + other + text[place + 1 :]


@given(entries, st.integers(min_value=0), st.text('"\\{}[]:,0u1T-Ze+/a \x1f\x7f', max_size=2))
def test_a_line_of_the_usual_shape_is_what_it_seems(
    entry: dict[str, object], place: int, other: str
) -> None:
    text = json.dumps(entry)
    for candidate in (text, damaged(text, place, other), damaged(USUAL, place, other)):
        found = LINE.fullmatch(candidate.encode("utf-8", "surrogatepass"))
        if found is None:
            continue
        parsed = parse_line(candidate)
        assert parsed is not None
        assert parsed.ended_at == datetime.fromisoformat(found[1].decode() + "+00:00")
        assert parsed.entry["task_id"] == found[2].decode()
        assert parsed.run_id == (found[3] or b"").decode()


@given(st.datetimes(datetime(1000, 1, 1)), st.timedeltas(timedelta(-1), timedelta(1)))
def test_the_order_of_spelled_times_is_that_of_the_instants(
    one: datetime, apart: timedelta
) -> None:
    one = one.replace(tzinfo=UTC)
    try:
        two = one + apart
    except OverflowError:
        return
    assert (time_text(one) < time_text(two)) == (one < two)
    whole = one.replace(microsecond=0)
    assert (time_text(whole) < time_text(two)) == (whole < two)


@pytest.mark.parametrize("seconds", ["0", "1.5", "1e-05", "-0.25", "123456789.125"])
def test_what_this_code_writes_is_usual(seconds: str) -> None:
    text = line_text(new_entry("t1", False, 'a "b"\n日本', float(seconds), "ünï", "download"))
    assert LINE.fullmatch(text.encode())
    assert LINE.fullmatch(text.encode().partition(b', "run_id"')[0] + b"}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2026-09-20T", "2026-02-29T"),
        ("2026-09-20T", "2026-09-31T"),
        ("2026-09-20T", "0000-09-20T"),
        ("T01:", "T24:"),
        ("+00:00", "-07:00"),
        ("+00:00", ""),
        ('"t1"', '""'),
        ('"t1"', f'"{"k" * 256}"'),
        ('"t1"', '"\\u0000"'),
        ('"r1"', '""'),
        ("1.5", "01.5"),
        ("1.5", "1" * 5000),
        ("1.5", "NaN"),
        ('"done"', '"\\x"'),
        ('"done"', '"\\u12"'),
        ('"done"', '"a\tb"'),
        ("}", ', "timestamp": "2020-01-01T00:00:00+00:00"}'),
        ("}", "} "),
    ],
)
def test_what_has_to_be_parsed_is_not_usual(old: str, new: str) -> None:
    assert LINE.fullmatch(USUAL.encode())
    assert USUAL.count(old) == 1
    assert LINE.fullmatch(USUAL.replace(old, new).encode()) is None


def block_of(*lines: str) -> tuple[bytes, list[bytes]]:
    block = "".join(f"{line}\n" for line in lines).encode()
    return block, lines_of(block)


def test_days_after_the_cutoff_are_told_by_their_beginning() -> None:
    later = [USUAL.replace("-20T", f"-{day}T") for day in (22, 23, 29)]
    assert Days(CUTOFF).are_later(*block_of(*later))


@pytest.mark.parametrize(
    "line",
    [
        USUAL,
        # An offset or the local time may bring it before the cutoff.
        USUAL.replace("-20T01:21:59.021661+00:00", "-21T11:00:00+23:59"),
        USUAL.replace("2026-09-20T", "2026-W38-1T"),
        USUAL.replace("2026-09-20T", "20260920T"),
        # The last key counts.
        USUAL.replace("-20T", "-29T")[:-1] + ', "timestamp": "2020-01-01T00:00:00+00:00"}',
        USUAL.replace("-20T", "-29T")[:-1] + ', "\\u0074imestamp": "2020-01-01T00:00:00+00:00"}',
        "{torn",
        "",
        " " + USUAL.replace("-20T", "-29T"),
    ],
)
def test_a_block_with_a_line_that_may_be_old_is_looked_at(line: str) -> None:
    later = USUAL.replace("-20T", "-29T")
    assert not Days(CUTOFF).are_later(*block_of(later, line, later))


def test_no_line_is_later_than_the_end_of_time() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert not Days(last).are_later(*block_of(USUAL.replace("2026-09-20", "9999-12-31")))


def test_blocks_of_the_days_before_are_told_at_once() -> None:
    earlier = [USUAL.replace("-20T", f"-{day}T") for day in (19, 18, 1 + 10)]
    assert Days(CUTOFF).are_earlier(*block_of(*earlier))


@pytest.mark.parametrize(
    "line",
    [
        USUAL,
        USUAL.replace("-20T", "-21T"),
        USUAL.replace("-20T", "-19T").replace("+00:00", "-07:00"),
        USUAL.replace("-20T", "-19T")[:-1],
        USUAL.replace("-20T", "-19T").replace('"t1"', '""'),
        USUAL.replace("-20T", "-19T") + " ",
        USUAL.replace("-09-20T", "-02-31T"),
        "",
    ],
)
def test_a_block_with_a_line_that_may_have_to_stay_is_looked_at(line: str) -> None:
    earlier = USUAL.replace("-20T", "-19T")
    days = Days(CUTOFF)
    assert days.are_earlier(*block_of(earlier, earlier))
    assert not days.are_earlier(*block_of(earlier, line, earlier))
    assert not days.are_earlier(*block_of(earlier, earlier, line))
    assert not days.are_earlier(f"{earlier}\n{earlier}".encode(), [earlier.encode()] * 2)
