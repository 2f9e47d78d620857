"""Finds the patch projection of a classifier: the linear map from pixels to patch embeddings, where noise is added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn


# Largest number of candidate modules that an error names.
MOST_NAMED = 3


@dataclass(frozen=True)
class PatchProjection:
    """
    The module that turns pixels into patch embeddings.

    Args:
        name (`str`): Its name inside the model.
        module (`nn.Conv2d` or `nn.Linear`): The module itself.
    """

    name: str
    module: nn.Conv2d | nn.Linear

    @property
    def hidden_size(self) -> int:
        """Length of one patch embedding."""
        return self.module.weight.shape[0]

    @property
    def patch_size(self) -> tuple[int, int] | None:
        """`(height, width)` of a patch in pixels; `None` for a linear projection, which reads patches."""
        return tuple(self.module.kernel_size) if isinstance(self.module, nn.Conv2d) else None

    @property
    def is_exact(self) -> bool:
        """Whether patches do not overlap, so that the map is one matrix per patch with an exact nullspace."""
        return self.obstacle is None

    @property
    def obstacle(self) -> str | None:
        """Why the projection is not one matrix per patch; `None` if it is."""
        module = self.module
        if self.name.split(".")[-1] == "base_layer":
            return f"{self.name!r} is the base layer of an adapter that changes its map; merge the adapter first"
        # A subclass may standardise its weight or pad its input before it convolves.
        if type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward):
            return f"{self.name!r} is a {type(module).__name__}, which does more than multiply by its weight"
        if isinstance(module, nn.Linear) or (
            module.kernel_size == module.stride
            and module.padding in ((0, 0), "valid")
            and module.dilation == (1, 1)
            and module.groups == 1
        ):
            return None
        return (
            f"the patches of {self.name!r} overlap or are padded (kernel {tuple(module.kernel_size)}, stride "
            f"{tuple(module.stride)}, padding {module.padding})"
        )

    def matrix(self) -> torch.Tensor:
        """The map of one patch as a matrix of shape `(hidden_size, channels * patch_height * patch_width)`."""
        return self.module.weight.detach().flatten(1)


def find_patch_projection(model: nn.Module, name: str | None = None) -> PatchProjection:
    """
    Finds the patch projection of an image classifier.

    The rule: inside the module that `get_input_embeddings()` returns, and then inside the whole model, the first
    convolution that reads as many channels as an image has (or, inside the embeddings only, the first linear layer).
    Where PEFT trains a copy of that module (`modules_to_save`), the copy is taken.

    Args:
        model (`nn.Module`): The classifier; it may be wrapped by PEFT or `torch.compile`.
        name (`str`, *optional*): Name of the module to use instead, as in `model.named_modules()`.

    Raises:
        `ValueError`: If no module matches the rule, or `name` is not a convolution or linear layer of the model.
    """
    if name is not None:
        names = {module: module_name for module_name, module in model.named_modules()}
        module = next((module for module, module_name in names.items() if module_name == name), None)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            found = "there is no such module" if module is None else f"it is a {type(module).__name__}"
            raise ValueError(
                f"`patch_projection={name!r}` must name an nn.Conv2d or nn.Linear of {type(model).__name__}, but {found}. "
                f"{name_candidates([each.name for each in patch_projections(model)])}"
            )
        return PatchProjection(name, module)

    projection = next(patch_projections(model), None)
    if projection is not None:
        return projection
    raise ValueError(
        f"{type(model).__name__} has no patch projection: neither its input embeddings nor the rest of the model holds "
        f"a convolution that reads {channels_of(model) or 3} channels. If the model does embed image patches, name the "
        "module with `patch_projection=...`, as in `model.named_modules()`."
    )


def patch_projections(model: nn.Module) -> Iterator[PatchProjection]:
    """All modules that match the rule of [`find_patch_projection`], the best first. No forward pass is run."""
    names = {module: name for name, module in model.named_modules()}
    num_channels = channels_of(model) or 3
    embeddings = _input_embeddings(model)
    seen = set()
    for root in [embeddings, model]:
        for module in root.modules() if root is not None else ():
            is_stem = isinstance(module, nn.Conv2d) and module.in_channels == num_channels
            is_linear_stem = root is embeddings and isinstance(module, nn.Linear)
            is_idle = "original_module" in names[module].split(".")  # PEFT runs its copy instead
            if (is_stem or is_linear_stem) and not is_idle and module not in seen:
                seen.add(module)
                yield PatchProjection(names[module], module)


def name_candidates(names: Sequence[str]) -> str:
    """The candidate modules for `patch_projection`, as part of an error message."""
    if not names:
        return "The rule finds no other module; name the one that does."
    others = f" (and {len(names) - MOST_NAMED} more)" if len(names) > MOST_NAMED else ""
    would_do = ", ".join(map(repr, names[:MOST_NAMED])) + others
    return f"Of this model {would_do} would do."


def channels_of(model: nn.Module) -> int | None:
    """Channels of the images that a classifier reads; `None` for a model without a config."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = getattr(config, "vision_config", config)
    # timm's configs keep the number in the arguments of the model if it is not 3.
    built_with = getattr(config, "model_args", None) or {}
    return getattr(config, "num_channels", built_with.get("in_chans", 3))


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    # A token embedding (a text model, or ImageGPT's colour codes) reads no pixels.
    return embeddings if isinstance(embeddings, nn.Module) and not isinstance(embeddings, nn.Embedding) else None
