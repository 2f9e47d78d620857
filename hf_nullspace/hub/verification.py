"""Verifies a published checkpoint: its card, its files, its noise, its certificate and its report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.image_folders import check_path
from ..utils.escaping import plain_text
from .checkpoint import Checkpoint
from .claims import Claim, claims_table
from .download import download
from .file_checks import check_files
from .manifest import MANIFEST_NAME
from .model_card import TRAINING_NAME


MAX_SECONDS = 1800.0


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

    @property
    def unchecked(self) -> list[Claim]:
        """The claims that could not be checked."""
        return [claim for claim in self.claims if claim.holds is None]

    @property
    def exit_code(self) -> int:
        """0 if all checked claims hold, 1 if a claim fails, 2 if nothing was measured with the weights."""
        measurable = [claim for claim in self.claims if claim.is_measurement]
        if self.failed:
            return 1
        return 2 if measurable and all(claim.holds is None for claim in measurable) else 0

    def why_nothing_was_measured(self) -> str:
        """The reason why the first measurement was not made."""
        return next(f"{claim.name}: {claim.reason}" for claim in self.claims if claim.is_measurement)

    def to_markdown(self) -> str:
        """The table, and the failed claims below it."""
        checked = len(self.claims) - len(self.unchecked)
        holding = f"{checked - len(self.failed)} of {checked} checked claims hold"
        lines = [f"{plain_text(self.source)}: {holding}, {len(self.unchecked)} could not be checked"]
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
    max_seconds: float = MAX_SECONDS,
    batch_size: int = 64,
) -> Verification:
    """
    Downloads a checkpoint and checks everything that its page claims.

    First the consistency of the files. The card's text is rendered again from the files. Every accuracy, interval,
    difference and mean is computed again from the published per-image outcomes, and so is the report's page. The norms
    of the noise are compared with its certificate.

    Then the measurements. The outcomes are measured again with the weights that `from_pretrained` loads, on images
    drawn at random. On the images of the report, outcomes are compared image by image. On other images, a claim fails
    if the 95 % intervals do not overlap. The certificate is measured again too.

    Claims that only the publisher can know, or that need more images or time, are listed as not checked. Code of the
    repository is never run. Hashes guard against damage and single edits; a publisher who rewrites the hashes as well
    still has to pass the measurements.

    Args:
        repo_or_folder (`str` or `os.PathLike`): `"user/repo"`, or a folder that `NullspaceTrainer` wrote.
        images (`str`, `os.PathLike` or a sequence of them, *optional*): Folder of pictures to measure on, or several
            that count as one; with one sub-folder for each class, accuracies are measured too. By default the digits,
            for a checkpoint that was trained on them.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Access token, for private repositories.
        cache_dir (`str` or `os.PathLike`, *optional*): Where downloads are cached.
        max_images (`int`, *optional*): Largest number of images to measure on.
        max_seconds (`float`, *optional*, defaults to 1800): Time limit of the measurements in seconds, by an estimate.
            Columns that would take longer are measured on fewer images, or not at all.
        batch_size (`int`, *optional*, defaults to 64): Images per batch.

    Returns:
        [`Verification`].

    Raises:
        `ValueError`: If a newer version of the package published it, the folder holds nothing of this package, or a
            number is out of range.
        `OSError`: If the repository or the images cannot be read.

    Example:

    ```python
    >>> verification = verify("user/robust-vit", images="photos")  # doctest: +SKIP
    >>> verification.failed  # doctest: +SKIP
    []
    ```
    """
    for name, value in (("max_images", max_images), ("max_seconds", max_seconds), ("batch_size", batch_size)):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, but got {value}.")
    folders = folders_of(images)
    for each in folders:
        check_path(str(each), "images")
    folder, commit = download(repo_or_folder, revision=revision, token=token, cache_dir=cache_dir)
    if not any((folder / name).is_file() for name in (MANIFEST_NAME, TRAINING_NAME)):
        raise ValueError(
            f"{str(repo_or_folder)!r} has neither {MANIFEST_NAME} nor {TRAINING_NAME}: nothing says what it claims. "
            "Checkpoints that `NullspaceTrainer` wrote have both."
        )
    source = str(repo_or_folder) if commit is None else f"{repo_or_folder}, commit {commit}"
    claims = check_files(folder)
    check = Checkpoint(folder, None if commit is None else str(repo_or_folder), folders, max_images, batch_size)
    claims += check.files()
    if any(claim.holds is False for claim in claims) and (check.images is None or not check.images.exist):
        return Verification(source, tuple(claims))
    return Verification(source, (*claims, *check.measure(time.monotonic() + max_seconds)))


def folders_of(images: str | os.PathLike | Sequence[str | os.PathLike] | None) -> tuple[str | os.PathLike, ...]:
    """The folders of `images` as a tuple."""
    return () if images is None else (images,) if isinstance(images, (str, os.PathLike)) else tuple(images)
