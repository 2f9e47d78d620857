"""Trains a tiny model by each control in however many processes it is started in, and saves what the test compares."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_model import TINY_RUN, seeded_model_and_examples
from transformers import ViTImageProcessorPil

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.baselines import WAYS


# SAM has worst weights for each micro-batch, so one process takes micro-batches of the size that two take.
RUNS = {
    "permuted": ("permuted", {}),
    "freelb": ("freelb", {}),
    "sam": ("sam", {"sam_rho": 0.5}),
    "nfgsm": ("nfgsm", {}),
    "pgd": ("pgd", {}),
    "trades": ("trades", {}),
}


def main(folder: str, processes: int) -> None:
    weights, ranks_agree = {}, {}
    for run, (name, changes) in RUNS.items():
        way = WAYS[name]
        model, examples = seeded_model_and_examples()
        size = 4 if name == "sam" else 8 // processes
        args = way.arguments(
            f"{folder}/{run}",
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // (size * processes),
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
