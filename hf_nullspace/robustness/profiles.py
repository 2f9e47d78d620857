"""Evaluation protocols: which columns a robustness report has, named, and hashed so that two can be told apart."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.imagenet import IMAGENET_C_CORRUPTIONS, IMAGENET_C_SEVERITIES
from ..data.robustness_datasets import DATASETS, DatasetSpec
from ..utils.files import json_hash
from ..utils.registry import is_name
from .attacks import ATTACKS
from .corruptions import CORRUPTIONS, SEVERITIES


# Name of the images that `evaluate_robustness` is called with; other datasets are named by the column.
EVALUATION_SET = "evaluation"


@dataclass(frozen=True)
class Column:
    """
    One number of a report: some images, perhaps corrupted, perhaps attacked.

    Args:
        name (`str`):
            Its name in the report.
        dataset (`str`, *optional*, defaults to `"evaluation"`):
            Which images: those that [`evaluate_robustness`] is called with, or a [`DatasetSpec`] whose location the call
            names. Of a dataset that was published with corruptions, `corruption` and `severity` choose the images.
        corruption (`str`, *optional*):
            Common corruption to generate, or to choose.
        severity (`int`, *optional*):
            Its severity, 1 to 5.
        attack (`str`, *optional*):
            Name of the attack.
        settings (`dict`, *optional*):
            Keyword arguments of the attack, JSON values; radii may be written `"8/255"`.
        max_images (`int`, *optional*):
            Measure on so many images only, drawn with the profile's seed; a smaller draw is part of a larger one.
        calibration (`bool`, *optional*, defaults to `False`):
            Whether to report the expected calibration error.

    Raises:
        `ValueError`: If a name or a number is not known, or corruption and severity do not come together.
    """

    name: str
    dataset: str = EVALUATION_SET
    corruption: str | None = None
    severity: int | None = None
    attack: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    max_images: int | None = None
    calibration: bool = False

    def __post_init__(self):
        where = f"Column {self.name!r}"
        if not is_name(self.name):
            raise ValueError(
                f"The name of a column must be letters, digits, '-' and '_', because files are named after it, but got "
                f"{self.name!r}."
            )
        if (self.corruption is None) != (self.severity is None):
            raise ValueError(
                f"{where} must have both a corruption and a severity or neither, but got {self.corruption!r} and "
                f"{self.severity!r}."
            )
        if self.dataset != EVALUATION_SET:
            DATASETS.find(self.dataset, where)
        if self.published is not None:
            self.published.check_part(self.corruption, self.severity, f"{where} is of {self.dataset!r}, which")
        elif self.corruption is not None:
            CORRUPTIONS.find(self.corruption, where)
            if type(self.severity) is not int or self.severity not in SEVERITIES:
                raise ValueError(f"{where} must have a severity from 1 to 5, but got {self.severity!r}.")
        if self.attack is not None:  # which would refuse settings too, but only when its turn comes
            ATTACKS.find(self.attack, where).check(self.settings, where)
        elif self.settings:
            raise ValueError(f"{where} has no attack, so its settings {sorted(self.settings)} are unknown.")
        if self.max_images is not None and (type(self.max_images) is not int or self.max_images < 1):
            raise ValueError(f"{where} must have `max_images` of 1 or more, but got {self.max_images!r}.")

    @property
    def published(self) -> DatasetSpec | None:
        """Its dataset, where that was published with corruptions."""
        spec = DATASETS.get(self.dataset)
        return spec if spec is not None and spec.corruptions else None

    @property
    def is_generated(self) -> bool:
        """Whether its corruption is generated here, and not one that its images were published with."""
        return self.corruption is not None and self.published is None

    @property
    def source_name(self) -> str:
        """The name of its images: its dataset, or a part of that."""
        return self.dataset if self.published is None else f"{self.dataset}/{self.corruption}/{self.severity}"


@dataclass(frozen=True)
class Profile:
    """
    A named evaluation protocol.

    Args:
        name (`str`): Its name.
        columns (`tuple[Column, ...]`): Its columns, in the order of the report.
        seed (`int`, *optional*, defaults to 42): Seed of corruptions, attacks and the choice of images.
        note (`str`, *optional*, defaults to `""`): What a reader of the report must know; not part of the hash.

    Raises:
        `ValueError`: If there are no columns, or two share a name.

    Example:

    ```python
    >>> from hf_nullspace.robustness import Column, Profile
    >>> profile = Profile("mine", (Column("clean"), Column("fgsm", attack="fgsm", settings={"epsilon": "4/255"})))
    >>> Profile.from_dict(profile.to_dict()).hash == profile.hash
    True
    ```
    """

    name: str
    columns: tuple[Column, ...]
    seed: int = 42
    note: str = ""

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"A profile needs columns with different names, but {self.name!r} has {names}.")

    @property
    def hash(self) -> str:
        """SHA-256 of everything that can change a number: seed and columns, as canonical JSON."""
        content = {"seed": self.seed, "columns": [asdict(column) for column in self.columns]}
        return json_hash(content)

    def to_dict(self) -> dict[str, Any]:
        """Returns the profile as a JSON-serialisable `dict`; fields of a column at their default are left out."""
        defaults = asdict(Column("default"))
        columns = [
            {name: value for name, value in asdict(column).items() if name == "name" or value != defaults[name]}
            for column in self.columns
        ]
        return {"name": self.name, "seed": self.seed, "note": self.note, "columns": columns}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Profile:
        """
        The profile that [`Profile.to_dict`] gave.

        Raises:
            `ValueError`: If a field is unknown or missing.
        """
        columns = values.get("columns")
        if not isinstance(columns, list) or not all(isinstance(column, dict) for column in columns):
            raise ValueError(f"A profile must have a list of columns, each a JSON object, but got {columns!r}.")
        _check_fields(cls, values)
        for column in columns:
            _check_fields(Column, column)
        return cls(**{**values, "columns": tuple(Column(**column) for column in columns)})


def _check_fields(kind: type, values: dict[str, Any]) -> None:
    known = [item.name for item in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown or "name" not in values:
        raise ValueError(
            f"A {kind.__name__.lower()} must have a name and may have {known[1:]}, but got {sorted(values)}."
            + (f" Remove {unknown}." if unknown else "")
        )


def resolve_profile(profile: str | os.PathLike | Profile) -> Profile:
    """
    A profile by its name, from a JSON file, or as it is.

    Raises:
        `ValueError`: If there is no such profile.
    """
    if isinstance(profile, Profile):
        return profile
    if str(profile) in PROFILES:
        return PROFILES[str(profile)]
    if not Path(profile).is_file():
        raise ValueError(
            f"Unknown profile {str(profile)!r}; expected one of {sorted(PROFILES)} or a JSON file with a name and "
            "columns."
        )
    try:
        values = json.loads(Path(profile).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(profile)!r} is no JSON: {error}.") from error
    return Profile.from_dict(values if isinstance(values, dict) else {})


def corruption_columns(
    names: tuple[str, ...], severities: tuple[int, ...], dataset: str = EVALUATION_SET, **options: Any
) -> tuple[Column, ...]:
    """A column for each corruption at each severity, named `corruption_severity`."""
    return tuple(
        Column(f"{name}_{severity}", dataset=dataset, corruption=name, severity=severity, **options)
        for name in names
        for severity in severities
    )


def describe_columns() -> str:
    """What a column of a profile may name, in sentences."""
    corruptions = " ".join(f"{record.name}: {record.help}" for record in CORRUPTIONS.values())
    attacks = " ".join(record.description for record in ATTACKS.values())
    datasets = "; ".join(f"{record.name} ({record.title}): {record.help}" for record in DATASETS.values())
    return f"What a column of a profile may name: DATASETS. {datasets}. CORRUPTIONS. {corruptions} ATTACKS. {attacks}"


PIXEL_RADIUS = {"epsilon": "8/255"}
# Settings that the attacks have by default too; written out, so that the hash covers them.
CW = {"c": 1.0, "kappa": 0.0, "steps": 50, "learning_rate": 0.01}
PATCHFOOL = {
    "num_patches": 1,
    "block": 4,
    "steps": 250,
    "learning_rate": 0.22,
    "decay": 0.95,
    "decay_steps": 10,
    "attention_weight": 0.002,
}
PREVIEW = Profile(
    "preview",
    (
        Column("clean"),
        # These three need no scipy, which finetuning does without.
        *corruption_columns(("gaussian_noise", "contrast", "jpeg_compression"), (3,)),
        Column("fgsm", attack="fgsm", settings=PIXEL_RADIUS),
    ),
    note="A first look: three corruptions and one weak attack.",
)
QUICK = Profile(
    "quick",
    (
        Column("clean", calibration=True),
        *corruption_columns(("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression"), (3,)),
        Column("fgsm", attack="fgsm", settings=PIXEL_RADIUS),
        Column("pgd_linf", attack="pgd_linf", settings={**PIXEL_RADIUS, "steps": 10}, max_images=256),
    ),
    note="Minutes on a CPU. Five of the fifteen corruptions, and PGD with few steps on few images: an upper bound of "
    "what stronger attacks leave.",
)
STANDARD = Profile(
    "standard",
    (
        Column("clean", calibration=True),
        *corruption_columns(IMAGENET_C_CORRUPTIONS, SEVERITIES, calibration=True),
        Column("fgsm", attack="fgsm", settings=PIXEL_RADIUS),
        Column("pgd_linf", attack="pgd_linf", settings={**PIXEL_RADIUS, "steps": 20}, max_images=1000),
        Column("cw_l2", attack="cw_l2", settings=CW, max_images=1000),
    ),
    note="Corruptions are C-style and generated here; they are not ImageNet-C.",
)
PAPER = Profile(
    "paper",
    (
        Column("clean", calibration=True),
        Column("patchfool", attack="patchfool", settings=PATCHFOOL),
        Column("cw", attack="cw_l2", settings=CW),
        Column("fgsm", attack="fgsm", settings=PIXEL_RADIUS),
        *(
            Column(name, dataset=name)
            for name in (
                "damagenet",
                "imagenet-a",
                "imagenet-v2",
                "imagenet-r",
                "imagenet-sketch",
                "imagenet-stylized",
            )
        ),
        *corruption_columns(IMAGENET_C_CORRUPTIONS, IMAGENET_C_SEVERITIES, dataset="imagenet-c"),
    ),
    note="The eleven columns of table 1 of arXiv 2403.10476; ImageNet-C counts as one. Attacks are in pixel space.",
)
RELEASED = Profile(
    "released",
    (
        Column("clean"),
        Column("released_fgsm", attack="released_fgsm", settings={"epsilon": "8/225"}),
        Column("fgsm", attack="fgsm", settings=PIXEL_RADIUS),
    ),
    note="`released_fgsm` repeats the released code: a step of 8/225 on normalised tensors, which are then clamped to "
    "[0, 1]. The clamp alone changes most pixels, so this is no eps-ball and not comparable with `fgsm`.",
)
PROFILES = {profile.name: profile for profile in (PREVIEW, QUICK, STANDARD, PAPER, RELEASED)}
