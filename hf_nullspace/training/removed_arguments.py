"""Training arguments of earlier versions: what was measured of each, and what to use in its place."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..hub.model_card import TRAINING_NAME
from ..noise.config import REMOVED_SETTINGS
from ..utils.wording import renamed


# All were measured on CIFAR-10 with three seeds: points of accuracy over the columns of a robustness report, minus the
# method without the argument, with 95 % intervals.
REMOVED_ARGUMENTS = {
    "noise_candidates": (
        "`noise_candidates` was removed: training on the hardest of four draws gained +0.11 points [-0.70, +0.89] for a "
        "forward pass each. Leave it out; `noise_ascent` makes draws harder for one pass."
    ),
    "noise_in_pixels": (
        "`noise_in_pixels` was removed: it gained +0.29 points [-1.26, +1.93] and lost 3.74 [1.66, 5.79] under attacks. "
        "Leave it out; `NullspaceDataCollator(nullspace=..., noise=...)` adds noise to pixels for any `Trainer`."
    ),
    "noise_consistency": (
        "`noise_consistency` was removed: at weight 1 it lost 7.54 points [4.53, 10.54]. Leave it out; `noise_weight` "
        "weighs the loss under noise."
    ),
    "epsilon_warmup_steps": (
        "`epsilon_warmup_steps` was removed: a warmup of 120 steps changed -0.49 points [-1.88, +0.88]. Leave it out and "
        "set `epsilon` to its final value."
    ),
    "noise_random_scale": (
        "`noise_random_scale` was removed: a bank of five noises at random scale lost 3.78 points [1.54, 6.05]. Leave it "
        "out; the default `noise_method='sample'` draws another noise for every image."
    ),
    "noise_convex_combination": (
        "`noise_convex_combination` was removed: every bank of noises that was measured was behind draws of one for "
        "each image (five at random scale lost 3.78 points [1.54, 6.05]). Leave it out; the default "
        "`noise_method='sample'` draws another noise for every image."
    ),
    "noise_forward": (
        "`noise_forward` was removed: clean and noisy images run one after the other, since one pass over both held twice "
        "the activations. Leave it out."
    ),
    "ema_decay": (
        "`ema_decay` was removed: 0.98 gained +1.06 points [+0.04, +2.17], and plain finetuning gained +1.61 from it, so "
        "that it is a callback for any `Trainer`. Use `callbacks=[WeightAverageCallback(decay=...)]` from "
        "`hf_nullspace.training.weight_average`."
    ),
}

# A setting of the synthesis, in the names of the arguments.
REMOVED_ARGUMENTS["noise_bank_size"] = renamed(
    REMOVED_SETTINGS["bank_size"], {"bank_size": "noise_bank_size", "method": "noise_method"}
)
# The values at which a removed argument did nothing, under the names that files of earlier versions have them.
OLD_DEFAULTS = {
    "noise_candidates": 1,
    "noise_in_pixels": False,
    "noise_consistency": 0.0,
    "epsilon_warmup_steps": 0,
    "noise_random_scale": False,
    "noise_convex_combination": False,
    "noise_bank_size": 1,
    "bank_size": 1,
    "random_scale": False,
    "convex_combination": False,
    "ema_decay": 0.0,
}


def check_settings(settings: Mapping[str, Any], path: str | Path, known: Collection[str] = ()) -> None:
    """
    Makes sure that settings which an earlier version wrote can be trained on with: removed ones are at their defaults.

    Args:
        settings (`Mapping`): Name and value of each.
        path (`str` or `Path`): The file or folder they were read from, for the message.
        known (`Collection[str]`, *optional*): Removed arguments that this run replaces in another way.

    Raises:
        `ValueError`: If a removed argument has another value.
    """
    for name, default in OLD_DEFAULTS.items():
        if name not in known and settings.get(name, default) != default:
            sentence = REMOVED_ARGUMENTS.get(name) or REMOVED_ARGUMENTS[f"noise_{name}"]
            raise ValueError(
                f"{path} was trained with `{name}={settings[name]}`. {sentence} Start a new run from its weights, or "
                "resume with the version that wrote it."
            )


def check_checkpoint(checkpoint: str | Path, known: Collection[str] = ()) -> None:
    """
    Makes sure that a run does not need removed arguments to continue, as far as the facts of its card tell.

    Args:
        checkpoint (`str` or `Path`): The checkpoint to resume from. Its own facts count, or those of the run's folder.
        known (`Collection[str]`, *optional*): As in [`check_settings`].

    Raises:
        `ValueError`: If the run was trained with a removed argument.
    """
    for folder in (Path(checkpoint), Path(checkpoint).parent):
        path = folder / TRAINING_NAME
        if path.is_file():
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
            except (KeyError, TypeError, ValueError):
                return  # of a card, which nothing is resumed from
            check_settings(settings, path, known)
            return
