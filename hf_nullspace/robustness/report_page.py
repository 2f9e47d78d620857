"""A robustness report as a page: summary, table, figures, pictures, classes and calibration, from saved results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..models.class_names import class_name
from ..utils.page import (
    Cell,
    PageFigure,
    PagePicture,
    PageTable,
    Section,
    data_uri,
    drawn,
    made_by_section,
    number_cell,
    render_report_page,
    settings_table,
)
from .attacks import ATTACKS
from .figure import plot_reliability, plot_robustness
from .metrics import calibration_bins, wilson_interval
from .outcomes import NO_ANSWER, Outcomes
from .profiles import Column
from .report_markdown import AGGREGATE_NAMES, accuracy_text, attack_fields, competition
from .scoring import GENERATED, outcomes_calibration_error


# `RobustnessReport`, whose module imports this one.
Report = Any
NUM_WORST = 5
# Among fewer pictures than this the accuracy of a class says little.
FEW_PICTURES = 5


def robustness_page(report: Report) -> str:
    """
    The page of a report, without timing: equal reports have equal pages.

    Args:
        report ([`RobustnessReport`]): The report. Without outcomes, as where only `robustness.json` was kept, the page
            leaves out what follows from single images.
    """
    outcomes = report.outcomes or {}
    clean = next((column for column in _measured(report) if not column.corruption and not column.attack), None)
    sections = [
        Section("Warnings", lines=report.warnings),
        Section("Accuracy by column", figures=[_bars(report)], tables=[_columns_table(report), *_means(report)]),
        pictures_section({report.model_name: report}),
        _classes(report, clean),
        _calibration(report, outcomes, clean),
        not_measured_section(report.not_measured),
        *_protocol(report),
    ]
    return render_report_page(f"Robustness of {report.model_name}", finding(report), _tiles(report, clean), sections)


def finding(report: Report) -> str:
    """The result in a sentence: clean accuracy, and what corruptions and the strongest attack leave of it."""
    parts = []
    if "clean" in report.summary:
        parts.append(f"{report.summary['clean']['accuracy']:.1f} % of clean pictures are classified correctly")
    if GENERATED in report.summary:
        parts.append(f"{report.summary[GENERATED]['accuracy']:.1f} % under corruptions")
    if worst := _worst_attack(report):
        parts.append(f"{report.columns[worst]['accuracy']:.1f} % under {worst}")
    return ", ".join(parts) + "." if parts else f"{len(report.columns)} columns were measured."


def _measured(report: Report) -> list[Column]:
    return [column for column in report.profile.columns if column.name in report.columns]


def _worst_attack(report: Report) -> str | None:
    attacked = [column.name for column in _measured(report) if column.attack]
    return min(attacked, key=lambda name: report.columns[name]["accuracy"], default=None)


def _tiles(report: Report, clean: Column | None) -> dict[str, tuple[str, str]]:
    tiles = {}
    shown = [name for name in ("clean", GENERATED, _worst_attack(report)) if name in report.summary]
    for name in shown or list(report.summary)[:3]:
        bar = report.summary[name]
        count = f" of {report.columns[name]['count']} pictures" if name in report.columns else ", all of them together"
        interval = "" if bar["low"] is None else f", 95 % interval {bar['low']:.1f} to {bar['high']:.1f}"
        tiles[name] = (f"{bar['accuracy']:.1f} %", f"accuracy{count}{interval}")
    if clean is not None and clean.name in (report.outcomes or {}):
        value = outcomes_calibration_error(report.outcomes[clean.name])
        tiles["calibration error"] = (f"{value:.1f} %", f"ECE of {clean.name}: mean gap of confidence and accuracy")
    tiles["profile"] = (report.profile.name, f"{len(report.columns)} columns, seed {report.profile.seed}")
    return tiles


def figure_note(counts: Sequence[int]) -> str:
    """Of how many pictures the bars of the figure are, and what their whiskers are."""
    ends = dict.fromkeys((min(counts), max(counts)))
    return f"n = {' to '.join(map(str, ends))} pictures a column; whiskers are 95 % intervals"


def _bars(report: Report) -> PageFigure:
    note = figure_note([row["count"] for row in report.columns.values()])
    alt = "Accuracy in per cent: " + ", ".join(f"{name} {bar['accuracy']:.1f}" for name, bar in report.summary.items())
    caption = (
        "Accuracy by column; all corruptions of a dataset are one bar, as one picture is right or wrong under all."
    )
    bars = {report.model_name: report.summary}
    return drawn("robustness.svg", alt, caption, plot_robustness, bars, note=note)


def _columns_table(report: Report) -> PageTable:
    rows = []
    datasets = {column.dataset for column in _measured(report)}
    for column in _measured(report):
        row = report.columns[column.name]
        cells: dict[str, Any] = {"column": column.name}
        if len(datasets) > 1:
            cells["images"] = column.dataset
        cells["corruption"] = f"{column.corruption} {column.severity}" if column.corruption else ""
        cells["attack"] = column.attack or ""
        cells["accuracy (%)"] = Cell(accuracy_text(row), row["accuracy"])
        cells["right"] = Cell(f"{row['correct']} of {row['count']}", row["correct"])
        if column.name in (report.outcomes or {}):
            value = outcomes_calibration_error(report.outcomes[column.name])
            cells["ECE (%)"] = Cell(f"{value:.2f}", value)
        own = ATTACKS[column.attack].cells(row) if column.attack else {}
        for title, text in (attack_fields(row) | own).items():
            cells[title] = number_cell(text)
        if column.settings:
            cells["settings"] = ", ".join(f"{name} {value}" for name, value in column.settings.items())
        rows.append(cells)
    return PageTable("All columns. A click on a heading sorts.", rows)


def _means(report: Report) -> list[PageTable]:
    over = report.to_dict()["aggregates_over"]
    rows = [
        {"mean": AGGREGATE_NAMES[name], "%": Cell(f"{value:.2f}", value), "over": over.get(name, "")}
        for name, value in report.aggregates.items()
    ]
    return [PageTable("Means over columns", rows)] if rows else []


def pictures_section(reports: Mapping[str, Report]) -> Section:
    """
    Some of the pictures that were measured in each column, with what the models took them for.

    Args:
        reports (`Mapping[str, RobustnessReport]`): By the name of the model, of one profile. Of several models the pictures
            of a column stand under each other.
    """
    title = "Pictures that were measured"
    shown = {
        name: report
        for name, report in reports.items()
        if report.examples is not None and report.examples.pictures and report.outcomes is not None
    }
    if not shown:
        return Section(
            title, ["The results hold no pictures: an earlier version wrote them, or they were left behind."]
        )
    rows = {}
    for column in _measured(next(iter(shown.values()))):
        for name, report in shown.items():
            if column.name in report.examples.pictures and column.name in report.outcomes:
                named = _named(column) if len(shown) == 1 else f"{name}, {_named(column)}"
                rows[named] = _row(column, report.examples, report.outcomes[column.name])
    text = (
        "The same pictures in each column of a dataset, as the model saw them, made smaller; under each the model's class "
        "and its probability. Of a corruption the strongest severity is shown."
    )
    return Section(title, [text], pictures=rows)


def _named(column: Column) -> str:
    parts = [column.name]
    parts += [f"{column.corruption}, severity {column.severity}"] if column.corruption else []
    parts += [f"attack {column.attack}"] if column.attack and column.attack != column.name else []
    return ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else parts[0]


def _row(column: Column, examples, outcomes: Outcomes) -> list[PagePicture]:
    found = {index: place for place, index in enumerate(outcomes.indices.tolist())}
    pictures = []
    for index, picture in zip(examples.places[column.name].tolist(), examples.pictures[column.name], strict=True):
        if index not in found:
            continue
        place = found[index]
        prediction = int(outcomes.prediction[place])
        is_right = bool(outcomes.correct[place])
        said = "no answer" if prediction == NO_ANSWER else class_name(examples.classes, prediction)
        label = prediction if is_right else None
        label = int(outcomes.label[place]) if outcomes.label is not None else label
        name = "" if label is None else f" of {class_name(examples.classes, label)}"
        pictures.append(
            PagePicture(
                data_uri(picture.permute(1, 2, 0).numpy()),
                f"picture {index}{name} in column {column.name}",
                f"{said}, {100 * float(outcomes.confidence[place]):.0f} %",
                "right" if is_right else "wrong",
                is_right,
            )
        )
    return pictures


def _classes(report: Report, clean: Column | None) -> Section:
    title = "Accuracy by class"
    outcomes = report.outcomes or {}
    if clean is None or clean.name not in outcomes or outcomes[clean.name].label is None:
        return Section(
            title, ["The results do not say which class each picture is of: an earlier version wrote them."]
        )
    names = report.examples.classes if report.examples is not None else []
    columns = [column for column in _measured(report) if column.dataset == clean.dataset]
    groups = {
        f"{clean.name} (%)": [outcomes[clean.name]],
        "corruptions, mean (%)": [
            outcomes[column.name] for column in columns if column.corruption and not column.attack
        ],
        **{f"{column.name} (%)": [outcomes[column.name]] for column in columns if column.attack},
    }
    measured = outcomes[clean.name]
    rows = []
    for index in sorted(set(measured.label.tolist())):
        count = int((measured.label == index).sum())
        row: dict[str, Any] = {"class": class_name(names, index), "pictures": count}
        for group, parts in groups.items():
            hits = [images.correct[images.label == index].double() for images in parts]
            shares = [float(each.mean()) for each in hits if len(each)]
            if shares:
                value = 100 * sum(shares) / len(shares)
                row[group] = Cell(f"{value:.1f}", value)
        correct = int(measured.correct[measured.label == index].sum())
        low, high = wilson_interval(correct, count)
        row["95 % interval"] = Cell(f"{low:.1f} to {high:.1f}", low)
        rows.append(row)
    worst = sorted(rows, key=lambda row: (row[f"{clean.name} (%)"].value, row["pictures"]))[:NUM_WORST]
    texts = []
    if min(row["pictures"] for row in rows) < FEW_PICTURES:
        texts.append(f"Some classes have fewer than {FEW_PICTURES} pictures here: their accuracy says little.")
    caption = f"The {len(worst)} classes with the lowest accuracy on {clean.name}; the interval is of that accuracy"
    return Section(title, texts, tables=[PageTable(caption, worst), PageTable("All classes", rows)])


def _calibration(report: Report, outcomes: Mapping[str, Outcomes], clean: Column | None) -> Section:
    title = "Calibration"
    if clean is None or clean.name not in outcomes:
        return Section(title, ["The results hold no probabilities of single pictures, so there is no diagram."])
    images = outcomes[clean.name]
    bins = calibration_bins(images.confidence.double().numpy(), images.correct.numpy())
    value = outcomes_calibration_error(images)
    caption = (
        f"{len(images)} pictures of {clean.name} in 15 equal bins of confidence: a calibrated model lies on the diagonal. "
        f"ECE, the mean gap weighted by the pictures of a bin, is {value:.2f} %. Whiskers are 95 % intervals."
    )
    shown = [row for row in bins if row["count"]]
    alt = "Accuracy by confidence: " + ", ".join(
        f"{row['accuracy']:.0f} % right at {row['confidence']:.0f} % confidence" for row in shown
    )
    figure = drawn("reliability.svg", alt, caption, plot_reliability, bins)
    rows = [
        {
            "confidence": Cell(f"{row['from']:.0f} to {row['to']:.0f} %", row["from"]),
            "pictures": row["count"],
            "mean confidence (%)": Cell(f"{row['confidence']:.1f}", row["confidence"]),
            "accuracy (%)": Cell(f"{row['accuracy']:.1f}", row["accuracy"]),
        }
        for row in shown
    ]
    return Section(title, figures=[figure], tables=[PageTable(f"The bins of {clean.name}", rows)])


def not_measured_section(reasons: Mapping[str, str]) -> Section:
    """The columns that were not measured, and why not; empty where there are none."""
    rows = [{"column": name, "reason": reason} for name, reason in reasons.items()]
    return Section("Not measured", tables=[PageTable("Columns without a result", rows)] if rows else [])


def _protocol(report: Report) -> list[Section]:
    """How the numbers came about: what competes, preprocessing, settings, hashes and the command."""
    run = report.run
    preprocessing = dict(run.get("preprocessing", {}))
    resizing = [f"{', '.join(names)}: {protocol}" for protocol, names in preprocessing.pop("resizing", {}).items()]
    competing = [
        f"{', '.join(names)}: a prediction is the largest of {text}." for text, names in competition(run).items()
    ]
    competing += [f"{name} of the model's numbers: {value}" for name, value in run.get("precision", {}).items()]
    competing += [
        f"{name}: {len(places)} pictures that cannot be read were left out."
        for name, places in run.get("skipped_images", {}).items()
    ]
    settings: dict[str, Any] = {"seed": report.profile.seed}
    settings |= {f"pictures of {name}": count for name, count in run.get("num_images", {}).items()}
    if "batch_size" in run:
        settings["batch size"] = run["batch_size"]
    hashes = {"profile": report.profile.hash, "weights of the model": run.get("model", "")}
    hashes |= {f"images of {name}": value for name, value in run.get("datasets", {}).items()}
    table = settings_table("Settings, versions and hashes", settings, run.get("versions", {}), hashes)
    lines = [*resizing, *(f"{name}: {value}" for name, value in preprocessing.items())]
    note = [report.profile.note] if report.profile.note else []
    command = None if report.examples is None else report.examples.command
    return [
        Section("What competes", lines=competing),
        Section("Preprocessing", lines=lines),
        Section("Settings and hashes", note, tables=[table]),
        made_by_section(command, "Python called evaluate_robustness."),
    ]
