"""Trains a tiny model by each control in however many processes it is started in, and saves what the test compares."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_model import TINY_RUN, seeded_model_and_examples
from transformers import ViTImageProcessorPil

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.baselines import WAYS


# At radius 0 the starts of the processes, which differ, make no difference.
RUNS = {
    "permuted": ("permuted", {}),
    "pgd of radius 0": ("pgd", {"adversarial_epsilon": "0"}),
    "trades of radius 0": ("trades", {"adversarial_epsilon": "0"}),
    "pgd": ("pgd", {}),
    "trades": ("trades", {}),
}


def main(folder: str, processes: int) -> None:
    weights, ranks_agree = {}, {}
    for run, (name, changes) in RUNS.items():
        way = WAYS[name]
        model, examples = seeded_model_and_examples()
        args = way.arguments(
            f"{folder}/{run}",
            max_steps=2,
            per_device_train_batch_size=8 // processes,
            gradient_accumulation_steps=2,
            **{**TINY_RUN, **changes},
        )
        processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
        trainer = way.trainer_class(
            model, args, NullspaceDataCollator(), train_dataset=examples, processing_class=processor
        )
        assert trainer.accelerator.num_processes == processes, trainer.accelerator.state
        trainer.train()
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        weights |= {f"{run}: {key}": value for key, value in state.items()}
        if trainer.noise is not None:
            weights[f"{run}: noise"] = trainer.noise.tensor
        flat = torch.cat([value.flatten() for value in state.values()])
        ranks = trainer.accelerator.gather(flat[None])
        ranks_agree[run] = len(ranks) == processes and all(torch.equal(rank, ranks[0]) for rank in ranks)
    if trainer.is_world_process_zero():
        save_file({name: value.contiguous() for name, value in weights.items()}, Path(folder, "weights.safetensors"))
        Path(folder, "ranks_agree.json").write_text(json.dumps(ranks_agree))
