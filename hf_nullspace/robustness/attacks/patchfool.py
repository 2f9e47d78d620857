"""PatchFool: an attack on the attention of vision transformers through one patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.pixel_model import PixelModel
from .attention import attentions_of, eager_attention, patch_grid, patch_size
from .base import Attack, register_attack
from .search import BestSoFar, attack_correct, cross_entropy, keyed_draws, usable_gradient


# Keeps the logarithm of an attention that has underflowed finite.
SMALLEST_ATTENTION = 1e-12


def patchfool(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_patches: int = 1,
    block: int = 4,
    steps: int = 250,
    learning_rate: float = 0.22,
    decay: float = 0.95,
    decay_steps: int = 10,
    attention_weight: float = 0.002,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    PatchFool ([Fu et al., 2022](https://arxiv.org/abs/2203.08392)): replaces the patch that receives the most attention
    by one that draws attention to itself and changes the class, bounded by the pixel box alone.

    Adam climbs the cross-entropy plus, for each early block, `attention_weight` times the logarithm of the attention
    that the patch receives, averaged over heads and queries. Where the two gradients disagree, the attention's loses
    its component along the other. As in the authors' code, the blocks are those of the first half without the very
    first. A picture is left alone once it is misclassified; where it never is, the patch of the highest loss comes
    back.

    The model computes its attention eagerly meanwhile, and as before afterwards. Patches of any size are found, and
    tokens that are no patch (CLS, distillation, registers) are neither chosen nor changed.

    Args:
        model ([`PixelModel`]): The vision transformer under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        num_patches (`int`, *optional*, defaults to 1): How many patches of a picture are replaced.
        block (`int`, *optional*, defaults to 4): Index of the block whose attention chooses them; the last one if the
            model has fewer.
        steps (`int`, *optional*, defaults to 250): Steps of Adam.
        learning_rate (`float`, *optional*, defaults to 0.22): Its learning rate, in units of **normalised** pixels as in
            the paper; a pixel moves by about `learning_rate * image_std`.
        decay (`float`, *optional*, defaults to 0.95): Factor of the learning rate every `decay_steps` steps.
        decay_steps (`int`, *optional*, defaults to 10): Steps between two such factors.
        attention_weight (`float`, *optional*, defaults to 0.002): Weight of the attention against the cross-entropy.
        seed (`int`, *optional*, defaults to 42): Seed of the random patch that the search starts from.
        indices (`Sequence[int]`, *optional*): Place of each picture in its dataset, which its random numbers are drawn
            from. By default 0 to `batch_size - 1`.

    Returns:
        `torch.Tensor`: Pictures in [0, 1] that differ from the clean ones in `num_patches` patches each.

    Raises:
        `ValueError`: If the model has no attention over its patches (a convolutional or windowed one), or a setting
            makes no sense.
    """
    available = 0 if pixels.dim() != 4 else torch.tensor(patch_grid(model, pixels)).prod().item()
    for name, value, allowed in (
        ("num_patches", num_patches, 1 <= num_patches <= available),
        ("block", block, block >= 0),
        ("steps", steps, steps >= 1),
        ("learning_rate", learning_rate, learning_rate > 0),
        ("decay", decay, 0 < decay <= 1),
        ("decay_steps", decay_steps, decay_steps >= 1),
        ("attention_weight", attention_weight, attention_weight >= 0),
    ):
        if not allowed:
            raise ValueError(
                f"`{name}={value!r}` does not fit PatchFool on pictures of shape {tuple(pixels.shape)} with {available} "
                "patches each; see its documentation for what does."
            )

    def search(clean: torch.Tensor, labels: torch.Tensor, indices: list[int]) -> torch.Tensor:
        chosen = _choose_patches(model, clean, num_patches, block)
        mask = _patch_mask(model, clean, chosen)
        best = BestSoFar(clean)
        std = model.std.float()
        variable = (keyed_draws("attack-patchfool", seed, indices, clean) / std).requires_grad_()
        optimizer = torch.optim.Adam([variable], lr=learning_rate, maximize=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, decay_steps, decay)
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                current = torch.where(mask, variable * std, clean).clamp(0, 1)
                logits, attentions = attentions_of(model, current)
            keep = best.update(current, logits, labels)
            if step == steps or not keep.any():
                break
            received = [
                attention.gather(2, chosen.unsqueeze(1).expand(-1, attention.shape[1], -1)).sum(2)
                for attention in early_half(attentions)
            ]
            gradient = gradient_towards_attention(variable, cross_entropy(logits, labels), received, attention_weight)
            variable = _keep_rows(optimizer, keep)
            variable.grad = usable_gradient(gradient[keep], best.active)
            clean, labels, chosen, mask = clean[keep], labels[keep], chosen[keep], mask[keep]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                variable.copy_((variable * std).clamp(0, 1) / std)
        return best.pixels

    with eager_attention(model.model):
        return attack_correct(search, model, pixels, labels, indices)


@torch.no_grad()
def _choose_patches(model: PixelModel, pixels: torch.Tensor, num_patches: int, block: int) -> torch.Tensor:
    """Indices of the patches that receive the most attention, of shape `(batch_size, num_patches)`."""
    _, attentions = attentions_of(model, pixels)
    return attentions[min(block, len(attentions) - 1)].mean(1).topk(num_patches, dim=1).indices


def _patch_mask(model: PixelModel, pixels: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Whether a pixel lies in a chosen patch, of shape `(batch_size, 1, height, width)`."""
    rows, columns = patch_grid(model, pixels)
    height, width = patch_size(model)
    mask = torch.zeros(len(pixels), rows * columns, dtype=torch.bool, device=pixels.device).scatter(1, chosen, True)
    mask = mask.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    # Pixels right of and below the last whole patch are read by no patch.
    margins = (0, pixels.shape[3] - columns * width, 0, pixels.shape[2] - rows * height)
    return torch.nn.functional.pad(mask, margins)


def early_half(attentions: list[torch.Tensor]) -> list[torch.Tensor]:
    """The first half of the blocks without the very first; all of them where that leaves none."""
    return attentions[1 : len(attentions) // 2] or attentions


def gradient_towards_attention(
    variable: torch.Tensor, loss: torch.Tensor, received: list[torch.Tensor], attention_weight: float
) -> torch.Tensor:
    """Gradient of the loss plus that of the attention received, the latter without what opposes the former."""
    (total,) = torch.autograd.grad(loss.sum(), variable, retain_graph=attention_weight > 0)
    if attention_weight == 0:
        return total
    main = total.flatten(1)
    combined = main.clone()
    for place, attention in enumerate(received):
        objective = attention.clamp_min(SMALLEST_ATTENTION).log().mean(1).sum()
        (side,) = torch.autograd.grad(objective, variable, retain_graph=place + 1 < len(received))
        side = side.flatten(1)
        opposed = (side * main).sum(1, keepdim=True).clamp(max=0)
        combined += attention_weight * (side - opposed / main.square().sum(1, keepdim=True).clamp_min(1e-30) * main)
    return combined.view_as(variable)


def _keep_rows(optimizer: torch.optim.Adam, keep: torch.Tensor) -> torch.Tensor:
    """Lets an optimiser of one tensor go on with some of its rows; gives the tensor."""
    (variable,) = optimizer.param_groups[0]["params"]
    state = optimizer.state.pop(variable, {})
    kept = variable.detach()[keep].requires_grad_()
    optimizer.param_groups[0]["params"] = [kept]
    optimizer.state[kept] = {name: value[keep] if value.dim() else value for name, value in state.items()}
    return kept


register_attack(
    Attack(
        "patchfool",
        patchfool,
        "A patch that draws a vision transformer's attention to itself and changes the class (Fu et al., 2022).",
    )
)
