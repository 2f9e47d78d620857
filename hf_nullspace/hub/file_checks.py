"""The claims of a published checkpoint that no image enters: hashes, and files that repeat or imply one another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from ..certificate import token_norms
from ..noise import NOISE_CONFIG_NAME, NullspaceNoise
from ..robustness import RobustnessReport
from ..robustness.outcomes import model_fingerprint
from ..robustness.report import REPORT_NAME
from .card_results import MODEL_NAME
from .claims import Claim, compare_values
from .manifest import MANIFEST_NAME, NewerFormatError, compare_with_manifest
from .model_card import TRAINING_NAME, eval_results


def read_facts(folder: Path) -> dict[str, Any]:
    """What `nullspace_training.json` says."""
    path = folder / TRAINING_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no {TRAINING_NAME}; `NullspaceTrainer` writes one beside the model card.")
    return json.loads(path.read_text(encoding="utf-8"))


def check_files(folder: Path) -> list[Claim]:
    """
    One claim for each file that the manifest lists.

    Raises:
        [`NewerFormatError`]: If this version of the package cannot read the files.
    """
    try:
        return [
            Claim(f"file {name}", not problem, reason=problem)
            for name, problem in compare_with_manifest(folder).items()
        ]
    except NewerFormatError:
        raise
    except (FileNotFoundError, ValueError) as error:
        return [Claim(f"file {MANIFEST_NAME}", False, reason=str(error))]


def check_certificate(noise: NullspaceNoise, facts: dict[str, Any]) -> Claim:
    """That the certificate of the card is the one beside the noise."""
    certificate = noise.certificate.to_dict()
    differing = [name for name, value in certificate.items() if (facts["certificate"] or {}).get(name) != value]
    reason = f"{NOISE_CONFIG_NAME} and {TRAINING_NAME} differ in {differing}" if differing else ""
    return Claim(f"{TRAINING_NAME} has the certificate of the noise", not differing, reason=reason)


def check_card(folder: Path, facts: dict[str, Any]) -> Claim:
    """That the card's metadata has the numbers of `nullspace_training.json`."""
    expected = {result.metric_name: result.metric_value for result in eval_results(facts, "")}
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    found = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    reason = f"the card and {TRAINING_NAME} differ in {wrong}" if wrong else ""
    return Claim("the card has the measured metrics", not wrong, reason=reason)


def check_noise(noise: NullspaceNoise) -> list[Claim]:
    """That the noise has the norms and verdicts of its certificates."""
    claims = []
    for index, (row, claimed) in enumerate(zip(noise.tensor, noise.certificates, strict=True)):
        norms = token_norms(row[None])
        label = f" of noise {index}" if len(noise.tensor) > 1 else ""
        claims += [
            compare_values(f"norm{label}", claimed.norm, norms.norm().item()),
            compare_values(f"token_norm_min{label}", claimed.token_norm_min, norms.min().item()),
            compare_values(f"token_norm_median{label}", claimed.token_norm_median, norms.median().item()),
            compare_values(f"token_norm_max{label}", claimed.token_norm_max, norms.max().item()),
        ]
        converged = claimed.probability_mse_upper <= claimed.epsilon and claimed.logit_distance > 0
        holds = claimed.converged == converged and claimed.epsilon == noise.config.epsilon
        reason = "" if holds else "its own bound and epsilon say otherwise"
        claims.append(Claim(f"certified within epsilon{label}", holds, str(claimed.converged), str(converged), reason))
    return claims


def check_report(report: RobustnessReport, facts: dict[str, Any], model: PreTrainedModel) -> list[Claim]:
    """That the report was measured with these weights, and its numbers agree with one another and with the card's."""
    same = report.run["model"] == model_fingerprint(model)
    claims = [Claim("weights of the report", same, reason="" if same else "it was measured with other weights")]

    def of_model(part: str) -> dict[str, Any]:
        return (facts[part] or {}).get(MODEL_NAME) or {}

    wrong = [
        name
        for name, row in report.columns.items()
        if not math.isclose(row["accuracy"], 100 * row["correct"] / row["count"])
        or not math.isclose(row["accuracy"], of_model("results").get(name, math.nan))
        or of_model("intervals").get(name, [row["low"], row["high"]]) != [row["low"], row["high"]]
    ]
    reason = f"accuracy, counts and {TRAINING_NAME} differ in {wrong}" if wrong else ""
    return [*claims, Claim(f"{TRAINING_NAME} has the accuracies of the report", not wrong, reason=reason)]


def check_without_report(facts: dict[str, Any]) -> Claim:
    """Without a report there are no accuracies to check; a card that states some all the same is refused."""
    stated = (facts["results"] or {}).get(MODEL_NAME)
    reason = f"there is no {REPORT_NAME}" + (", but the card states accuracies" if stated else "")
    return Claim("accuracy of the report", False if stated else None, reason=reason)


def list_controls(facts: dict[str, Any]) -> list[Claim]:
    """The accuracies that nobody but the publisher can measure."""
    controls = ", ".join(name for name in facts["results"] or {} if name != MODEL_NAME)
    return [Claim(f"accuracy of the controls ({controls})", None, reason="not published")] if controls else []
