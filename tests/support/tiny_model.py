"""The tiny ViT of the tests, for the fixtures and for the scripts that tests run in processes of their own."""

import torch
from transformers import ViTConfig, ViTForImageClassification


TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}


# Arguments of a trainer that is compared over processes: plain steps, so that rounding stays rounding, and quick rounds.
TINY_RUN = {
    "noise_method": "boundary",
    "noise_refresh_steps": 2,
    "epsilon": 1e-4,
    "noise_max_steps": 8,
    "noise_num_images": 32,
    "noise_num_certificate_images": 16,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def tiny_vit(**changes) -> ViTForImageClassification:
    """A ViT with 4 patches of 8x8 and hidden size 32, drawn from torch's global generator."""
    return ViTForImageClassification(ViTConfig(**{**TINY_VIT, **changes}))


def seeded_model_and_examples(**changes) -> tuple[ViTForImageClassification, list[dict]]:
    """The same model with larger weights, and 64 examples for it, of the same seed in every process."""
    torch.manual_seed(0)
    model = tiny_vit(**{"initializer_range": 0.2, **changes})
    images = torch.rand(64, 3, 16, 16)
    return model, [{"pixel_values": image, "label": index % 5} for index, image in enumerate(images)]
