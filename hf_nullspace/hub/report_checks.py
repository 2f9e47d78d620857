"""Checks every number of a robustness report and every accuracy of a card against the published outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data.dataset_spec import PREPROCESSINGS
from ..robustness.metrics import wilson_interval
from ..robustness.outcomes import Outcomes, model_fingerprint
from ..robustness.preparation import describe_preprocessing
from ..robustness.profiles import EVALUATION_SET, PROFILES
from ..robustness.report import MARKDOWN_NAME, OUTCOMES_NAME, REPORT_NAME, RobustnessReport
from ..robustness.scoring import aggregate_columns, shared_bar
from ..robustness.shards import choose_images
from ..utils.escaping import plain_text
from ..utils.strict_json import read_json
from .card_results import CONTROL_NAME, MODEL_NAME, paired_differences, unpack_correct
from .claims import Claim
from .facts import interval_of
from .model_card import TEMPLATE, TRAINING_NAME
from .page_text import compare_pages


# What is measured under the names of the package's own profiles: by this version, and by those before.
EARLIER_HASHES = {
    "preview": {"db65de008444d41c8775d24971380db3530aec2b8b2da178d0b173912180f30e"},
    "quick": {"64335d66eea443d42571c3309cdbd0c5b9a8edb8978e566156c41550dd88612e"},
    "standard": {"0b3269264ddabd72480d20443915b9f4dc15d4a43ca4d7bbe070b51c055e95e8"},
    "paper": {"1ec96c394552f752f5f2f5d0bf5cff0b3be01792951185394a7e51ba54cbb72d"},
    "released": {"6a14b9984778e351c3199833e4fb70873641f527b97dc4eebd43ae9dfc816f0b"},
}
# The fields of a column that every version wrote.
BASE_FIELDS = ("accuracy", "low", "high", "correct", "count")
MAX_COLUMNS = 1000


def check_columns(report: RobustnessReport) -> list[Claim]:
    """Checks that each column of the profile has a row or a reason, and that a named profile is unchanged."""
    names = [column.name for column in report.profile.columns]
    both = sorted({*report.columns} & {*report.not_measured})
    lost = [name for name in names if name not in report.columns and name not in report.not_measured]
    unknown = sorted({*report.columns, *report.not_measured} - {*names})
    problems = [
        f"{words} {_listed(found)}"
        for words, found in (("no row for", lost), ("not in the profile:", unknown), ("measured and not:", both))
        if found
    ]
    claims = [Claim("columns of the report", not problems, reason="; ".join(problems))]
    own = PROFILES.get(report.profile.name)
    if own is None:
        reason = f"the profile {plain_text(report.profile.name, 40)!r} is the publisher's own"
        claims.append(Claim("protocol of the report", None, reason=reason))
    else:
        holds = report.profile.hash in {own.hash, *EARLIER_HASHES.get(own.name, ())}
        reason = "" if holds else f"{report.profile.name!r} has other columns or settings in this package"
        claims.append(Claim("protocol of the report", holds, reason=reason))
    missing = set(report.not_measured.values())
    if missing:
        listed = f"{_listed(list(report.not_measured))}: {plain_text('; '.join(sorted(missing)), 200)}"
        claims.append(Claim("columns without a result", None, reason=listed))
    return claims


def check_outcomes(report: RobustnessReport, num_labels: int) -> Claim:
    """Checks that the outcomes cover the images that the profile chooses, and that their values are possible."""
    name = "outcomes of the report"
    if report.outcomes is None:
        return Claim(name, None, reason=f"there is no {OUTCOMES_NAME}, so no number of {REPORT_NAME} can be derived")
    differing = sorted({*report.outcomes} ^ {*report.columns})
    if differing:
        return Claim(name, False, reason=f"{OUTCOMES_NAME} and {REPORT_NAME} differ in {_listed(differing)}")
    problems = []
    columns = {column.name: column for column in report.profile.columns}
    for title, outcomes in report.outcomes.items():
        problem = _impossible(outcomes, num_labels)
        column = columns.get(title)
        total = report.run.get("num_images", {}).get(getattr(column, "dataset", None))
        if not problem and total is not None:
            chosen = choose_images(min(total, 10_000_000), column.max_images, report.profile.seed)
            problem = "" if outcomes.indices.tolist() == chosen else "not the images that the profile chooses"
        if problem:
            problems.append(f"{plain_text(title, 60)}: {problem}")
    return Claim(name, not problems, reason="; ".join(problems[:3]))


def check_logits(report: RobustnessReport, num_labels: int) -> Claim:
    """Checks that the report states the model's number of logits."""
    stated = report.run.get("logits", {})
    wrong = [
        name
        for name, counts in stated.items()
        if counts["all"] != num_labels or not 0 < counts["competing"] <= counts["all"]
    ]
    reason = f"the model has {num_labels}, and the report others for {_listed(wrong)}" if wrong else ""
    return Claim("logits of the report", not wrong, reason=reason)


def check_weights(report: RobustnessReport, model: PreTrainedModel, is_adapter: bool) -> Claim:
    """Checks that the report states the hash of these weights."""
    name = "weights of the report"
    if report.run.get("model") == model_fingerprint(model):
        return Claim(name, True)
    if is_adapter:  # its weights have other names once they are loaded
        return Claim(name, None, reason="the weights of an adapter have other names in training")
    return Claim(name, False, reason="it was measured with other weights")


def check_preprocessing(report: RobustnessReport, image_processor: Callable, is_old: bool) -> Claim:
    """Checks that the preprocessing in the report is that of the published image processor."""
    expected = describe_preprocessing(image_processor, {})
    found = report.run.get("preprocessing", {})
    expected["resizing"] = found.get("resizing")
    wrong = [name for name, value in found.items() if name in expected and expected[name] != value]
    wrong += [] if is_old else sorted(set(found) ^ set(expected))
    wrong += [words for words in found.get("resizing", {}) if not is_old and words not in PREPROCESSINGS.values()]
    reason = f"the image processor has others for {_listed(wrong)}" if wrong else ""
    return Claim("preprocessing of the report", not wrong, reason=reason)


def check_rows(report: RobustnessReport, is_old: bool) -> list[Claim]:
    """Checks a report without outcomes: accuracies, intervals and means must follow from its counts."""
    columns = {column.name: column for column in report.profile.columns}
    wrong = []
    for name, row in report.columns.items():
        total = report.run.get("num_images", {}).get(getattr(columns.get(name), "dataset", None))
        most = columns[name].max_images if name in columns else None
        if total is not None and row["count"] != min(total, most or total) or not 0 <= row["correct"] <= row["count"]:
            wrong.append(f"count of {name}")
            continue
        low, high = wilson_interval(row["correct"], row["count"])
        expected = {"accuracy": 100 * row["correct"] / row["count"], "low": low, "high": high}
        wrong += differing_paths({field: row[field] for field in expected}, expected, name)
    claims = [Claim("numbers of the report", not wrong, reason=_others("counts", wrong))]
    if wrong or is_old:
        return claims
    bars = {name: dict(row) for name, row in report.summary.items()}
    alone = {name: row for name, row in report.columns.items() if name in bars}
    groups: dict[str, list[float]] = {}
    for column in report.profile.columns:
        if column.name in report.columns and column.corruption is not None and column.attack is None:
            groups.setdefault(shared_bar(column), []).append(report.columns[column.name]["accuracy"])
    expected = {name: {field: row[field] for field in ("accuracy", "low", "high")} for name, row in alone.items()}
    for name, values in groups.items():  # its interval takes outcomes
        expected[name] = {**bars.get(name, {}), "accuracy": sum(values) / len(values)}
    wrong = differing_paths(bars, expected)
    claims.append(Claim("numbers of the figure of the report", not wrong, reason=_others("counts", wrong)))
    if not wrong:
        wrong = differing_paths(
            report.aggregates, aggregate_columns(report.profile.columns, report.columns, report.summary)
        )
        claims.append(Claim("means of the report", not wrong, reason=_others("counts", wrong)))
    further = sorted({field for row in report.columns.values() for field in row} - {*BASE_FIELDS})
    if further:
        claims.append(Claim(f"{_listed(further)} of the report", None, reason=f"there is no {OUTCOMES_NAME}"))
    return claims


def _others(source: str, wrong: list[str]) -> str:
    return f"the {source} give others for {_listed(wrong)}" if wrong else ""


def check_stated_fields(folder: Path, report: RobustnessReport, is_old: bool) -> Claim:
    """Checks that the seed and the descriptions of the means are those of the profile."""
    stated = read_json(folder / REPORT_NAME)
    expected = report.to_dict()
    names = ("seed",) if is_old else ("seed", "aggregates_over")
    wrong = [name for name in names if stated.get(name) != expected[name]]
    return Claim("seed and means of the report by its profile", not wrong, reason=_others("profile and means", wrong))


def derive(report: RobustnessReport) -> RobustnessReport:
    """The report, computed again from its outcomes."""
    parts = (report.outcomes, report.not_measured, report.run, report.seconds)
    return RobustnessReport.of(report.model_name, report.profile, *parts)


def check_numbers(report: RobustnessReport, derived: RobustnessReport, is_old: bool) -> list[Claim]:
    """Checks rows, bars and means against the outcomes. An old report may lack fields that were added later."""
    claims = []
    for title, part in (("columns", "numbers"), ("summary", "numbers of the figure"), ("aggregates", "means")):
        found = getattr(report, title)
        expected = getattr(derived, title)
        if is_old:
            expected = _known_to(expected, found)
        wrong = differing_paths(found, expected)
        reason = f"the outcomes give others for {_listed(wrong)}" if wrong else ""
        claims.append(Claim(f"{part} of the report", not wrong, reason=reason))
    return claims


def check_report_page(folder: Path, derived: RobustnessReport, is_old: bool) -> Claim:
    """Checks that `robustness.md` is the page that follows from the outcomes."""
    path = Path(folder, MARKDOWN_NAME)
    name = f"text of {MARKDOWN_NAME}"
    if not path.is_file():
        return Claim(name, None, reason="it is not published")
    return compare_pages(name, path, derived.to_markdown(), derived.to_dict(), is_old)


def check_card_numbers(facts: Mapping[str, Any], report: RobustnessReport) -> list[Claim]:
    """Checks that the card has all accuracies of the report, and that its differences follow from the outcomes."""
    accuracies = report.accuracies
    stated = facts["results"] or {}
    intervals = facts["intervals"] or {}
    count = report.run.get("num_images", {}).get(EVALUATION_SET)
    wrong = differing_paths(stated.get(MODEL_NAME, {}), accuracies)
    ends = {name: [row["low"], row["high"]] for name, row in report.columns.items()}
    wrong += [f"interval of {name}" for name in differing_paths(intervals.get(MODEL_NAME, ends), ends)]
    if facts["result_images"] not in (None, count):
        wrong.append("number of images")
    if facts.get("result_logits") not in (None, report.run.get("logits", {}).get(EVALUATION_SET)):
        wrong.append("number of logits")
    reason = f"accuracy, counts and {TRAINING_NAME} differ in {_listed(wrong)}" if wrong else ""
    claims = [Claim(f"{TRAINING_NAME} has the accuracies of the report", not wrong, reason=reason)]
    controls = {name: row for name, row in stated.items() if name != MODEL_NAME}
    for name, row in controls.items():
        claims.append(_check_control(plain_text(name, 40), row, intervals.get(name), facts, report))
    if facts["differences"] is not None:
        claims.append(_check_differences(facts, report))
    elif CONTROL_NAME in stated and facts["template"] == TEMPLATE:
        reason = "the card leaves them out, though it has the control"
        claims.append(Claim("differences from the control", False, reason=reason))
    missing = [name for name in ("intervals", "result_images", "result_logits") if facts[name] is None]
    if missing and facts["template"] == TEMPLATE:
        claims.append(Claim(f"{_listed(missing)} of the card", None, reason="the card leaves them out"))
    return claims


def differing_paths(found: Any, expected: Any, path: str = "") -> list[str]:
    """The paths at which two JSON values differ by more than the rounding of float64 sums."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return [
            place
            for name in dict.fromkeys([*expected, *found])
            for place in (
                differing_paths(found[name], expected[name], f"{path}.{name}".lstrip("."))
                if name in found and name in expected
                else [f"{path}.{name}".lstrip(".")]
            )
        ]
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)) and len(found) == len(expected):
        pairs = zip(found, expected, strict=True)
        return list(dict.fromkeys(each for pair in pairs for each in differing_paths(*pair, path)))
    numbers = [isinstance(each, (int, float)) and not isinstance(each, bool) for each in (found, expected)]
    same = math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9) if all(numbers) else found == expected
    return [] if same else [path or "value"]


def _check_control(
    name: str, row: dict[str, float], ends: dict[str, list[float]] | None, facts: Mapping[str, Any], report
) -> Claim:
    title = f"accuracy of the control {name!r}"
    packed = (facts["correct"] or {}).get(name)
    wrong = []
    for column, value in row.items():
        count = report.columns[column]["count"] if column in report.columns else None
        if packed is not None:
            try:
                correct = unpack_correct(packed[column])
            except (KeyError, ValueError):
                return Claim(title, False, reason=f"its outcomes lack {column}")
            if not math.isclose(value, 100 * correct.mean(), abs_tol=1e-9) or count not in (None, len(correct)):
                wrong.append(column)
        if count is not None and ends is not None and not wrong:
            if not 0 <= value <= 100 or differing_paths(ends.get(column), interval_of(value, count)):
                wrong.append(f"interval of {column}")
    if wrong:
        return Claim(title, False, reason=f"its outcomes give others for {_listed(wrong)}")
    follows = "follows from its outcomes, but " if packed is not None else ""
    return Claim(title, None, reason=f"{follows}its weights are not published")


def _check_differences(facts: Mapping[str, Any], report: RobustnessReport) -> Claim:
    title = "differences from the control"
    stated = facts["differences"]
    control = (facts["results"] or {}).get(CONTROL_NAME) or {}
    own = report.accuracies
    wrong = [
        name
        for name, (value, low, high) in stated.items()
        if name not in own
        or name not in control
        or not math.isclose(value, own[name] - control[name], abs_tol=1e-9)
        or not low <= value <= high
    ]
    wrong += [name for name in own if name in control and name not in stated]
    packed = (facts["correct"] or {}).get(CONTROL_NAME)
    if wrong or packed is None or report.outcomes is None:
        reason = f"they are not those of the accuracies for {_listed(wrong)}" if wrong else ""
        return Claim(title, False if wrong else None, reason=reason or "the control's outcomes are not published")
    try:
        others = {name: unpack_correct(text) for name, text in packed.items()}
        ours = {name: outcomes.correct.numpy() for name, outcomes in report.outcomes.items()}
        expected = paired_differences(ours, others, report.profile.seed)
    except ValueError as error:
        return Claim(title, False, reason=f"the control's outcomes are damaged: {plain_text(error, 100)}")
    wrong = differing_paths(stated, expected)
    reason = f"the outcomes give others for {_listed(wrong)}" if wrong else ""
    return Claim(title, not wrong, reason=reason)


def _known_to(expected: Any, found: Any, depth: int = 0) -> Any:
    """`expected` without the fields that `found` lacks; fields that every version wrote are kept."""
    if not isinstance(expected, Mapping) or not isinstance(found, Mapping):
        return expected
    return {
        name: _known_to(value, found.get(name), depth + 1)
        for name, value in expected.items()
        if name in found or (depth == 0 and isinstance(value, Mapping)) or name in BASE_FIELDS
    }


def _impossible(outcomes: Outcomes, num_labels: int) -> str:
    if not all(bool(value.isfinite().all()) for value in outcomes.named.values()):
        return "numbers that are not finite"
    if not bool(((outcomes.prediction >= 0) & (outcomes.prediction < num_labels)).all()):
        return "predictions that are no class"
    is_share = (outcomes.confidence > 0) & (outcomes.confidence <= 1 + 1e-6)
    if not bool((is_share & (outcomes.l2 >= 0) & (outcomes.linf >= 0)).all()):
        return "impossible probabilities or distances"
    if outcomes.label is not None and bool((outcomes.correct & (outcomes.prediction != outcomes.label)).any()):
        return "right answers of another class than the label"
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(plain_text(name, 60)) for name in names[:5])
    return f"[{shown}]" if len(names) <= 5 else f"[{shown} and {len(names) - 5} more]"
