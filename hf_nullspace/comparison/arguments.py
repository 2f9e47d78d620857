"""The flags of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..baselines import PLAIN, WAYS
from ..training.recipe import RecipeArguments
from ..utils.flags import check_at_least, dataset_locations, expand_paths


def _ways_in_words() -> str:
    ways = "; ".join(f"{way.name} ({way.cost:g}): {way.summary}" for way in WAYS.values())
    return f"Ways of finetuning that are a row; in brackets what a step of each costs, in plain steps: {ways}."


# Flags of earlier versions, and what to use instead.
REMOVED_FLAGS = {
    "equal_wall_time": "--equal_wall_time was removed: all rows take as much time as plain finetuning takes for `--max_steps` "
    "now, by a cost that is measured alternately. Leave it out."
}


@dataclass
class CompareArguments(RecipeArguments):
    """What is compared, and how it is measured."""

    removed_arguments = REMOVED_FLAGS  # of no type, so that it is no field

    methods: list[str] = field(
        default_factory=lambda: list(WAYS), metadata={"help": _ways_in_words, "choices": WAYS}
    )  # both are read when the flags are: other packages register ways of their own
    variants: str | None = field(
        default=None,
        metadata={"help": "JSON file with further rows by name, each a `method`, a `start` and training arguments."},
    )
    num_seeds: int = field(default=3, metadata={"help": "Runs of each row, with `seed`, `seed` + 1, ..."})
    base_max_steps: int | None = field(
        default=None,
        metadata={"help": "Steps of plain finetuning before, shared by all rows. Default: 800 for digits, else 0."},
    )
    equal_steps: bool = field(
        default=True,
        metadata={
            "help": f"Also run each method for as many steps as {PLAIN.name}, and not only for as much time, as a second table."
        },
    )
    interpolated: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rows whose finished weights are also averaged with those they started from, as a row NAME-interpolated."
        },
    )
    interpolation_weight: float = field(
        default=0.5, metadata={"help": "Share of the finished weights in these averages, from 0 to 1."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of a moving average of the weights, which every row ends with; 0 averages none."},
    )
    profile: str = field(default="quick", metadata={"help": "Name of a profile, or a JSON file with one."})
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Other datasets of the profile, each as NAME=FOLDER_OR_HUB_ID."}
    )
    evaluate_on: str | None = field(
        default=None, metadata={"help": "Split to measure on. Default: test for digits, else validation."}
    )
    max_robustness_samples: int | None = field(default=None, metadata={"help": "Measure on this many images at most."})

    def __post_init__(self):
        super().__post_init__()
        expand_paths(self, "variants", "profile")
        check_at_least(self, num_seeds=1, base_max_steps=0, max_robustness_samples=1)
        if not 0 <= self.interpolation_weight <= 1:
            raise ValueError(
                f"`--interpolation_weight` must lie between 0 and 1, but got {self.interpolation_weight!r}."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`--ema_decay` must lie in [0, 1), but got {self.ema_decay!r}.")
        dataset_locations(self.datasets)
