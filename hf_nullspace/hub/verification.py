"""Checks what a published checkpoint claims: its files, its noise, its certificate and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from ..certificate import Certificate
from ..digits import DIGITS_NAME, load_digits_splits
from ..frozen import FrozenClassifier, frozen
from ..injection import tokens_shape
from ..noise import NOISE_CONFIG_NAME, NOISE_TENSOR_NAME, NullspaceNoise
from ..patch_embedding import channels_of
from ..pictures import read_pictures
from ..preprocessing import Preprocessing
from ..probing import measure_noise
from ..robustness import RobustnessReport, evaluate_robustness
from ..robustness.profiles import EVALUATION_SET
from ..robustness.report import REPORT_NAME
from .claims import Claim, claims_table, compare_certificates, compare_columns
from .download import download
from .file_checks import (
    check_card,
    check_certificate,
    check_files,
    check_noise,
    check_report,
    check_without_report,
    list_controls,
    read_facts,
)


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Verification:
    """
    Result of [`verify`].

    Args:
        source (`str`): The repository, with its commit, or the folder.
        claims (`tuple[Claim]`): Each claim with its check.
    """

    source: str
    claims: tuple[Claim, ...]

    @property
    def failed(self) -> list[Claim]:
        """The claims that do not hold."""
        return [claim for claim in self.claims if claim.holds is False]

    def to_markdown(self) -> str:
        """The table, and the failed claims below it."""
        checked = [claim for claim in self.claims if claim.holds is not None]
        lines = [f"{self.source}: {len(checked) - len(self.failed)} of {len(checked)} claims hold"]
        lines += [f"- {claim.name}: {claim.reason}" for claim in self.failed]
        return claims_table(self.claims) + "\n\n" + "\n".join(lines)


def verify(
    repo_or_folder: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
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
    certificate agree with `nullspace_training.json`; and, measured anew, the certificate and the columns of the
    robustness report. A measured claim fails where its 95 % interval and that of the new measurement do not overlap or,
    on the very images of the claim, where more than one image in a hundred differs. Hashes guard against damage and
    single edits; who rewrites the manifest too meets the measurements.

    Args:
        repo_or_folder (`str` or `os.PathLike`): `"user/repo"`, or a folder that `NullspaceTrainer` wrote.
        images (`str`, `os.PathLike` or a sequence of them, *optional*): Folder of pictures to measure on, or several
            that count as one. By default the digits, which the checkpoint must have been trained on.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Access token, for private repositories.
        cache_dir (`str` or `os.PathLike`, *optional*): Where downloads are cached.
        max_images (`int`, *optional*): Measure on the first so many images only.
        batch_size (`int`, *optional*, defaults to 64): Images at a time.

    Returns:
        [`Verification`].

    Raises:
        `ValueError`: If no images are named for a checkpoint that was not trained on the digits, or if a newer version
            of the package published it.
        `OSError`: If the repository or the images cannot be had.

    Example:

    ```python
    >>> verification = verify("user/robust-vit", images="photos")  # doctest: +SKIP
    >>> verification.failed  # doctest: +SKIP
    []
    ```
    """
    folder, commit = download(repo_or_folder, revision=revision, token=token, cache_dir=cache_dir)
    source = str(repo_or_folder) if commit is None else f"{repo_or_folder}, commit {commit}"
    claims = check_files(folder)
    try:
        facts = read_facts(folder)
        noise = read_noise(folder, facts)
        evaluated = facts["evaluation_certificate"] and Certificate.from_dict(facts["evaluation_certificate"])
        report = RobustnessReport.load(folder) if Path(folder, REPORT_NAME).is_file() else None
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        claims.append(check_card(folder, facts))
        if noise is not None:
            claims += [check_certificate(noise, facts), *check_noise(noise)]
        claims += [check_without_report(facts)] if report is None else check_report(report, facts, model)
        images_of = PublishedImages(facts["dataset"], facts["settings"]["seed"], folders_of(images), max_images)
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        claims.append(Claim("files that fit together", False, reason=str(error)))
        return Verification(source, tuple(claims))
    if any(claim.holds is False for claim in claims) and not images_of.exist:
        return Verification(source, tuple(claims))
    images_of.check()
    if noise is None:
        claims.append(Claim("certificate", None, reason="it was trained without noise"))
    else:
        projection, claimed = facts["patch_projection"], evaluated or noise.certificate
        claims += measure_certificate(model, processor, noise, claimed, images_of, batch_size, projection)
    if report is not None:
        claims += measure_report(model, processor, report, images_of, batch_size)
    return Verification(source, (*claims, *list_controls(facts)))


def read_noise(folder: Path, facts: dict[str, Any]) -> NullspaceNoise | None:
    """The noise of a checkpoint; `None` if it was trained without, and claims none."""
    has_none = not any(Path(folder, name).is_file() for name in (NOISE_TENSOR_NAME, NOISE_CONFIG_NAME))
    return None if has_none and facts["certificate"] is None else NullspaceNoise.from_pretrained(folder)


def folders_of(images: str | os.PathLike | Sequence[str | os.PathLike] | None) -> tuple[str | os.PathLike, ...]:
    """The folders that were named."""
    return () if images is None else (images,) if isinstance(images, (str, os.PathLike)) else tuple(images)


@dataclass(frozen=True)
class PublishedImages:
    """
    The images that claims are measured on: those given, or those of the digits that the claims were made of.

    Args:
        dataset (`str` or `None`): Name of the dataset that the checkpoint was trained on.
        seed (`int`): Seed of its splits.
        folders (`tuple`, *optional*): Where the given images are.
        max_images (`int`, *optional*): Take so many at most.
    """

    dataset: str | None
    seed: int
    folders: tuple[str | os.PathLike, ...] = ()
    max_images: int | None = None

    @property
    def exist(self) -> bool:
        """Whether images were given, or are those that the package can find."""
        return bool(self.folders) or self.dataset == DIGITS_NAME

    def check(self) -> None:
        """Raises a `ValueError` if there are no images."""
        if not self.exist:
            raise ValueError(
                f"The checkpoint was trained on {self.dataset or 'images that it does not name'}, which this package "
                "does not bring. Name a folder of such pictures with `--images`; with one sub-folder for each class, "
                "the report is measured too."
            )

    def pictures(self) -> Sequence[Image.Image]:
        """Pictures for the certificate."""
        if self.folders:
            return [picture for folder in self.folders for picture in read_pictures(folder)][: self.max_images]
        return load_digits_splits(self.seed)["validation"][: self.max_images]["image"]

    def labelled(self, count: int) -> Dataset | None:
        """Pictures with labels for a report of `count` images; `None` where they have no labels."""
        if not self.folders:
            dataset = load_digits_splits(self.seed)["test"]
            return dataset.select(range(min(count, len(dataset), self.max_images or count)))
        from datasets import concatenate_datasets, load_dataset

        parts = [
            load_dataset("imagefolder", data_files={"test": f"{folder}/**"}, split="test") for folder in self.folders
        ]
        if not all("label" in part.column_names for part in parts):
            return None
        classes = [part.features["label"].names for part in parts]
        if any(names != classes[0] for names in classes):
            raise ValueError(f"The folders of `--images` have different classes: {classes}. Verify with each alone.")
        dataset = concatenate_datasets(parts)
        # The files are sorted by class, so the first ones would be of few classes.
        return dataset.shuffle(seed=self.seed).select(range(min(len(dataset), self.max_images or len(dataset))))


def measure_certificate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    noise: NullspaceNoise,
    claimed: Certificate,
    images: PublishedImages,
    batch_size: int,
    patch_projection: str | None,
) -> list[Claim]:
    """
    What the noise does to the model as published, against the certificate.

    That is the evaluation certificate where there is one: training goes on after a noise is certified.
    """
    pictures = images.pictures()
    preprocessing = Preprocessing.of(processor, channels_of(model))
    found = tuple(noise.tensor.shape[1:])
    expected = expected_shape(model, preprocessing.to_model_inputs(pictures[:1]), patch_projection)
    reason = "" if found == expected else "it does not fit the model's patch embeddings"
    shape = Claim("shape of the noise (patches, hidden)", not reason, str(found), str(expected), reason)
    if reason:
        return [shape]
    batches = [
        preprocessing.to_model_inputs(pictures[first : first + batch_size])
        for first in range(0, len(pictures), batch_size)
    ]
    return [
        shape,
        *compare_certificates(claimed, measure_noise(model, noise, batches, patch_projection=patch_projection)),
    ]


def measure_report(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    report: RobustnessReport,
    images: PublishedImages,
    batch_size: int,
) -> list[Claim]:
    """Every column of the report, measured again under its own profile."""
    dataset = images.labelled(report.run["num_images"][EVALUATION_SET])
    if dataset is None:
        return [Claim("accuracy of the report", None, reason="the pictures have no labels")]
    measured = evaluate_robustness(model, processor, dataset, report.profile, batch_size=batch_size, disable_tqdm=True)
    same_images = measured.run["datasets"] == report.run["datasets"]
    return [
        Claim(f"accuracy (%), {name}", None, reason=measured.not_measured[name])
        if name not in measured.columns
        else compare_columns(f"accuracy (%), {name}", row, measured.columns[name], same_images)
        for name, row in report.columns.items()
    ]


def expected_shape(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], patch_projection: str | None
) -> tuple[int, int]:
    """Number of patches and hidden size of the model's patch embeddings."""
    with frozen(model):
        embeddings, _ = FrozenClassifier(model, patch_projection).embed(inputs)
    return tuple(tokens_shape(embeddings))
