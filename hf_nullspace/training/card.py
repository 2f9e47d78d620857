"""The model card of a run: `Trainer`'s, completed with what was measured."""

from __future__ import annotations

from transformers import Trainer

from ..hub.manifest import write_manifest
from ..hub.model_card import TAGS, write_card
from ..hub.training_facts import collect_training_facts
from .augmented_images import augmentation_in_words


class NoiseCard(Trainer):
    """Writes the card, its facts and the manifest of hashes."""

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        tags = [
            *([tags] if isinstance(tags, str) else tags or []),
            *(getattr(self.model, "model_tags", None) or []),
            *TAGS,
        ]
        tags = list(dict.fromkeys(tags))
        super().create_model_card(
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
        )
        if self.is_world_process_zero():
            settings = {**self.args.nullspace_config().to_dict(), **self.args.nullspace_schedule()}
            if self._weight_average is not None:
                settings["ema_decay"] = self._weight_average.decay
            augmentation = augmentation_in_words(self.train_dataset)
            if augmentation is not None:
                settings["augmentation"] = augmentation
            settings |= self.card_settings
            name = dataset if isinstance(dataset, str) else ", ".join(dataset or []) or None
            extras = {"method": self._method_in_words(), **self.card_extras}
            facts = collect_training_facts(self, self.noise, self.noise_history, settings, name, **extras)
            write_card(self.args.output_dir, facts)
            write_manifest(self.args.output_dir)

    def _method_in_words(self) -> str | None:
        """The sentence of the card for a run that is not nullspace finetuning; `None` if it is."""
        return None if self.args.noise_weight else "it saw clean images alone."
