"""The model types that are supported, each with a tiny config, and the whole path run on one of them."""

import copy
import math
from dataclasses import dataclass, field
from functools import lru_cache
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoConfig

from hf_nullspace import (
    Certificate,
    NullspaceDataCollator,
    NullspaceNoise,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    PatchNullspace,
    inject_noise,
    measure_noise,
)
from hf_nullspace.injection import tokens_shape
from hf_nullspace.patch_embedding import PatchProjection, find_patch_projection
from hf_nullspace.robustness.attacks import fgsm
from hf_nullspace.robustness.pixel_model import PixelModel


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
NAFLEX = {**{key: value for key, value in VIT.items() if key != "image_size"}, "num_patches": 4}
TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOWS = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "strides": [4, 2],
}
OVERLAPPING_PYRAMID = {**PYRAMID, "patch_sizes": [7, 3], "sr_ratios": [2, 1]}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
CONVOLUTIONS = {**STAGES, "embedding_size": 8}
NEXT = {**STAGES, "num_stages": 2, "image_size": 16}

# Weights that a family does not train: part of their names -> the reason.
MASK_TOKEN = {"mask_token": "stands in for masked patches, of which a classifier has none"}
POST_LAYERNORM = {"post_layernorm": "belongs to the pooled output; the classifier reads the mean of the patch tokens"}
POOLING_HEAD = {
    "vision_model.head": "belongs to the pooled output; the classifier reads the mean of the patch tokens"
}


@dataclass(frozen=True)
class ModelType:
    """
    One row of the support table.

    Args:
        model_class (`str`): Class in `transformers`.
        config (`dict`): What makes it tiny.
        size (`int`): Side of its images.
        idle (`dict[str, str]`): Part of the name of weights that training leaves alone -> the reason.
        architecture (`str`, *optional*): Of timm.
    """

    model_class: str
    config: dict
    size: int = 16
    idle: dict = field(default_factory=dict)
    architecture: str | None = None


def timm(architecture: str, **model_args) -> ModelType:
    config = {"architecture": architecture, "model_args": model_args}
    return ModelType("TimmWrapperForImageClassification", config, architecture=architecture)


MODEL_TYPES = {
    "vit": ModelType("ViTForImageClassification", VIT),
    "deit": ModelType("DeiTForImageClassification", VIT),
    "beit": ModelType("BeitForImageClassification", {**VIT, "use_relative_position_bias": True}),
    "data2vec-vision": ModelType("Data2VecVisionForImageClassification", {**VIT, "use_relative_position_bias": True}),
    "dinov2": ModelType("Dinov2ForImageClassification", DINO, idle=MASK_TOKEN),
    "dinov2_with_registers": ModelType("Dinov2WithRegistersForImageClassification", DINO, idle=MASK_TOKEN),
    "vit_msn": ModelType("ViTMSNForImageClassification", VIT),
    "ijepa": ModelType("IJepaForImageClassification", VIT),
    "clip": ModelType(
        "CLIPForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POST_LAYERNORM
    ),
    "metaclip_2": ModelType(
        "MetaClip2ForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POST_LAYERNORM
    ),
    "siglip": ModelType(
        "SiglipForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POOLING_HEAD
    ),
    "siglip2": ModelType(
        "Siglip2ForImageClassification", {"vision_config": NAFLEX, "text_config": TEXT}, idle=POOLING_HEAD
    ),
    "swin": ModelType("SwinForImageClassification", WINDOWS),
    "swinv2": ModelType("Swinv2ForImageClassification", WINDOWS),
    "donut-swin": ModelType("DonutSwinForImageClassification", WINDOWS),
    "focalnet": ModelType(
        "FocalNetForImageClassification",
        {**STAGES, "image_size": 16, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    ),
    "hiera": ModelType(
        "HieraForImageClassification",
        {
            "image_size": [32, 32],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
        },
        size=32,
    ),
    "pvt": ModelType(
        "PvtForImageClassification",
        {**PYRAMID, "image_size": 16, "patch_sizes": [4, 2], "sequence_reduction_ratios": [2, 1]},
    ),
    "pvt_v2": ModelType("PvtV2ForImageClassification", {**OVERLAPPING_PYRAMID, "image_size": 16}),
    "segformer": ModelType("SegformerForImageClassification", OVERLAPPING_PYRAMID),
    "cvt": ModelType(
        "CvtForImageClassification",
        {
            "patch_sizes": [7, 3, 3],
            "embed_dim": [8, 8, 16],
            "num_heads": [1, 1, 2],
            "depth": [1, 1, 1],
            "mlp_ratio": [2.0, 2.0, 2.0],
            "drop_path_rate": [0.0, 0.0, 0.0],
        },
        size=32,
    ),
    "poolformer": ModelType(
        "PoolFormerForImageClassification",
        {**STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    ),
    "convnext": ModelType("ConvNextForImageClassification", NEXT),
    "convnextv2": ModelType("ConvNextV2ForImageClassification", NEXT),
    "levit": ModelType(
        "LevitForImageClassification",
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        size=32,
    ),
    "swiftformer": ModelType(
        "SwiftFormerForImageClassification",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "mlp_ratio": 2},
        size=32,
    ),
    "resnet": ModelType("ResNetForImageClassification", {**CONVOLUTIONS, "layer_type": "basic"}),
    "regnet": ModelType("RegNetForImageClassification", {**CONVOLUTIONS, "groups_width": 8}),
    "bit": ModelType("BitForImageClassification", {**CONVOLUTIONS, "num_groups": 4}),
    "textnet": ModelType(
        "TextNetForImageClassification",
        {
            "image_size": [16, 16],
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]]],
            "conv_layer_strides": [[2], [2]],
        },
    ),
    "timm vit_small_patch16_224": timm(
        "vit_small_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ),
    "timm swin_tiny_patch4_window7_224": timm(
        "swin_tiny_patch4_window7_224", img_size=16, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2)
    ),
    "timm convnext_tiny": timm("convnext_tiny", depths=(1, 1), dims=(8, 16)),
    "timm mixer_s32_224": timm("mixer_s32_224", img_size=16, patch_size=8, embed_dim=16, num_blocks=1),
}

NUM_IMAGES, NUM_LABELS = 16, 3
PROCESSOR = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_normalize=True)


def require_timm() -> None:
    """Skips a test where timm cannot be imported, or was installed beside a torchvision that is not torch's."""
    try:
        pytest.importorskip("timm", exc_type=ImportError)
    except RuntimeError as error:  # a torchvision built for another torch has no operators
        pytest.skip(f"timm cannot be imported: {error}")


def build_model(name: str) -> transformers.PreTrainedModel:
    """The tiny model, with weights large enough for its logits to depend on its input."""
    case = MODEL_TYPES[name]
    config = AutoConfig.for_model("timm_wrapper" if case.architecture else name, num_labels=NUM_LABELS, **case.config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, case.model_class)(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=math.sqrt(parameter.shape[0] / parameter.numel()))
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
    certificates: list[Certificate]
    idle: list[str]  # weights that three steps did not move
    eval_loss: float
    expected_eval_loss: float
    logits_come_back: bool
    noise_comes_back: bool
    certificate_comes_back: bool
    resume_is_exact: bool
    attacked_pixels: float | None  # share of pixels that FGSM moves; `None` where images are no pixels


@lru_cache(maxsize=None)
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
        loaded = type(model).from_pretrained(whole_folder)
        noise = NullspaceNoise.from_pretrained(whole_folder)
        resumed = make_trainer(model, examples, resumed_folder)
        resumed.train(resume_from_checkpoint=f"{whole_folder}/checkpoint-2")
    weights = dict(trainer.model.named_parameters())
    expected = logits_of(trainer.model, batch)
    return Outcome(
        projection,
        _logit_change(model, batch),
        *_exact_changes(model, projection, batch),
        [Certificate.from_dict({key: row[key] for key in row if key not in ("round", "step")}) for row in _history(trainer)],
        [key for key, weight in weights.items() if weight.requires_grad and torch.equal(weight, before[key])],
        trainer.evaluate()["eval_loss"],
        torch.nn.functional.cross_entropy(expected, batch["labels"]).item(),
        torch.equal(logits_of(loaded, batch), expected),
        torch.equal(noise.tensor, trainer.noise.tensor),
        measure_noise(loaded, noise, [batch]) == measure_noise(trainer.model, trainer.noise, [batch]),
        _same(trainer, resumed),
        None if isinstance(projection.module, torch.nn.Linear) else _attacked_pixels(model, batch),
    )


def _history(trainer: NullspaceTrainer) -> list[dict]:
    return trainer.noise_history


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
    attacked = fgsm(PixelModel(model, PROCESSOR), pixels, batch["labels"], epsilon=1e-3)
    return (attacked != pixels).float().mean().item()
