"""The settings of a noise synthesis: one frozen, validated object with a JSON round trip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .confidence import min_images
from .methods import NOISE_METHODS, BoundaryMethod, SampleMethod
from .methods.base import method_metadata


# Settings of earlier versions: what was measured of each, and what to use in its place.
REMOVED_SETTINGS = {
    "bank_size": (
        "`bank_size` was removed: every bank of noises that was measured was behind a noise of its own for each image, on "
        "CIFAR-10 with three seeds (one of five at random scale by 3.78 points [1.54, 6.05], the hardest of five for each "
        f"image by 0.75 [-0.53, 2.08]). Leave it out; `method={SampleMethod.name!r}` draws another noise for every image."
    ),
}
FAILURE_POLICIES = ("shrink", "skip", "error")
# Default number of certificate images, as a multiple of the fewest that can show epsilon. With only the fewest, noise
# would have to change nothing at all. With more, the certified norm approaches that of the boundary.
CERTIFICATE_IMAGES_RATIO = 2.56
# Largest default number of certificate images: each is held in memory and measured at several scales in every round.
MAX_CERTIFICATE_IMAGES = 2048


def check_not_removed(names: Iterable[str], removed: Mapping[str, str]) -> None:
    """
    Args:
        names (iterable of `str`): Names of settings that were given.
        removed (`Mapping[str, str]`): Those of earlier versions, with what to use in their place.

    Raises:
        `ValueError`: If one of the names is that of a removed setting; the message says what to use.
    """
    for name in names:
        if name in removed:
            raise ValueError(removed[name])


@dataclass(frozen=True)
class NullspaceConfig:
    """
    Settings of [`synthesize_noise`].

    Args:
        epsilon (`float`, *optional*, defaults to 0.03):
            Largest `probability_mse` at which a noise counts as part of the approximate nullspace (paper, section 4).
        method (`str`, *optional*, defaults to that of [`BoundaryMethod`]):
            How the noise is found: a name in `NOISE_METHODS`. Each method stands in a file of `noise/methods`, with its
            defaults and the settings that it reads.
        learning_rate (`float`, *optional*):
            Size of a step of the search, by default the method's own; `None` where a method takes no such steps.
        max_token_ratio (`float` or `None`, *optional*, defaults to 4.0):
            Largest norm of a token as a multiple of the median over the tokens, so that a few background tokens do not
            hold all of it. `None` lifts the limit.
        noise_limit (`float`, *optional*, defaults to 3.0):
            The search starts uniform in `[-noise_limit, noise_limit]`, in units of the patch embeddings (paper,
            algorithm 1, line 3).
        max_steps (`int`, *optional*):
            Most steps of the search for one noise, each of one batch there and back; by default the method's own.
        norm_weight (`float`, *optional*, defaults to 0.0):
            `lambda` of the objective `logit_distance - lambda * log(norm)` (paper, figure 2).
        num_images (`int`, *optional*, defaults to 256):
            Images that the noise is optimised on.
        num_certificate_images (`int`, *optional*):
            Further images, unseen by the optimisation, that the certificate is measured on. By default 2.56 times the
            fewest that can show epsilon at this confidence, and 2,048 at most: 512 for 0.03, 1,536 for 0.01, 160 for 0.1.
            If there are fewer, the noise is marked as not certified.
        confidence (`float`, *optional*, defaults to 0.95):
            One-sided confidence of the certificate's upper bound on `probability_mse`.
        on_failure (`str`, *optional*, defaults to `"shrink"`):
            What happens to a noise that is not certified. `"shrink"` scales it down to the boundary, which most methods
            always do. With too few images to certify any noise, it is scaled until its measured mean is within epsilon
            and marked as not certified; training uses it. `"skip"` only marks it as not certified; training skips its
            round. `"error"` raises [`NoiseNotConvergedError`].
        seed (`int`, *optional*, defaults to 42):
            Seed of every random choice; combined with the round, so that rounds differ and repeat exactly.

    Raises:
        `ValueError`: If a value lies outside its range, the message names the value and the range; or if a setting is of
            an earlier version, the message says what was measured of it and what to use.

    Example:

    ```python
    >>> from hf_nullspace import NullspaceConfig

    >>> config = NullspaceConfig(epsilon=0.01)
    >>> NullspaceConfig.from_dict(config.to_dict()) == config
    True
    ```
    """

    removed_arguments = REMOVED_SETTINGS  # of no type, so that it is no field

    epsilon: float = 0.03
    method: str = field(default=BoundaryMethod.name, metadata=method_metadata("method", "How the noise is found."))
    learning_rate: float | None = field(
        default=None, metadata=method_metadata("learning_rate", "Size of a step of the search.")
    )
    max_token_ratio: float | None = field(
        default=4.0,
        metadata=method_metadata(
            "max_token_ratio", "Largest norm of a token of the noise, as a multiple of the median over the tokens."
        ),
    )
    noise_limit: float = field(
        default=3.0,
        metadata=method_metadata("noise_limit", "The search starts uniform in [-noise_limit, noise_limit]."),
    )
    max_steps: int | None = field(default=None, metadata=method_metadata("max_steps", "Most steps of the search."))
    norm_weight: float = field(
        default=0.0, metadata=method_metadata("norm_weight", "Weight of the log-norm term that makes the noise large.")
    )
    num_images: int = 256
    num_certificate_images: int | None = None
    confidence: float = 0.95
    on_failure: str = field(default="shrink", metadata={"choices": list(FAILURE_POLICIES)})
    seed: int = 42

    def __new__(cls, *args: Any, **kwargs: Any):
        check_not_removed(kwargs, REMOVED_SETTINGS)
        return super().__new__(cls)

    def __post_init__(self):
        if self.method not in NOISE_METHODS:
            raise ValueError(
                f"`method` must be one of {list(NOISE_METHODS)}, but got {self.method!r}. A method from a module of your "
                "own is known once that module is imported."
            )
        method = NOISE_METHODS[self.method]
        for name in ("learning_rate", "max_steps"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(method, name))
        ratio = self.max_token_ratio
        if ratio is not None and not (_is_number(ratio) and math.isfinite(ratio) and ratio >= 1):
            raise ValueError(f"`max_token_ratio` must be `None` or a number of at least 1, but got {ratio!r}.")
        for name in ("epsilon", "noise_limit", "learning_rate"):
            value = getattr(self, name)
            if name == "learning_rate" and value is None:  # of a method that takes no such steps
                continue
            if not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number, but got {value!r}.")
        if not (_is_number(self.norm_weight) and math.isfinite(self.norm_weight) and self.norm_weight >= 0):
            raise ValueError(f"`norm_weight` must be a number of at least 0, but got {self.norm_weight!r}.")
        for name, least in (("max_steps", 1), ("num_images", 1), ("num_certificate_images", 2)):
            value = getattr(self, name)
            if name == "num_certificate_images" and value is None:  # as many as epsilon takes
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}, but got {value!r}.")
        if not (_is_number(self.confidence) and 0.5 <= self.confidence < 1):
            raise ValueError(f"`confidence` must lie in [0.5, 1), but got {self.confidence!r}.")
        if self.on_failure not in FAILURE_POLICIES:
            raise ValueError(f"`on_failure` must be one of {list(FAILURE_POLICIES)}, but got {self.on_failure!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"`seed` must be an integer, but got {self.seed!r}.")
        method.check(self)

    def fewest_certificate_images(self, largest: float = 2.0) -> int:
        """
        The fewest images that can show `epsilon` at this confidence; see [`~confidence.min_images`].

        Args:
            largest (`float`, *optional*, defaults to 2.0): The largest possible `probability_mse` of an image; that of a
                multi-label model is its number of labels.
        """
        return min_images(self.epsilon / largest, self.confidence)

    def wanted_certificate_images(self, largest: float = 2.0) -> int:
        """`num_certificate_images`, or where that is not set as many as `epsilon` takes; `largest` as above."""
        if self.num_certificate_images is not None:
            return self.num_certificate_images
        wanted = CERTIFICATE_IMAGES_RATIO * self.fewest_certificate_images(largest)
        return min(MAX_CERTIFICATE_IMAGES, max(32, 32 * math.ceil(wanted / 32)))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-serialisable `dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NullspaceConfig:
        """
        Builds a config from a `dict`, for example one read from a saved noise.

        Raises:
            `ValueError`: If a key is not a field of this version of the package. `bank_size`, which earlier versions wrote,
                may be 1.
        """
        if values.get("bank_size", 1) == 1:
            values = {name: value for name, value in values.items() if name != "bank_size"}
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known - set(REMOVED_SETTINGS))
        if unknown:
            raise ValueError(
                f"Unknown keys {unknown} for `NullspaceConfig`, whose fields are {sorted(known)}. If they come from a "
                "saved noise, upgrade hf_nullspace to the version that wrote it."
            )
        return cls(**values)


def metadata_of(setting: str) -> Mapping[str, Any]:
    """The metadata of a field of [`NullspaceConfig`], for a dataclass that has the setting under another name."""
    return NullspaceConfig.__dataclass_fields__[setting].metadata


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
