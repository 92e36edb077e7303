"""The harness of the benchmarks, on seconds that are given: nothing here is timed."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.speed import __main__ as program
from benchmarks.speed.measure import Case, Measuring, Result, measure, result_of
from benchmarks.speed.peers import NoBackup
from benchmarks.speed.plot import Axis, short, svg
from benchmarks.speed.report import rewrite
from benchmarks.speed.results import MemoryResult, Results, verdict
from benchmarks.speed.screen import Screen
from benchmarks.speed.tables import number

ON = {
    "date": "2026-01-02",
    "package": "0.1.0",
    "postgresql": "18.0",
    "fsync": "on",
    "synchronous_commit": "on",
    "python": "3.11.2",
    "psycopg": "3.3",
    "cores": "2",
    "system": "Linux x86_64",
}


def a_case(ours: Callable[[int], float], bound: float | None = 2.0, **more: Any) -> Case:
    """A case that says itself how long it took; its floor takes a second."""
    given = {"most": 4, **more}
    return Case("update_task", 100, ours, lambda _: 1.0, bound, self_timed=True, **given)


def a_result(operation: str = "update_task", size: int = 100, **more: Any) -> Result:
    given = {"against": "floor", "ours_ms": 3.0, "floor_ms": 2.0, "ratio": 1.5, "low": 1.4}
    return Result(operation, size, **(given | {"high": 1.6, "bound": 2.0, "rounds": 9} | more))


def some_results() -> Results:
    lines = [
        a_result(),
        a_result(size=1_000, ours_ms=20, floor_ms=40, ratio=0.5),
        a_result("load_tasks, changed by <another> process"),
        a_result("get_task_history", 3_000_000, of="runs"),
        a_result("add_task, hook off", 1_000, against="APScheduler 3.11", bound=None),
        a_result("update_task, 16 threads at once", 10_000, against="one thread"),
    ]
    return Results(ON, lines, [MemoryResult("first start", 100_000, "tasks", 50, 120, 3.5)])


def test_the_ratio_is_the_median_of_the_rounds_ratios_with_its_quartiles() -> None:
    # The ratio of the medians would be 4 / 2.
    pairs = [(2.0, 2.0), (4.0, 2.0), (3.0, 1.0), (8.0, 4.0), (40.0, 8.0)]
    result = result_of(a_case(float), pairs)
    assert (result.ours_ms, result.floor_ms) == (4000.0, 2000.0)
    assert (result.low, result.ratio, result.high) == (1.5, 2.0, 4.0)
    assert result.rounds == 5
    assert result_of(a_case(float), pairs[:1]).ratio == 1.0


def test_a_ratio_at_its_bound_is_within_it() -> None:
    assert not a_result(ratio=2.0).is_over
    assert a_result(ratio=2.01).is_over
    assert not a_result(ratio=99.0, bound=None).is_over


def test_rounds_are_numbered_on_when_a_case_is_measured_again() -> None:
    prepared: list[int] = []
    measuring = Measuring(a_case(lambda _: 1.0, before=prepared.append))
    measuring.once(60.0)
    measuring.once(60.0)
    # Three rounds of warm-up, at the first time only.
    assert prepared == list(range(3 + 4 + 4))


def test_a_line_that_is_within_its_bound_is_measured_once() -> None:
    assert measure(a_case(lambda _: 1.0), 60.0, repeats=3).repeats == 0


def test_a_line_that_is_over_once_passes_when_a_repeat_is_within() -> None:
    result = measure(a_case(lambda n: 9.0 if n < 7 else 1.5), 60.0, repeats=3)
    assert (result.repeats, result.ratio) == (1, 1.5)
    assert result.rounds == 2 * 4
    code, said = verdict(Results(lines=[result]))
    assert code == 0
    assert said == ["1 of 1 lines are within their bound; 1 measured again."]


def test_a_line_that_stays_over_fails_the_check_and_is_named() -> None:
    result = measure(a_case(lambda _: 2.5), 60.0, repeats=3)
    code, said = verdict(Results(lines=[a_result(), result]))
    assert code == 1
    assert said == [
        "OVER: update_task, 100 tasks: ratio to floor 2.50, bound 2.00, measured 4 times",
        "1 of 2 lines are within their bound; 1 measured again.",
    ]


def test_a_check_of_nothing_fails() -> None:
    assert verdict(Results(lines=[a_result(bound=None)]))[0] == 1


def run_program(monkeypatch: pytest.MonkeyPatch, case: Case, *arguments: str) -> int:
    """The exit code of the program where this is its only case."""
    stands = False

    def cases(*_: object) -> Iterator[Case]:
        nonlocal stands
        stands = True
        yield case
        stands = False

    def measured(*given: Any, **more: Any) -> Result:
        assert stands
        return measure(*given, **more)

    server = SimpleNamespace(url="")
    monkeypatch.setattr(program, "EmbeddedServer", lambda *_, **__: nullcontext(server))
    monkeypatch.setattr(program, "measured_on", lambda _: ON)
    monkeypatch.setattr(program, "cases", cases)
    monkeypatch.setattr(program, "measure", measured)
    # Set back by the test: the program silences the log for as long as it runs.
    monkeypatch.setattr(program, "logging", SimpleNamespace(disable=lambda _: None, WARNING=0))
    monkeypatch.setattr(sys, "argv", ["speed", "--groups", "tasks", *arguments])
    try:
        program.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_check_ends_with_1_where_a_line_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    slow = a_case(lambda _: 2.5)
    assert run_program(monkeypatch, slow, "--check", "--json", str(path)) == 1
    shown = capsys.readouterr().out
    assert "OVER: update_task, 100 tasks" in shown
    assert Results.read(path).lines[0].repeats == program.REPEATS


def test_the_check_ends_with_0_where_a_repeat_is_within(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(monkeypatch, a_case(lambda n: 9.0 if n < 7 else 1.5), "--check") == 0
    assert "1 measured again" in capsys.readouterr().out


def test_without_a_check_nothing_is_measured_again_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    assert run_program(monkeypatch, a_case(lambda _: 2.5), "--json", str(path)) == 0
    assert [(x.repeats, x.is_over) for x in Results.read(path).lines] == [(0, True)]
    assert Results.read(path).measured_on == ON


def test_results_come_back_from_json(tmp_path: Path) -> None:
    some_results().write(tmp_path / "bench.json")
    assert Results.read(tmp_path / "bench.json") == some_results()


def test_lines_are_shown_plainly_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen(Console(file=io.StringIO()))
    screen.line(a_result())
    screen.line(a_result(ratio=2.5))
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["operation", "tasks/runs"]
    assert " ".join(first.split()) == "update_task 100 3.00 2.00 1.50 (1.40-1.60) 2.00 9"
    assert second.endswith("9 OVER")


def test_a_terminal_gets_a_table_of_each_part_at_the_end() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=True, width=120))
    screen.end(some_results())
    shown = out.getvalue()
    for words in ("Beside the floor", "Beside the one thread", "Beside the APScheduler 3.11"):
        assert words in shown
    assert "first start" in shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_a_figure_has_the_digits_that_mean_something(value: float, shown: str) -> None:
    assert number(value) == shown


DOCUMENT = """# Figures

Before | it.

<!-- generated: tasks -->
| old |
<!-- end: tasks -->

Between. <!-- not generated -->

<!-- generated: tasks -->
<!-- end: tasks -->

<!-- generated: memory -->
<!-- end: memory -->
After.
"""


def test_only_what_is_between_the_markers_is_rewritten() -> None:
    made = rewrite(DOCUMENT, some_results())
    assert "| old |" not in made
    assert made.count("| update_task | 1,000 | 20.0 | 40.0 | 0.50 (1.40-1.60) | 2.00 | 9 |") == 2
    # Of the threads, the peers and the runs there are other tables.
    assert "hook off" not in made
    assert "16 threads" not in made
    assert "get_task_history" not in made
    assert "| first start | 100,000 | 50 MB | +120 MB | 3.5 s |" in made
    kept = [line for line in DOCUMENT.splitlines() if not line.startswith("| old")]
    assert [line for line in made.splitlines() if not line.startswith("|")] == kept
    assert rewrite(made, some_results()) == made


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        rewrite(DOCUMENT.replace("memory", "unknown"), some_results())


def test_each_operation_beside_its_floor_is_drawn() -> None:
    root = ElementTree.fromstring(svg(some_results()))
    space = {"s": "http://www.w3.org/2000/svg"}
    groups = root.findall("s:g", space)
    assert [group.get("aria-label") for group in groups] == [
        "update_task",
        "load_tasks, changed by <another> process",
        "get_task_history",
    ]
    words = [[text.text for text in group.findall("s:text", space)] for group in groups]
    assert {"1.50", "0.50", "tasks", "ms", "100", "1k"} <= set(words[0])
    assert "runs" in words[2]
    assert len(groups[0].findall("s:circle", space)) == 4
    assert "prefers-color-scheme: dark" in str(root.findtext("s:style", namespaces=space))


def test_an_axis_is_logarithmic() -> None:
    axis = Axis(1, 10_000, 0, 400)
    assert [axis.at(value) for value in (1, 100, 10_000)] == pytest.approx([0, 200, 400])
    assert [short(tick) for tick in axis.ticks()] == ["1", "10", "100", "1k", "10k"]
    assert len(Axis(1e-3, 1e4, 0, 1).ticks()) == 4


class _Backup:
    watermark = "1:1:"

    def known(self, task_key: str) -> str:
        return f"{task_key} as the backup knows it"

    def after_commit(self, _: int) -> bool:
        raise AssertionError("the snapshot was written")


def test_with_the_hook_off_nothing_is_written_and_tasks_are_known_as_seen() -> None:
    backup = NoBackup(_Backup())
    assert backup.after_commit(1) is False
    backup.saw("a", "a as seen")
    assert backup.known("a") == "a as seen"
    assert backup.known("b") == "b as the backup knows it"
    assert backup.watermark == "1:1:"
