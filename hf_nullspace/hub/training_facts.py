"""Collects the facts of a training run for its model card."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.modelcard import extract_hyperparameters_from_trainer, parse_log_history

from ..noise.certificate import Certificate
from ..noise.nullspace_noise import NullspaceNoise
from ..robustness.report import FIGURE_NAME as REPORT_FIGURE_NAME


if TYPE_CHECKING:
    from transformers import Trainer

# The figures of a run that a card shows, with their captions.
FIGURES = {
    "noise_norm.png": "Norm of the noise by training step",
    REPORT_FIGURE_NAME: "Accuracy by column, with 95 % intervals",
}
# The captions in cards of the first template.
FIRST_FIGURES = {**FIGURES, "noise_norm.png": "Norm of the certified noise by training step"}
# Packages whose versions the card of `Trainer` lists.
PACKAGES = ("transformers", "torch", "datasets", "tokenizers")


def collect_training_facts(
    trainer: Trainer,
    noise: NullspaceNoise | None,
    rounds: list[dict[str, Any]],
    settings: dict[str, Any],
    dataset: str | None = None,
    evaluation_certificate: Certificate | None = None,
    results: dict[str, dict[str, float]] | None = None,
    intervals: dict[str, dict[str, list[float]]] | None = None,
    differences: dict[str, list[float]] | None = None,
    result_images: int | None = None,
    result_logits: dict[str, int] | None = None,
    method: str | None = None,
    correct: dict[str, dict[str, str]] | None = None,
) -> dict[str, Any]:
    """
    The `facts` of [`write_card`], from measured values only.

    Args:
        trainer (`Trainer`): The run; gives the model, hyperparameters and logged metrics.
        noise ([`NullspaceNoise`] or `None`): The noise that is saved beside the model.
        rounds (`list[dict]`): `trainer.noise_history`.
        settings (`dict`): Name and value of each setting to list.
        dataset (`str`, *optional*): Name of the dataset.
        evaluation_certificate ([`Certificate`], *optional*): The noise measured on evaluation images.
        results, intervals, differences, result_images, result_logits, correct (*optional*): See [`card_results`].
        method (`str`, *optional*): A sentence on what the model was trained on; `None` for nullspace noise.
    """
    _, evaluations, last_metrics = parse_log_history(trainer.state.log_history)
    config = trainer.model.config
    return {
        "dataset": dataset,
        "method": method,
        "patch_projection": trainer.args.patch_projection,
        "model_type": config.model_type,
        "is_local_base": os.path.isdir(getattr(config, "_name_or_path", "") or ""),
        "bank_size": int(noise is not None),  # earlier versions could make several
        "certificate": noise.certificate.to_dict() if noise is not None else None,
        "evaluation_certificate": evaluation_certificate.to_dict() if evaluation_certificate is not None else None,
        "rounds": rounds,
        "settings": settings,
        "results": results,
        "intervals": intervals,
        "differences": differences,
        "result_images": result_images,
        "result_logits": result_logits,
        "correct": correct,
        "figures": {name: FIGURES[name] for name in sorted(FIGURES) if Path(trainer.args.output_dir, name).is_file()},
        "hyperparameters": extract_hyperparameters_from_trainer(trainer),
        "metrics": {"last": last_metrics, "evaluations": evaluations},
        "versions": {name: version(name) for name in PACKAGES},
    }
