"""
A small training run for tests that kill it: it tells what it is about to do, and the test chooses when it dies.

Runs in a process forked from a server that has imported everything, as one of `world` processes on gloo.
"""

import os
import resource
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments


class TellingTrainer(NullspaceTrainer):
    """Appends a line to a file at every event, then lingers, so that a kill can land there."""

    def __init__(self, *args, log: Path, linger: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.events, self.linger = log, linger

    def tell(self, event: str) -> None:
        if self.args.process_index == 0:
            with open(self.events, "a") as file:
                file.write(f"{event} {self.state.global_step}\n")
        time.sleep(self.linger)

    def training_step(self, *args, **kwargs):
        self.tell("training")
        return super().training_step(*args, **kwargs)

    def _noise_dataloader(self, round_index):
        self.tell("synthesis")  # begins here; the search is over before the next event
        return super()._noise_dataloader(round_index)

    def _save(self, output_dir=None, state_dict=None):
        self.tell("saving-model")
        super()._save(output_dir, state_dict)
        self.tell("saving-noise")

    def _save_optimizer_and_scheduler(self, output_dir):
        self.tell("saving-optimizer")
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        self.tell("saving-random-state")
        super()._save_rng_state(output_dir)
        self.tell("saving-trainer-state")


def build(folder: str, linger: float = 0.0, **changes) -> TellingTrainer:
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
        hidden_dropout_prob=0.1,  # so that a random state that is not restored shows
    )
    images = torch.rand(64, 3, 16, 16)
    examples = [{"pixel_values": image, "label": index % 5} for index, image in enumerate(images)]
    settings = {
        "max_steps": 30,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "noise_refresh_steps": 7,
        "noise_max_steps": 4,
        "noise_num_images": 16,
        "noise_num_certificate_images": 8,
        "noise_bank_size": 2,
        "epsilon": 1e-3,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "logging_steps": 5,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = NullspaceTrainingArguments(folder, **{**settings, **changes})
    model = ViTForImageClassification(config)
    log = Path(folder, "events.txt")
    return TellingTrainer(model, args, NullspaceDataCollator(), examples, examples[:13], log=log, linger=linger)


def main(folder: str, rank: int = 0, world: int = 1, port: int = 0, linger: float = 0.0, changes: dict | None = None):
    """Trains on from the last whole checkpoint, if there is one, and saves the result in `folder`."""
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in {**rendezvous, "MASTER_PORT": port}.items()})
    trainer = build(folder, linger, **(changes or {}))
    assert trainer.accelerator.num_processes == world
    begun = get_last_checkpoint(folder) is not None
    try:
        trainer.train(resume_from_checkpoint=begun)
    except ValueError as error:
        if "No checkpoint in" not in str(error):  # killed in its very first save
            raise
        trainer.train()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if rank == 0:
        save_file({"noise": trainer.noise.tensor, **weights}, Path(folder, "result.safetensors.tmp"))
        os.replace(Path(folder, "result.safetensors.tmp"), Path(folder, "result.safetensors"))


def run_out_of_space(folder: str, limit: int, result: str, changes: dict) -> None:
    """Saves two checkpoints, then may write no file larger than `limit` bytes; tells what training raised."""
    torch.set_num_threads(1)
    trainer = build(folder, **changes)

    def tell(event, trainer=trainer):
        if event == "saving-model" and trainer.state.global_step == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    trainer.tell = tell
    try:
        trainer.train()
    except OSError as error:
        Path(result).write_text(str(error))
