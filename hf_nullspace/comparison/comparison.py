"""A comparison of ways of finetuning: trains rows with several seeds each and computes their differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..baselines import NULLSPACE, PERMUTED, PLAIN, WAYS
from ..robustness.report_markdown import competition
from ..utils.current_command import current_command
from ..utils.figures import optional_figure
from ..utils.files import write_text
from ..utils.page import PAGE_NAME
from .figure import plot_rows
from .plan import BASE, Row, plan_rows, read_variants
from .report import EQUAL_TIME, VARIANT, WAY, comparison_markdown, figure_note, norm_growth, summarize_rows
from .report_page import class_results, compared_rows, comparison_page
from .runner import Runner
from .statistics import CONFIDENCE


RESULTS_NAME = "results.json"
TABLES_NAME = "results.md"
FIGURE_NAME = "differences.png"


class Comparison:
    """
    Rows that are trained and measured, and compared.

    Args:
        runner ([`Runner`]): What trains and measures a row, with the flags.

    Raises:
        `ValueError`: If a row cannot be run or measured, before anything is trained.
    """

    def __init__(self, runner: Runner):
        self.runner = runner
        self.compare_args = runner.compare_args
        self.seed = runner.args.seed
        self.rows = plan_rows(self.compare_args.methods, WAYS, read_variants(self.compare_args.variants))
        self._check_names()
        for row in self.rows:  # raises errors for arguments out of range before any run
            try:
                runner.arguments_of(row, self.seed)
            except (TypeError, ValueError) as error:
                kind = "variant" if row.arguments else "way"
                raise ValueError(f"The {kind} {row.name!r}: {error}") from error
        self.settings = runner.evaluation_settings()

    def _check_names(self) -> None:
        names = [row.name for row in self.rows]
        timed = self.compare_args.equal_wall_time
        if not set(timed) <= set(names) or (timed and NULLSPACE.name not in names):
            raise ValueError(
                f"`equal_wall_time` takes rows of this comparison, with {NULLSPACE.name!r} among them, but got {timed}, "
                f"and the rows are {names}."
            )
        taken = [name for name in names if name.endswith(EQUAL_TIME)]
        if taken:
            raise ValueError(
                f"The variants {taken} need other names: those of equal wall time end with {EQUAL_TIME!r}."
            )

    @property
    def seeds(self) -> list[int]:
        return [self.seed + index for index in range(self.compare_args.num_seeds)]

    def run(self) -> dict[str, Any]:
        """Trains and measures everything; returns the results."""
        runner = self.runner
        runs = {}
        reports = {}
        runner.train(runner.base, self.seed)
        base = runner.evaluate(runner.base, self.seed)
        timed: list[Row] = []

        def run(rows: list[Row], seed: int) -> None:
            for row in rows:
                runs[row.name, seed] = runner.train(row, seed)
                reports[row.name, seed] = runner.evaluate(row, seed)

        for seed in self.seeds:
            run(self.rows, seed)
            timed = [self._for_equal_time(row, seed, runs) for row in self._timed_rows()]
            run(timed, seed)
        outcomes = {BASE: [base.outcomes] * len(self.seeds)}
        for row in [*self.rows, *timed]:
            outcomes[row.name] = [reports[row.name, seed].outcomes for seed in self.seeds]
        columns = [column for column in runner.profile.columns if column.name in base.columns]
        competes = [f"A prediction is the largest of {text}." for text in competition(base.run)]
        known = {name: base.run[name] for name in ("versions", "datasets", "preprocessing")}
        return {
            "rows": self._described_rows(),
            "seeds": self.seeds,
            "confidence": CONFIDENCE,
            "evaluation": {**self.settings, "not_measured": base.not_measured},
            "methods": summarize_rows(columns, outcomes, self._references(timed), self.seed),
            "training": {row.name: self._cost(row, runs) for row in [*self.rows, *timed]},
            "classes": class_results(outcomes, columns[0].name, base.examples),
            "run": {**known, "competes": competes, "command": current_command()},
        }

    # ---- Rows for as much time as nullspace finetuning ----------------------------------------------------------

    def _timed_rows(self) -> list[Row]:
        return [row for row in self.rows if row.name in self.compare_args.equal_wall_time]

    def _for_equal_time(self, row: Row, seed: int, runs: dict) -> Row:
        """The row with as many steps as fit into the time that nullspace finetuning took with that seed."""
        own = runs[row.name, seed]
        steps = round(runs[NULLSPACE.name, seed]["seconds"] / own["seconds"] * own["steps"])
        return replace(row, name=f"{row.name}-{EQUAL_TIME}", arguments={**row.arguments, "max_steps": max(1, steps)})

    # ---- Results ------------------------------------------------------------------------------------------------

    def _described_rows(self) -> dict[str, dict[str, Any]]:
        rows = {row.name: {**row.to_dict(), "kind": self._kind(row)} for row in self.rows}
        for row in self._timed_rows():
            name = f"{row.name}-{EQUAL_TIME}"
            rows[name] = {**rows[row.name], "name": name, "kind": EQUAL_TIME}
        return rows

    def _kind(self, row: Row) -> str:
        return WAY if row.name in self.compare_args.methods else VARIANT

    def _references(self, timed: list[Row]) -> dict[str, list[str]]:
        """For each row, the rows that it is compared with."""
        references = {row.name: self._references_of(row) for row in self.rows} | {BASE: [PLAIN.name]}
        references[NULLSPACE.name] = [*references.get(NULLSPACE.name, ()), *(row.name for row in timed)]
        return references

    def _references_of(self, row: Row) -> list[str]:
        """The rows that a row is compared with, including plain finetuning from the same start."""
        others = [PLAIN.name, *([PERMUTED.name] if row.way == NULLSPACE.name else [])]
        if self._kind(row) == VARIANT:
            others += [NULLSPACE.name, row.start]
            if row.start != BASE:
                others += [known.name for known in self.rows if (known.way, known.start) == (PLAIN.name, row.start)]
        names = [known.name for known in self.rows]
        return [name for name in dict.fromkeys(others) if name != row.name and name in names]

    def _cost(self, row: Row, runs: dict) -> dict[str, Any]:
        """Costs as means over seeds. The time of a row includes that of the row it started from."""
        rows = {known.name: known for known in self.rows}

        def total(row: Row, seed: int) -> float:
            return runs[row.name, seed]["seconds"] + (total(rows[row.start], seed) if row.start in rows else 0.0)

        own = [runs[row.name, seed] for seed in self.seeds]
        growths = [norm_growth(run["noise_history"]) for run in own]
        seconds = [total(row, seed) for seed in self.seeds]
        return {
            "steps": fmean(run["steps"] for run in own),
            "seconds": fmean(seconds),
            "synthesis_seconds": fmean(run["synthesis_seconds"] for run in own),
            "relative_cost": fmean(seconds) / fmean(runs[PLAIN.name, seed]["seconds"] for seed in self.seeds),
            "norm_growth": None if None in growths else fmean(growths),
            "per_seed": {"steps": [run["steps"] for run in own], "seconds": seconds, "norm_growth": growths},
        }


def save_comparison(results: dict[str, Any], folder: Path) -> None:
    """Writes the page, writes and prints the tables of [`Comparison.run`]; draws the figure if matplotlib is there."""
    tables = comparison_markdown(results)
    write_text(folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    write_text(folder / TABLES_NAME, tables + "\n")
    differences, costs = compared_rows(results)
    if differences:
        with optional_figure(FIGURE_NAME):
            plot_rows(differences, costs, folder / FIGURE_NAME, figure_note(results))
    write_text(folder / PAGE_NAME, comparison_page(results))
    print(f"\n{tables}\n\nEverything is in {folder}")
