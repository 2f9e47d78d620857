"""The flags of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..baselines import NULLSPACE, WAYS
from ..training.recipe import RecipeArguments
from ..utils.flags import check_at_least, dataset_locations, expand_paths


def _ways_in_words() -> str:
    ways = "; ".join(f"{way.name} ({way.cost:g}): {way.summary}" for way in WAYS.values())
    return f"Ways of finetuning that are a row; in brackets what a step of each costs, in plain steps: {ways}."


@dataclass
class CompareArguments(RecipeArguments):
    """What is compared, and how it is measured."""

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
    equal_wall_time: list[str] = field(
        default_factory=list, metadata={"help": f"Rows that are run for the time of the row {NULLSPACE.name}, too."}
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
        dataset_locations(self.datasets)
