"""The current noise of a training run and the history of its rounds, saved in every checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..noise.config import NullspaceConfig
from ..noise.kinds import Noise
from ..noise.nullspace_noise import NullspaceNoise
from ..utils.files import write_text
from ..utils.random import keyed_generator
from .checkpoints import REMEDY


SCHEDULE_NAME = "nullspace_schedule.json"
# The columns of the history that are logged at each round.
LOGGED_FIELDS = (
    "round",
    "norm",
    "probability_mse",
    "probability_mse_upper",
    "logit_distance",
    "agreement",
    "permuted_probability_mse",
    "permuted_agreement",
    "converged",
    "steps",
    "seconds",
    "ascent",
    "ascent_rise",
)


class NoiseSchedule:
    """
    The current noise and the history of its rounds.

    Args:
        refresh_steps (`int`): Optimizer steps in a round.
        seed (`int`): Seed of the draws.

    Attributes:
        noise ([`NullspaceNoise`] or `None`): The current noise.
        history (`list[dict]`): One row for each round.
    """

    def __init__(self, refresh_steps: int, seed: int):
        self.refresh_steps = refresh_steps
        self.seed = seed
        self.noise: NullspaceNoise | None = None
        self.history: list[dict[str, Any]] = []
        self._places = (-1, 0)
        self._on_device: tuple[NullspaceNoise, Noise] | None = None

    def round_of(self, step: int) -> int:
        """The round that optimizer step `step` belongs to."""
        return step // self.refresh_steps

    def is_due(self, step: int) -> bool:
        """Whether `step` begins a round whose noise is not there yet."""
        return self.noise is None or self.noise.round_index != self.round_of(step)

    def update(self, noise: NullspaceNoise, step: int, **facts: Any) -> None:
        """Makes `noise` the current one and adds its row, with further `facts`, to the history."""
        self.noise = noise
        row = {"round": noise.round_index, "step": step, **noise.certificate.to_dict()}
        self.history.append({**row, "in_use": noise.is_usable, **facts})

    @property
    def is_ascent_measured(self) -> bool:
        """Whether it is known how far this round's draws move along the gradient of the clean images."""
        return "ascent" in self.history[-1]

    def ascend(self, noise: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """
        Draws of this round moved along the gradient of the clean images, as far as was measured.

        Args:
            noise (`torch.Tensor` of shape `(num_rows, num_patches, hidden_size)`): The draws.
            gradient (`torch.Tensor` of the same shape): The gradient of each image's loss at its patch embeddings.
        """
        return self.noise_on(noise.device).ascend(noise, gradient, self.history[-1]["ascent"])

    def go_back_to(self, noise: NullspaceNoise) -> None:
        """Makes the noise of an earlier round the current one and drops the later rounds from the history."""
        self.noise = noise
        self.history = [row for row in self.history if row["round"] <= noise.round_index]

    def logs(self) -> dict[str, float]:
        """What is logged of the current round, under `noise/`."""
        row = self.history[-1]
        return {f"noise/{name}": float(row[name]) for name in LOGGED_FIELDS if row.get(name) is not None}

    @property
    def is_in_use(self) -> bool:
        """Whether this round trains on its noise. A control is used exactly if the noise it replaces was usable."""
        return self.noise is not None and self.history[-1].get("source_in_use", self.noise.is_usable)

    def next_place(self, step: int) -> tuple[int, int]:
        """`(step, micro_batch)`, where `micro_batch` counts the calls within the step from 0."""
        self._places = (step, self._places[1] + 1 if self._places[0] == step else 0)
        return self._places

    def draw(
        self, step: int, batch_size: int, share: float, process_index: int, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor | slice, torch.Tensor]:
        """
        Which images of a micro-batch get a noisy copy, and the noise of each.

        Both depend only on the seed, the step, the index of the micro-batch in the step, the process and the kind of
        device. A resumed run therefore draws the same noise as an uninterrupted one.

        Args:
            step (`int`): The optimizer step.
            batch_size (`int`): Images of the micro-batch.
            share (`float`): Share of them that get a noisy copy, rounded, and at least one.
            process_index (`int`): Which process this is.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the noise is drawn.

        Returns:
            Tuple of the rows, a `slice` or a `torch.Tensor` of shape `(num_rows,)`, and the noise, a `torch.Tensor` of
            shape `(1 or num_rows, num_patches, hidden_size)`.
        """
        key = (self.seed, *self.next_place(step), process_index)
        count = max(1, math.floor(share * batch_size + 0.5))
        rows: torch.Tensor | slice = slice(None)
        if count < batch_size:
            order = torch.randperm(batch_size, generator=keyed_generator("noisy rows", *key))
            rows = order[:count].sort().values.to(device, non_blocking=True)
        return rows, self.noise_on(device).draw(count, keyed_generator("draw", *key, device=device))

    def noise_on(self, device: torch.device | str) -> Noise:
        """The current noise on a device; it is moved there once a round."""
        if self._on_device is None or self._on_device[0] is not self.noise:
            self._on_device = (self.noise, self.noise.noise.to(device))
        return self._on_device[1]

    def save(self, directory: str) -> None:
        """Writes the history into a checkpoint, beside the noise, which is saved with every model."""
        if self.noise is None:
            return
        values = {"refresh_steps": self.refresh_steps, "round": self.noise.round_index, "history": self.history}
        write_text(Path(directory, SCHEDULE_NAME), json.dumps(values, indent=2) + "\n")

    def load(self, directory: str, config: NullspaceConfig) -> None:
        """
        Restores noise and history from a checkpoint.

        Args:
            directory (`str`): The checkpoint.
            config ([`NullspaceConfig`]): The settings that this run makes its noise with.

        Raises:
            `FileNotFoundError`: If the checkpoint holds none.
            `ValueError`: If the files are damaged, do not belong together, or are of another refresh interval or of
                other settings.
        """
        path = Path(directory, SCHEDULE_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"The checkpoint {directory} has no {SCHEDULE_NAME}, so its noise cannot be restored. {REMEDY} Or start "
                "a new run from its weights."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            refresh_steps = values["refresh_steps"]
            round_index = values["round"]
            history = values["history"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{SCHEDULE_NAME} in {directory} is damaged: {error!r}. {REMEDY}") from error
        if refresh_steps != self.refresh_steps:
            raise ValueError(
                f"The checkpoint {directory} was trained with noise_refresh_steps={refresh_steps}, but now it is "
                f"{self.refresh_steps}. Resume with the same value, or start a new run from the checkpoint's weights."
            )
        try:
            noise = NullspaceNoise.from_pretrained(directory)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error} {REMEDY}") from error
        if noise.round_index != round_index:
            raise ValueError(
                f"The noise in {directory} is of round {noise.round_index}, but its history is of round {round_index}. "
                f"{REMEDY}"
            )
        then, now = noise.config.to_dict(), config.to_dict()
        changed = [name for name, value in now.items() if then[name] != value]
        if changed:
            before, after = ({name: values[name] for name in changed} for values in (then, now))
            raise ValueError(
                f"The checkpoint {directory} was trained with noise of {before}, but now it is {after}. Resume with the "
                "same settings, or start a new run from the checkpoint's weights."
            )
        self.noise = noise
        self.history = history


def check_same_on_all_processes(noise: NullspaceNoise, accelerator: Accelerator) -> None:
    """
    Makes sure that all processes have bitwise the same noise, by comparing hashes.

    Raises:
        `RuntimeError`: If a process has another noise than the first one; the message names it.
    """
    digest = torch.tensor([int(noise.digest()[:15], 16)], device=accelerator.device)
    digests = accelerator.gather(digest).tolist()
    others = [process for process, other in enumerate(digests) if other != digests[0]]
    if others:
        raise RuntimeError(
            f"The processes {others} found another noise in round {noise.round_index} than process 0: they would train "
            "on different losses. Give all processes the same model, dataset, seed and kind of device; if the data "
            "transforms are random, seed them alike."
        )
