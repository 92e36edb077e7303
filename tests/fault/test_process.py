"""What a process does to itself: callers' mistakes, forks, a closed output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import InvalidArgumentError, InvalidTaskError
from tests.fault.fix_faults import PASSWORD, SETTING, Told, fill, secret_task
from tests.fault.standby import value
from tests.fix_persistence import MakePersistence

Use = Callable[[SchedulerPersistence], Any]


ANSWERED: list[tuple[Use, object]] = [
    (lambda p: p.add_task(secret_task("a")), False),
    (lambda p: p.update_task(secret_task("missing")), False),
    (lambda p: p.delete_task("missing"), False),
    (lambda p: p.delete_task(""), False),
    (lambda p: p.delete_task("x" * 300), False),
    (lambda p: p.get_task("missing"), None),
    (lambda p: p.get_task("with a \0"), None),
    (lambda p: p.get_task_history(""), []),
    (lambda p: p.log_task_execution("", True, "no id"), None),
    (lambda p: p.log_task_execution("x" * 300, True, "too long an id"), None),
    (lambda p: p.log_task_execution("a", True, "\0 \ud800", duration_seconds=1e300), None),
    (lambda p: p.log_task_execution("a", True, duration_seconds=float("nan")), None),
]


def test_a_mistake_that_is_answered_opens_no_fallback(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    for use, answer in ANSWERED:
        assert use(persistence) == answer
        assert persistence.health().store == "database"


BAD_TASKS: dict[str, Any] = {
    "no id": secret_task(""),
    "too long an id": secret_task("x" * 256),
    "an id that is no text": {**secret_task("c"), "task_id": 7},
    "an unknown status": secret_task("c", status="sleeping"),
    "nan": secret_task("c", run_count=float("nan")),
    "infinity": secret_task("c", run_count=float("inf")),
    "a set": secret_task("c", task_config={"token": SETTING, "values": {1}}),
    "bytes": secret_task("c", name=b"bytes"),
    "a company that is too long": secret_task(
        "c", task_config={"task_type": "download", "company": "x" * 300}
    ),
    "no dict": "task",
}


@pytest.mark.parametrize("call", ["add_task", "update_task", "save_tasks"])
def test_a_task_that_cannot_be_stored_opens_no_fallback(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, call: str
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    before = persistence.load_tasks()
    for mistake, bad in BAD_TASKS.items():
        task = bad
        if call == "update_task" and isinstance(bad, dict) and bad["task_id"] == "c":
            task = {**bad, "task_id": "a"}
        with pytest.raises(InvalidTaskError) as caught:
            getattr(persistence, call)([secret_task("d"), task] if call == "save_tasks" else task)
        told.check_secrets(str(caught.value))
        assert persistence.load_tasks() == before, mistake
        told.on_database(persistence)


WRONG_ARGUMENTS: list[Use] = [
    lambda p: p.get_task_history(limit=-1),
    lambda p: p.get_task_history(limit=1.5),
    lambda p: p.clear_old_history(-1),
    lambda p: p.clear_old_history(float("nan")),
]


def test_a_wrong_argument_opens_no_fallback(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    for use in WRONG_ARGUMENTS:
        with pytest.raises(InvalidArgumentError):
            use(persistence)
    told.on_database(persistence)


_FORK = """
import os, sys, threading
from datahound_storage import SchedulerPersistence

persistence = SchedulerPersistence(sys.argv[1], url=sys.argv[2])
task = {TASK}
work = [threading.Thread(target=persistence.load_tasks) for _ in range(4)]
for thread in work:
    thread.start()  # forked while others are in the middle of something
child = os.fork()
name = "parent" if child else "child"
try:
    for number in range(20):
        assert persistence.add_task({**task, "task_id": f"{name} {number}"})
        persistence.log_task_execution(f"{name} {number}", True, name)
    assert persistence.health().store == "database", persistence.health()
    assert len(persistence.load_tasks()) >= 20
except BaseException as error:
    print(name, repr(error), flush=True)
    os._exit(1)
if not child:
    os._exit(0)
for thread in work:
    thread.join()
assert os.waitpid(child, 0)[1] == 0, "the child failed"
assert len(persistence.load_tasks()) == 40
persistence.close()
"""


def test_a_fork_after_connecting(tmp_path: Path, migrated_url: str) -> None:
    code = _FORK.replace("{TASK}", repr(secret_task("a")))
    data = tmp_path / "base/data"
    done = _python(code, str(data), migrated_url)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert value(migrated_url, "SELECT count(*) FROM scheduler_tasks") == 40
    assert value(migrated_url, "SELECT count(DISTINCT run_id) FROM scheduler_runs") == 40
    lines = (tmp_path / "base/logging/scheduler/task_history.jsonl").read_text().splitlines()
    assert len({json.loads(line)["run_id"] for line in lines}) == 40
    assert len(json.loads((data / "scheduler/scheduled_tasks.json").read_text())) == 40


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; whatever hangs is ended with its children."""
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


CLOSED = {
    "descriptors": "os.close(1); os.close(2)",
    "streams": "sys.stdout.close(); sys.stderr.close()",
    "gone": "sys.stdout = sys.stderr = None",
    "a full disk": "sys.stdout = sys.stderr = open('/dev/full', 'w', buffering=1)",
    "own handler": "sys.stderr.close(); logging.basicConfig(level=logging.DEBUG)",
}
_REPORT = """
import logging, os, pathlib, sys
from datahound_storage import SchedulerPersistence

data, url, result = sys.argv[1:]
persistence = SchedulerPersistence(data, url=url)
persistence.add_task({TASK})
persistence.close()
tasks = pathlib.Path(data, "scheduler/scheduled_tasks.json")
tasks.write_text(tasks.read_text()[:-2] + ', {"no": "id"}]')
{CLOSE}
try:
    # A damaged snapshot, a hook that fails, a run that cannot be kept: each is reported.
    persistence = SchedulerPersistence(data, url=url, hooks=[object()])
    persistence.log_task_execution("a", object(), duration_seconds="no number")
    persistence.load_tasks()
    stores = [persistence.health().store]
    os.environ["DATAHOUND_STORAGE_TIMEOUT_SECONDS"] = "0.5"
    fallen = SchedulerPersistence(data + "-2", url="postgresql://u:hunter2@127.0.0.1:1/db")
    assert fallen.add_task({TASK})
    stores.append(fallen.health().store)
except BaseException as error:
    import traceback
    stores = traceback.format_exc()
pathlib.Path(result).write_text(str(stores))
os._exit(0)
"""


@pytest.mark.parametrize("closed", CLOSED)
def test_reporting_a_failure_does_not_itself_fail(
    tmp_path: Path, migrated_url: str, closed: str
) -> None:
    code = _REPORT.replace("{TASK}", repr(secret_task("a"))).replace("{CLOSE}", CLOSED[closed])
    result = tmp_path / "result"
    done = _python(code, str(tmp_path / "base/data"), migrated_url, str(result))
    assert result.read_text() == "['database', 'files']"
    assert PASSWORD not in done.stdout + done.stderr
