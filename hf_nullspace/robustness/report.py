"""The result of an evaluation: a number with its interval for each column, and all that is needed to repeat it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.escaping import plain_text
from ..utils.figures import optional_figure
from ..utils.files import write_text
from ..utils.page import PAGE_NAME
from ..utils.strict_json import DamagedFileError, expect, read_json
from .examples import EXAMPLES_NAME, Examples
from .figure import plot_robustness
from .outcomes import Outcomes, explained, load_outcomes, save_outcomes
from .profiles import Profile
from .report_markdown import aggregates_over, report_sections, row_warnings
from .report_page import figure_note, robustness_page
from .scoring import aggregate_columns, score_columns, summarize_columns


REPORT_NAME = "robustness.json"
MARKDOWN_NAME = "robustness.md"
FIGURE_NAME = "robustness.png"
OUTCOMES_NAME = "outcomes.safetensors"


@dataclass
class RobustnessReport:
    """
    Result of [`evaluate_robustness`]. Two reports are equal if everything but the timing is.

    Args:
        model_name (`str`): The model.
        profile ([`Profile`]): What was measured.
        columns (`dict[str, dict]`): For each measured column: `accuracy` with the ends of its 95 % Wilson interval `low`
            and `high` (all in per cent), `correct`, `count`; where asked `ece` in per cent; for attacks `success_rate`
            (per cent of the images that are right without it) and the mean distances `mean_l2` and `mean_linf` of the
            images that it turned wrong, in pixel units, and what else the attack says; see [`Attack.row`]. Where there are
            some, `warnings` are the kinds of warnings of an attack and `zero_gradients` the number of images without a
            gradient; `no_answer` is the number of images with a logit that is not finite, which count as wrong.
        summary (`dict[str, dict]`): `accuracy`, `low` and `high` of each bar of the figure: a measured column, or all
            corruptions together.
        not_measured (`dict[str, str]`): The reason for each column without a result.
        aggregates (`dict[str, float]`): Means over columns; see [`aggregate_columns`].
        run (`dict`): `preprocessing`, `versions`, the fingerprints of model and datasets, `batch_size`, `precision`, for
            each dataset among how many of the model's `logits` a prediction is made, and the places of `skipped_images`.
        seconds (`dict[str, float]`, *optional*): Time of each column, summed over processes.
        outcomes (`dict[str, Outcomes]`, *optional*): What happened to each image.
        examples ([`Examples`], *optional*): Some of the pictures, for the page.
    """

    model_name: str
    profile: Profile
    columns: dict[str, dict[str, Any]]
    summary: dict[str, dict[str, float]]
    not_measured: dict[str, str]
    aggregates: dict[str, float]
    run: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    outcomes: dict[str, Outcomes] | None = field(default=None, compare=False, repr=False)
    examples: Examples | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        model_name: str,
        profile: Profile,
        outcomes: dict[str, Outcomes],
        not_measured: dict[str, str],
        run: dict[str, Any],
        seconds: dict[str, float],
        examples: Examples | None = None,
    ) -> RobustnessReport:
        """The report whose numbers follow from the outcomes of the images; the arguments are those of the class."""
        rows = score_columns(profile.columns, outcomes)
        bars = summarize_columns(profile.columns, rows, outcomes)
        means = aggregate_columns(profile.columns, rows, bars)
        return cls(model_name, profile, rows, bars, not_measured, means, run, seconds, outcomes, examples)

    @property
    def warnings(self) -> list[str]:
        """Reasons to trust a number less, one sentence for each column and kind."""
        measured = [column for column in self.profile.columns if column.name in self.columns]
        return [text for column in measured for text in row_warnings(column, self.columns[column.name])]

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy in per cent by column."""
        return {name: row["accuracy"] for name, row in self.columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the report without outcomes as a JSON-serialisable `dict`."""
        return {
            "model": self.model_name,
            "profile": self.profile.to_dict(),
            "profile_hash": self.profile.hash,
            "seed": self.profile.seed,
            "columns": self.columns,
            "summary": self.summary,
            "not_measured": self.not_measured,
            "aggregates": self.aggregates,
            "aggregates_over": aggregates_over(self.profile, self.aggregates),
            "run": self.run,
            "timing": {"seconds": self.seconds},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobustnessReport:
        """
        The report that [`RobustnessReport.to_dict`] gave.

        Raises:
            `ValueError`: If a part is missing or of another kind, or the profile is not the one that its hash was taken
                of.
        """
        _check_kinds(values)
        profile = Profile.from_dict(values["profile"])
        if profile.hash != values["profile_hash"]:
            raise ValueError(
                f"The report's profile {profile.name!r} has the hash {profile.hash}, but {values['profile_hash']} was "
                "written down: the file was edited, or another version of the package wrote it. Evaluate again."
            )
        parts = {name: values[name] for name in ("columns", "summary", "not_measured", "aggregates", "run")}
        return cls(values["model"], profile, **parts, seconds=values["timing"]["seconds"])

    def to_markdown(self) -> str:
        """The report as Markdown, without timing."""
        parts = (self.columns, self.not_measured, self.aggregates, self.run, self.warnings)
        return "\n\n".join(report_sections(self.model_name, self.profile, *parts))

    def to_html(self) -> str:
        """The report as a page that needs nothing but itself, without timing."""
        return robustness_page(self)

    def save(self, directory: str | os.PathLike, figures: bool = True) -> None:
        """
        Writes `robustness.json`, `robustness.md`, `report.html`, `outcomes.safetensors` (what happened to each image),
        `examples.safetensors` (some of the pictures) and, where matplotlib is installed, `robustness.png`.

        Args:
            directory (`str` or `os.PathLike`): The folder; made if need be.
            figures (`bool`, *optional*, defaults to `True`): Whether to draw the figure and write the page.

        Raises:
            `OSError`: If the disk is full; a report that was there before is then as it was, or not there.
        """
        directory = Path(directory)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in (OUTCOMES_NAME, EXAMPLES_NAME, MARKDOWN_NAME, PAGE_NAME, REPORT_NAME):
                for leftover in directory.glob(f"{name}.tmp*"):  # of a run that was killed here
                    leftover.unlink()
            if self.outcomes is not None:
                save_outcomes(self.outcomes, directory / OUTCOMES_NAME)
            if self.examples is not None:
                self.examples.save(directory / EXAMPLES_NAME)
            write_text(directory / MARKDOWN_NAME, self.to_markdown() + "\n")
            if figures:
                draw_figure([self], directory / FIGURE_NAME)
                write_text(directory / PAGE_NAME, self.to_html())
            write_text(directory / REPORT_NAME, text)  # last: it says all is there

    @classmethod
    def load(cls, directory: str | os.PathLike) -> RobustnessReport:
        """
        Reads what [`RobustnessReport.save`] wrote.

        Raises:
            `FileNotFoundError`: If the folder has no report.
            `ValueError`: If it is damaged.
        """
        path = Path(directory) / REPORT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{str(directory)!r} has no {REPORT_NAME}: no finished evaluation is there.")
        report = cls.from_dict(read_json(path))
        outcomes = path.with_name(OUTCOMES_NAME)
        report.outcomes = load_outcomes(outcomes) if outcomes.is_file() else None
        examples = path.with_name(EXAMPLES_NAME)
        report.examples = Examples.load(examples) if examples.is_file() else None
        return report


def _check_kinds(values: dict[str, Any]) -> None:
    """Raises if a part of a report is missing or of another type."""
    parts: dict[str, type] = {"model": str, "profile": dict, "profile_hash": str, "seed": int}
    parts |= dict.fromkeys(("columns", "summary", "not_measured", "aggregates", "run", "timing"), dict)
    for name, kind in parts.items():
        if name not in values:
            raise DamagedFileError(f"{REPORT_NAME} is damaged: there is no `{name}`.")
        _expect(values[name], kind, name)
    for column, row in values["columns"].items():
        _expect(row, dict, f"columns.{column}")
        for name in ("accuracy", "low", "high", "correct", "count"):
            _expect(
                row.get(name), (int,) if name in ("correct", "count") else (int, float), f"columns.{column}.{name}"
            )
        if row["count"] < 1:
            raise DamagedFileError(f"{REPORT_NAME} is damaged: `columns.{column}` has no images.")
    for bar, row in values["summary"].items():
        for name in ("accuracy", "low", "high"):
            _expect(_expect(row, dict, f"summary.{bar}").get(name), (int, float, type(None)), f"summary.{bar}.{name}")
    for name, value in values["aggregates"].items():
        _expect(value, (int, float), f"aggregates.{name}")
    for name, value in values["not_measured"].items():
        _expect(value, str, f"not_measured.{name}")
    kinds = {"model": str, **dict.fromkeys(("datasets", "num_images", "preprocessing", "versions"), dict)}
    for name, kind in kinds.items():
        _expect(values["run"].get(name, kind()), kind, f"run.{name}")
    for part, kind in (("logits", dict), ("precision", str), ("skipped_images", list)):
        for name, value in _expect(values["run"].get(part, {}), dict, f"run.{part}").items():
            _expect(value, kind, f"run.{part}.{name}")
    for name, counts in values["run"].get("logits", {}).items():
        for part in ("competing", "all"):
            _expect(counts.get(part), int, f"run.logits.{name}.{part}")
    for name, value in values["run"].get("num_images", {}).items():
        _expect(value, int, f"run.num_images.{name}")
    for protocol, names in _expect(
        values["run"].get("preprocessing", {}).get("resizing", {}), dict, "resizing"
    ).items():
        _expect(names, list, f"resizing.{protocol}")
    for name, value in _expect(values["timing"].get("seconds"), dict, "timing.seconds").items():
        _expect(value, (int, float), f"timing.seconds.{name}")


def _expect(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    return expect(value, kind, f"{REPORT_NAME} is damaged: `{plain_text(name, 80)}`")


def draw_figure(reports: Sequence[RobustnessReport], path: str | os.PathLike) -> None:
    """Draws the bars of one or several reports; a warning where matplotlib is missing."""
    with optional_figure(path):
        counts = [row["count"] for report in reports for row in report.columns.values()]
        plot_robustness({report.model_name: report.summary for report in reports}, path, figure_note(counts))
