"""Walks a dataloader with noise in the pixels in however many processes it is launched in, and saves what came out."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification

from hf_nullspace import NullspaceDataCollator, PatchNullspace


def main(path: str, expected_processes: str, workers: str) -> None:
    processes = int(expected_processes)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    nullspace = PatchNullspace.from_model(ViTForImageClassification(config))
    examples = [{"pixel_values": 2 * torch.rand(3, 16, 16) - 1, "label": index} for index in range(24)]
    box = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    accelerator = Accelerator()
    assert accelerator.num_processes == processes, accelerator.state
    batches = {}
    for name, options in (
        ("exact", {**box, "slides": 32}),
        ("realised", {**box, "noise": torch.randn(1, 4, 32)}),
        ("paired", {"noise_norm": 9.0, "paired": True}),
    ):
        collator = NullspaceDataCollator(nullspace=nullspace, **options)
        loader = DataLoader(examples, 8 // processes, num_workers=int(workers), collate_fn=collator)
        for epoch in range(2):
            collator.set_epoch(epoch)
            rows = [(batch["labels"], batch["pixel_values"]) for batch in accelerator.prepare(loader)]
            labels, pixels = (accelerator.gather(torch.cat(part)) for part in zip(*rows, strict=True))
            batches[f"{name} {epoch}"] = pixels[labels.argsort(stable=True)].contiguous()
    if accelerator.is_main_process:
        save_file(batches, Path(path))
    # A process group that is still open when Python ends can abort the process.
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
