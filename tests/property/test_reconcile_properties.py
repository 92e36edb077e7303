from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from datahound_storage.codec import Task, decode, encode
from datahound_storage.halves import OPERATOR_STATUSES, halves_of, hashes_of, join_halves
from datahound_storage.last_equal import Base
from datahound_storage.plan import Plan, Version
from datahound_storage.reconcile import Meeting
from tests.property import examples, tasks

NOW = datetime(2026, 11, 1, tzinfo=UTC)
KEYS = ("a", "b", "c")
Side = dict[str, Task]

# Few values, so that the sides often agree.
operator_fields = st.fixed_dictionaries(
    {"name": st.sampled_from("xyz"), "interval_minutes": st.sampled_from([5, 15])}
)
scheduler_fields = st.fixed_dictionaries(
    {
        "run_count": st.integers(0, 2),
        "status": st.sampled_from(["active", "running", "paused"]),
        "next_run": st.sampled_from([None, "2026-11-01T00:00:00Z"]),
        "updated_at": st.sampled_from(
            [None, "2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z", "2999-01-01T00:00:00Z"]
        ),
    }
)

# What a run changes in any case.
runs = st.fixed_dictionaries(
    {
        "run_count": st.integers(3, 5),
        "updated_at": st.sampled_from(["2026-10-01T00:00:00Z", "2999-01-01T00:00:00Z"]),
    }
)


def small_task(key: str) -> st.SearchStrategy[Task]:
    return st.builds(
        lambda operator, scheduler: {"task_id": key, **operator, **scheduler},
        operator_fields,
        scheduler_fields,
    )


@st.composite
def sides(draw: st.DrawFn) -> Side:
    present = draw(st.sets(st.sampled_from(KEYS)))
    return {key: draw(small_task(key)) for key in KEYS if key in present}


@st.composite
def changed(draw: st.DrawFn, side: Side) -> Side:
    """A side after some tasks of it were changed, deleted or added."""
    other = draw(sides())
    picked = {key: draw(st.sampled_from(["keep", "change", "other"])) for key in KEYS}
    result: Side = {}
    for key in KEYS:
        source = other if picked[key] == "other" else side
        if key in source:
            fields = operator_fields if draw(st.booleans()) else scheduler_fields
            more = draw(fields) if picked[key] == "change" else {}
            result[key] = source[key] | more
    return result


@st.composite
def meetings(draw: st.DrawFn) -> tuple[Side, Side, Side]:
    """What both sides showed, and what the files and the database show now."""
    base = draw(sides())
    return base, draw(changed(base)), draw(changed(base))


def shown(task: Task | None) -> Task | None:
    """A task without the stamp that every write sets: alone it is no change."""
    return task and {name: value for name, value in task.items() if name != "updated_at"}


def base_of(side: Side) -> Base:
    return Base({key: hashes_of(task) for key, task in side.items()})


def plan_of(base: Base | None, files: Side, database: Side, **more: Any) -> Plan:
    return Meeting(
        base,
        {key: Version(key, encode(task)) for key, task in files.items()},
        {key: Version(key, encode(task)) for key, task in database.items()},
        now=NOW,
        **more,
    ).plan()


def carried_out(plan: Plan, database: Side) -> Side:
    kept = {key: task for key, task in database.items() if key not in plan.delete}
    return kept | {prepared.task_key: decode(prepared.text) for prepared in plan.write}


@examples
@given(sides(), st.data())
def test_unchanged_files_ask_for_nothing(files: Side, data: st.DataObject) -> None:
    database = data.draw(changed(files))
    assert plan_of(base_of(files), files, database) == Plan()


@examples
@given(sides(), st.data())
def test_an_unchanged_database_becomes_what_the_files_are(
    database: Side, data: st.DataObject
) -> None:
    files = data.draw(changed(database))
    plan = plan_of(base_of(database), files, database)
    after = carried_out(plan, database)
    assert after.keys() == files.keys()
    assert [shown(after[key]) for key in files] == [shown(task) for task in files.values()]
    # Where the files show none of the tasks any more, what they deleted is kept.
    kept = database if len(database) > 1 and not files.keys() & database.keys() else {}
    assert {conflict.task_key: decode(conflict.lost_text) for conflict in plan.conflicts} == kept
    assert len(plan.reports) == len(kept)


@examples
@given(meetings())
def test_a_second_meeting_has_nothing_to_do(meeting: tuple[Side, Side, Side]) -> None:
    base, files, database = meeting
    after = carried_out(plan_of(base_of(base), files, database), database)
    assert plan_of(base_of(after), after, after) == Plan()
    # A crash before the snapshot was written: the old files meet the new database once more.
    again = carried_out(plan_of(base_of(base), files, after), after)
    for key in files.keys() & after.keys():
        assert shown(again[key]) == shown(after[key])


@examples
@given(meetings())
def test_what_only_one_side_changed_is_not_lost(meeting: tuple[Side, Side, Side]) -> None:
    base, files, database = meeting
    after = carried_out(plan_of(base_of(base), files, database), database)
    for key in KEYS:
        then, ours, theirs = (shown(side.get(key)) for side in (base, files, database))
        if ours == then:
            assert shown(after.get(key)) == theirs
        elif theirs == then:
            assert shown(after.get(key)) == ours


@examples
@given(meetings())
def test_every_value_of_both_sides_is_in_the_result_or_kept_as_a_conflict(
    meeting: tuple[Side, Side, Side],
) -> None:
    base, files, database = meeting
    plan = plan_of(base_of(base), files, database)
    after = carried_out(plan, database)
    for key in files.keys() & database.keys() & base.keys():
        lost = [decode(c.lost_text) for c in plan.conflicts if c.task_key == key]
        for side in (files, database):
            for field in ("name", "interval_minutes", "run_count"):
                value = side[key][field]
                if value != base[key][field]:
                    shown = [task[field] for task in (after[key], *lost)]
                    assert value in shown, (field, key)


@examples
@given(small_task("a"), operator_fields, st.sampled_from([None, *OPERATOR_STATUSES]), runs)
def test_an_edit_on_one_side_and_a_run_on_the_other_are_both_kept(
    base: Task, edit: Task, pause: str | None, run: Task
) -> None:
    edited = base | edit | ({} if pause is None else {"status": pause})
    edited["updated_at"] = "2026-10-31T00:00:00Z"
    ran = base | run
    for files, database in ((edited, ran), (ran, edited)):
        plan = plan_of(base_of({"a": base}), {"a": files}, {"a": database})
        after = carried_out(plan, {"a": database})["a"]
        assert plan.conflicts == []
        assert after["status"] == edited["status"]
        for field in ("name", "interval_minutes"):
            assert after[field] == edited[field]
        assert after["run_count"] == ran["run_count"]


@examples
@given(meetings())
def test_an_operators_change_is_never_deleted_and_a_run_never_revives(
    meeting: tuple[Side, Side, Side],
) -> None:
    base, files, database = meeting
    after = carried_out(plan_of(base_of(base), files, database), database)
    for key, old in base.items():
        ours, theirs = files.get(key), database.get(key)
        if (ours is None) == (theirs is None):
            continue
        remaining = ours or theirs
        assert remaining is not None
        was_edited = halves_of(remaining).operator != halves_of(old).operator
        assert (key in after) is was_edited


@examples
@given(sides(), sides())
def test_strangers_keep_the_union(files: Side, database: Side) -> None:
    plan = plan_of(None, files, database)
    assert plan.delete == []
    assert carried_out(plan, database).keys() == files.keys() | database.keys()


@examples
@given(meetings())
def test_what_could_not_be_read_is_not_deleted(meeting: tuple[Side, Side, Side]) -> None:
    base, files, database = meeting
    assert plan_of(base_of(base), files, database, files_complete=False).delete == []


@examples
@given(tasks("t"))
def test_halves_are_disjoint_and_together_the_task(task: Task) -> None:
    operator, scheduler = halves_of(task)
    assert not operator.keys() & scheduler.keys()
    assert {"status": None} | operator | scheduler == {"status": None} | task


@examples
@given(tasks("t"))
def test_a_task_joined_with_itself_is_itself(task: Task) -> None:
    assert encode(join_halves(task, task)) == encode(task)


@examples
@given(tasks("t"), tasks("t"))
def test_a_joined_task_has_the_operators_half_of_one_side(one: Task, other: Task) -> None:
    joined = join_halves(one, other)
    assert hashes_of(joined)[0] == hashes_of(one)[0]


@examples
@given(small_task("t"), small_task("t"))
def test_a_joined_task_has_the_schedulers_half_of_the_other_side(one: Task, other: Task) -> None:
    joined = join_halves(one, other)
    assert joined["run_count"] == other["run_count"]
    assert joined["updated_at"] in (one["updated_at"], other["updated_at"])
    source = other if one["interval_minutes"] == other["interval_minutes"] else one
    assert joined["next_run"] == source["next_run"]
    if not {one["status"], other["status"]} & OPERATOR_STATUSES:
        assert joined["status"] == other["status"]
