"""The finetuning example, and flags that make it quick."""

from pathlib import Path


EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


QUICK = [
    "--max_steps",
    "4",
    "--noise_refresh_steps",
    "2",
    "--noise_max_steps",
    "3",
    "--per_device_train_batch_size",
    "8",
]
