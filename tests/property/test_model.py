"""Nothing that was acknowledged is ever lost, whatever happens and in whatever order.

A machine drives two processes, an operator, old code, outages and crashes, and holds what is there
in the end against what was acknowledged (model.py). `make soak` runs it with many random examples.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests import servers
from tests.property.edits import EDITS, RUNS, change, new_task
from tests.property.faults import DISK_FULL, KINDS, Effects, Fault, Server, install
from tests.property.world import KEYS, Held, Process, World, surely

SOAK = int(os.environ.get("SOAK_EXAMPLES") or 0)
EXAMPLES = 300
STEPS = 20
profile = settings(
    deadline=None,
    max_examples=SOAK or EXAMPLES,
    stateful_step_count=STEPS,
    derandomize=not SOAK,
    database=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)

numbers = st.integers(0, 1)
places = st.integers(0, 3)
keys = st.sampled_from(KEYS)
# An update makes some twelve effects, a start some thirty; the statements come first.
effects = st.integers(0, 3) | st.integers(0, 24)
faults = st.integers(0, 3).flatmap(
    lambda draw: st.builds(Fault, st.sampled_from(KINDS), effects) if draw == 3 else st.none()
)
edits = st.sampled_from(EDITS)
changes = st.sampled_from(EDITS + RUNS)
BACK = ("name", "interval_minutes", "note", "last_run", "last_error")


class Machine(RuleBasedStateMachine):
    """What can happen. `number` chooses a process, `place` one of the objects that it holds."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()

    def teardown(self) -> None:
        try:
            if not self.world.broken:
                self.world.meet()
        finally:
            self.world.end()

    # The processes.

    def _process(self, number: int) -> Process:
        process = self.world.processes[number]
        self.world.ready(process)
        return process

    def _held(self, process: Process, place: int) -> Held | None:
        if not process.held:
            self._load(process, None)
        return process.held[place % len(process.held)] if process.held else None

    def _load(self, process: Process, fault: Fault | None) -> list[Any] | None:
        tasks: list[Any] | None = self.world.call(process, lambda p: p.load_tasks(), fault)
        if tasks is not None:
            process.listed = [process.hold(task) for task in tasks]
            process.has_listed(task["task_id"] for task in tasks)
        return tasks

    @rule(number=numbers, fault=faults)
    def load(self, number: int, fault: Fault | None) -> None:
        process, other = self._process(number), self.world.processes[1 - number]
        tasks = self._load(process, fault)
        if tasks is not None and other.store == process.store:
            seen = self._load(other, None)
            if other.store == process.store:
                message = f"one process sees {tasks}, another one {seen}"
                self.world.law(json.dumps(seen) == json.dumps(tasks), message)

    @rule(number=numbers, key=keys)
    def get(self, number: int, key: str) -> None:
        process = self._process(number)
        task = self.world.call(process, lambda p: p.get_task(key), None)
        if task is not None:
            process.hold(task)

    @rule(number=numbers, key=keys, fault=faults)
    def add(self, number: int, key: str, fault: Fault | None) -> None:
        process, task = self._process(number), new_task(key, self.world.new)
        before = self.world.before(process, key)
        added = self.world.call(process, lambda p: p.add_task(task), fault)
        if added is not False or fault is not None:
            self.world.model.wrote(task, None, acknowledged=bool(added))
        if added:
            process.listed = [h for h in process.listed if h.task["task_id"] != key]
            process.listed.append(process.hold(task))
            process.knows(key, is_there=True)
            if fault is None:
                self.world.read_back(process, task, BACK)
        elif added is False:
            self.world.law(before(), f"{key!r} is refused, and not there")

    @rule(number=numbers, place=places, what=changes, fault=faults)
    def update(self, number: int, place: int, what: str, fault: Fault | None) -> None:
        process = self._process(number)
        held = self._held(process, place)
        if held is None:
            return
        task = held.task
        before = self.world.before(process, task["task_id"])
        in_file = task["task_id"] in self.world.items()
        change(task, what, self.world.new)
        updated = self.world.call(process, lambda p: p.update_task(task), fault)
        if updated is not False or fault is not None:
            self.world.model.wrote(task, held.seen, acknowledged=bool(updated))
        if updated:
            changed = tuple(name for name in BACK if task[name] != held.seen[name])
            held.seen = dict(task)
            # A snapshot that could not be written is behind until the next call, and reported.
            # Where the files lack the task, the call itself lets them meet: it may be deleted.
            if in_file and (fault is None or fault.kind != DISK_FULL):
                self.world.read_back(process, task, changed)
            return
        process.drop(lambda other: other is held)
        if updated is False:
            process.knows(task["task_id"], is_there=False)
            self.world.law(not surely(before()), f"{held.task} is there, and was not updated")

    @rule(number=numbers, key=keys, fault=faults)
    def delete(self, number: int, key: str, fault: Fault | None) -> None:
        process = self._process(number)
        before, had_row = self.world.before(process, key), self.world.row(key) is not None
        deleted = self.world.call(process, lambda p: p.delete_task(key), fault)
        if deleted is not False or fault is not None:
            gone = had_row and self.world.has_lost_row(key)
            for stood in before():
                self.world.model.deleted(
                    stood.task, acknowledged=bool(deleted), sure=stood.is_sure, took_effect=gone
                )
        if deleted is False:
            self.world.law(not surely(before()), f"{key!r} is there, and was not deleted")
        process.drop(lambda held: held.task["task_id"] == key)
        if deleted is not None:
            process.knows(key, is_there=False)

    @rule(number=numbers, place=places, what=changes, drop=st.none() | keys, fault=faults)
    def save(
        self, number: int, place: int, what: str, drop: str | None, fault: Fault | None
    ) -> None:
        process = self._process(number)
        if process.known is None:
            self._load(process, None)
        listed = [held for held in process.listed if held.task["task_id"] != drop]
        stood = {h.task["task_id"]: self.world.before(process, h.task["task_id"]) for h in listed}
        missing = (process.known or set()) - stood.keys()
        dropped = [self.world.before(process, key) for key in missing]
        had_row = {key for key in missing if self.world.row(key) is not None}
        if listed:
            change(listed[place % len(listed)].task, what, self.world.new)
        saved = self.world.call(process, lambda p: p.save_tasks([h.task for h in listed]), fault)
        for held in listed:
            # What somebody has deleted meanwhile stays deleted.
            if found := stood[held.task["task_id"]]():
                stored = bool(saved) and surely(found)
                self.world.model.wrote(held.task, held.seen, acknowledged=stored)
            held.seen = dict(held.task)
        for gone in itertools.chain.from_iterable(before() for before in dropped):
            key = gone.task["task_id"]
            is_gone = key in had_row and self.world.has_lost_row(key)
            self.world.model.deleted(
                gone.task, acknowledged=bool(saved), sure=gone.is_sure, took_effect=is_gone
            )
        if saved:
            process.has_listed(stood)
        process.drop(lambda held: held.task["task_id"] == drop or not saved)

    @rule(number=numbers, key=keys, fault=faults)
    def log(self, number: int, key: str, fault: Fault | None) -> None:
        process, message = self._process(number), self.world.new("message")

        def do(persistence: Any) -> bool:
            persistence.log_task_execution(key, True, message, 1.5)
            return fault is None or fault.kind != DISK_FULL

        logged = self.world.call(process, do, fault)
        self.world.model.logged(message, acknowledged=bool(logged))

    @rule(number=numbers, fault=faults)
    def trim(self, number: int, fault: Fault | None) -> None:
        process = self._process(number)
        done = self.world.call(process, lambda p: p.clear_old_history(10), fault)
        is_sure = fault is None or fault.kind != DISK_FULL
        self.world.model.trimmed(acknowledged=done is not None and is_sure)

    @rule(number=numbers, with_url=st.booleans(), fault=faults)
    def restart(self, number: int, with_url: bool, fault: Fault | None) -> None:
        process = self.world.processes[number]
        process.end()
        process.with_url = with_url
        self.world.start(process, fault)

    # Everybody else.

    @rule(begins=st.booleans())
    def outage(self, begins: bool) -> None:
        if begins:
            self.world.server.begin_outage()
        elif self.world.server.is_out:
            self.world.end_outage()

    @rule(key=keys, what=edits | st.just("delete"))
    def sql(self, key: str, what: str) -> None:
        row = self.world.row(key)
        if row is None:
            return
        task = dict(row)
        if what == "delete":
            self.world.sql(f"DELETE FROM scheduler_tasks WHERE task_key = '{key}'")
            self.world.model.deleted(row, acknowledged=True)
            return
        change(task, what, self.world.new)
        # The columns win over `config_json`, so a schedule is changed where it has one.
        shown = {name: task[name] for name in ("name", "note")}
        self.world.sql(
            f"UPDATE scheduler_tasks SET config_json = config_json || '{json.dumps(shown)}', "
            f"status = '{task['status']}', schedule_expr = 'interval:{task['interval_minutes']}' "
            f"WHERE task_key = '{key}'"
        )
        self.world.model.wrote(task, row, acknowledged=True)

    @rule(key=keys, what=changes | st.sampled_from(["delete", "touch"]))
    def old_code(self, key: str, what: str) -> None:
        items = self.world.items()
        if what == "touch" or (what == "delete" and key not in items):
            self.world.old_code.save(list(items.values()))
            return
        if what == "delete":
            self.world.model.deleted(items.pop(key), acknowledged=True)
        else:
            seen = items.get(key)
            task = new_task(key, self.world.new) if seen is None else dict(seen)
            if seen is not None:
                change(task, what, self.world.new)
            task["updated_at"] = datetime.now().isoformat()  # naive and local, as it writes it
            self.world.model.wrote(task, seen, acknowledged=True)
            items[key] = task
        self.world.old_code.save(list(items.values()))

    @rule(key=keys, is_old=st.booleans())
    def old_line(self, key: str, is_old: bool) -> None:
        message = self.world.new("message")
        ended_at = datetime.now(UTC) - timedelta(days=20 if is_old else 0)
        line = {"timestamp": ended_at.isoformat(), "task_id": key, "success": True}
        self.world.append_line(json.dumps({**line, "message": message, "duration_seconds": 1.5}))
        self.world.model.logged(message, acknowledged=True, old=is_old)

    @rule(rarely=st.integers(0, 4))
    def everybody_meets(self, rarely: int) -> None:
        if rarely == 4:
            self.world.meet()


@pytest.fixture
def world(server: servers.TestServer, migrated_url: str) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch, servers.embedded_directory() as directory:
        database = Server(migrated_url, server.admin_url)
        effects = Effects(database.begin_outage)
        install(effects, patch)
        world = World(database, effects, directory / "base")
        try:
            yield world
        finally:
            world.close()


# Making a failing example smaller can take five minutes.
@pytest.mark.timeout(0 if SOAK else 900)
def test_nothing_acknowledged_is_ever_lost(world: World) -> None:
    Machine.world = world
    began = time.monotonic()
    try:
        run_state_machine_as_test(Machine, settings=profile)
    finally:
        seconds = time.monotonic() - began
        print(f"{world.examples} examples in {seconds:.0f} s")
