"""Checks what a published checkpoint claims: its files, its noise, its certificate and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ..certificate import Certificate, token_norms
from ..digits import DIGITS_NAME, load_digits_splits
from ..frozen import FrozenClassifier, frozen
from ..injection import tokens_shape
from ..noise import NOISE_CONFIG_NAME, NullspaceNoise
from ..pictures import read_pictures, to_pixel_values
from ..probing import measure_noise
from .claims import Claim, claims_table, compare_certificates, compare_values
from .manifest import MANIFEST_NAME, PUBLISHED_SUFFIXES, compare_with_manifest
from .model_card import TRAINING_NAME, eval_results


@dataclass(frozen=True)
class Verification:
    """
    Result of [`verify`].

    Args:
        source (`str`): The repository or folder.
        claims (`tuple[Claim]`): Each claim with its check.
    """

    source: str
    claims: tuple[Claim, ...]

    @property
    def failed(self) -> list[Claim]:
        """The claims that do not hold."""
        return [claim for claim in self.claims if not claim.holds]

    def to_markdown(self) -> str:
        """The table, and the failed claims below it."""
        lines = [f"{self.source}: {len(self.claims) - len(self.failed)} of {len(self.claims)} claims hold"]
        lines += [f"- {claim.name}: {claim.reason}" for claim in self.failed]
        return claims_table(self.claims) + "\n\n" + "\n".join(lines)


def verify(
    repo_or_folder: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    max_images: int | None = None,
    batch_size: int = 64,
) -> Verification:
    """
    Downloads a checkpoint and checks all it claims.

    The hashes of its files; that the noise fits the model and has the norms its certificate says; that card and
    certificate agree with `nullspace_training.json`; and, measured anew, the certificate. A measured claim fails where
    its 95 % interval and that of the new measurement do not overlap. Hashes guard against damage and single edits; who
    rewrites the manifest too meets the measurements.

    Args:
        repo_or_folder (`str` or `os.PathLike`): `"user/repo"`, or a folder that `NullspaceTrainer` wrote.
        images (`str` or `os.PathLike`, *optional*): Folder of pictures to measure on. By default the digits, which the
            checkpoint must have been trained on.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Access token, for private repositories.
        cache_dir (`str` or `os.PathLike`, *optional*): Where downloads are cached.
        max_images (`int`, *optional*): Measure on the first so many images only.
        batch_size (`int`, *optional*, defaults to 64): Images at a time.

    Returns:
        [`Verification`].

    Raises:
        `ValueError`: If no images are named for a checkpoint that was not trained on the digits.

    Example:

    ```python
    >>> verification = verify("user/robust-vit", images="photos")  # doctest: +SKIP
    >>> verification.failed  # doctest: +SKIP
    []
    ```
    """
    folder = Path(repo_or_folder)
    if not folder.is_dir():
        patterns = [f"*{suffix}" for suffix in PUBLISHED_SUFFIXES]
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = Path(
            snapshot_download(str(repo_or_folder), allow_patterns=patterns, ignore_patterns=["*/*"], **options)
        )
    claims = check_files(folder)
    try:
        noise, facts = NullspaceNoise.from_pretrained(folder), read_facts(folder)
        evaluated = facts["evaluation_certificate"] and Certificate.from_dict(facts["evaluation_certificate"])
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        return Verification(str(repo_or_folder), (*claims, Claim("noise and results", False, reason=str(error))))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    claims += check_consistency(folder, noise, facts) + check_noise(noise)
    projection = facts["patch_projection"]
    where, pictures = choose_pictures(facts, noise.config.seed, images, max_images)
    found = tuple(noise.tensor.shape[1:])
    expected = expected_shape(model, to_pixel_values(pictures[:1], processor), projection)
    reason = "" if found == expected else "it does not fit the model's patch embeddings"
    claims.append(Claim("shape of the noise (patches, hidden)", not reason, str(found), str(expected), reason))
    if not reason:
        batches = [
            {"pixel_values": to_pixel_values(pictures[first : first + batch_size], processor)}
            for first in range(0, len(pictures), batch_size)
        ]
        measured = measure_noise(model, noise, batches, patch_projection=projection)
        # Training goes on after a noise is certified; the evaluation certificate is of the weights as published.
        claims += compare_certificates(where, evaluated or noise.certificate, measured)
    return Verification(str(repo_or_folder), tuple(claims))


def read_facts(folder: Path) -> dict[str, Any]:
    """What `nullspace_training.json` says."""
    path = folder / TRAINING_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no {TRAINING_NAME}; `NullspaceTrainer` writes one beside the model card.")
    return json.loads(path.read_text(encoding="utf-8"))


def check_files(folder: Path) -> list[Claim]:
    """One claim for each file that the manifest lists."""
    try:
        return [
            Claim(f"file {name}", not problem, reason=problem)
            for name, problem in compare_with_manifest(folder).items()
        ]
    except (FileNotFoundError, ValueError) as error:
        return [Claim(f"file {MANIFEST_NAME}", False, reason=str(error))]


def check_consistency(folder: Path, noise: NullspaceNoise, facts: dict[str, Any]) -> list[Claim]:
    """That the files which repeat a number say the same."""
    certificate = noise.certificate.to_dict()
    differing = [name for name, value in certificate.items() if (facts["certificate"] or {}).get(name) != value]
    reason = f"{NOISE_CONFIG_NAME} and {TRAINING_NAME} differ in {differing}" if differing else ""
    claims = [Claim(f"{TRAINING_NAME} has the certificate of the noise", not differing, reason=reason)]
    expected = {result.metric_name: result.metric_value for result in eval_results(facts, "")}
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    found = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    reason = f"the card and {TRAINING_NAME} differ in {wrong}" if wrong else ""
    return [*claims, Claim("the card has the measured metrics", not wrong, reason=reason)]


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


def expected_shape(
    model: PreTrainedModel, pixel_values: torch.Tensor, patch_projection: str | None
) -> tuple[int, int]:
    """Number of patches and hidden size of the model's patch embeddings."""
    with frozen(model):
        embeddings, _ = FrozenClassifier(model, patch_projection).embed({"pixel_values": pixel_values})
    return tuple(tokens_shape(embeddings))


def choose_pictures(
    facts: dict[str, Any], seed: int, images: str | os.PathLike | None, max_images: int | None
) -> tuple[str, Sequence[Image.Image]]:
    """What to measure on: given pictures, or the evaluation images of the digits."""
    if images is not None:
        return "given images", read_pictures(images, max_images)
    if facts["dataset"] != DIGITS_NAME:
        raise ValueError(
            f"The checkpoint was trained on {facts['dataset'] or 'images that it does not name'}, which this package "
            "does not bring. Name a folder of such pictures with `--images`."
        )
    return "evaluation images", load_digits_splits(seed)["validation"][:max_images]["image"]
