"""Builds the small, untrained ViT for the digits."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil


def build_digits_model(
    labels: Sequence[str], image_size: int = 32
) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """
    An untrained ViT with 4 layers, hidden size 96 and 8x8 patches (an exact nullspace of 192 - 96 dimensions), and its
    image processor.

    Args:
        labels (`Sequence[str]`): Class names, in the order of their labels.
        image_size (`int`, *optional*, defaults to 32): Side of the images in pixels.
    """
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    size = {"height": image_size, "width": image_size}
    return ViTForImageClassification(config), ViTImageProcessorPil(size=size)
