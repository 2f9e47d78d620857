"""The whole path of the package, run on one model type: inject, synthesise, train, save, reload, resume, attack."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers
from model_types import MODEL_TYPES
from transformers import AutoConfig

from hf_nullspace import (
    NullspaceDataCollator,
    NullspaceNoise,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    PatchNullspace,
    inject_noise,
    measure_noise,
)
from hf_nullspace.models.injection import tokens_shape
from hf_nullspace.models.patch_projection import PatchProjection, find_patch_projection
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm


NUM_IMAGES, NUM_LABELS = 16, 3
PROCESSOR = transformers.ViTImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def require_timm() -> None:
    """Skips a test where timm cannot be imported, or was installed beside a torchvision that is not torch's."""
    try:
        pytest.importorskip("timm", exc_type=ImportError)
    except RuntimeError as error:  # a torchvision built for another torch has no operators
        pytest.skip(f"timm cannot be imported: {error}")


def draw_model(model_class: Callable, config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """A model with weights large enough for its outputs to depend on its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=math.sqrt(parameter.shape[0] / parameter.numel()))
    return model.eval()


def build_model(name: str) -> transformers.PreTrainedModel:
    """The tiny model of a type; batch normalisation gets the statistics of a batch, or signals would fade."""
    case = MODEL_TYPES[name]
    config = AutoConfig.for_model("timm_wrapper" if case.architecture else name, num_labels=NUM_LABELS, **case.config)
    model = draw_model(getattr(transformers, case.model_class), config)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            model.train()(pixel_values=torch.rand(NUM_IMAGES, 3, case.size, case.size) * 2 - 1)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def make_examples(name: str, model: transformers.PreTrainedModel) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    projection = find_patch_projection(model).module
    if isinstance(projection, torch.nn.Linear):
        features = {"pixel_attention_mask": torch.ones(4, dtype=torch.long), "spatial_shapes": torch.tensor([2, 2])}
        shape = (NUM_IMAGES, 4, projection.in_features)
    else:
        features = {}
        shape = (NUM_IMAGES, 3, MODEL_TYPES[name].size, MODEL_TYPES[name].size)
    pixels = torch.rand(shape, generator=generator) * 2 - 1
    return [{"pixel_values": image, "label": index % NUM_LABELS, **features} for index, image in enumerate(pixels)]


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


def make_trainer(model: torch.nn.Module, examples: list[dict], folder: str) -> NullspaceTrainer:
    """Three steps, a new noise before the first and the third, and a checkpoint after the second."""
    args = NullspaceTrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.0,  # decay would move weights that no gradient reaches
        noise_refresh_steps=2,
        noise_max_steps=3,
        noise_num_images=8,
        noise_num_certificate_images=8,
        save_strategy="steps",
        save_steps=2,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return NullspaceTrainer(
        copy.deepcopy(model), args, NullspaceDataCollator(), train_dataset=examples, eval_dataset=examples
    )


@dataclass
class Outcome:
    """What one model type did on the whole path."""

    projection: PatchProjection
    logit_change: float  # under noise as large as the patch embeddings, in units of the spread of the logits
    exact_change: float | None  # the same under exact pixel noise; `None` where there is none
    control_change: float | None  # under the same pixel noise with its elements permuted
    history: list[dict]  # one row for each round of synthesis
    idle: list[str]  # weights that three steps did not move
    eval_loss: float
    expected_eval_loss: float
    logits_come_back: bool
    noise_comes_back: bool
    certificate_comes_back: bool
    resume_is_exact: bool
    attacked_pixels: float | None  # share of pixels that FGSM moves; `None` where images are no pixels


@cache
def run(name: str) -> Outcome:
    """Inject, find the exact nullspace, train with synthesis, save, reload, verify, resume, evaluate, attack."""
    if MODEL_TYPES[name].architecture:
        require_timm()
    model = build_model(name)
    examples = make_examples(name, model)
    batch = NullspaceDataCollator()(examples)
    projection = find_patch_projection(model)
    with TemporaryDirectory() as whole_folder, TemporaryDirectory() as resumed_folder:
        trainer = make_trainer(model, examples, whole_folder)
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.train()
        trainer.save_model()
        # A copy, since weights in a mapped file lie otherwise in memory, which moves the last bit of some kernels' sums.
        loaded = copy.deepcopy(type(model).from_pretrained(whole_folder))
        noise = NullspaceNoise.from_pretrained(whole_folder)
        resumed = make_trainer(model, examples, resumed_folder)
        resumed.train(resume_from_checkpoint=f"{whole_folder}/checkpoint-2")
    weights = dict(trainer.model.named_parameters())
    expected = logits_of(trainer.model, batch)
    return Outcome(
        projection,
        _logit_change(model, batch),
        *_exact_changes(model, projection, batch),
        trainer.noise_history,
        [key for key, weight in weights.items() if weight.requires_grad and torch.equal(weight, before[key])],
        trainer.evaluate()["eval_loss"],
        torch.nn.functional.cross_entropy(expected, batch["labels"]).item(),
        torch.equal(logits_of(loaded, batch), expected),
        torch.equal(noise.tensor, trainer.noise.tensor),
        measure_noise(loaded, noise, [batch]) == measure_noise(trainer.model, trainer.noise, [batch]),
        _same(trainer, resumed),
        None if isinstance(projection.module, torch.nn.Linear) else _attacked_pixels(model, batch),
    )


def _spread(logits: torch.Tensor) -> float:
    return logits.std(0).norm().item()


@torch.no_grad()
def _logit_change(model: torch.nn.Module, batch: dict) -> float:
    outputs = []
    handle = find_patch_projection(model).module.register_forward_hook(lambda *args: outputs.append(args[2]))
    clean = logits_of(model, batch)
    handle.remove()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, *tokens_shape(outputs[0]), generator=generator) * outputs[0].std()
    with inject_noise(model, noise):
        noisy = logits_of(model, batch)
    return (noisy - clean).abs().max().item() / _spread(clean)


@torch.no_grad()
def _exact_changes(
    model: torch.nn.Module, projection: PatchProjection, batch: dict
) -> tuple[float | None, float | None]:
    if not projection.is_exact:
        return None, None
    pixels = batch["pixel_values"]
    nullspace = PatchNullspace.from_model(model)
    shape = {"num_patches": pixels.shape[1]} if pixels.dim() == 3 else {"image_size": tuple(pixels.shape[2:])}
    noise = nullspace.sample(1, norm=pixels[0].norm().item(), **shape)
    control = noise.flatten()[torch.randperm(noise.numel(), generator=torch.Generator().manual_seed(2))]
    clean = logits_of(model, batch)
    changes = [
        (logits_of(model, {**batch, "pixel_values": pixels + change}) - clean).abs().max().item() / _spread(clean)
        for change in (noise, control.view_as(noise))
    ]
    return changes[0], changes[1]


def _same(first: NullspaceTrainer, second: NullspaceTrainer) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs) and torch.equal(first.noise.tensor, second.noise.tensor)


def _attacked_pixels(model: torch.nn.Module, batch: dict) -> float:
    pixels = batch["pixel_values"] / 2 + 0.5
    pixel_model = PixelModel(model, PROCESSOR)
    labels = pixel_model(pixels).argmax(-1)  # pictures that are misclassified already are left alone
    attacked = fgsm(pixel_model, pixels, labels, epsilon=1e-3)
    return (attacked != pixels).float().mean().item()
