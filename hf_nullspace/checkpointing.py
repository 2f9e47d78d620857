"""
Loads the weights of a checkpoint through the class of the model.

`Trainer` reads the weight file as it lies and loads it non-strictly. `save_pretrained` writes a ViT's encoder under
older names than the live model uses, so that would restore the head and leave the encoder as it was, in silence. Delete
this file when `Trainer._load_from_checkpoint` and `_load_best_model` convert names as `from_pretrained` does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME


def load_model_weights(model: nn.Module, checkpoint: str) -> bool:
    """
    Puts every weight of `checkpoint` into `model`.

    Args:
        model (`nn.Module`): The live model, unwrapped.
        checkpoint (`str`): A folder that `save_pretrained` wrote.

    Returns:
        `bool`: `False` if this is not a plain Transformers checkpoint (an adapter, say) and `Trainer` should load it.

    Raises:
        `ValueError`: If the checkpoint is damaged, lacks a weight of the model, or holds it in another shape.
    """
    if not isinstance(model, PreTrainedModel) or not Path(checkpoint, CONFIG_NAME).is_file():
        return False
    remedy = "Resume from an earlier checkpoint, with the model it was saved from."
    try:
        loaded, info = type(model).from_pretrained(
            checkpoint,
            config=model.config,
            dtype=model.dtype,
            ignore_mismatched_sizes=True,  # so that they are listed; they are refused below
            output_loading_info=True,
        )
    except Exception as error:  # whatever a cut or missing file raises, the reader needs to know which checkpoint
        raise ValueError(f"The weights in {checkpoint} cannot be read: {error}. {remedy}") from error
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    if missing or mismatched:
        raise ValueError(
            f"The checkpoint {checkpoint} does not fit {type(model).__name__}: it lacks {missing or 'nothing'} and "
            f"has other shapes for {mismatched or 'nothing'}. {remedy}"
        )
    model.load_state_dict(loaded.state_dict())
    return True


def check_writable(directory: str) -> None:
    """
    Makes sure that results can be saved, before there are any.

    Raises:
        `OSError`: If the folder cannot be made or written.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"The output folder {directory!r} cannot be written: {error}. Free some space or give another `output_dir`."
        ) from error
