"""Everything this package can say about the nullspace of one model: measured, tabled, drawn and saved."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import nn

from ..exact_nullspace.patch_nullspace import PatchNullspace
from ..models.objectives import is_multi_label
from ..models.patch_projection import channels_of, find_patch_projection
from ..models.preprocessing import Preprocessing
from ..utils.escaping import markdown_text
from ..utils.figures import optional_figure
from ..utils.files import write_text
from ..utils.page import PAGE_NAME
from ..utils.phases import PhaseBar
from .encoder import EncoderProbe, EncoderProbeConfig, probe_encoder
from .exact import measure_exact_noise, measure_layer_norm_invariance, predict, prediction_stability
from .figures import plot_dose_response, plot_lambda_sweep, plot_noisy_pictures, plot_token_norms
from .noisy_pictures import NoisyPictures, show_both_noises
from .report_page import describe_run, probe_page


# Norms of the exact noise in the table of stability, as multiples of the pictures' own norm.
STABILITY_NORMS = (0.1, 1.0, 10.0)
# What the rows of the exact part say.
MEANINGS = {
    "projection": "the linear map from the pixels of a patch to its embedding",
    "hidden_size": "its rows",
    "patch_features": "its columns: the pixels of a patch, times channels",
    "rank": "directions of a patch that the model sees",
    "dimension": "directions of a patch that the model cannot see",
    "tolerance": "singular values up to this one count as zero",
    "num_images": "pictures that the noise was made for",
    "noise_norm": "norm of the largest invisible noise found within [0, 1], mean over pictures (normalised pixels)",
    "noise_norm_bound": "a norm that none exceeds",
    "noise_rms": "its root mean square, where black is 0 and white is 1",
    "noise_max": "its largest change of a pixel",
    "pixels_at_bound": "share of the noisy pixels that are at 0 or 1",
    "relative_logit_change": "largest change of a logit under it, as a share of the logits' norm",
    "agreement": "share of the predictions that it leaves unchanged",
    "permuted_relative_logit_change": "smallest such change under the same noise with its elements permuted",
    "permuted_agreement": "share of the predictions that the permuted noise leaves unchanged",
}
# Pictures that can be split into some to search on and some to measure on.
MIN_PICTURES = 4
SWEEP_COLUMNS = ("lambda", "norm", "relative_norm", "logit_distance", "agreement", "confidence_change")


@dataclass
class ProbeReport:
    """
    Results of [`probe`].

    Args:
        exact (`dict` or `None`): The exact nullspace; see [`measure_exact_noise`]. `None` for a model that has none of
            its own per patch.
        exact_refusal (`str` or `None`): Why there is no exact noise, and what to use instead: patches that overlap, or
            a nullspace of dimension 0.
        layer_norm (`dict`): See [`measure_layer_norm_invariance`].
        stability (`list[dict]`): See [`prediction_stability`]; empty without exact noise.
        encoder ([`EncoderProbe`] or `None`): The approximate nullspace; `None` for the reason in `encoder_refusal`.
        noisy_pictures (`list[NoisyPictures]`): One picture under exact noise and one under encoder noise, for the figure;
            empty if patches overlap, or the model reads patches that are cut already.
        encoder_refusal (`str` or `None`): Why there is no encoder part: too few pictures.
        run (`dict`): See [`describe_run`].
    """

    exact: dict[str, Any] | None
    exact_refusal: str | None
    layer_norm: dict[str, float]
    stability: list[dict[str, float]]
    encoder: EncoderProbe | None
    noisy_pictures: list[NoisyPictures] = field(default_factory=list)
    encoder_refusal: str | None = None
    run: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each part by its name."""
        exact = [] if self.exact is None else [self.exact]
        tables = {
            "exact": exact,
            "stability": self.stability,
            "layer_norm": [self.layer_norm],
            "noisy_pictures": [row.to_dict() for row in self.noisy_pictures],
            **(self.encoder.tables() if self.encoder is not None else {}),
        }
        return {name: rows for name, rows in tables.items() if rows}

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but tensors as a JSON-serialisable `dict`."""
        refusals = {"exact_refusal": self.exact_refusal, "encoder_refusal": self.encoder_refusal}
        chosen = {"norm_weight": self.encoder.norm_weight} if self.encoder is not None else {}
        return {**refusals, **chosen, **self.tables(), "run": self.run}

    def to_markdown(self) -> str:
        """The report as Markdown: the exact nullspace, the sweep, and closure."""
        parts = ["## Exact nullspace"]
        if self.exact is not None:
            rows = [{"": name, "value": value, "what": MEANINGS[name]} for name, value in self.exact.items()]
            parts.append(_markdown(rows))
        if self.exact_refusal is not None:
            parts.append(self.exact_refusal)
        if self.stability:
            parts.append(
                "## Predictions under exact noise, by norm (normalised pixels)\n\n" + _markdown(self.stability)
            )
        parts.append("## A constant over the hidden axis\n\n" + _markdown([self.layer_norm]))
        if self.noisy_pictures:
            rows = [row.to_dict() for row in self.noisy_pictures]
            parts.append("## Pictures under noise, and under the same noise permuted\n\n" + _markdown(rows))
        if self.encoder is None:
            return "\n\n".join([*parts, f"## Approximate nullspace\n\n{self.encoder_refusal}"])
        names = [*SWEEP_COLUMNS, *(f"permuted_{name}" for name in SWEEP_COLUMNS[-3:])]
        sweep = [{name: row[name] for name in names} for row in self.encoder.sweep]
        parts.append("## Approximate nullspace, by lambda\n\n" + _markdown(sweep))
        parts.append(f"## The noise of lambda {self.encoder.norm_weight}\n\n" + _markdown(self.encoder.closure))
        parts.append("## On images it was searched on, and on others\n\n" + _markdown(self.encoder.transfer))
        return "\n\n".join(parts)

    def to_html(self) -> str:
        """The report as a page that needs nothing but itself."""
        return probe_page(self, MEANINGS)

    def save(self, directory: str | os.PathLike, figures: bool = True) -> None:
        """
        Writes `probe.json`, `probe.md`, one CSV file for each table and, where matplotlib is installed, the figures; and
        `report.html`, which shows them all.

        Args:
            directory (`str` or `os.PathLike`): The folder; made if need be.
            figures (`bool`, *optional*, defaults to `True`): Whether to draw the figures and write the page.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "probe.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (directory / "probe.md").write_text(self.to_markdown() + "\n", encoding="utf-8")
        for name, rows in self.tables().items():
            save_csv(rows, directory / f"{name}.csv")
        if not figures:
            return
        drawings = {}
        if self.noisy_pictures:
            drawings["noisy_pictures.png"] = partial(plot_noisy_pictures, self.noisy_pictures)
        if self.encoder is not None:
            drawings["lambda_sweep.png"] = partial(plot_lambda_sweep, self.encoder.sweep)
            drawings["dose_response.png"] = partial(plot_dose_response, self.encoder.dose_response)
            drawings["token_norms.png"] = partial(plot_token_norms, self.encoder.token_norms)
        for name, draw in drawings.items():
            with optional_figure(name):
                draw(path=directory / name)
        write_text(directory / PAGE_NAME, self.to_html())


def probe(
    model: nn.Module,
    image_processor: Callable,
    pictures: Sequence[Image.Image],
    config: EncoderProbeConfig | None = None,
    *,
    batch_size: int = 4,
    max_exact_images: int = 2,
    accelerator: Accelerator | None = None,
    patch_projection: str | None = None,
    disable_tqdm: bool = False,
) -> ProbeReport:
    """
    Probes the exact nullspace of a model's input and the approximate one of its encoder.

    Args:
        model (`nn.Module`):
            The classifier; restored afterwards.
        image_processor (`Callable`):
            Its image processor.
        pictures (`Sequence[PIL.Image.Image]`):
            Pictures to measure on, of any size, best ones that the model was not trained on; noise is searched on a random
            five eighths of them and measured on the others. With fewer than four the encoder's part is left out.
        config ([`EncoderProbeConfig`], *optional*):
            Settings of the encoder's part.
        batch_size (`int`, *optional*, defaults to 4):
            Pictures of a search step.
        max_exact_images (`int`, *optional*, defaults to 2):
            Pictures that exact noise is made for.
        accelerator (`Accelerator`, *optional*):
            For several processes, devices and autocast.
        patch_projection (`str`, *optional*):
            Name of the projection module where the rule does not find it.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bars.

    Returns:
        [`ProbeReport`].

    Raises:
        `ValueError`: If the model has no patch projection, or predicts numbers and not classes.

    Example:

    ```python
    >>> from hf_nullspace.data.pictures import read_pictures

    >>> report = probe(model, image_processor, read_pictures("photos", seed=0))
    >>> report.exact["dimension"]  # 3 * 8 * 8 values of a patch, of which 32 filters see 32 directions
    160
    >>> report.save("outputs/probe")
    ```
    """
    is_multi_label(model)  # raises for a model without class probabilities, whose predictions would always "agree"
    config = config or EncoderProbeConfig()
    preprocessing = Preprocessing.of(image_processor, channels_of(model))
    inputs = preprocessing.to_model_inputs(pictures[: config.max_images])
    inputs["pixel_values"] = preprocessing.into_box(inputs["pixel_values"])
    few = {name: value[:max_exact_images] for name, value in inputs.items()}
    clean = predict(model, **few)
    exact = refusal = None
    stability = []
    pictured = []
    projection = find_patch_projection(model, patch_projection)
    with PhaseBar("Probing the input", 3, "part", disable_tqdm) as progress:
        if projection.is_exact:
            nullspace = PatchNullspace.from_model(model, patch_projection=patch_projection)
            statistics: dict[str, Any] = {"image_mean": preprocessing.mean, "image_std": preprocessing.std}
            known = {"nullspace": nullspace, "clean_logits": clean}
            exact, noise = measure_exact_noise(model, **few, **statistics, **known)
            progress.update()
            values = few["pixel_values"]
            refusal = nullspace.obstacle
            if refusal is None:
                norms = [factor * values.flatten(1).norm(dim=1).mean().item() for factor in STABILITY_NORMS]
                stability = prediction_stability(model, **few, norms=norms, **known)
            progress.update()
            if projection.patch_size is not None:
                options = {"accelerator": accelerator, "patch_projection": patch_projection}
                shown = noise if refusal is None else None
                pictured = show_both_noises(model, preprocessing, few, shown, nullspace, config.seed, **options)
        else:
            refusal = (
                f"There is none per patch: {projection.obstacle}. The approximate nullspace (`synthesize_noise`) works "
                "for every model."
            )
        layer_norm = measure_layer_norm_invariance(model, **few, patch_projection=patch_projection, clean_logits=clean)
        progress.update()
    found = len(inputs["pixel_values"])
    run = describe_run(model, image_processor, config, found, clean.shape[-1])
    if found < MIN_PICTURES:
        reason = (
            f"Searching noise takes at least {MIN_PICTURES} pictures, but there are {found}; the input was probed."
        )
        return ProbeReport(exact, refusal, layer_norm, stability, None, pictured, reason, run)
    sizes = range(0, len(inputs["pixel_values"]), batch_size)
    batches = [{name: value[start : start + batch_size] for name, value in inputs.items()} for start in sizes]
    encoder = probe_encoder(
        model,
        batches,
        config,
        accelerator=accelerator,
        patch_projection=patch_projection,
        disable_tqdm=disable_tqdm,
    )
    return ProbeReport(exact, refusal, layer_norm, stability, encoder, pictured, run=run)


def save_csv(rows: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """Writes rows that share their names as a CSV file with a header."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [
        [f"{value:.4g}" if isinstance(value, float) else markdown_text(value) for value in row.values()]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
