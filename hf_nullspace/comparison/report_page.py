"""The page of a comparison, from `results.json` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..baselines import PLAIN
from ..models.class_names import class_name
from ..robustness.examples import Examples
from ..robustness.outcomes import Outcomes
from ..robustness.report import RobustnessReport
from ..robustness.report_page import not_measured_section, pictures_section
from ..robustness.scoring import outcomes_calibration_error
from ..utils.page import (
    PAGE_NAME,
    Cell,
    PageTable,
    Section,
    drawn,
    made_by_section,
    number_cell,
    render_report_page,
    settings_table,
)
from .figure import difference_finding, plot_rows
from .plan import BASE
from .report import SAME_STEPS, difference_text, figure_note
from .statistics import MEAN
from .verdict import winner_in_words


NUM_WORST = 5


def class_results(
    outcomes: Mapping[str, Sequence[Mapping[str, Outcomes]]], column: str, examples: Examples | None
) -> dict[str, Any]:
    """
    What a page says of single classes and of calibration, as JSON values: means over seeds, in per cent.

    Args:
        outcomes (`Mapping[str, Sequence[Mapping[str, Outcomes]]]`): As in [`summarize_rows`].
        column (`str`): The column that is looked at; without labels in its outcomes there is nothing to say.
        examples ([`Examples`] or `None`): For the names of the classes.
    """
    first = next(iter(outcomes.values()))[0].get(column)
    if first is None or first.label is None:
        return {}
    classes = sorted(set(first.label.tolist()))
    names = examples.classes if examples is not None else []
    hits = {row: [run[column].correct.double() for run in runs] for row, runs in outcomes.items()}
    inside = {index: first.label == index for index in classes}
    return {
        "column": column,
        "names": [class_name(names, index) for index in classes],
        "counts": [int(inside[index].sum()) for index in classes],
        "accuracy": {
            row: [100 * float(np.mean([float(each[inside[index]].mean()) for each in seeds])) for index in classes]
            for row, seeds in hits.items()
        },
        "ece": {
            row: float(np.mean([outcomes_calibration_error(run[column]) for run in runs]))
            for row, runs in outcomes.items()
        },
    }


def compared_rows(results: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Differences from plain finetuning by group, and relative costs, of the rows that the figure shows."""
    shown = [name for name in results["rows"] if PLAIN.name in results["methods"][name]["minus"]]
    differences = {name: results["methods"][name]["minus"][PLAIN.name] for name in shown}
    return differences, {name: results["training"][name]["relative_cost"] for name in shown}


def comparison_finding(results: Mapping[str, Any]) -> str:
    """What was found, in a sentence: of intervals that hold for all rows together, where the results have them."""
    if "winners" in results:
        return winner_in_words(next(iter(results["winners"].values())))
    differences, _ = compared_rows(results)
    if differences:
        return f"{difference_finding(differences)}."
    return f"{len(results['rows'])} ways of finetuning were measured."


def pictured_rows(results: Mapping[str, Any]) -> list[str]:
    """The rows of which the page shows pictures: plain finetuning, and the most accurate of those that compete."""
    competing = [name for name, row in results["rows"].items() if row["kind"] != SAME_STEPS]
    best = max(competing, key=lambda name: results["methods"][name]["groups"][MEAN]["mean"])
    return list(dict.fromkeys((PLAIN.name, best)))


def comparison_page(results: Mapping[str, Any], reports: Mapping[str, RobustnessReport] | None = None) -> str:
    """
    The page of a comparison. Results of earlier versions, without classes and command, have a page too.

    Args:
        results (`Mapping`): What `results.json` holds.
        reports (`Mapping[str, RobustnessReport]`, *optional*): For [`pictured_rows`] what was measured with the first seed,
            whose pictures are shown.
    """
    evaluation = results["evaluation"]
    differences, costs = compared_rows(results)
    note = figure_note(results)
    figures = []
    finding = comparison_finding(results)
    if differences:
        alt = "Points from plain finetuning: " + ", ".join(
            f"{name} {next(iter(row.values()))['difference']:+.1f}" for name, row in differences.items()
        )
        caption = "Each row against plain finetuning by group of columns, and the mean by what training cost."
        figures = [drawn("differences.svg", alt, caption, plot_rows, differences, costs, note=note, finding=finding)]
    tiles = {"images": (str(evaluation["num_images"]), f"of the split {evaluation['split']}")}
    tiles["seeds"] = (str(len(results["seeds"])), ", ".join(map(str, results["seeds"])))
    best = max(results["methods"], key=lambda name: results["methods"][name]["groups"][MEAN]["mean"])
    for name in dict.fromkeys((best, PLAIN.name)):
        if name in results["methods"]:
            tiles[name] = (f"{results['methods'][name]['groups']['mean']['mean']:.1f} %", "accuracy, mean of columns")
    sections = [
        Section("Differences", figures=figures, tables=_differences(results)),
        Section("Accuracy and costs", tables=[_accuracies(results), _costs(results)]),
        _classes(results.get("classes") or {}),
        _pictures(results, reports or {}),
        *_protocol(results),
    ]
    return render_report_page("Ways of finetuning, compared", finding, tiles, sections)


def _differences(results: Mapping[str, Any]) -> list[PageTable]:
    rows = [
        {"row": name, "minus": other}
        | {group: Cell(difference_text(values), values["difference"]) for group, values in groups.items()}
        for name, row in results["methods"].items()
        for other, groups in row["minus"].items()
    ]
    caption = f"Points, with the {100 * results['confidence']:.0f} % interval, and the lowest and highest of the seeds"
    return [PageTable(caption, rows)] if rows else []


def _accuracies(results: Mapping[str, Any]) -> PageTable:
    rows = []
    for name, row in results["methods"].items():
        cells = {"row": name, "mean": number_cell(f"{row['groups']['mean']['mean']:.2f}")}
        rows.append(
            cells | {column: number_cell(f"{values['mean']:.2f}") for column, values in row["columns"].items()}
        )
    return PageTable("Accuracy (%), mean over seeds", rows)


def _costs(results: Mapping[str, Any]) -> PageTable:
    rows = []
    for name, cost in results["training"].items():
        row = {"row": name, "steps": round(cost["steps"]), "seconds": Cell(f"{cost['seconds']:.1f}", cost["seconds"])}
        row["of it synthesis"] = Cell(f"{cost['synthesis_seconds']:.1f}", cost["synthesis_seconds"])
        row["time / plain"] = Cell(f"{cost['relative_cost']:.2f}", cost["relative_cost"])
        rows.append(row)
    return PageTable("What training cost", rows)


def _classes(classes: Mapping[str, Any]) -> Section:
    title = "Accuracy by class, and calibration"
    if not classes:
        return Section(title, ["These results do not say it: an earlier version wrote them."])
    rows = [
        {"class": name, "pictures": classes["counts"][place]}
        | {row: Cell(f"{values[place]:.1f}", values[place]) for row, values in classes["accuracy"].items()}
        for place, name in enumerate(classes["names"])
    ]
    key = PLAIN.name if PLAIN.name in classes["accuracy"] else BASE
    worst = sorted(rows, key=lambda row: row[key].value)[:NUM_WORST]
    errors = [{"row": row, "ECE (%)": Cell(f"{value:.2f}", value)} for row, value in classes["ece"].items()]
    return Section(
        title,
        tables=[
            PageTable(f"Accuracy (%) on {classes['column']}: the {len(worst)} worst classes of {key}", worst),
            PageTable(f"Accuracy (%) on {classes['column']} by class, mean over seeds", rows),
            PageTable(f"Expected calibration error on {classes['column']}, mean over seeds", errors),
        ],
    )


def _pictures(results: Mapping[str, Any], reports: Mapping[str, RobustnessReport]) -> Section:
    section = pictures_section(reports)
    pages = f"Each row has a page of its own, too: runs/ROW-SEED/robustness-.../{PAGE_NAME} beside this file."
    return replace(section, texts=[*section.texts, pages])


def _protocol(results: Mapping[str, Any]) -> list[Section]:
    evaluation = results["evaluation"]
    rows = []
    for name, row in results["rows"].items():
        changed = ", ".join(f"{key} {value}" for key, value in row["arguments"].items())
        rows.append(
            {"row": name, "way": row["method"], "start": row["start"], "kind": row["kind"], "arguments": changed}
        )
    settings = {name: value for name, value in evaluation.items() if name != "not_measured"}
    run = results.get("run") or {}
    competes = run.get("competes", [])
    hashes = {f"images of {name}": value for name, value in run.get("datasets", {}).items()}
    table = settings_table("Evaluation, versions and hashes", settings, run.get("versions", {}), hashes)
    lines = [f"{name}: {value}" for name, value in run.get("preprocessing", {}).items()]
    return [
        Section("What competes", competes),
        Section("Preprocessing", lines=lines),
        Section("Rows", tables=[PageTable("How each row was trained", rows)]),
        Section("Settings and hashes", tables=[table]),
        not_measured_section(evaluation["not_measured"]),
        made_by_section(run.get("command"), "These results do not say which command made them."),
    ]
