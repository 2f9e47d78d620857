"""Measures the current noise on evaluation images, and computes an evaluation loss that counts each image once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ..noise.certificate import Certificate
from ..noise.certify import measure_noise
from ..utils.wording import worded
from .arguments import in_arguments
from .evaluation_loss import exact_loss


# What `evaluate_noise` logs.
EVALUATED_FIELDS = ("probability_mse", "probability_mse_upper", "agreement", "permuted_agreement")


class NoiseEvaluation(Trainer):
    """Evaluates without noise, and measures the current noise on evaluation images in `evaluate_noise`."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            parent = super().prediction_step
            counts_all = self.args.average_tokens_across_devices and "labels" in inputs
            counts_all = counts_all and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
            loss = exact_loss(
                self.accelerator, loss, inputs, lambda some: parent(model, some, True, ignore_keys)[0], counts_all
            )
        return loss, logits, labels

    def evaluate_noise(self, eval_dataset=None) -> Certificate | dict[str, Certificate] | None:
        """
        Measures the current noise on evaluation images; every process must call it. The model card shows the result.

        The noise's own certificate is measured on training images. On new images the same noise often changes the
        predictions of an overfitted model more.

        Args:
            eval_dataset (`Dataset`, `dict[str, Dataset]` or `str`, *optional*): Defaults to the trainer's; a name is that
                of one of its sets.

        Returns:
            [`Certificate`], or `None` before the first round and where there is no evaluation set. Of several sets a
            `dict` of them; what is logged of each begins with `eval_NAME_noise`, and the card shows the one with the
            largest `probability_mse_upper`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.noise is None or dataset is None:
            return None
        if not isinstance(dataset, dict):
            prefix = f"eval_{dataset}" if isinstance(dataset, str) else "eval"
            certificate = self.card_extras["evaluation_certificate"] = self._measure_noise(dataset, prefix)
            return certificate
        # The trainer's own datasets are passed by name, so that persistent workers are reused.
        sets = {name: name if eval_dataset is None else each for name, each in dataset.items()}
        certificates = {name: self._measure_noise(each, f"eval_{name}") for name, each in sets.items()}
        self.card_extras["evaluation_certificate"] = max(
            certificates.values(), key=lambda certificate: certificate.probability_mse_upper
        )
        return certificates

    def _measure_noise(self, dataset, prefix: str) -> Certificate:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with worded(in_arguments):
            certificate = measure_noise(
                model,
                self.noise,
                self.get_eval_dataloader(dataset),
                accelerator=self.accelerator,
                patch_projection=self.args.patch_projection,
            )
        self.log({f"{prefix}_noise_{name}": float(getattr(certificate, name)) for name in EVALUATED_FIELDS})
        return certificate
