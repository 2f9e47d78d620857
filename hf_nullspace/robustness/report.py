"""The result of an evaluation: a number with its interval for each column, and all that is needed to repeat it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..plotting import optional_figure, plot_robustness
from .outcomes import Outcomes, load_outcomes, save_outcomes, write_text
from .profiles import Profile
from .report_markdown import report_sections


REPORT_NAME, MARKDOWN_NAME, FIGURE_NAME = "robustness.json", "robustness.md", "robustness.png"
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
            images that it turned wrong, in pixel units; for AutoAttack its `tier` and the kinds of `warnings`.
        summary (`dict[str, dict]`): `accuracy`, `low` and `high` of each bar of the figure: a measured column, or all
            corruptions together.
        not_measured (`dict[str, str]`): The reason for each column without a result.
        aggregates (`dict[str, float]`): Means over columns; see [`aggregate_columns`].
        run (`dict`): `preprocessing`, `versions`, the fingerprints of model and datasets, and `batch_size`.
        seconds (`dict[str, float]`, *optional*): Time of each column, summed over processes.
        outcomes (`dict[str, Outcomes]`, *optional*): What happened to each image.
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
            "run": self.run,
            "timing": {"seconds": self.seconds},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobustnessReport:
        """
        The report that [`RobustnessReport.to_dict`] gave.

        Raises:
            `ValueError`: If the profile is not the one that its hash was taken of.
        """
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
        parts = (self.columns, self.not_measured, self.aggregates, self.run)
        return "\n\n".join(report_sections(self.model_name, self.profile, *parts))

    def save(self, directory: str | os.PathLike) -> None:
        """
        Writes `robustness.json`, `robustness.md`, `outcomes.safetensors` (what happened to each image) and, where
        matplotlib is installed, `robustness.png`.

        Args:
            directory (`str` or `os.PathLike`): The folder; made if need be.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.outcomes is not None:
            save_outcomes(self.outcomes, directory / OUTCOMES_NAME)
        write_text(directory / MARKDOWN_NAME, self.to_markdown() + "\n")
        draw_figure([self], directory / FIGURE_NAME)
        write_text(directory / REPORT_NAME, json.dumps(self.to_dict(), indent=2) + "\n")  # last: it says all is there

    @classmethod
    def load(cls, directory: str | os.PathLike) -> RobustnessReport:
        """
        Reads what [`RobustnessReport.save`] wrote.

        Raises:
            `FileNotFoundError`: If the folder has no report.
        """
        path = Path(directory) / REPORT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{str(directory)!r} has no {REPORT_NAME}: no finished evaluation is there.")
        report = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        outcomes = path.with_name(OUTCOMES_NAME)
        report.outcomes = load_outcomes(outcomes) if outcomes.is_file() else None
        return report


def draw_figure(reports: Sequence[RobustnessReport], path: str | os.PathLike) -> None:
    """Draws the bars of one or several reports; a warning where matplotlib is missing."""
    with optional_figure(path):
        plot_robustness({report.model_name: report.summary for report in reports}, path)
