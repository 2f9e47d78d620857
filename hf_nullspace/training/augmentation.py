"""
Random changes of training pictures: crop and flip, TrivialAugment and AugMix.

They are made of the operations of kornia (Apache-2.0), which needs no torchvision; the boxes of crops are kornia's, and
Pillow resizes them as image processors do. AugMix, which kornia does not have and other libraries have only together with
torchvision, is mixed here from kornia's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from PIL import Image
from torch import nn
from torch.distributions import Beta, Dirichlet


NO_AUGMENTATION = "none"
KINDS = ("default", "trivial", "augmix", NO_AUGMENTATION)
# One operation of a policy: its name in kornia, and the range of its strength.
Operation = tuple[str, float, float]
FIXED = (0.0, 1.0)  # the range of operations that have no strength
# A picture whose mirror image means another thing means another thing upside down too.
UPRIGHT_DEGREES = 30.0
# Shifts as shares of the side: 32 of 224 pixels.
TRIVIAL_SHIFT = 32 / 224
# kornia shears by a share of 180 degrees.
STEEP_SHEAR = 44.7 / 180  # a slope of 0.99
MILD_SHEAR = 16.7 / 180  # a slope of 0.3
AUGMIX_SHEAR = 5.1 / 180  # a slope of 0.09
AUGMIX_SHIFT = 0.1
AUGMIX_DEGREES = 9.0


class Augmentation:
    """
    Changes a picture at random: it is cropped, may be mirrored, and with some kinds changed further. All random numbers
    are drawn from torch's global generator on the CPU.

    - `"default"`: a random part of the picture is resized to the model's size and mirrored half of the time, as in
      Transformers' example of image classification.
    - `"trivial"`: then one operation of TrivialAugment's "wide" space ([arXiv 2103.10158](https://arxiv.org/abs/2103.10158))
      at a random strength. Two are kornia's and not Pillow's: contrast multiplies (Pillow's brightness), brightness adds
      up to a half; shifts are shares of the side.
    - `"augmix"`: then AugMix at its severity 3 ([arXiv 1912.02781](https://arxiv.org/abs/1912.02781)), without its
      Jensen-Shannon loss.

    Args:
        kind (`str`, *optional*, defaults to `"default"`): `"default"`, `"trivial"` or `"augmix"`.
        size (`tuple[int, int]`, *optional*): Height and width of the result. By default those of the picture.
        crop_scale (`float`, *optional*, defaults to 0.08): Smallest share of the area that a crop keeps.
        horizontal_flip (`bool`, *optional*, defaults to `True`): Whether half of the pictures are mirrored. Without it
            `"trivial"` turns by 30 degrees at most, instead of 135, and shears less: what is no picture in the mirror is
            none upside down.
        num_channels (`int`, *optional*, defaults to 3): Of the pictures. Grey ones have no colour to change.

    Raises:
        `ImportError`: If kornia is missing.
        `ValueError`: If the kind is unknown, or the share lies outside (0, 1].

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from hf_nullspace.training.augmentation import Augmentation

    >>> augmentation = Augmentation("trivial", size=(32, 32))
    >>> augmentation.crop(Image.new("RGB", (64, 48))).size
    (32, 32)
    >>> augmentation.change(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    ```
    """

    def __init__(
        self,
        kind: str = "default",
        size: tuple[int, int] | None = None,
        crop_scale: float = 0.08,
        horizontal_flip: bool = True,
        num_channels: int = 3,
    ):
        check_package(kind)
        if kind not in KINDS or kind == NO_AUGMENTATION:
            raise ValueError(f"`kind` must be one of {list(KINDS[:-1])}, but got {kind!r}.")
        check_crop_scale(crop_scale)
        from kornia.augmentation import RandomHorizontalFlip, RandomResizedCrop

        self.kind = kind
        self.size = size
        self.crop_scale = crop_scale
        self.horizontal_flip = horizontal_flip
        self.num_channels = num_channels
        self._boxes = RandomResizedCrop(size or (1, 1), scale=(crop_scale, 1.0))
        self._changes: list[nn.Module] = [RandomHorizontalFlip()] if horizontal_flip else []
        if kind == "trivial":
            self._changes.append(_one_of(_trivial_policy(horizontal_flip, num_channels)))
        elif kind == "augmix":
            self._changes.append(AugMix(_one_of(_augmix_policy())))

    def crop(self, picture: Image.Image) -> Image.Image:
        """A random part of a picture, at the size of the result."""
        width, height = picture.size
        box = self._boxes.forward_parameters(torch.Size((1, self.num_channels, height, width)))["src"][0]
        left, top = box[0].tolist()
        right, bottom = (box[2] + 1).tolist()
        rows, columns = self.size or (height, width)
        return picture.resize((columns, rows), Image.Resampling.BILINEAR, box=(left, top, right, bottom))

    @torch.no_grad()
    def change(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        A cropped picture, mirrored and changed.

        Args:
            pixels (`torch.Tensor` of shape `(1, num_channels, height, width)`): In [0, 1]; so is what is returned.
        """
        for change in self._changes:
            pixels = change(pixels)
        return pixels.clamp(0, 1)

    def __str__(self) -> str:
        """What is done, in one line for logs and cards."""
        parts = [f"random crops of {100 * self.crop_scale:g} to 100 % of the area"]
        parts += ["mirrored half of the time"] if self.horizontal_flip else ["never mirrored"]
        turned = "wide" if self.horizontal_flip else f"turned by {UPRIGHT_DEGREES:g} degrees at most"
        parts += {"trivial": [f"TrivialAugment {turned}"], "augmix": ["AugMix"]}.get(self.kind, [])
        return f"{self.kind} ({', '.join(parts)})"


class AugMix(nn.Module):
    """
    AugMix: a mixture of a picture and of chains of random operations on it ([arXiv
    1912.02781](https://arxiv.org/abs/1912.02781), algorithm 1, with its width 3, depth 1 to 3 and alpha 1).

    Args:
        operation (`nn.Module`): Changes an image at random, another way each time.
        width (`int`, *optional*, defaults to 3): Chains.
        depth (`int`, *optional*, defaults to 3): Most operations of a chain.
    """

    def __init__(self, operation: nn.Module, width: int = 3, depth: int = 3):
        super().__init__()
        self.operation = operation
        self.width = width
        self.depth = depth

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weights = Dirichlet(torch.ones(self.width)).sample()
        share = Beta(1.0, 1.0).sample()
        mixed = torch.zeros_like(pixels)
        for weight in weights:
            chain = pixels
            for _ in range(int(torch.randint(1, self.depth + 1, ()))):
                chain = self.operation(chain)
            mixed += weight * chain
        return (1 - share) * pixels + share * mixed


def check_package(kind: str) -> None:
    """
    Raises:
        `ImportError`: If a kind of augmentation needs kornia and it is not installed.
    """
    if kind != NO_AUGMENTATION and find_spec("kornia") is None:
        raise ImportError(
            f"`augmentation={kind}` needs kornia: `pip install 'hf_nullspace[augment]'`, on Python 3.11 or later. Or train on the pictures as they "
            f"are, with `augmentation={NO_AUGMENTATION}`."
        )


def check_crop_scale(crop_scale: float) -> None:
    """
    Raises:
        `ValueError`: If it is no share of an area.
    """
    if not 0 < crop_scale <= 1:
        raise ValueError(f"`crop_scale` must lie in (0, 1], but got {crop_scale!r}.")


def _one_of(policy: Sequence[Operation]) -> nn.Module:
    """One operation of a policy at a random strength, another one each time."""
    from kornia.augmentation.auto import TrivialAugment

    return TrivialAugment([[operation] for operation in policy], transformation_matrix_mode="skip")


def _trivial_policy(is_free: bool, num_channels: int) -> list[Operation]:
    degrees = 135.0 if is_free else UPRIGHT_DEGREES
    shear = STEEP_SHEAR if is_free else MILD_SHEAR
    colour: list[Operation] = [("color", 0.01, 1.99)] if num_channels == 3 else []
    return [
        ("contrast", 1.0, 1.0),  # leaves the picture as it is
        ("auto_contrast", *FIXED),
        ("equalize", *FIXED),
        ("rotate", -degrees, degrees),
        ("posterize", 2.0, 8.0),
        ("solarize", 0.0, 1.0),
        *colour,
        ("contrast", 0.01, 1.99),
        ("brightness", 0.5, 1.5),
        ("sharpness", 0.01, 1.99),
        *(("shear_x", -shear, shear), ("shear_y", -shear, shear)),
        *(("translate_x", -TRIVIAL_SHIFT, TRIVIAL_SHIFT), ("translate_y", -TRIVIAL_SHIFT, TRIVIAL_SHIFT)),
    ]


def _augmix_policy() -> list[Operation]:
    return [
        ("auto_contrast", *FIXED),
        ("equalize", *FIXED),
        ("posterize", 3.0, 4.0),
        ("rotate", -AUGMIX_DEGREES, AUGMIX_DEGREES),
        ("solarize", 0.7, 1.0),
        *(("shear_x", -AUGMIX_SHEAR, AUGMIX_SHEAR), ("shear_y", -AUGMIX_SHEAR, AUGMIX_SHEAR)),
        *(("translate_x", -AUGMIX_SHIFT, AUGMIX_SHIFT), ("translate_y", -AUGMIX_SHIFT, AUGMIX_SHIFT)),
    ]
