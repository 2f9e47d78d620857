"""Arguments of [`NullspaceTrainer`]: those of `Trainer`, and how nullspace noise is made and used."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from ..noise.config import FAILURE_POLICIES, NullspaceConfig, check_not_removed, metadata_of
from ..noise.methods import NOISE_METHODS, SampleMethod
from ..noise.methods.base import method_metadata
from ..utils.wording import renamed
from .removed_arguments import REMOVED_ARGUMENTS


ASCENT_GRADIENTS = ("clean", "noisy")


@functools.cache
def arguments_by_setting() -> dict[str, str]:
    """The argument of each setting of a config that is one: with `noise_` before it, or by the same name."""
    arguments = {each.name for each in fields(NullspaceTrainingArguments)}
    names = {each.name: (f"noise_{each.name}", each.name) for each in fields(NullspaceConfig)}
    found = {setting: [name for name in candidates if name in arguments] for setting, candidates in names.items()}
    return {setting: candidates[0] for setting, candidates in found.items() if candidates}


def in_arguments(message: str) -> str:
    """A message about the settings of a config in the names of the arguments."""
    return renamed(message, arguments_by_setting())


def check_not_negative(args: NullspaceTrainingArguments, *names: str) -> None:
    """
    Raises:
        `ValueError`: If one of the named arguments is no finite number of at least 0.
    """
    for name in names:
        value = getattr(args, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}` must be a number of at least 0, but got {value!r}.")


@dataclass
class NullspaceTrainingArguments(TrainingArguments):
    """
    Arguments of [`NullspaceTrainer`].

    They stand in groups: here, in the fields and in `--help`. Those of the first two are the settings of
    [`NullspaceConfig`], with `noise_` before a name that `Trainer` uses itself.

    Args:
        > Finding noise

        epsilon (`float`, *optional*, defaults to 0.03):
            Largest `probability_mse` at which a noise counts as part of the approximate nullspace.
        noise_method (`str`, *optional*, defaults to `"sample"`):
            Name of the [`NoiseMethod`] that finds the noise.
        noise_max_steps (`int`, *optional*):
            Most steps of the search. Defaults to the method's own.
        noise_learning_rate (`float`, *optional*):
            Size of a step, where the method has one. Defaults to the method's own.
        noise_limit (`float`, *optional*, defaults to 3.0):
            The noise of the paper's search starts uniform in `[-noise_limit, noise_limit]`, in units of the embeddings.
        noise_norm_weight (`float`, *optional*, defaults to 0.0):
            Weight of the log-norm term that makes the noise large, where the method has one.
        noise_max_token_ratio (`float`, *optional*, defaults to 4.0):
            Largest norm of a token of the noise, as a multiple of the median over tokens. `None` sets no limit.
        noise_num_images (`int`, *optional*, defaults to 128):
            Images that the noise is optimised on; `sample` looks at `noise_max_steps` batches of them.
        noise_batch_size (`int`, *optional*):
            Images of a synthesis step over all processes. Defaults to the batch of a training step over all processes,
            without gradient accumulation.
        patch_projection (`str`, *optional*):
            Name of the module that embeds patches, where the rule does not find it.

        > Certifying noise

        noise_num_certificate_images (`int`, *optional*):
            Further images that the certificate is measured on. Defaults to as many as `epsilon` takes.
        noise_on_failure (`str`, *optional*, defaults to `"shrink"`):
            What happens to a noise that is not certified: it is scaled to where its measured error is within `epsilon`
            (`"shrink"`), its round is left out (`"skip"`), or the run ends (`"error"`).

        > Training on noise

        noise_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss under noise: `loss = CE(clean) + noise_weight * CE(noisy)` (paper, algorithm 1). At 0 no
            noise is made and training is that of `Trainer`.
        noise_share (`float`, *optional*, defaults to 1.0):
            Share of the images of a batch that get a noisy copy, at least one; which, is drawn at each step. The loss under
            noise is the mean over these, so that its weight does not change. A step costs `1 + noise_share` plain ones.
        noise_refresh_steps (`int`, *optional*, defaults to 1000):
            Optimizer steps between two syntheses. One takes about as long as 30 plain steps of 32 images.
        noise_ascent (`float`, *optional*):
            Where `noise_method` draws a noise for every image: how hard it is made, at the same norm and in the same
            axes. A draw that moves 3 standard deviations up its own loss is about as hard as the worst of 700; 0 leaves
            it as it is. The certificate is of draws that did not move. Defaults to the method's own.
        noise_ascent_gradient (`str`, *optional*, defaults to `"clean"`):
            Whose gradient the draws move along. That of the `"clean"` images costs nothing; how far they move along it to
            be as hard is measured in each round, and logged as `noise/ascent`. That of the `"noisy"` ones is exact, and
            takes a further pass forward and back of the images with noise.

    <Tip>

    `noise_method` is [`SampleMethod`] by default, where `method` of [`NullspaceConfig`] is [`BoundaryMethod`]: one noise
    for all images is the largest to be found and what reports are about, and a noise of its own for every image trains
    better.

    </Tip>

    <Tip>

    Defaults that differ from [`~transformers.TrainingArguments`]: `data_seed` is `seed`, so that the order of the data
    does not depend on what was drawn before the dataloader was built; `ddp_find_unused_parameters` is `False`.

    </Tip>

    Raises:
        `ValueError`: If a value lies outside its range, or an argument is of an earlier version; the message says what
            was measured of it and what to use.
    """

    # Of no type, so that they are no fields: what became of old arguments, and the groups of flags in `--help`.
    removed_arguments = REMOVED_ARGUMENTS
    argument_groups = {
        "Finding noise": (
            *("epsilon", "noise_method", "noise_max_steps", "noise_learning_rate", "noise_limit", "noise_norm_weight"),
            *("noise_max_token_ratio", "noise_num_images", "noise_batch_size", "patch_projection"),
        ),
        "Certifying noise": ("noise_num_certificate_images", "noise_on_failure"),
        "Training on noise": (
            *("noise_weight", "noise_share", "noise_refresh_steps", "noise_ascent", "noise_ascent_gradient"),
        ),
    }

    # ---- Finding noise --------------------------------------------------------------------------------------------

    epsilon: float = field(
        default=NullspaceConfig.epsilon,
        metadata={"help": "Largest probability_mse at which a noise counts as part of the approximate nullspace."},
    )
    noise_method: str = field(default=SampleMethod.name, metadata=metadata_of("method"))
    noise_max_steps: int | None = field(default=None, metadata=metadata_of("max_steps"))
    noise_learning_rate: float | None = field(default=None, metadata=metadata_of("learning_rate"))
    noise_limit: float = field(default=NullspaceConfig.noise_limit, metadata=metadata_of("noise_limit"))
    noise_norm_weight: float = field(default=NullspaceConfig.norm_weight, metadata=metadata_of("norm_weight"))
    noise_max_token_ratio: float | None = field(
        default=NullspaceConfig.max_token_ratio, metadata=metadata_of("max_token_ratio")
    )
    noise_num_images: int = field(default=128, metadata={"help": "Images that the noise is optimised on."})
    noise_batch_size: int | None = field(
        default=None, metadata={"help": "Images of a synthesis step over all processes."}
    )
    patch_projection: str | None = field(
        default=None, metadata={"help": "Name of the module that embeds patches, where the rule does not find it."}
    )

    # ---- Certifying noise -----------------------------------------------------------------------------------------

    noise_num_certificate_images: int | None = field(
        default=NullspaceConfig.num_certificate_images,
        metadata={"help": "Further images that the certificate is measured on; as many as epsilon takes by default."},
    )
    noise_on_failure: str = field(
        default=NullspaceConfig.on_failure,
        metadata={
            "help": "What happens to a noise that is not certified: scale it to where its measured error is within "
            "epsilon, leave the round out, or raise an error.",
            "choices": list(FAILURE_POLICIES),
        },
    )

    # ---- Training on noise ----------------------------------------------------------------------------------------

    noise_weight: float = field(default=1.0, metadata={"help": "Weight of the loss under noise; 0 turns noise off."})
    noise_share: float = field(default=1.0, metadata={"help": "Share of a batch's images that get a noisy copy."})
    noise_refresh_steps: int = field(default=1000, metadata={"help": "Optimizer steps between two syntheses."})
    noise_ascent: float | None = field(
        default=None,
        metadata=method_metadata(
            "ascent", "Standard deviations up its own loss that each image's draw is as hard as."
        ),
    )
    noise_ascent_gradient: str = field(
        default="clean",
        metadata={
            "help": "Whose gradient the draws move along: that of the clean images, which costs nothing, or their own.",
            "choices": list(ASCENT_GRADIENTS),
        },
    )

    def __new__(cls, *args: Any, **kwargs: Any):
        check_not_removed(kwargs, REMOVED_ARGUMENTS)
        return super().__new__(cls)

    def __post_init__(self):
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        self._default_ascent = None
        self.check_noise_settings()

    def check_noise_settings(self) -> None:
        """
        Checks the fields that `Trainer` has not, when they are set and when a search has set others; fills in the
        default of `noise_ascent`, which depends on `noise_method`.

        Raises:
            `ValueError`: If a value lies outside its range.
        """
        self.nullspace_config()
        method = NOISE_METHODS[self.noise_method]
        if self.noise_ascent == self._default_ascent:
            self.noise_ascent = self._default_ascent = method.ascent
        check_not_negative(self, "noise_weight", "noise_ascent")
        if self.noise_ascent and not method.noise_class.is_drawn:
            names = [name for name, each in NOISE_METHODS.items() if each.noise_class.is_drawn]
            drawn = " or ".join(f"`noise_method={name!r}`" for name in names)
            raise ValueError(
                f"`noise_ascent` moves the draws of {drawn}, but the method is {self.noise_method!r}. Set {drawn}, or "
                "leave `noise_ascent` at 0."
            )
        if not isinstance(self.noise_refresh_steps, int) or self.noise_refresh_steps < 1:
            raise ValueError(
                f"`noise_refresh_steps` must be an integer of at least 1, but got {self.noise_refresh_steps!r}."
            )
        if self.noise_batch_size is not None and self.noise_batch_size < 1:
            raise ValueError(f"`noise_batch_size` must be at least 1, but got {self.noise_batch_size!r}.")
        share = self.noise_share
        if isinstance(share, bool) or not (isinstance(share, (int, float)) and 0 < share <= 1):
            raise ValueError(
                f"`noise_share` must lie in (0, 1], but got {share!r}. To train without noise, set `noise_weight=0`."
            )
        if self.noise_ascent_gradient not in ASCENT_GRADIENTS:
            raise ValueError(
                f"`noise_ascent_gradient` must be one of {list(ASCENT_GRADIENTS)}, but got {self.noise_ascent_gradient!r}."
            )
        if self.noise_ascent_gradient != "clean" and not self.noise_ascent:
            raise ValueError(
                f"`noise_ascent_gradient={self.noise_ascent_gradient!r}` does nothing with `noise_method={self.noise_method!r}` "
                "and `noise_ascent=0`: no noise moves. Leave it out."
            )

    def nullspace_schedule(self) -> dict[str, float]:
        """How the noise is used, beside how it is made."""
        names = ("noise_weight", "noise_share", "noise_refresh_steps", "noise_ascent", "noise_ascent_gradient")
        return {name: getattr(self, name) for name in names}

    def nullspace_config(self) -> NullspaceConfig:
        """The synthesis settings among these arguments."""
        try:
            settings = {setting: getattr(self, argument) for setting, argument in arguments_by_setting().items()}
            return NullspaceConfig(**settings)
        except ValueError as error:
            raise ValueError(in_arguments(str(error))) from None
