"""A robustness report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.imagenet import IMAGENET_C_CORRUPTIONS
from ..utils.escaping import escaped_strings, markdown_text
from .attacks import ATTACKS
from .profiles import PROFILES, Column, Profile


GENERATED_TITLE = "Corruptions, C-style and generated here"
AGGREGATE_NAMES = {
    "mean_corruption_error": "mean error under corruptions generated here",
    "mce": "mCE on ImageNet-C (AlexNet = 100)",
    "relative_mce": "relative mCE on ImageNet-C (AlexNet = 100)",
    "average": "Average of the paper's eleven columns",
    "mean_accuracy": "mean accuracy over columns, corruptions as one",
}


def report_sections(
    model_name: str,
    profile: Profile,
    rows: dict[str, dict[str, Any]],
    not_measured: dict[str, str],
    aggregates: dict[str, float],
    run: dict[str, Any],
    warnings: Sequence[str] = (),
) -> list[str]:
    """The parts of a report, from the fields of [`RobustnessReport`]."""
    not_measured = escaped_strings(not_measured)
    run = escaped_strings(run)
    parts = [f"# Robustness of {markdown_text(model_name)}"]
    name = markdown_text(profile.name)
    note = _note_text(profile)
    parts.append(f"Profile `{name}` ({profile.hash[:12]}), seed {profile.seed}. {note}".strip())
    if classes := _competing(run):
        parts.append(classes)
    if warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {markdown_text(warning)}" for warning in warnings))
    measured = [column for column in profile.columns if column.name in rows]
    corrupted = [column for column in measured if column.corruption is not None and column.attack is None]
    others = [_column_row(column, rows[column.name]) for column in measured if column not in corrupted]
    if others:
        parts.append("## Columns\n\nAccuracy in per cent with its 95 % interval.\n\n" + table(others))
    tables: dict[str, list[Column]] = {}
    for column in sorted(corrupted, key=lambda column: not column.is_generated):
        title = GENERATED_TITLE if column.published is None else markdown_text(column.published.title)
        tables.setdefault(title, []).append(column)
    for title, columns in tables.items():
        cells = _corruption_table(columns, rows)
        parts.append(f"## {title}\n\nAccuracy in per cent by severity.\n\n{cells}")
    if aggregates:
        over = aggregates_over(profile, aggregates)
        named = [
            {"mean": AGGREGATE_NAMES[name], "%": f"{value:.2f}", "over": over.get(name, "")}
            for name, value in aggregates.items()
        ]
        parts.append("## Means\n\n" + table(named))
    if not_measured:
        parts.append("## Not measured\n\n" + _missing(not_measured))
    settings = dict(run["preprocessing"])
    lines = [f"- {', '.join(names)}: {protocol}" for protocol, names in settings.pop("resizing").items()]
    lines += [f"- {name}: {value}" for name, value in settings.items()]
    parts.append("## Preprocessing\n\n" + "\n".join(lines))
    lines = [f"- {name} {version}" for name, version in run["versions"].items()]
    parts.append("## Versions\n\n" + "\n".join(lines))
    return parts


def _note_text(profile: Profile) -> str:
    """The note of a profile, escaped unless it is one of this package."""
    own = PROFILES.get(profile.name)
    return profile.note if own is not None and own.note == profile.note else markdown_text(profile.note)


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a Markdown table; names come from all of them, and a cell that a row does not have stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[row.get(name, "") for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_text(row: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    if row["low"] is None:
        return f"{row['accuracy']:.2f}"
    return f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _column_row(column: Column, row: dict[str, Any]) -> dict[str, str]:
    cells = {"column": column.name, "accuracy": accuracy_text(row), "right": f"{row['correct']} of {row['count']}"}
    if row.get("ece") is not None:
        cells["ECE (%)"] = f"{row['ece']:.2f}"
    cells |= attack_fields(row)
    if column.attack is not None:
        cells |= {markdown_text(title): text for title, text in ATTACKS[column.attack].cells(row).items()}
    if column.settings:
        cells["settings"] = markdown_text(", ".join(f"{name} {value}" for name, value in column.settings.items()))
    return cells


def attack_fields(row: dict[str, Any]) -> dict[str, str]:
    """Success and distances of an attack, by title."""
    named = {"success_rate": "attack success (%)", "mean_l2": "mean L2", "mean_linf": "mean Linf"}
    return {
        title: f"{row[key]:.2f}" if key == "success_rate" else f"{row[key]:.4f}"
        for key, title in named.items()
        if row.get(key) is not None
    }


def aggregates_over(profile: Profile, aggregates: dict[str, float]) -> dict[str, str]:
    """The columns that each mean is taken over, in words."""
    over = {}
    generated = [column for column in profile.columns if column.is_generated and not column.attack]
    others = sorted({column.corruption for column in generated} - {*IMAGENET_C_CORRUPTIONS})
    if "mean_corruption_error" in aggregates:
        severities: dict[str, list[int]] = {}
        for column in generated:
            severities.setdefault(column.corruption, []).append(column.severity)
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, found in severities.items():
            groups.setdefault(tuple(sorted(set(found))), []).append(name)
        over["mean_corruption_error"] = "; ".join(
            f"{_named_corruptions(names)} at severity " + ", ".join(map(str, group)) for group, names in groups.items()
        )
    for name in ("mce", "relative_mce"):
        if name in aggregates:
            over[name] = "15 corruptions at severity 1, 2, 3, 4, 5" + (f", not {', '.join(others)}" if others else "")
    return over


def _named_corruptions(names: Sequence[str]) -> str:
    """How many of them are among the fifteen of ImageNet-C, which are the others, and their names."""
    total = len(IMAGENET_C_CORRUPTIONS)
    known = [name for name in names if name in IMAGENET_C_CORRUPTIONS]
    others = [name for name in names if name not in known]
    parts = [f"{len(known)} of the {total} corruptions ({'all' if len(known) == total else ', '.join(known)})"]
    parts += [f"{len(others)} other{'s' * (len(others) > 1)} ({', '.join(others)})"]
    return " and ".join(part for part, found in zip(parts, (known, others), strict=True) if found)


def row_warnings(column: Column, row: dict[str, Any]) -> list[str]:
    """Reasons to trust the number of a column less, in sentences."""
    name = column.name
    found = [] if column.attack is None else ATTACKS[column.attack].warnings(name, row)
    if row.get("no_answer"):
        found.append(
            f"{name}: the model's logits are not finite for {row['no_answer']} of {row['count']} images, which count as "
            "wrong."
        )
    return found


def competition(run: dict[str, Any]) -> dict[str, list[str]]:
    """Which datasets a prediction is made for among which logits, in words; empty for reports that do not say it."""
    texts: dict[str, list[str]] = {}
    for name, counts in run.get("logits", {}).items():
        family = name.partition("/")[0]
        some = f"{counts['competing']} of the model's {counts['all']} logits, those of the dataset's classes"
        text = f"all {counts['all']} logits of the model" if counts["competing"] == counts["all"] else some
        if family not in texts.setdefault(text, []):
            texts[text].append(family)
    return texts


def _competing(run: dict[str, Any]) -> str:
    """Among which classes predictions are, what was left out and how exact the numbers are."""
    lines = [
        f"- {', '.join(names)}: a prediction is the largest of {text}" for text, names in competition(run).items()
    ]
    if precision := run.get("precision"):
        lines.append("- precision: " + ", ".join(f"{name} {value}" for name, value in precision.items()))
    lines += [
        f"- {name}: {len(places)} pictures that cannot be read were left out"
        for name, places in run.get("skipped_images", {}).items()
    ]
    return "## What competes\n\n" + "\n".join(lines) if lines else ""


def _corruption_table(columns: Sequence[Column], rows: dict[str, dict[str, Any]]) -> str:
    severities = sorted({column.severity for column in columns})
    lines: dict[str, dict[str, str]] = {}
    for column in columns:
        line = lines.setdefault(
            column.corruption, {"corruption": column.corruption} | {str(s): "" for s in severities}
        )
        line[str(column.severity)] = f"{rows[column.name]['accuracy']:.2f}"
    return table(list(lines.values()))


def _missing(not_measured: dict[str, str]) -> str:
    """The columns of each reason; of many, as the corruptions of a dataset are, the first and the last."""
    reasons: dict[str, list[str]] = {}
    for name, reason in not_measured.items():
        reasons.setdefault(reason, []).append(name)
    lines = []
    for reason, names in reasons.items():
        listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]} ({len(names)} columns)"
        lines.append(f"- {listed}: {reason}")
    return "\n".join(lines)
