"""Checks of a published checkpoint that need no images: hashes, and consistency between its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..noise.certificate import Certificate, token_norms
from ..noise.nullspace_noise import NOISE_CONFIG_NAME, NullspaceNoise
from ..robustness.report import REPORT_NAME
from ..utils.escaping import plain_text
from ..utils.strict_json import read_json
from .card_results import MODEL_NAME
from .claims import Claim, compare_values
from .manifest import MANIFEST_NAME, NewerFormatError, compare_with_manifest, publishable_files, read_manifest
from .model_card import TRAINING_NAME


# What `Trainer` and the examples save beside a model.
SIDE_FILES = ("all_results.json", "eval_results.json", "robustness_results.json", "train_results.json")


def check_certificate(noise: NullspaceNoise, facts: dict[str, Any]) -> list[Claim]:
    """Checks that the certificate, the last round and the settings of the card agree with the noise."""
    certificate = noise.certificate.to_dict()
    differing = [name for name, value in certificate.items() if (facts["certificate"] or {}).get(name) != value]
    reason = f"{NOISE_CONFIG_NAME} and {TRAINING_NAME} differ in {differing}" if differing else ""
    claims = [Claim(f"{TRAINING_NAME} has the certificate of the noise", not differing, reason=reason)]
    last = facts["rounds"][-1] if facts["rounds"] else {}
    wrong = [f"round: {name}" for name, value in certificate.items() if name in last and last[name] != value]
    config = noise.config.to_dict()
    wrong += [name for name, value in facts["settings"].items() if name in config and config[name] != value]
    if facts["bank_size"] != 1:
        wrong.append("bank_size")
    if last.get("round", noise.round_index) != noise.round_index:
        wrong.append("round: round")
    reason = f"the noise has others for {wrong}" if wrong else ""
    claims.append(Claim("rounds and settings of the noise", not wrong, reason=reason))
    return claims if facts["evaluation_certificate"] is None else [*claims, _check_evaluated(noise, facts)]


def _check_evaluated(noise: NullspaceNoise, facts: dict[str, Any]) -> Claim:
    """Checks that the evaluation certificate belongs to this noise and that its verdict follows from its numbers."""
    certificate = Certificate.from_dict(facts["evaluation_certificate"])
    wrong = [name for name in ("epsilon", "confidence") if getattr(certificate, name) != getattr(noise.config, name)]
    norms = [compare_values(name, getattr(certificate, name), value) for name, value in _norms(noise.tensor).items()]
    if not all(claim.holds for claim in norms):
        wrong.append("norms")
    if certificate.converged != certificate.is_certified:
        wrong.append("verdict")
    reason = f"the noise has others for {wrong}" if wrong else ""
    return Claim("certificate of evaluation images", not wrong, reason=reason)


def check_files(folder: Path) -> list[Claim]:
    """
    One claim for each file that the manifest lists.

    Raises:
        [`NewerFormatError`]: If this version of the package cannot read the files.
    """
    try:
        return [
            Claim(f"file {plain_text(name, 60)}", not problem, reason=problem)
            for name, problem in compare_with_manifest(folder).items()
        ]
    except NewerFormatError:
        raise
    except (FileNotFoundError, ValueError) as error:
        return [Claim(f"file {MANIFEST_NAME}", False, reason=str(error))]


def check_noise(noise: NullspaceNoise) -> list[Claim]:
    """Checks that the noise has the norms and the verdict of its certificate."""
    claimed = noise.certificate
    converged = claimed.is_certified
    holds = claimed.converged == converged and claimed.epsilon == noise.config.epsilon
    reason = "" if holds else "its own bound and epsilon say otherwise"
    return [
        *[compare_values(name, getattr(claimed, name), value) for name, value in _norms(noise.tensor).items()],
        Claim("certified within epsilon", holds, str(claimed.converged), str(converged), reason),
    ]


def _norms(noise: torch.Tensor) -> dict[str, float]:
    """The norms of one noise of shape `(1, num_patches, hidden_size)`, by their names in its certificate."""
    tokens = token_norms(noise)
    return {
        "norm": tokens.norm().item(),
        "raw_norm": noise.norm().item(),
        "token_norm_min": tokens.min().item(),
        "token_norm_median": tokens.median().item(),
        "token_norm_max": tokens.max().item(),
    }


def check_without_noise(facts: dict[str, Any]) -> Claim:
    """Without noise there is no certificate: the claim fails if the card states an evaluation certificate anyway."""
    stated = facts["evaluation_certificate"] is not None
    reason = "there is no noise, but the card states its certificate" if stated else "it was trained without noise"
    return Claim("certificate", False if stated else None, reason=reason)


def check_without_report(facts: dict[str, Any]) -> Claim:
    """Without a report there are no accuracies to check: the claim fails if the card states some anyway."""
    stated = (facts["results"] or {}).get(MODEL_NAME)
    reason = f"there is no {REPORT_NAME}" + (", but the card states accuracies" if stated else "")
    return Claim("accuracy of the report", False if stated else None, reason=reason)


def check_side_files(folder: Path, facts: dict[str, Any]) -> list[Claim]:
    """Checks the other files of the folder: metrics that the card repeats, figures, and files not in the manifest."""
    values = _known_values(facts)
    wrong = []
    unknown = []
    for name in SIDE_FILES:
        if (folder / name).is_file():
            for field, value in read_json(folder / name).items():
                if field in values and values[field] != value:
                    wrong.append(f"{name}: {plain_text(field, 60)}")
                elif field not in values:
                    unknown.append(name)
    claims = []
    if wrong or any((folder / name).is_file() for name in SIDE_FILES):
        reason = f"{TRAINING_NAME} has others for {wrong[:5]}" if wrong else ""
        claims.append(Claim("metrics in other files", not wrong, reason=reason))
    if unknown:
        claims.append(Claim("losses and times of the run", None, reason="only the training run knows"))
    published = publishable_files(folder)
    figures = [name for name in published if name.endswith(".png")]
    claims += [Claim(f"figure {plain_text(name, 60)}", None, reason="a picture is not read") for name in figures]
    try:
        listed = read_manifest(folder)
    except (OSError, ValueError):
        return claims
    others = [name for name in published if name not in listed and name != MANIFEST_NAME]
    claims += [
        Claim(f"file {plain_text(name, 60)}", None, reason=f"{MANIFEST_NAME} does not list it") for name in others
    ]
    return claims


def _known_values(facts: dict[str, Any]) -> dict[str, float]:
    """The metrics that both the card and the result files of `Trainer` and the examples may hold."""
    values = {
        f"{model}_{column}": value for model, row in (facts["results"] or {}).items() for column, value in row.items()
    }
    for name, value in (facts["metrics"]["last"] or {}).items():
        values[name if name.startswith("eval_") else f"eval_{name.lower().replace(' ', '_')}"] = value
    return values
