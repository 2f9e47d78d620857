"""A published folder that is being verified: what its files claim, and what its weights give."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from ..data.digits import DIGITS_NAME
from ..models.frozen import FrozenClassifier, frozen
from ..models.injection import tokens_shape
from ..models.patch_projection import channels_of
from ..models.preprocessing import Preprocessing
from ..noise.certificate import Certificate
from ..noise.certify import measure_noise
from ..noise.nullspace_noise import NOISE_CONFIG_NAME, NOISE_TENSOR_NAME, NullspaceNoise
from ..robustness.profiles import EVALUATION_SET, Column, Profile
from ..robustness.repetition import Repetition, seconds_of
from ..robustness.report import REPORT_NAME, RobustnessReport
from ..utils.escaping import plain_text
from ..utils.strict_json import read_json
from .card_checks import check_card, list_hearsay
from .certificate_claims import compare_certificates
from .claims import Claim
from .facts import read_facts
from .file_checks import (
    check_certificate,
    check_noise,
    check_side_files,
    check_without_noise,
    check_without_report,
)
from .leftover_checks import list_leftovers
from .manifest import NewerFormatError
from .model_card import TEMPLATE
from .outcome_claims import MIN_IMAGES, check_labels, choose_places, compare_outcomes, compare_shares
from .report_checks import (
    MAX_COLUMNS,
    check_card_numbers,
    check_columns,
    check_logits,
    check_numbers,
    check_outcomes,
    check_preprocessing,
    check_report_page,
    check_rows,
    check_stated_fields,
    check_weights,
    derive,
)
from .verification_images import PublishedImages


# Larger pictures would fill the memory long before the time limit is reached.
MAX_SIDE = 4096
# Every layer has weights, and every weight takes some bytes for its name and place in the header of the file.
BYTES_OF_A_LAYER = 64
ADAPTER_NAME = "adapter_config.json"
PROCESSOR_NAME = "preprocessor_config.json"


class Checkpoint:
    """
    A published folder that is being verified. Each part that cannot be read fails on its own; checks that need it are
    skipped.

    Args:
        folder (`Path`): The folder.
        repository (`str`, *optional*): Where it was downloaded from.
        folders (`tuple`): Folders of pictures to measure on.
        max_images (`int`, *optional*): Measure on so many images at most.
        batch_size (`int`): Images at a time.
    """

    def __init__(
        self,
        folder: Path,
        repository: str | None,
        folders: tuple[str | os.PathLike, ...],
        max_images: int | None,
        batch_size: int,
    ):
        self.folder = folder
        self.repository = repository
        self.folders = folders
        self.max_images = max_images
        self.batch_size = batch_size
        self.facts: dict[str, Any] | None = None
        self.noise: NullspaceNoise | None = None
        self.report: RobustnessReport | None = None
        self.model: PreTrainedModel | None = None
        self.processor: BaseImageProcessor | None = None
        self.images: PublishedImages | None = None

    # ---- Checks without images ----------------------------------------------------------------------------------

    def files(self) -> list[Claim]:
        """The claims that can be checked without images."""
        claims: list[Claim] = []
        self.facts = self._read("training facts", lambda: read_facts(self.folder), claims)
        if self.facts is None:
            return claims
        seed = self.facts["settings"].get("seed")
        seed = seed if type(seed) is int else 42
        self.images = PublishedImages(self.facts["dataset"], seed, self.folders, self.max_images)
        self.noise = self._read("noise", self._read_noise, claims)
        if (self.folder / REPORT_NAME).is_file():
            self.report = self._read("report", lambda: RobustnessReport.load(self.folder), claims)
        self.model = self._read("model", self._load_model, claims)
        self.processor = self._read("image processor", self._load_processor, claims)
        claims += self._guarded("card", lambda: check_card(self.folder, self.facts, self.repository))
        claims += self._guarded("side files", lambda: check_side_files(self.folder, self.facts))
        if self.noise is not None:
            claims += self._guarded("certificate", lambda: check_certificate(self.noise, self.facts))
            claims += self._guarded("noise", lambda: check_noise(self.noise))
        elif self.facts["certificate"] is None:
            claims.append(check_without_noise(self.facts))
        claims += self._guarded("report", self._check_report)
        claims += self._guarded("other files", lambda: list_leftovers(self.folder))
        return claims + list_hearsay(self.facts)

    def _check_report(self) -> list[Claim]:
        report = self.report
        facts = self.facts
        if report is None:
            return [check_without_report(facts)] if not (self.folder / REPORT_NAME).is_file() else []
        if len(report.profile.columns) > MAX_COLUMNS:
            reason = f"it has {len(report.profile.columns)} columns; at most {MAX_COLUMNS} are checked"
            self.report = None
            return [Claim("accuracies of the report", None, reason=reason, is_measurement=True)]
        is_old = facts["template"] < TEMPLATE
        claims = check_columns(report)
        if self.model is not None:
            claims.append(check_weights(report, self.model, (self.folder / ADAPTER_NAME).is_file()))
            claims.append(check_outcomes(report, self.model.config.num_labels))
            claims.append(check_logits(report, self.model.config.num_labels))
        if self.processor is not None:
            claims.append(check_preprocessing(report, self.processor, is_old))
        claims.append(check_stated_fields(self.folder, report, is_old))
        claims += check_card_numbers(facts, report)
        if report.outcomes is None or set(report.outcomes) != set(report.columns):
            self.report.outcomes = None
            return [*claims, *check_rows(report, is_old), check_report_page(self.folder, report, is_old)]
        derived = derive(report)
        return [
            *claims,
            *check_numbers(report, derived, is_old),
            check_report_page(self.folder, derived, is_old),
            Claim(
                "model name, timing, precision and versions of the report", None, reason="only the evaluation knows"
            ),
        ]

    def _read_noise(self) -> NullspaceNoise | None:
        """The noise of a checkpoint; `None` if it was trained without noise and claims none."""
        has_none = not any((self.folder / name).is_file() for name in (NOISE_TENSOR_NAME, NOISE_CONFIG_NAME))
        if has_none and self.facts["certificate"] is None:
            return None
        if (self.folder / NOISE_CONFIG_NAME).is_file():
            read_json(self.folder / NOISE_CONFIG_NAME)
        return NullspaceNoise.from_pretrained(self.folder)

    def _load_model(self) -> PreTrainedModel:
        for name in ("config.json", ADAPTER_NAME):
            if (self.folder / name).is_file():
                check_size_of_config(self.folder, read_json(self.folder / name))
        # As `from_pretrained` loads it, without code of the repository and without a pickle.
        model, info = AutoModelForImageClassification.from_pretrained(
            self.folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if missing:
            raise ValueError(f"{len(missing)} weights are not in the files and would be random, such as {missing[0]}")
        return model.eval()

    def _load_processor(self) -> BaseImageProcessor:
        if (self.folder / PROCESSOR_NAME).is_file():
            read_json(self.folder / PROCESSOR_NAME)
        processor = AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False)
        sides = [side for name in ("size", "crop_size") for side in _sides(getattr(processor, name, None))]
        if any(side > MAX_SIDE for side in sides):
            raise ValueError(f"it makes pictures of {max(sides)} pixels a side; at most {MAX_SIDE} are measured")
        return processor

    # ---- What is measured ---------------------------------------------------------------------------------------

    def measure(self, deadline: float) -> list[Claim]:
        """The claims that are measured again, until `deadline` on the monotonic clock."""
        if self.facts is None or self.model is None or self.processor is None:
            return []
        if not self.images.exist:
            reason = (
                f"the checkpoint was trained on {plain_text(self.facts['dataset'] or 'images that it does not name', 60)}, "
                "which this package does not bring; name a folder of such pictures with `--images`"
            )
            return [Claim("measurements with the weights", None, reason=reason, is_measurement=True)]
        claims = []
        if self.noise is not None:
            claims += self._measured("certificate measured anew", self._measure_certificate)
        claims += self._measured("accuracy (evaluation)", self._measure_evaluation)
        if self.report is not None:
            claims += self._measured("accuracies of the report", lambda: self._measure_report(deadline))
        return claims

    def _measure_certificate(self) -> list[Claim]:
        """Measures the noise on the published model; compares with the evaluation certificate where there is one."""
        pictures = self.images.pictures()
        facts = self.facts
        projection = facts["patch_projection"]
        found = tuple(self.noise.tensor.shape[1:])
        preprocessing = Preprocessing.of(self.processor, channels_of(self.model))
        with frozen(self.model):
            embeddings, _ = FrozenClassifier(self.model, projection).embed(preprocessing.to_model_inputs(pictures[:1]))
        expected = tuple(tokens_shape(embeddings))
        reason = "" if found == expected else "it does not fit the model's patch embeddings"
        shape = Claim("shape of the noise (patches, hidden)", not reason, str(found), str(expected), reason)
        if reason:
            return [shape]
        batches = [
            preprocessing.to_model_inputs(pictures[first : first + self.batch_size])
            for first in range(0, len(pictures), self.batch_size)
        ]
        measured = measure_noise(self.model, self.noise, batches, patch_projection=projection)
        evaluated = facts["evaluation_certificate"]
        if evaluated is not None:
            return [shape, *compare_certificates(Certificate.from_dict(evaluated), measured)]
        reason = "it is of training images and of earlier weights; there is none of evaluation images"
        return [
            shape,
            *compare_certificates(self.noise.certificate, measured),
            Claim("certificate", None, reason=reason),
        ]

    def _measure_evaluation(self) -> list[Claim]:
        last = self.facts["metrics"]["last"] or {}
        stated = last.get("Accuracy", last.get("eval_accuracy"))
        others = [name for name in last if name not in ("Accuracy", "eval_accuracy")]
        claims = []
        if others:
            listed = ", ".join(plain_text(name, 40) for name in others[:10])
            claims.append(Claim(f"evaluation metrics ({listed})", None, reason="of the training run's own making"))
        if stated is None:
            return claims
        if not isinstance(stated, (int, float)) or not 0 <= stated <= 1:
            return [*claims, Claim("accuracy (evaluation)", False, reason="it is no share", is_measurement=True)]
        source = self.images.validation(self.model)
        if source is None:
            return [
                *claims,
                Claim("accuracy (evaluation)", None, reason="the pictures have no labels", is_measurement=True),
            ]
        certificate = self.facts["evaluation_certificate"]
        count = certificate["num_images"] if certificate else len(source)
        places = choose_places(torch.arange(len(source)), self.max_images or len(source))
        profile = Profile("evaluation", (Column("clean"),))
        repetition = Repetition(self.model, self.processor, source, profile, self.batch_size)
        ((_, outcomes),) = repetition.run({"clean": places})
        measured = int(outcomes.correct.sum())
        claim = compare_shares("accuracy (evaluation)", (round(stated * count), count), (measured, len(outcomes)))
        if self.images.are_known and count == len(source) == len(outcomes):
            differing = abs(round(stated * count) - measured)
            if differing > max(1, count // 100):
                reason = f"{differing} of the same {count} images differ"
                claim = Claim(claim.name, False, claim.claimed, claim.measured, reason)
        return [*claims, claim.measured_now()]

    def _measure_report(self, deadline: float) -> list[Claim]:
        """The columns of the report, measured again under its own profile."""
        report = self.report
        count = report.run.get("num_images", {}).get(EVALUATION_SET, 0)
        found = self.images.labelled(self.model, count, str(report.run.get("datasets", {}).get(EVALUATION_SET)))
        if found is None:
            return [Claim("accuracy of the report", None, reason="the pictures have no labels")]
        source, are_same = found
        claims = []
        if not are_same and self.images.are_known:
            claims.append(
                Claim("images of the report", False, reason=f"they are not those of {self.facts['dataset']}")
            )
        elif not are_same:
            reason = "the pictures are others than the report's, so that accuracies are compared as samples"
            claims.append(Claim("images of the report", None, reason=reason))
        columns = [column for column in report.profile.columns if column.name in report.columns]
        elsewhere = [column.name for column in columns if column.dataset != EVALUATION_SET]
        claims += [Claim(f"accuracy (%), {name}", None, reason="of another dataset") for name in elsewhere]
        columns = [column for column in columns if column.dataset == EVALUATION_SET]
        if are_same and report.outcomes is not None:
            labels = (
                check_labels(f"labels of {each.name}", report.outcomes[each.name], source.labels) for each in columns
            )
            claims += [claim for claim in labels if claim is not None]
        repetition = Repetition(self.model, self.processor, source, report.profile, self.batch_size)
        per_pass = repetition.seconds_per_pass()
        columns.sort(key=lambda column: _seconds(column, per_pass))
        for column in columns:
            claims.append(self._measure_column(column, repetition, are_same, per_pass, deadline).measured_now())
        return claims

    def _measure_column(
        self, column: Column, repetition: Repetition, are_same: bool, per_pass: float, deadline: float
    ) -> Claim:
        name = f"accuracy (%), {column.name}"
        report = self.report
        outcomes = report.outcomes[column.name] if report.outcomes is not None else None
        paired = are_same and outcomes is not None
        indices = outcomes.indices if paired else torch.arange(len(repetition.source))
        wanted = min(len(indices), self.max_images or len(indices), column.max_images or len(indices))
        seconds = _seconds(column, per_pass)
        left = deadline - time.monotonic()
        affordable = int(max(0.0, left) / seconds)
        if affordable < min(wanted, MIN_IMAGES):
            needed = seconds * min(wanted, MIN_IMAGES)
            reason = f"it takes about {needed:.3g} s, and {max(0.0, left):.0f} s are left of `--max_seconds`"
            return Claim(name, None, reason=reason)
        places = choose_places(indices, min(wanted, affordable))
        try:
            ((_, measured),) = repetition.run({column.name: places})
        except (ImportError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            return Claim(name, None, reason=f"it cannot be measured here: {_one_line(error)}")
        if paired:
            return compare_outcomes(name, outcomes, measured, column.attack is not None)
        row = report.columns[column.name]
        return compare_shares(name, (row["correct"], row["count"]), (int(measured.correct.sum()), len(measured)))

    # ---- Errors -------------------------------------------------------------------------------------------------

    def _read(self, part: str, read: Callable[[], Any], claims: list[Claim]) -> Any:
        """Returns `read()`. If that raises, the claim that the part can be read fails."""
        try:
            return read()
        except ImportError as error:
            claims.append(Claim(f"{part} can be read", None, reason=_one_line(error), is_measurement=True))
        except NewerFormatError:
            raise
        except Exception as error:  # libraries raise many types for a damaged file
            claims.append(Claim(f"{part} can be read", False, reason=_one_line(error)))
        return None

    def _guarded(self, part: str, check: Callable[[], list[Claim]]) -> list[Claim]:
        try:
            return check()
        except Exception as error:  # a damaged file, as above
            return [Claim(f"{part} can be checked", False, reason=_one_line(error))]

    def _measured(self, part: str, measure: Callable[[], list[Claim]]) -> list[Claim]:
        try:
            return measure()
        except Exception as error:  # may be caused by the user's pictures, packages or memory: no claim fails
            if self.images.are_known and isinstance(error, ValueError):  # not caused by the package's own pictures
                reason = f"it cannot be of {DIGITS_NAME}: {_one_line(error)}"
                return [Claim(part, False, reason=reason, is_measurement=True)]
            return [Claim(part, None, reason=f"it cannot be measured here: {_one_line(error)}", is_measurement=True)]


def _seconds(column: Column, per_pass: float) -> float:
    """The estimated seconds; infinite if the settings are not numbers."""
    try:
        return max(seconds_of(column, per_pass), 1e-9)
    except (TypeError, ValueError, OverflowError):
        return float("inf")


def _sides(size: Any) -> list[float]:
    values = size.values() if isinstance(size, dict) else vars(size).values() if hasattr(size, "__dict__") else [size]
    return [value for value in values if isinstance(value, (int, float))]


def _one_line(error: BaseException) -> str:
    return plain_text(" ".join(str(error).split()) or type(error).__name__, 300)


def check_size_of_config(folder: Path, config: Any) -> None:
    """
    Raises:
        `ValueError`: If a config has more layers than its weights can have, which it would take forever to build.
    """
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    values = [config]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict):
            for name, count in value.items():
                is_depth = "layers" in name or "depth" in name
                counts = count if isinstance(count, list) else [count]
                if is_depth and any(isinstance(each, int) and BYTES_OF_A_LAYER * each > size for each in counts):
                    raise ValueError(f"`{plain_text(name, 60)}` asks for more layers than the weights can have")
