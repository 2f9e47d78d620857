"""A comparison of ways of finetuning: trains rows with several seeds each and computes their differences."""

from __future__ import annotations

import json
import time
from statistics import fmean
from typing import Any

from ..baselines import NULLSPACE, PERMUTED, PLAIN, WAYS
from ..robustness.report import RobustnessReport
from ..robustness.report_markdown import competition
from ..training.augmentation import check_package
from ..utils.current_command import current_command
from ..utils.figures import optional_figure
from ..utils.files import write_text
from ..utils.page import PAGE_NAME
from ..utils.phases import in_words
from .figure import plot_rows
from .plan import BASE, EQUAL_STEPS, Row, interpolated_rows, plan_rows, read_variants
from .report import AVERAGE, SAME_STEPS, VARIANT, WAY, comparison_markdown, figure_note, norm_growth, summarize_rows
from .report_page import class_results, compared_rows, comparison_finding, comparison_page, pictured_rows
from .runner import Runner
from .statistics import CONFIDENCE
from .verdict import find_winners


RESULTS_NAME = "results.json"
TABLES_NAME = "results.md"
FIGURE_NAME = "differences.png"


class Comparison:
    """
    Rows that are trained and measured, and compared.

    Args:
        runner ([`Runner`]): What trains and measures a row, with the flags.

    Attributes:
        reports (`dict[tuple[str, int], RobustnessReport]`): After [`Comparison.run`] what was measured, by row and seed.

    Raises:
        `ValueError`: If a row cannot be run or measured, before anything is trained.
    """

    def __init__(self, runner: Runner):
        self.runner = runner
        self.compare_args = runner.compare_args
        self.seed = runner.args.seed
        self.planned = plan_rows(self.compare_args.methods, WAYS, read_variants(self.compare_args.variants))
        self.averages = interpolated_rows(self.compare_args.interpolated, self.planned)
        for row in self.planned:  # raises errors for arguments out of range before any run
            try:
                runner.arguments_of(row, self.seed)
                check_package(runner.recipe_of(row).augmentation)
            except (TypeError, ValueError) as error:
                kind = "variant" if row.arguments or row.recipe else "way"
                raise ValueError(f"The {kind} {row.name!r}: {error}") from error
        self.settings = runner.evaluation_settings()
        self.reports: dict[tuple[str, int], RobustnessReport] = {}

    @property
    def seeds(self) -> list[int]:
        return [self.seed + index for index in range(self.compare_args.num_seeds)]

    def run(self) -> dict[str, Any]:
        """Trains and measures everything; returns the results."""
        runner = self.runner
        runner.train(runner.base, self.seed)
        begin = time.perf_counter()
        base = runner.evaluate(runner.base, self.seed)
        self._evaluation_seconds = [time.perf_counter() - begin]
        self.costs = runner.costs_of(self._plain_first())
        self.rows = self._rows_with_steps()
        runs, reports = {}, self.reports
        for seed in self.seeds:
            for row in self.rows:
                self._announce(row, seed)
                runs[row.name, seed] = runner.train(row, seed)
                begin = time.perf_counter()
                reports[row.name, seed] = runner.evaluate(row, seed)
                self._evaluation_seconds.append(time.perf_counter() - begin)
        outcomes = {BASE: [base.outcomes] * len(self.seeds)}
        for row in self.rows:
            outcomes[row.name] = [reports[row.name, seed].outcomes for seed in self.seeds]
        columns = [column for column in runner.profile.columns if column.name in base.columns]
        competes = [f"A prediction is the largest of {text}." for text in competition(base.run)]
        known = {name: base.run[name] for name in ("versions", "datasets", "preprocessing")}
        competing = {row.name: outcomes[row.name] for row in self.rows if self._kind(row) != SAME_STEPS}
        return {
            "rows": {row.name: self._described(row) for row in self.rows},
            "seeds": self.seeds,
            "confidence": CONFIDENCE,
            "evaluation": {**self.settings, "not_measured": base.not_measured},
            "plain_steps": runner.plain_steps(),
            "winners": find_winners(columns, competing, self.seed),
            "methods": summarize_rows(columns, outcomes, self._references(), self.seed),
            "training": {row.name: self._cost(row, runs) for row in self.rows},
            "classes": class_results(outcomes, columns[0].name, base.examples),
            "run": {**known, "competes": competes, "command": current_command()},
        }

    # ---- Steps, and the time that they take ---------------------------------------------------------------------

    def _plain_first(self) -> list[Row]:
        return sorted(self.planned, key=lambda row: row.name != PLAIN.name)

    def _rows_with_steps(self) -> list[Row]:
        """All rows in the order they run in: for as much time as plain finetuning, averages, and for as many steps."""
        plain_steps = self.runner.plain_steps()
        seconds = self.costs[PLAIN.name].seconds(plain_steps)
        timed = [
            row if "max_steps" in row.arguments else row.for_steps(self.costs[row.name].steps_within(seconds))
            for row in self.planned
        ]
        methods = [row for row in self.planned if self._kind(row) == WAY and row.name != PLAIN.name]
        equal = [row.for_steps(plain_steps, EQUAL_STEPS) for row in methods] if self.compare_args.equal_steps else []
        self.costs |= {row.name: self.costs[row.name.removesuffix(EQUAL_STEPS)] for row in equal}
        return [*timed, *self.averages, *equal]

    def _seconds_of(self, row: Row) -> float:
        """The time that training of a row itself takes, by its measured cost."""
        return 0.0 if row.interpolated_with else self.costs[row.name].seconds(row.arguments["max_steps"])

    def _announce(self, row: Row, seed: int) -> None:
        """Prints which row comes next, and how long everything that is left will take."""
        runner = self.runner
        left = [(each, its) for its in self.seeds for each in self.rows if not runner.is_finished(each, its)]
        if (row, seed) not in left or not runner.accelerator.is_main_process:
            return
        seconds = sum(self._seconds_of(each) for each, _ in left) + len(left) * max(self._evaluation_seconds)
        total = len(self.seeds) * len(self.rows)
        print(
            f"Row {total - len(left) + 1} of {total}: {row.name}, seed {seed}; about {in_words(seconds)} left",
            flush=True,
        )

    # ---- Results ------------------------------------------------------------------------------------------------

    def _described(self, row: Row) -> dict[str, Any]:
        """A row with the arguments that it was planned with: without steps that follow from its time."""
        planned = {each.name: each for each in self.planned}
        source = planned.get(row.name.removesuffix(EQUAL_STEPS), row)
        return {**source.to_dict(), "name": row.name, "kind": self._kind(row)}

    def _kind(self, row: Row) -> str:
        if row.interpolated_with is not None:
            return AVERAGE
        if row.name.endswith(EQUAL_STEPS):
            return SAME_STEPS
        return WAY if row.name in self.compare_args.methods else VARIANT

    def _references(self) -> dict[str, list[str]]:
        """For each row, the rows that it is compared with."""
        references = {row.name: self._references_of(row) for row in self.rows}
        return references | {BASE: [PLAIN.name]}

    def _references_of(self, row: Row) -> list[str]:
        """The rows that a row is compared with, including plain finetuning from the same start."""
        kind = self._kind(row)
        end = EQUAL_STEPS if kind == SAME_STEPS else ""
        others = [PLAIN.name, *([PERMUTED.name + end] if row.way == NULLSPACE.name and kind != AVERAGE else [])]
        if kind == AVERAGE:
            others.append(row.start)
        if kind == VARIANT:
            others += [NULLSPACE.name, row.start]
            if row.start != BASE:
                others += [known.name for known in self.rows if (known.way, known.start) == (PLAIN.name, row.start)]
        names = [known.name for known in self.rows]
        return [name for name in dict.fromkeys(others) if name != row.name and name in names]

    def _cost(self, row: Row, runs: dict) -> dict[str, Any]:
        """What a row costs. The time of a row includes that of the row it started from."""
        rows = {known.name: known for known in self.rows}

        def total(row: Row) -> float:
            return self._seconds_of(row) + (total(rows[row.start]) if row.start in rows else 0.0)

        own = [runs[row.name, seed] for seed in self.seeds]
        growths = [norm_growth(run["noise_history"]) for run in own]
        cost = self.costs.get(row.name)
        steps = own[0]["steps"]
        return {
            "steps": steps,
            "seconds": total(row),
            "step_seconds": None if cost is None else cost.step,
            "synthesis_seconds": 0.0 if cost is None else cost.synthesis_seconds(steps),
            "relative_cost": total(row) / total(rows[PLAIN.name]),
            "norm_growth": None if None in growths else fmean(growths),
            "per_seed": {"norm_growth": growths},
        }


def save_comparison(comparison: Comparison, results: dict[str, Any]) -> None:
    """
    Writes the page, writes and prints the tables of a comparison; draws the figure if matplotlib is there.

    Args:
        comparison ([`Comparison`]): One that has run.
        results (`dict`): What its `run` gave.
    """
    folder = comparison.runner.folder
    tables = comparison_markdown(results)
    write_text(folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    write_text(folder / TABLES_NAME, tables + "\n")
    differences, costs = compared_rows(results)
    if differences:
        with optional_figure(FIGURE_NAME):
            plot_rows(differences, costs, folder / FIGURE_NAME, figure_note(results), comparison_finding(results))
    pictured = {name: comparison.reports[name, comparison.seed] for name in pictured_rows(results)}
    write_text(folder / PAGE_NAME, comparison_page(results, pictured))
    print(f"\n{tables}\n\nEverything is in {folder}")
