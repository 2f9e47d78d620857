"""Checks before training that the datasets fit the model and the noise."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import Trainer
from transformers.utils import logging

from ..models.model_inputs import forward_parameters
from ..models.objectives import is_multi_label, largest_probability_mse
from ..models.soft_labels import settle_problem_type
from ..noise.certify import check_epsilon
from ..utils.random import preserved_random_state
from .augmented_images import without_augmentation
from .checks import check_columns, check_gradient, check_neftune, check_projection
from .images import check_enough, check_example, is_stream


logger = logging.get_logger(__name__)


class DatasetChecks(Trainer):
    """Reads an example of each dataset in the constructor, and refuses what would fail at step 500."""

    def _check_datasets(self) -> None:
        """Fails now, not at step 500: reads an example of each dataset and compares it with the model."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        sets = {"training": self.train_dataset, **{f"evaluation {name}".strip(): each for name, each in sets.items()}}
        for description, dataset in sets.items():
            if dataset is not None and self.args.remove_unused_columns:
                as_trained_on = partial(self._as_trained_on, dataset, description)
                check_columns(dataset, self.data_collator, as_trained_on, description)
        if self.train_dataset is None or not (self.args.noise_weight or self.args.neftune_noise_alpha):
            return
        if self.args.noise_weight:
            check_enough(self.train_dataset, self._noise_batch_size())
        _, collator = self._as_trained_on(without_augmentation(self.train_dataset), "training")
        with preserved_random_state():
            # Two images, since some collators mix pairs of them.
            images = self._noise_images(round_index=0, num_images=2)
            if not len(images):
                raise ValueError(
                    "The training set is a stream without images; one synthesis batch needs "
                    f"{self._noise_batch_size()}."
                )
            self._check_batch(collator([images[index] for index in range(len(images))]))

    def _check_batch(self, batch: dict[str, Any]) -> None:
        if self.args.noise_weight:
            names = {*self.label_names, "labels"} & {*self.label_names, *forward_parameters(self.model)}
            check_example(batch, self.model, sorted(names) if self._needs_labels else [])
            settle_problem_type(self.model, self._labels_of(batch))
            self._check_certifiable(batch)
            unlabelled = {name: value for name, value in batch.items() if name not in {*self.label_names, "labels"}}
            unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            is_named = self.args.patch_projection is not None
            with self.accelerator.autocast():
                check_projection(unwrapped, self.injector.projection, unlabelled, is_named)
                if self.args.noise_ascent:
                    check_gradient(unwrapped, self.injector.projection, unlabelled)
        if self.args.neftune_noise_alpha is not None:
            check_neftune(self.model, batch)
            if self.args.noise_weight:
                logger.warning(
                    "`neftune_noise_alpha` adds noise of its own to the embeddings of every training image, under "
                    "nullspace noise or not: the clean loss is that of NEFTune."
                )

    def _check_certifiable(self, batch: dict[str, Any]) -> None:
        """Checks that the model gives class probabilities, and that epsilon excludes some noise."""
        multi_label = is_multi_label(self.model, self._labels_of(batch))
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", 2)
        self._largest_error = largest_probability_mse(num_labels, multi_label)
        config = self.args.nullspace_config()
        check_epsilon(config, self._largest_error)
        fewest = config.fewest_certificate_images(self._largest_error)
        total = len(self.train_dataset) if not is_stream(self.train_dataset) else None
        if config.on_failure == "error" and total is not None and total < fewest + self._noise_batch_size():
            raise ValueError(
                f"The training set has {total} images, but a certificate for epsilon {config.epsilon:g} takes {fewest} "
                f"beside a batch of {self._noise_batch_size()} to search on, and `noise_on_failure='error'` allows no noise "
                "without. Add images, raise `epsilon`, or set `noise_on_failure='shrink'`, which trains on noise marked as "
                "not certified."
            )

    @property
    def _needs_labels(self) -> bool:
        """Whether the loss is the model's own."""
        return self.compute_loss_func is None and not self._has_own_loss()
