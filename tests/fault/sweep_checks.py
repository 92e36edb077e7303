"""What must be true after a fault, looked at from outside."""

from __future__ import annotations

from collections import Counter

from tests.fault.sweep_operations import Operation, changed
from tests.fault.sweep_trial import Outcome
from tests.fault.sweep_world import BadSnapshotError, Sight, Task, World, without_stamp


class Checks:
    """The checks of one trial. Made when everything is as the operation will find it."""

    def __init__(self, world: World, operation: Operation, mark: str) -> None:
        self.problems: list[str] = []
        self._world = world
        self._operation = operation
        self._mark = mark
        self._before = world.look()
        self._expected = operation.tasks_after(self._before.tasks, mark)
        # What was seen right after the fault, and which tasks every later look has to find.
        self._seen = self._before
        self._final = self._before.tasks
        self._conflicts: int | None = None

    def _check(self, holds: object, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def look(self, outcome: Outcome) -> None:
        """Right after the fault: each side shows the old state or the new one, nothing else."""
        try:
            seen = self._seen = self._world.look()
        except BadSnapshotError as error:
            self._check(False, str(error))
            return
        states = "is neither the old state nor the new one"
        self._check(seen.tasks in (self._before.tasks, self._expected), f"the snapshot {states}")
        self._check(seen.rows in (self._before.rows, self._expected), f"the table {states}")
        self._check_runs("file", self._before.lines, seen.lines)
        self._check_runs("table", self._before.runs, seen.runs)
        self._check(not self._world.strangers(), f"left behind: {self._world.strangers()}")
        if self._expected in (seen.tasks, seen.rows):
            # Begun is begun: what one side shows is carried over to the other one.
            self._final = self._expected
        if outcome.finished:
            self._check_answer(outcome, seen)

    def _check_runs(self, side: str, old: Counter[str] | None, new: Counter[str] | None) -> None:
        if old is None or new is None:
            return
        appear = self._operation.appear(self._mark)
        free = appear | self._operation.vanish(self._mark)
        kept = {k: n for k, n in old.items() if k not in free}
        found = {k: n for k, n in new.items() if k not in free}
        self._check(kept == found, f"other runs in the {side} changed: {_diff(kept, found)}")
        self._check(all(new[k] <= 1 for k in free), f"a run is twice in the {side}")

    def _check_answer(self, outcome: Outcome, seen: Sight) -> None:
        reports = f"; reported: {outcome.reports}"
        if outcome.error:
            self._check(outcome.is_ours, f"raised {outcome.error}{reports}")
            may_raise = self._world.url is None or self._operation.attaches
            self._check(may_raise, f"raised where something serves: {outcome.error}{reports}")
            return
        if self._operation.reads:
            self._check_reading(outcome, seen)
            return
        accepted = self._operation.accepts(outcome.answer, self._expected)
        self._check(accepted, f"answered {outcome.answer!r}{reports}")
        if any("could not be kept" in report for report in outcome.reports):
            self._check(self._world.url is None, f"a run was not kept{reports}")
            return
        if outcome.store == "database":
            self._check(seen.rows == self._expected, f"acknowledged, not in the table{reports}")
            self._check(self._is_done(seen.runs), f"the runs in the table are wrong{reports}")
        elif self._world.url is not None:
            self._check(outcome.reports, "fell back and did not tell")
            if self._operation.attaches:
                return
            # Now the files are the store: for them a report is no excuse.
            outcome.backup_problem, outcome.reports = None, []
        shown = seen.tasks == self._expected or outcome.backup_problem
        self._check(shown, "acknowledged, not in the snapshot")
        logged = self._is_done(seen.lines) or outcome.reports
        self._check(logged, f"acknowledged, not in the history file{reports}")

    def _check_reading(self, outcome: Outcome, seen: Sight) -> None:
        """It shows what the serving store has; where the other side is behind, that is told."""
        served = seen.tasks
        if outcome.store == "database" and seen.rows is not None:
            served = seen.rows
        accepted = self._operation.accepts(outcome.answer, served)
        self._check(accepted, f"answered {outcome.answer!r}; reported: {outcome.reports}")
        self._check(seen.tasks == served or outcome.backup_problem, "not in the snapshot")
        self._check(served == self._expected or outcome.reports, "behind, and did not tell")

    def _is_done(self, runs: Counter[str] | None) -> bool:
        appear, vanish = self._operation.appear(self._mark), self._operation.vanish(self._mark)
        return runs is None or (appear <= runs.keys() and not vanish & runs.keys())

    def look_at_next(self, outcome: Outcome) -> None:
        """After the process's next operation: it goes on as if nothing had been."""
        if not outcome.store:
            return  # there is no facade that could go on
        if not outcome.next_answer:
            self._check(False, f"the next operation of the process fails: {outcome.next_error}")
            return
        self._check(
            outcome.next_problem is None, f"the backup stays behind: {outcome.next_problem}"
        )
        self._final = changed(self._final, "witness", name=self._mark)
        before, seen = self._seen, self._world.look()
        wanted = self._final
        if outcome.store == "database":
            self._check(seen.rows == wanted, "the next operation leaves another table")
        else:
            wanted = changed(before.tasks, "witness", name=self._mark)
        self._check(seen.tasks == wanted, "the next operation leaves another snapshot")

    def let_others_change(self) -> None:
        """Another host goes on with the database while the process is dead."""
        if self._world.url is not None and self._seen.rows is not None:
            self._final = self._operation.elsewhere(self._world, self._final, self._mark)
            self._conflicts = self._world.conflicts()

    def look_afresh(self) -> None:
        """By a new facade, after the next attach."""
        facade = self._world.reopen()
        health = facade.health()
        store = "files" if self._world.url is None else "database"
        self._check(health.store == store, f"the next start: {health}")
        self._check(health.backup_problem is None, f"the next start: {health}")
        loaded = [without_stamp(task) for task in facade.load_tasks()]
        self._check(loaded == self._final, f"the next start finds {_other(self._final, loaded)}")
        if self._conflicts is not None:
            self._check(self._world.conflicts() == self._conflicts, "a conflict out of nothing")
        self._check_sides("after the next start")
        differences = self._world.differences()
        self._check(not differences, differences)
        self._check_carried(self._world.look())
        self._operation.follow(self._world, facade, self._mark)
        self._check_sides("after the next operation")
        self._check(not self._world.leftovers(), f"left behind: {self._world.leftovers()}")

    def _check_sides(self, when: str) -> None:
        seen = self._world.look()
        self._check(seen.rows in (None, seen.tasks), f"{when}: other tasks in file and table")
        self._check(not self._world.strangers(), f"{when}: strangers: {self._world.strangers()}")

    def _check_carried(self, now: Sight) -> None:
        """What one side had kept, or trimmed, both have; and what is gone stays gone."""
        before = [runs for runs in (self._seen.lines, self._seen.runs) if runs is not None]
        after = [runs for runs in (now.lines, now.runs) if runs is not None]
        for run in self._operation.appear(self._mark):
            counts = [runs[run] for runs in after]
            kept = any(run in runs for runs in before)
            self._check(counts == [int(kept)] * len(after), f"{run!r} was not carried: {counts}")
        for run in self._operation.vanish(self._mark):
            gone = any(run not in runs for runs in before)
            self._check(
                not (gone and now.runs and run in now.runs), f"{run!r} is back in the table"
            )
            was_in_file = run in self._seen.lines
            self._check(was_in_file or run not in now.lines, f"{run!r} is back in the file")


def _other(wanted: list[Task], found: list[Task]) -> str:
    keys = [task["task_id"] for task in wanted], [task["task_id"] for task in found]
    different = [task["task_id"] for task in found if task not in wanted]
    return f"{keys[1]} instead of {keys[0]}; with another value: {different}"


def _diff(old: dict[str, int], new: dict[str, int]) -> str:
    return str({run: (old.get(run), new.get(run)) for run in {*old, *new}})[:300]
