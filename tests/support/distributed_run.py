"""Trains a tiny model in however many processes it is started in, and saves what the test compares."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_model import TINY_RUN, seeded_model_and_examples
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

from hf_nullspace import (
    NullspaceConfig,
    NullspaceDataCollator,
    NullspaceNoise,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    evaluate_robustness,
    synthesize_noise,
)
from hf_nullspace.robustness.profiles import Column, Profile
from hf_nullspace.training.noise_schedule import check_same_on_all_processes
from hf_nullspace.training.weight_average import WeightAverageCallback


PROFILE = Profile(
    "distributed",
    (
        Column("clean", calibration=True),
        Column("noise", corruption="gaussian_noise", severity=3),
        Column("pgd", attack="pgd_linf", settings={"epsilon": "2/255", "steps": 2}, max_images=7),
        Column("cw", attack="cw_l2", settings={"steps": 2}, max_images=7),
        Column("patchfool", attack="patchfool", settings={"steps": 2}, max_images=7),
    ),
)


def main(folder: str, processes: int) -> None:
    model, examples = seeded_model_and_examples()
    args = NullspaceTrainingArguments(
        folder,
        max_steps=4,
        per_device_train_batch_size=16 // processes,
        per_device_eval_batch_size=8 // processes,
        noise_limit=1.0,
        **TINY_RUN,
    )
    trainer = NullspaceTrainer(
        model,
        args,
        NullspaceDataCollator(),
        examples,
        examples[:13],
        compute_metrics=_accuracy,
        callbacks=[WeightAverageCallback(0.5)],
    )
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.state
    options = {"output_dir": Path(folder, "report"), "batch_size": 2, "accelerator": trainer.accelerator}
    report = evaluate_robustness(model, *_pictures(), PROFILE, **options, disable_tqdm=True)
    accuracies = torch.tensor(list(report.accuracies.values()), device=trainer.args.device)[None]
    batches = [{"pixel_values": batch} for batch in torch.randn(48, 3, 16, 16).split(16)]
    config = NullspaceConfig(max_steps=40, num_images=32, num_certificate_images=16)
    first_noise = synthesize_noise(model, batches, config, accelerator=trainer.accelerator).tensor
    drawing = dataclasses.replace(config, method="sample", max_steps=2)
    draws = synthesize_noise(model, batches, drawing, accelerator=trainer.accelerator)
    trainer.train()
    predictions = trainer.predict(examples[:13]).predictions
    ranks = trainer.accelerator.gather(trainer.noise.tensor.to(trainer.args.device))
    results = {
        "predictions": predictions.tolist(),
        "history": trainer.noise_history,
        "ranks_agree": all(torch.equal(rank, ranks[0]) for rank in ranks),
        "evaluations": _evaluations(trainer, examples),
        "disagreement": _disagreement(trainer),
        "num_processes": trainer.accelerator.num_processes,
        "draws": draws.certificate.to_dict(),
        "ascending_ranks_agree": _ascending_ranks_agree(folder, processes),
        "accuracies": trainer.accelerator.gather(accuracies).tolist(),
    }
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        noises = {"first_noise": first_noise, "last_noise": trainer.noise.tensor, "draws": draws.tensor}
        save_file({**noises, **weights}, Path(folder, "run.safetensors"))
        Path(folder, "run.json").write_text(json.dumps(results))


def _accuracy(output) -> dict[str, float]:
    return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}


def _ascending_ranks_agree(folder: str, processes: int) -> bool:
    """Whether all processes have the same weights after steps on its own draws, moved up its own loss."""
    model, examples = seeded_model_and_examples()
    settings = {**TINY_RUN, "noise_method": "sample", "noise_ascent": 2.0}
    args = NullspaceTrainingArguments(
        f"{folder}/ascending", max_steps=2, per_device_train_batch_size=16 // processes, **settings
    )
    trainer = NullspaceTrainer(model, args, NullspaceDataCollator(), examples)
    before = [weight.detach().clone() for weight in model.parameters()]
    reductions = CountedReductions(trainer)
    trainer.add_callback(reductions)
    trainer.train()
    assert reductions.count == (0 if processes == 1 else trainer.state.global_step), reductions.count
    weights = trainer.accelerator.unwrap_model(trainer.model).parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])[None]
    return all(torch.equal(rank, weights[0]) for rank in trainer.accelerator.gather(weights))


class CountedReductions(TrainerCallback):
    """Counts how often DDP averages gradients over the processes; a tiny model has one bucket of them."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.count = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.accelerator.num_processes > 1:
            self.trainer.model_wrapped.register_comm_hook(None, self._reduce)

    def _reduce(self, state, bucket):
        self.count += bucket.is_last()
        return allreduce_hook(None, bucket)


def _evaluations(trainer, examples) -> dict[str, dict[str, float]]:
    """What `Trainer` evaluates on sets that the processes cannot share evenly, and the loss worked out by hand."""
    model, results = trainer.accelerator.unwrap_model(trainer.model), {}
    for name, settings in (("default", {}), ("own counts", {"average_tokens_across_devices": False})):
        for field, value in settings.items():
            setattr(trainer.args, field, value)
        for count in (1, 3, 8, 10, 13):
            metrics = trainer.evaluate(examples[:count])
            batch = NullspaceDataCollator()(examples[:count])
            with torch.no_grad():
                by_hand = torch.nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
            results[f"{name}, {count} images"] = {
                "loss": metrics["eval_loss"],
                "accuracy": metrics["eval_accuracy"],
                "by_hand": by_hand.item(),
            }
    return results


def _disagreement(trainer) -> str:
    """What is said when the last process has another noise than the others."""
    noise, accelerator = trainer.noise, trainer.accelerator
    if accelerator.process_index > 0:
        noise = NullspaceNoise(2 * noise.tensor, noise.certificate, noise.config, noise.round_index)
    try:
        check_same_on_all_processes(noise, accelerator)
    except RuntimeError as error:
        return str(error)
    return ""


def _pictures():
    """An image processor, and thirteen pictures: a number that two processes cannot share evenly."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from transformers import ViTImageProcessorPil

    rng = np.random.default_rng(0)
    pictures = [PILImage.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(13)]
    features = Features({"image": Image(), "label": ClassLabel(5)})
    dataset = Dataset.from_dict({"image": pictures, "label": [index % 5 for index in range(13)]}, features)
    return ViTImageProcessorPil(size={"height": 16, "width": 16}), dataset
