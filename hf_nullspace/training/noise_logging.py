"""What is logged of the noisy half of each step: its loss, and what the noise does to the predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import Trainer

from ..models.objectives import is_multi_label, probability_mse, read_logits


class NoiseLogging(Trainer):
    """Sums loss and error of the noisy images on the device and logs their means together with the training loss."""

    _noisy_loss: torch.Tensor | None
    _noisy_error: torch.Tensor | None
    _noisy_loss_since: int
    _kept_logits: list[torch.Tensor] | None

    def _reset_noise_logs(self, step: int) -> None:
        """Forgets what was summed for the next `log`; its means are over the steps from `step` on."""
        self._noisy_loss = None
        self._noisy_error = None
        self._noisy_loss_since = step
        self._kept_logits = None

    @contextmanager
    def _logits_kept(self) -> Iterator[list[torch.Tensor]]:
        """Yields a list that gets the logits of the loss that is computed inside the `with` block, if it has any."""
        self._kept_logits = []
        try:
            yield self._kept_logits
        finally:
            self._kept_logits = None

    def _keep_logits(self, outputs: Any) -> None:
        if self._kept_logits is not None:
            with suppress(ValueError):  # outputs without logits
                self._kept_logits.append(read_logits(outputs).detach())

    def _buffer_noisy_loss(self, loss: torch.Tensor) -> None:
        """Adds the loss of one micro-batch, scaled for accumulation, to the sum for the next `log`."""
        self._noisy_loss = loss if self._noisy_loss is None else self._noisy_loss + loss

    def _buffer_noisy_error(
        self, clean_logits: list[torch.Tensor], noisy_logits: list[torch.Tensor], labels: torch.Tensor | None
    ) -> None:
        """Adds the `probability_mse` of a micro-batch under the noise that was trained on, after any ascent."""
        if not (clean_logits and noisy_logits):  # an overridden `compute_loss` may ask the model in another way
            return
        clean, noisy = clean_logits[-1].float(), noisy_logits[-1].float()
        error = probability_mse(clean, noisy, is_multi_label(self.model, labels, clean))
        sums = torch.stack([error.sum(), error.new_tensor(len(error))])
        self._noisy_error = sums if self._noisy_error is None else self._noisy_error + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._noisy_loss is not None:
            steps = max(1, self.state.global_step - self._noisy_loss_since)
            logs = {**logs, "noise/loss": self.accelerator.reduce(self._noisy_loss, "mean").item() / steps}
            self._noisy_loss = None
            self._noisy_loss_since = self.state.global_step
            if self._noisy_error is not None:
                total, count = self.accelerator.reduce(self._noisy_error, "sum").tolist()
                logs["noise/trained_probability_mse"] = total / count
                self._noisy_error = None
        super().log(logs, start_time)
