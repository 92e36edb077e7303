"""Hashes of sidecars of format 1, translated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datahound_storage.carried_over import CarriedOver
from datahound_storage.files import layout, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, Sidecar, SidecarHeader
from datahound_storage.files_side import FilesSide
from datahound_storage.former import Translation, with_digest_of_now
from datahound_storage.halves import former_hashes_of, hashes_of, same_half
from datahound_storage.postgres.changes import Changes, DatabaseState
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.standing import StandingSnapshot
from tests.former import former_digest, former_hashes
from tests.scheduler import make_task

A, B, ELSEWHERE = make_task("a"), make_task("b", run_count=7), make_task("gone", run_count=8)
TASKS = [A, B, {**A, "status": "paused"}, {"task_id": "bare"}, {**A, "name": "日本", "x": 1e22}]


def former(task: dict[str, Any]) -> Hashes:
    operator, scheduler = former_hashes(task)
    return operator, scheduler


def translation(*tasks: dict[str, Any]) -> Translation:
    return Translation(json.dumps(task) for task in tasks)


def translated(task: dict[str, Any], *known: dict[str, Any]) -> Hashes:
    found = translation(*known).hashes({"a": former(task)})["a"]
    assert found is not None
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_former_hashes_are_what_they_were(task: dict[str, Any]) -> None:
    assert former_hashes_of(task) == former(task)


def test_a_former_hash_is_one_that_the_version_before_has_written() -> None:
    """Taken from a sidecar of it."""
    assert former_hashes_of(A) == (
        "975a18efaf9228ad",
        "d28d91b551159ad9/64e7c4c1b0abca0b/active",
    )


@pytest.mark.parametrize("task", TASKS)
def test_what_is_known_gets_its_hashes_of_now(task: dict[str, Any]) -> None:
    assert translated(task, *TASKS) == hashes_of(task)


def test_each_half_is_known_by_itself() -> None:
    changed, run = {**A, "name": "other"}, {**A, "run_count": 5}
    assert translated(A, run)[0] == hashes_of(A)[0]
    assert not same_half(translated(A, run)[1], hashes_of(run)[1])
    assert not same_half(translated(A, changed)[0], hashes_of(changed)[0])
    assert translated(A, changed)[1] == hashes_of(A)[1]


def test_the_stamp_is_known_by_itself() -> None:
    stamped = {**A, "updated_at": "2026-11-02T10:00:00"}
    found = translated(A, stamped)[1]
    assert same_half(found, hashes_of(stamped)[1])
    assert found != hashes_of(stamped)[1]


@pytest.mark.parametrize("status", ["error", "paused", "a/b", None])
def test_the_status_stays(status: str | None) -> None:
    task = {**A, "status": status}
    assert translated(task, {**A, "status": "error"})[1] == hashes_of(task)[1]


def test_what_is_unknown_is_like_nothing_but_itself() -> None:
    found = translated(ELSEWHERE, A, B)
    for task in (A, B, ELSEWHERE):
        for half in (0, 1):
            assert not same_half(found[half], hashes_of(task)[half])
            assert not same_half(found[half], former(task)[half])
    assert found == translated(ELSEWHERE, A)


def test_all_of_a_sidecar_is_translated() -> None:
    known = Sidecar(
        SidecarHeader(database="5a1d"),
        {"a": former(A), "b": former(B)},
        {"a": former(B), "new": None},
        {"b": [former(A), None]},
        1,
    )
    a, b = hashes_of(A), hashes_of(B)
    assert translation(A, B).sidecar(known) == Sidecar(
        known.header, {"a": a, "b": b}, {"a": b, "new": None}, {"b": [a, None]}
    )


def test_one_of_format_two_is_left_alone() -> None:
    known = Sidecar(SidecarHeader(database="5a1d"), {"a": former(A)})
    assert Translation(iter(["no text of a task"])).sidecar(known) is known


def test_what_is_remembered_of_a_meeting_is_translated() -> None:
    told = CarriedOver(5, {"a": former(A), "gone": None}, {"a": 1}, ["a"])
    value = json.loads(told.encode())
    assert CarriedOver.decode(json.dumps(value)) == told
    assert told.translated(translation(A)) is told
    del value["format"]
    kept = CarriedOver.decode(json.dumps(value))
    assert kept == replace(told, format=1)
    assert kept.translated(translation(A)) == replace(told, tasks={"a": hashes_of(A), "gone": None})


def test_what_a_later_version_remembers_is_not_understood() -> None:
    value = json.loads(CarriedOver(5, {}, {}, None).encode())
    assert CarriedOver.decode(json.dumps({**value, "format": 3})) is None


def reading(identity: str, *tasks: dict[str, Any]) -> Changes:
    state = DatabaseState(identity, "7391", 1, True, Watermark.parse("1:1:"))
    stored = [StoredTask(task["task_id"], 1, 1, 1, json.dumps(task)) for task in tasks]
    return Changes(state, True, stored, [], 1)


def test_it_is_translated_by_each_reading_of_the_database_that_it_is_of() -> None:
    header = SidecarHeader(database="5a1d")
    side = FilesSide(snapshot.Snapshot(), Sidecar(header, {"a": former(A)}, format=1))
    for task in (B, A):
        changes = reading("5a1d", task)
        assert side.translation(changes) is side.translation(changes)
        known = side.known(changes)
        assert known is not None
        assert (known.tasks["a"] == hashes_of(A)) is (task is A)
    assert side.known(reading("another", A)) is None


CONTENTS = {
    "ours": b"".join(layout.assemble(json.dumps(t, indent=2).replace("\n", "\n  ") for t in TASKS)),
    "of another layout": json.dumps(TASKS).encode(),
    "of no tasks": b"[]",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
@pytest.mark.parametrize("name", ["before", "after"])
def test_a_snapshot_is_recognised_by_its_former_digest(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(content)
    found = snapshot.read(path)
    assert found.signature is not None
    header = SidecarHeader(
        **{name: former_digest(content)}, database="5a1d", replaced=tuple(found.signature)
    )
    known = with_digest_of_now(Sidecar(header, format=1), found, path)
    assert getattr(known.header, name) == found.digest
    assert known.header.recognises(found.digest, found.signature)
    other = SidecarHeader(before="x", after="y", database="5a1d")
    assert with_digest_of_now(Sidecar(other, format=1), found, path).header == other


def test_a_snapshot_that_was_replaced_meanwhile_is_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(b"[{}]")
    found = snapshot.read(path)
    path.write_bytes(b"[]")
    known = Sidecar(SidecarHeader(after=former_digest(b"[]")), format=1)
    assert with_digest_of_now(known, found, path) == known
    path.unlink()
    assert with_digest_of_now(known, found, path) == known


def test_the_file_of_a_sidecar_of_format_two_is_not_read_again(tmp_path: Path) -> None:
    known = Sidecar(SidecarHeader(after="x"))
    assert with_digest_of_now(known, snapshot.Snapshot(), tmp_path) is known


def test_the_hashes_of_the_files_are_not_taken_from_a_former_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([A]))
    found = snapshot.read(path)
    header = SidecarHeader(after=found.digest, file=(1, 2, 3))
    known = Sidecar(header, {"a": former(A)}, format=1)
    assert FilesSide(found, known).hashes == {"a": hashes_of(A)}
    assert FilesSide(found, replace(known, format=2)).hashes == {"a": former(A)}


@pytest.mark.parametrize("form", [1, 2])
def test_a_snapshot_with_a_former_sidecar_has_to_be_met(tmp_path: Path, form: int) -> None:
    paths = StatePaths.below(tmp_path)
    paths.make_directories()
    paths.tasks_file.write_text("[]")
    status = os.stat(paths.tasks_file)
    file = (status.st_ino, status.st_size, status.st_mtime_ns)
    header = SidecarHeader(database="5a1d", file=file)
    paths.sidecar_file.write_bytes(sidecar.encode(header, (), {}, form=form))
    assert StandingSnapshot(paths).is_ours() is (form == 2)
