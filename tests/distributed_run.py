"""Trains a tiny model in however many processes it is launched in, and saves what the test compares."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments, evaluate_robustness
from hf_nullspace.robustness import Column, Profile


PROFILE = Profile(
    "distributed",
    (
        Column("clean", calibration=True),
        Column("noise", corruption="gaussian_noise", severity=3),
        Column("pgd", attack="pgd_linf", settings={"epsilon": "2/255", "steps": 2}, max_images=7),
    ),
)


def main(folder: str, expected_processes: str) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        initializer_range=0.2,
        num_labels=5,
    )
    model = ViTForImageClassification(config)
    images = torch.rand(64, 3, 16, 16)
    examples = [{"pixel_values": image, "label": index % 5} for index, image in enumerate(images)]
    processes = int(expected_processes)
    args = NullspaceTrainingArguments(
        folder,
        max_steps=4,
        per_device_train_batch_size=16 // processes,
        noise_refresh_steps=2,
        epsilon=1e-4,
        noise_max_steps=8,
        noise_num_images=32,
        noise_num_certificate_images=16,
        noise_limit=1.0,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = NullspaceTrainer(model, args, NullspaceDataCollator(), examples, examples[:13])
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.state
    options = {"output_dir": Path(folder, "report"), "batch_size": 2, "accelerator": trainer.accelerator}
    report = evaluate_robustness(model, *_pictures(), PROFILE, **options, disable_tqdm=True)
    accuracies = torch.tensor(list(report.accuracies.values()), device=trainer.args.device)[None]
    trainer.train()
    predictions = trainer.predict(examples[:13]).predictions
    ranks = trainer.accelerator.gather(trainer.noise.tensor.to(trainer.args.device))
    results = {
        "predictions": predictions.tolist(),
        "history": trainer.noise_history,
        "ranks_agree": all(torch.equal(rank, ranks[0]) for rank in ranks),
        "num_processes": trainer.accelerator.num_processes,
        "accuracies": trainer.accelerator.gather(accuracies).tolist(),
    }
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        save_file({"noise": trainer.noise.tensor, **weights}, Path(folder, "run.safetensors"))
        Path(folder, "run.json").write_text(json.dumps(results))


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


if __name__ == "__main__":
    main(*sys.argv[1:])
