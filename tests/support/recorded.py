"""
Numbers of the noise, the certificates, the training and the evaluation of fixed tiny models, and files that hold them.

`python tests/support/recorded.py numbers FILE` writes the numbers, `... files FOLDER` the files. Those under
`tests/recorded` were written before the package had wings.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_nullspace import (
    NullspaceConfig,
    NullspaceDataCollator,
    NullspaceTrainer,
    evaluate_robustness,
    measure_noise,
    synthesize_noise,
)
from hf_nullspace.baselines import WAYS
from hf_nullspace.robustness import Profile


NAMES = ["square", "stripes", "cross"]
SYNTHESIS = {"epsilon": 0.1, "max_steps": 6, "num_images": 32, "num_certificate_images": 64, "seed": 7}
TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "noise_refresh_steps": 2,
    "noise_max_steps": 4,
    "noise_num_images": 32,
    "noise_num_certificate_images": 64,
    "epsilon": 0.1,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
# The ways of training whose loss of each step is recorded, and the settings that differ.
RUNS = {
    "nullspace": ("nullspace", {}),
    "no ascent": ("nullspace", {"noise_ascent": 0.0}),
    "boundary": ("nullspace", {"noise_method": "boundary", "noise_ascent": 0.0}),
    "paper": ("nullspace", {"noise_method": "paper", "noise_limit": 1.0}),
    "permuted": ("permuted", {}),
    "gaussian": ("gaussian", {}),
    "pgd": ("pgd", {}),
    "trades": ("trades", {}),
}
FIELDS = (
    "probability_mse",
    "probability_mse_upper",
    "logit_distance",
    "agreement",
    "permuted_probability_mse",
    "permuted_agreement",
    "norm",
    "raw_norm",
    "token_norm_max",
)
PROFILE = {
    "name": "recorded",
    "columns": [
        {"name": "clean", "calibration": True},
        {"name": "gaussian_noise", "corruption": "gaussian_noise", "severity": 3},
        {"name": "jpeg", "corruption": "jpeg_compression", "severity": 5},
        {"name": "fgsm", "attack": "fgsm", "settings": {"epsilon": "8/255"}},
        {"name": "pgd", "attack": "pgd_linf", "settings": {"epsilon": "4/255"}},
        {"name": "pgd_l2", "attack": "pgd_l2", "settings": {"epsilon": 0.5}},
        {"name": "cw", "attack": "cw_l2", "settings": {"steps": 5}},
        {"name": "patchfool", "attack": "patchfool", "settings": {"steps": 5}},
    ],
}


def pictures(count: int) -> list[Image.Image]:
    """Noisy pictures of 16 x 16 pixels, of the three classes in turn."""
    generator = np.random.default_rng(3)
    made = []
    for index in range(count):
        values = generator.integers(0, 90, (16, 16, 3))
        kind = index % 3
        if kind == 0:
            values[4:12, 4:12] += 120
        elif kind == 1:
            values[::2] += 120
        else:
            values[6:10] += 120
            values[:, 6:10] += 40
        made.append(Image.fromarray(values.astype(np.uint8)))
    return made


def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def examples(count: int = 96) -> list[dict]:
    pixels = processor()(pictures(count), return_tensors="pt")["pixel_values"]
    return [{"pixel_values": image, "label": index % 3} for index, image in enumerate(pixels)]


def model() -> ViTForImageClassification:
    """A ViT with 16 patches and hidden size 16 that tells the classes apart a little."""
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.15,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViTForImageClassification(config)
        optimizer = torch.optim.SGD(vit.parameters(), lr=0.1)
        batch = NullspaceDataCollator()(examples())
        for _ in range(20):
            vit(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return vit.eval()


def batches() -> list[dict]:
    return [
        {"pixel_values": NullspaceDataCollator()(examples())["pixel_values"][i : i + 16]} for i in range(0, 96, 16)
    ]


def trainer(folder: Path, method: str, **changes) -> NullspaceTrainer:
    way = WAYS[method]
    arguments = way.arguments(str(folder), **{**TRAINING, "save_strategy": "no", **changes})
    return way.trainer_class(model(), arguments, NullspaceDataCollator(), examples(), examples(12), processor())


def dataset():
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": pictures(24), "label": [index % 3 for index in range(24)]}, features=features)


def numbers(folder: Path) -> dict:
    """What the methods give on the tiny model."""
    found: dict = {"synthesis": {}, "training": {}}
    for method in ("boundary", "sample", "paper"):
        limit = {"noise_limit": 1.0} if method == "paper" else {}
        config = NullspaceConfig(method=method, **SYNTHESIS, **limit)
        noise = synthesize_noise(model(), batches(), config)
        row = {name: getattr(noise.certificate, name) for name in FIELDS}
        measured = measure_noise(model(), noise, batches())
        row |= {f"measured_{name}": getattr(measured, name) for name in FIELDS}
        found["synthesis"][method] = row | {"sum_of_sines": noise.tensor.sin().sum().item()}
    for name, (method, changes) in RUNS.items():
        run = trainer(folder / name.replace(" ", "-"), method, **changes)
        run.train()
        losses = [row["loss"] for row in run.state.log_history if "loss" in row]
        weights = sum(weight.double().sin().sum().item() for weight in run.model.parameters())
        found["training"][name] = {"losses": losses, "sum_of_sines": weights}
    report = evaluate_robustness(model(), processor(), dataset(), Profile.from_dict(PROFILE), disable_tqdm=True)
    found["evaluation"] = {name: row["accuracy"] for name, row in report.to_dict()["columns"].items()}
    return found


def write_files(folder: Path) -> None:
    """A noise of each kind, a report, and a finetuned checkpoint with its manifest and one to resume from."""
    for method in ("boundary", "sample", "paper"):
        config = NullspaceConfig(method=method, **SYNTHESIS)
        synthesize_noise(model(), batches(), config).save_pretrained(folder / f"noise-{method}")
    evaluate_robustness(model(), processor(), dataset(), Profile.from_dict(PROFILE), disable_tqdm=True).save(
        folder / "report"
    )
    run = trainer(folder / "finetuned", "nullspace", save_strategy="steps", save_steps=2, optim="sgd")
    run.train()
    run.save_model()
    run.create_model_card(dataset="drawings")


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "numbers":
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            place.write_text(json.dumps(numbers(Path(scratch)), indent=2) + "\n", encoding="utf-8")
    else:
        write_files(place)
