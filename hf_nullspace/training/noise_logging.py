"""What is logged of the noisy half of each step: its loss, and what the noise does to the predictions."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from ..models.objectives import is_multi_label, probability_mse, read_logits


class NoiseLogging(Trainer):
    """Sums loss and error of the noisy images on the device and logs their means together with the training loss."""

    _noisy_loss: torch.Tensor | None
    _noisy_error: torch.Tensor | None
    _noisy_loss_since: int

    def _buffer_noisy_loss(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> None:
        """Adds one micro-batch to the sum for the next `log`, scaled like the loss, without a device sync."""
        is_scaled = self.loss_is_scaled_for_ga
        if is_scaled is None:
            is_scaled = self.compute_loss_func is not None
            is_scaled = is_scaled or (self.model_accepts_loss_kwargs and num_items_in_batch is not None)
        if not is_scaled:
            loss = loss / self.current_gradient_accumulation_steps
        self._noisy_loss = loss if self._noisy_loss is None else self._noisy_loss + loss

    def _buffer_noisy_error(self, outputs: Any, noisy_outputs: Any, labels: torch.Tensor | None) -> None:
        """Adds the `probability_mse` of a micro-batch under the noise that was trained on, after any ascent."""
        try:
            clean, noisy = (read_logits(each).detach().float() for each in (outputs, noisy_outputs))
        except ValueError:  # an overridden `compute_loss` may return no outputs, or outputs without logits
            return
        multi_label = is_multi_label(self.model, labels, clean)
        error = probability_mse(clean, noisy, multi_label)
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
