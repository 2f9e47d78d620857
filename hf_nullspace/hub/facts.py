"""Reads an untrusted `nullspace_training.json` strictly: only values that a training run writes can reach a card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..noise.certificate import Certificate
from ..robustness.metrics import wilson_interval
from ..utils.escaping import looks_like_another
from ..utils.strict_json import DamagedFileError, expect, read_json
from .model_card import TEMPLATES, TRAINING_NAME
from .training_facts import FIGURES, FIRST_FIGURES


NUMBER = (int, float)
# Fields of a certificate: integers, and numbers that a card shows and that must be finite.
COUNTS = ("num_images", "steps", "num_images_needed")
NUMBERS_OF_A_CARD = ("epsilon", "confidence", "probability_mse", "agreement", "permuted_agreement", "norm")
# Names of columns, models, metrics, settings and packages: words, never sentences.
NAME = re.compile(r"[\w.+()/ -]{1,64}")
# The description of a method or a setting is one line.
MAX_WORDS = 400


def read_facts(folder: Path) -> dict[str, Any]:
    """
    Reads `nullspace_training.json`. Parts that earlier versions did not write are `None`.

    Raises:
        `FileNotFoundError`: If the file does not exist.
        [`DamagedFileError`]: If a part has another type than a training run writes.
    """
    path = Path(folder, TRAINING_NAME)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {TRAINING_NAME}; `NullspaceTrainer` writes one beside the model card.")
    facts = read_json(path)
    try:
        return check_facts(facts)
    except DamagedFileError as error:
        raise DamagedFileError(f"{TRAINING_NAME} is damaged: {error}.") from None


def check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Checks the type of each fact and returns the facts."""
    optional = ["dataset", "method", "patch_projection", "result_images", "result_logits"]
    optional += ["intervals", "differences", "correct"]
    facts = {**dict.fromkeys(optional), "template": 1, **facts}
    if facts["template"] not in TEMPLATES:
        raise DamagedFileError(f"`template` is {facts['template']!r}, and this version knows {sorted(TEMPLATES)}")
    kinds: dict[str, type | tuple[type, ...]] = {
        "is_local_base": bool,
        "bank_size": int,
        "rounds": list,
        "settings": dict,
        "figures": dict,
    }
    kinds |= {"hyperparameters": dict, "metrics": dict, "versions": dict, "model_type": str}
    kinds |= {name: (str, type(None)) for name in ("dataset", "method", "patch_projection")}
    parts = ("certificate", "evaluation_certificate", "results", "intervals", "differences", "correct")
    kinds |= {name: (dict, type(None)) for name in parts}
    kinds |= {"result_images": (int, type(None)), "result_logits": (dict, type(None))}
    for name, kind in kinds.items():
        if name not in facts:
            raise DamagedFileError(f"there is no `{name}`")
        expect(facts[name], kind, f"`{name}`")
    for part, count in (facts["result_logits"] or {}).items():
        expect(count, int, f"`result_logits.{part}`")
    for name in ("settings", "hyperparameters", "versions"):
        _check_words(name, facts[name])
    for name in ("method", "dataset"):
        _check_words(name, {name: facts[name]})
    figures = FIRST_FIGURES if facts["template"] == 1 else FIGURES
    if facts["figures"].items() - figures.items():
        raise DamagedFileError(f"`figures` names others than {sorted(figures)}, or gives them other captions")
    for name in ("certificate", "evaluation_certificate"):
        if facts[name] is not None:
            _certificate(name, facts[name])
    for place, row in enumerate(facts["rounds"]):
        _check_words(f"rounds[{place}]", expect(row, dict, f"`rounds[{place}]`"))
    last, evaluations = (facts["metrics"].get(name) for name in ("last", "evaluations"))
    for place, row in enumerate([last, *(expect(evaluations, (list, type(None)), "`metrics.evaluations`") or [])]):
        if row is not None:
            _check_words(f"metrics[{place}]", expect(row, dict, f"`metrics[{place}]`"))
    facts["metrics"] = {"last": last, "evaluations": evaluations}
    _check_numbers("results", facts["results"], lambda value, what: expect(value, NUMBER, what))
    _check_numbers("intervals", facts["intervals"], lambda value, what: _numbers(value, what, 2))
    _check_numbers("differences", {"": facts["differences"] or {}}, lambda value, what: _numbers(value, what, 3))
    _check_numbers("correct", facts["correct"], lambda value, what: expect(value, str, what))
    return facts


def interval_of(percent: float, count: int) -> list[float]:
    """The 95 % interval of an accuracy, rounded as on a card."""
    return list(wilson_interval(round(percent * count / 100), count))


def _certificate(name: str, values: dict[str, Any]) -> Certificate:
    try:
        certificate = Certificate.from_dict(values)
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"`{name}` is no certificate ({error})") from None
    for field, value in values.items():
        kind = bool if field == "converged" else int if field in COUNTS else NUMBER
        if value is not None or field in NUMBERS_OF_A_CARD or kind is not NUMBER:  # an infinite one is `None`
            expect(value, kind, f"`{name}.{field}`")
    impossible = [field for field, value in values.items() if value is not None and value < 0]
    impossible += [field for field in ("agreement", "permuted_agreement") if getattr(certificate, field) > 1]
    impossible += [] if certificate.num_images > 0 else ["num_images"]
    impossible += [] if 0 < certificate.confidence < 1 else ["confidence"]
    if impossible:
        raise DamagedFileError(f"`{name}` has impossible numbers: {impossible}")
    return certificate


def _check_words(part: str, values: Mapping[str, Any]) -> None:
    """Checks that names are words, and that values are numbers or one line of text."""
    for name, value in values.items():
        if not NAME.fullmatch(name) or looks_like_another(name):
            raise DamagedFileError(f"`{part}` has the name {name[:40]!r}")
        if isinstance(value, str) and (len(value) > MAX_WORDS or len(value.splitlines()) > 1):
            raise DamagedFileError(f"`{part}.{name}` is longer than a line")


def _check_numbers(part: str, values: Mapping[str, Any] | None, check) -> None:
    _check_words(part, dict.fromkeys(values or {}) if set(values or {}) != {""} else {})
    for model, row in (values or {}).items():
        _check_words(part, expect(row, dict, f"`{part}.{model}`"))
        for column, value in row.items():
            check(value, f"`{part}.{model}.{column}`")


def _numbers(value: Any, what: str, count: int) -> list[float]:
    if len(expect(value, list, what)) != count:
        raise DamagedFileError(f"{what} should have {count} numbers, but has {len(value)}")
    return [expect(each, NUMBER, what) for each in value]
