"""An upgrade from sidecars of format 1 undoes nothing: each story ends as with one of format 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.attach import waiting_tasks
from datahound_storage.cli.probe import read_files
from datahound_storage.files import atomic
from datahound_storage.settings import from_environment
from tests.fault.fix_faults import impatient
from tests.fault.proxy import Proxy
from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence
from tests.former import World
from tests.scheduler import make_task


@pytest.fixture(params=[1, 2], ids=lambda form: f"format{form}")
def world(
    opened: MakePersistence, base: Path, migrated_url: str, request: pytest.FixtureRequest
) -> World:
    return World(opened, base, migrated_url, request.param)


class Story(NamedTuple):
    """What was done to the files, then to the database; how many tasks of the files wait for it.

    `tasks` and `conflicts` are what is there in the end.
    """

    files: Callable[[World], object]
    database: Callable[[World], object]
    waiting: int
    tasks: list[tuple[str, str, int]]
    conflicts: list[tuple[str, str, str]]


A, B, C = ("a", "Task a", 0), ("b", "Task b", 0), ("c", "Task c", 0)
NEW, LATER = make_task("d"), "2026-11-02T10:00:00"


def nothing(_: World) -> None:
    """As it was."""


STORIES = {
    "nothing": Story(nothing, nothing, 0, [A, B, C], []),
    "deletion": Story(lambda w: w.edit(lambda t: t[:1] + t[2:]), nothing, 1, [A, C], []),
    "operator's edit": Story(
        lambda w: w.set("a", name="mine"), nothing, 1, [("a", "mine", 0), B, C], []
    ),
    "scheduler's edit": Story(
        lambda w: w.set("a", run_count=1), nothing, 1, [("a", "Task a", 1), B, C], []
    ),
    "stamp": Story(lambda w: w.set("a", updated_at=LATER), nothing, 1, [A, B, C], []),
    "new task": Story(
        lambda w: w.edit(lambda t: [*t, NEW]), nothing, 1, [A, B, C, ("d", "Task d", 0)], []
    ),
    "new order": Story(lambda w: w.edit(lambda t: t[::-1]), nothing, 0, [C, B, A], []),
    "change in the database": Story(
        nothing, lambda w: w.set_there("a", name="theirs"), 0, [("a", "theirs", 0), B, C], []
    ),
    "deleted in the database": Story(nothing, lambda w: w.delete_there("a"), 0, [B, C], []),
    "the database's halves": Story(
        lambda w: w.set("c", name="mine"),
        lambda w: w.set_there("a", name="theirs", run_count=1),
        1,
        [("a", "theirs", 1), B, ("c", "mine", 0)],
        [],
    ),
    "one half each": Story(
        lambda w: w.set("a", name="mine"),
        lambda w: w.set_there("a", run_count=1),
        1,
        [("a", "mine", 1), B, C],
        [],
    ),
    "the other half each": Story(
        lambda w: w.set("a", run_count=1),
        lambda w: w.set_there("a", name="theirs"),
        1,
        [("a", "theirs", 1), B, C],
        [],
    ),
    "the same half": Story(
        lambda w: w.set("a", name="mine"),
        lambda w: w.set_there("a", name="theirs"),
        1,
        [("a", "theirs", 0), B, C],
        [("a", "operator", "database")],
    ),
    "the same change": Story(
        lambda w: w.set("a", name="ours"),
        lambda w: w.set_there("a", name="ours"),
        1,
        [("a", "ours", 0), B, C],
        [],
    ),
    "deleted there, edited here": Story(
        lambda w: w.set("a", name="mine"),
        lambda w: w.delete_there("a"),
        1,
        [B, C, ("a", "mine", 0)],
        [],
    ),
    "deleted here, edited there": Story(
        lambda w: w.edit(lambda t: t[1:]),
        lambda w: w.set_there("a", name="theirs"),
        1,
        [("a", "theirs", 0), B, C],
        [],
    ),
    "deleted here, run there": Story(
        lambda w: w.edit(lambda t: t[1:]), lambda w: w.set_there("a", run_count=1), 1, [B, C], []
    ),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_a_story_ends_as_ever(world: World, story: Story) -> None:
    world.fill().close()
    world.upgrade()
    story.files(world)
    assert waiting_tasks(world.paths) == story.waiting
    story.database(world)
    assert world.meet() == story.tasks
    assert world.conflicts() == story.conflicts
    world.require_format_two()


def test_files_that_nobody_changed_are_taken_for_ours(world: World) -> None:
    world.fill().close()
    world.upgrade()
    assert read_files(replace(from_environment(), data_dir=world.data_dir)).is_ours
    world.set("a", name="mine")
    assert not read_files(replace(from_environment(), data_dir=world.data_dir)).is_ours


def test_a_database_that_was_moved_to_another_cluster_is_not_taken_for_an_older_one(
    world: World,
) -> None:
    world.fill().close()
    world.upgrade()
    world.move()
    world.set("a", name="mine")
    world.set_there("b", run_count=1)
    assert world.meet() == [("a", "mine", 0), ("b", "Task b", 1), C]


class CrashError(BaseException):
    """The process dies."""


def crash(here: SchedulerPersistence, world: World) -> None:
    """While the snapshot that lacks `b` and has `d` was not renamed yet: the old one stands."""

    def publish(path: Path) -> None:
        if path == world.paths.tasks_file:
            raise CrashError
        really_publish(path)

    really_publish = atomic.publish
    tasks = [make_task("a", name="changed"), make_task("c"), make_task("d")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "publish", publish)
        with pytest.raises(CrashError):
            here.save_tasks(tasks)


@pytest.mark.parametrize("edited", [False, True])
def test_a_snapshot_that_was_not_published_before_the_upgrade(world: World, edited: bool) -> None:
    crash(world.fill(), world)
    world.upgrade()
    if edited:
        world.set("c", name="mine")
    changed = ("a", "changed", 0)
    mine = ("c", "mine" if edited else "Task c", 0)
    assert world.meet() == [changed, mine, ("d", "Task d", 0)]
    assert world.conflicts() == []
    world.require_format_two()


def test_the_old_snapshot_stands_and_the_files_serve(world: World, opened: MakePersistence) -> None:
    """What tells which one stands is written down, in the format that was found."""
    crash(world.fill(), world)
    world.upgrade()
    here = opened(world.data_dir.parent)
    assert here.update_task({**here.get_task("c"), "name": "mine"})
    here.close()
    assert world.meet() == [("a", "changed", 0), ("c", "mine", 0), ("d", "Task d", 0)]
    assert world.conflicts() == []


@pytest.mark.parametrize("noted_by", ["before", "after"])
def test_what_the_files_have_shown_since_is_taken_back(
    world: World, proxy: Proxy, noted_by: str
) -> None:
    """The database may have it: a note says so, made by the version before or by this one."""
    here = world.fill(url=proxy.url, settings=impatient())
    changed = {**here.get_task("a"), "name": "changed"}
    proxy.lose_answer("UPDATE", then=proxy.refuse)
    if noted_by == "before":
        assert here.update_task(changed)
    world.upgrade()
    if noted_by == "after":
        assert here.update_task(changed)
    here.close()
    assert world.form_found() == world.form
    world.set("a", name="Task a")
    assert world.meet() == [A, B, C]
    assert world.conflicts() == [("a", "operator", "files")]
    world.require_format_two()


@pytest.mark.parametrize("met_by", ["before", "after"])
@pytest.mark.parametrize("again", [False, True])
def test_a_meeting_that_could_not_be_shown_is_remembered(
    world: World, met_by: str, again: bool
) -> None:
    """It was with the version before, or with this one: what is done since then stands."""
    world.fill().close()
    if met_by == "after":
        world.upgrade()
    world.edit(lambda tasks: [{**tasks[0], "name": "mine"}, tasks[2]])
    with no_room_for_snapshots():
        world.meet()
    assert world.remembered() == {"a", "b"}
    if met_by == "before":
        world.upgrade()
        world.remember_as_before()
    there = world.there()
    assert there.add_task(make_task("b"))
    there.close()
    world.set_there("a", name="theirs")
    if again:
        with no_room_for_snapshots():
            world.meet()
    assert sorted(world.meet()) == [("a", "theirs", 0), B, C]
    assert world.conflicts() == []
    world.require_format_two()
