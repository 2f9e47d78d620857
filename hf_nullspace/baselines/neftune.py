"""
NEFTune ([Jain et al., 2023](https://arxiv.org/abs/2310.05914)): uniform noise on the embeddings, as Transformers adds it.

While the model trains, every element of the patch embeddings gets noise that is uniform in `[-a, a]`, with
`a = neftune_noise_alpha / sqrt(num_patches * hidden_size)`. This is the flag `neftune_noise_alpha` of `TrainingArguments`,
whose hook sits on `get_input_embeddings()`: for ViT and its relatives that is the module that embeds patches. The noise is
drawn from torch's global generator, so a resumed run is bitwise the uninterrupted one, but two processes draw other numbers
than one. Models whose embeddings are a grid of shape `(batch_size, channels, height, width)` get more than the paper's noise:
Transformers takes `channels * height` for the number of elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .rival import RivalTrainer, RivalTrainingArguments
from .way import Way


@dataclass
class NeftuneTrainingArguments(RivalTrainingArguments):
    """
    Arguments of [`NeftuneTrainer`].

    Args:
        neftune_noise_alpha (`float`, *optional*, defaults to 5.0): Size of the noise, the smallest of the paper's.

    Raises:
        `ValueError`: If it is no positive number.
    """

    neftune_noise_alpha: float | None = field(default=5.0, metadata={"help": "Size of the noise on the embeddings."})

    def __post_init__(self):
        super().__post_init__()
        alpha = self.neftune_noise_alpha
        if not (isinstance(alpha, (int, float)) and 0 < alpha < float("inf")):
            raise ValueError(f"`neftune_noise_alpha` must be a positive number, but got {alpha!r}.")


class NeftuneTrainer(RivalTrainer):
    """Finetunes on images with uniform noise on their patch embeddings, by `neftune_noise_alpha` of `Trainer`."""

    args_class = NeftuneTrainingArguments

    def _method_in_words(self) -> str:
        alpha = self.args.neftune_noise_alpha
        return f"it saw its images under uniform noise on the patch embeddings (NEFTune, alpha {alpha:g})."


NEFTUNE = Way(
    "neftune",
    "uniform noise on the patch embeddings (NEFTune)",
    1.0,
    NeftuneTrainer,
    NeftuneTrainingArguments,
    {"noise_weight": 0.0},
)
