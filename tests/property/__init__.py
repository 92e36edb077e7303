"""Laws, checked with values that nobody would think of."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The time that an example takes says nothing about the law.
# The same examples in each run: what fails for one developer fails for all.
examples = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# Fields whose types a store checks.
CHECKED = ("task_config", "schedule_type", "status")

# Every code point, U+0000 and halves of surrogate pairs among them.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
# What a file in UTF-8 can hold without escapes.
utf8_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
keys = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=12
).filter(str.strip)
numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1, 1).filter(lambda value: value == value),
)


def values(strings: st.SearchStrategy[str] = texts) -> st.SearchStrategy[Any]:
    """Any value that JSON can hold."""
    return st.recursive(
        st.none() | numbers | strings,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
        max_leaves=10,
    )


@st.composite
def tasks(
    draw: st.DrawFn, key: str | None = None, strings: st.SearchStrategy[str] = texts
) -> dict[str, Any]:
    """A task that a store can hold, its keys in any order, with any values that are not ours."""
    known = {
        "task_id": st.just(key) if key else keys,
        "name": strings,
        "task_config": st.none()
        | st.fixed_dictionaries({"settings": values(strings)}, optional={"company": strings}),
        "schedule_type": st.sampled_from(["interval", "daily_time", "weekly_schedule", "new"]),
        "status": st.sampled_from(["active", "paused", "running", "error", "disabled"]),
        "interval_minutes": st.none() | st.integers(0, 10_000) | st.floats(0, 10),
        "weekly_schedule": values(strings),
        "next_run": st.none() | strings,
        "run_count": st.integers(0, 2**70),
        "updated_at": st.none() | st.datetimes().map(lambda time: time.isoformat()),
    }
    required = {"task_id": known.pop("task_id")}
    task = draw(st.fixed_dictionaries(required, optional=known))
    unknown = strings.filter(lambda name: name not in CHECKED)
    task = draw(st.dictionaries(unknown, values(strings), max_size=3)) | task
    return dict(draw(st.permutations(list(task.items()))))


def task_lists(
    strings: st.SearchStrategy[str] = texts,
) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of tasks with different keys."""
    return st.lists(tasks(strings=strings), max_size=4, unique_by=lambda task: task["task_id"])
