"""
A small training run for tests that kill it: it tells which phase it is in, and the test chooses when it dies.

Runs in one of `world` processes, forked or started by `accelerate launch`.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from safetensors.torch import save_file
from tiny_model import seeded_model_and_examples
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments


class TellingTrainer(NullspaceTrainer):
    """
    Appends a line to a file whenever it passes into another phase, so that the last line is the phase it is in.

    At the end of the phase `hold` the process `held` waits: whoever kills the run before then kills it in that phase.
    """

    def __init__(self, *args, log: Path, hold: str | None, held: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.log_path, self.hold, self.held, self.phase = log, hold, held, None

    def tell(self, phase: str) -> None:
        if self.phase == self.hold and self.args.process_index == self.held and self.hold is not None:
            time.sleep(300)
        self.phase = f"{phase} {self.state.global_step}"
        if self.args.process_index == 0:
            with open(self.log_path, "a") as file:
                file.write(f"{time.time()} {self.phase}\n")

    def training_step(self, *args, **kwargs):
        self.tell("training")
        return super().training_step(*args, **kwargs)

    def _refresh_noise(self, model):
        self.tell("synthesis")
        super()._refresh_noise(model)
        self.tell("training")

    def _save_checkpoint(self, model, trial):
        self.tell("saving")
        super()._save_checkpoint(model, trial)
        self.tell("saved")

    def _save(self, output_dir=None, state_dict=None):
        self.tell("saving-model")
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir):
        self.tell("saving-optimizer")
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        self.tell("saving-random-state")
        super()._save_rng_state(output_dir)
        self.tell("saving-trainer-state")


def build(
    folder: str, hold: str | None = None, held: int = 0, dropout: float = 0.1, callbacks=(), **changes
) -> TellingTrainer:
    # Dropout, so that a random state that is not restored shows.
    model, examples = seeded_model_and_examples(hidden_dropout_prob=dropout)
    settings = {
        "max_steps": 30,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "noise_refresh_steps": 7,
        "noise_max_steps": 4,
        "noise_num_images": 16,
        "noise_num_certificate_images": 8,
        "noise_method": "boundary",
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
    telling = {"log": Path(folder, "phases.txt"), "hold": hold, "held": held, "callbacks": list(callbacks)}
    return TellingTrainer(model, args, NullspaceDataCollator(), examples, examples[:13], **telling)


def train(folder: str, world: int, changes: dict) -> None:
    """Trains on from the last whole checkpoint, if there is one, and saves the result in `folder`."""
    trainer = build(folder, **changes)
    assert trainer.accelerator.num_processes == world
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, JITCheckpointCallback):
            callback.jit_manager.kill_wait = 0  # it would go on for three seconds, and be done
    Path(folder, f"process-{trainer.args.process_index}.txt").write_text(str(os.getpid()))
    begun = get_last_checkpoint(folder) is not None
    try:
        trainer.train(resume_from_checkpoint=begun)
    except ValueError as error:
        if "No checkpoint in" not in str(error):  # killed in its very first save
            raise
        trainer.train()
    if trainer.is_world_process_zero() and trainer.state.global_step == trainer.args.max_steps:
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        noise = {} if trainer.noise is None else {"noise": trainer.noise.tensor}
        save_file({**noise, **weights}, Path(folder, "result.safetensors.tmp"))
        os.replace(Path(folder, "result.safetensors.tmp"), Path(folder, "result.safetensors"))


def run_out_of_space(folder: str, limit: int, result: str, changes: dict) -> None:
    """Saves two checkpoints, then may write no file larger than `limit` bytes; tells what training raised."""
    trainer = build(folder, **changes)

    def tell(phase, trainer=trainer):
        if phase == "saving-model" and trainer.state.global_step == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    trainer.tell = tell
    try:
        trainer.train()
    except OSError as error:
        Path(result).write_text(str(error))


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
