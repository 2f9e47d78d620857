"""Measures what an image processor does to a picture, and converts between pixels and model inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.pictures import picture_name, read_picture
from .pixel_box import normalization


MODES = {1: "L", 3: "RGB"}
WORDS = {"L": "grey", "RGB": "RGB"}
# Largest difference between the output of a processor and of its affine map, for values of a magnitude up to 1.
TOLERANCE = 1e-4
# A processor's own mean and deviation are used if they reproduce its output within float32's rounding.
ROUNDING = 1e-5
# Resizing rounds to eight bits, twice for two directions: shades that two pictures may differ by beside their contrast.
SHADES = 2.5
# A pixel so close to one of the 256 shades, in shades, is that shade.
SAME_SHADE = 1e-2
# Width and height of probes; no squares, so that sizes that follow a picture's shape are seen. The small ones are for
# processors that pad to less than the first, or crop nothing else.
PROBE_SIZES = ((64, 48), (16, 12))
COLOUR = (64, 128, 200)  # differs by channel, so that a change of their order is seen


class Preprocessing:
    """
    The effect of an image processor, measured on a few small pictures instead of read from its settings.

    The processor may resize, crop, pad or reorder channels, but the value of each pixel must be mapped by an affine
    map per channel: `(pixel - mean) / std`, for pixels in [0, 1]. This is measured on construction, and other
    processors are refused. It works for processors of Transformers (Pillow's and torchvision's), of timm and any other
    `callable(pictures, return_tensors="pt")`.

    Nothing is clamped on the way to a model: [`~Preprocessing.to_model_inputs`] is what the processor gives. Only
    [`~Preprocessing.to_pixels`] and [`~Preprocessing.into_box`] clamp, since resizing may overshoot and what leaves [0, 1]
    is no picture. Processors that resize pictures of eight bits never overshoot.

    Args:
        image_processor (`Callable`): The image processor.
        num_channels (`int`, *optional*): Channels that the model reads: 3, or 1 for grey pictures. By default 3 where
            the processor takes such pictures, else 1.

    Attributes:
        mode (`str`): `"RGB"`, or `"L"` for a model of grey pictures.
        num_channels (`int`): 3 or 1.
        channel_order (`tuple[int, ...]`): Which channel of the picture each of the model's is; `(2, 1, 0)` for BGR.
        mean, std (`tuple[float, ...]`): Of each channel of the model, in units of pixels in [0, 1].
        processed_size (`tuple[int, int]` or `None`): Height and width of what it gives; `None` where that depends on the
            picture, or where it gives patches.
        gives_patches (`bool`): Whether it cuts pictures into patches itself, of shape `(num_patches, features)` each.

    Raises:
        `TypeError`: If the processor cannot be called.
        `ValueError`: If it fails on plain pictures, does not give `pixel_values`, or changes pixels by more than an
            affine map; or if the model reads another number of channels.
    """

    def __init__(self, image_processor: Callable, num_channels: int | None = None):
        self.image_processor = image_processor
        self.name = type(image_processor).__name__
        if not callable(image_processor):
            raise TypeError(f"The image processor must be callable with pictures, but got a `{self.name}`.")
        if num_channels not in (None, *MODES):
            raise ValueError(
                f"Pictures are read as RGB, or as grey ones; this model reads {num_channels} channels. Load a model "
                "that reads 3 channels or 1."
            )
        self.mode, size, black = self._find_mode(num_channels)
        self._measure(size, black)

    @classmethod
    def of(cls, image_processor: Callable | Preprocessing, num_channels: int | None = None) -> Preprocessing:
        """The preprocessing of an image processor. A [`Preprocessing`] is returned unchanged if its channels fit."""
        if not isinstance(image_processor, Preprocessing):
            return cls(image_processor, num_channels)
        if num_channels not in (None, image_processor.num_channels):
            return cls(image_processor.image_processor, num_channels)
        return image_processor

    def read(self, picture: Any, name: str = "") -> Image.Image:
        """Reads a picture with [`read_picture`] and converts it to the mode that the model reads."""
        picture = read_picture(picture, name)
        if self.mode == picture.mode:
            return picture
        grey = picture.convert(self.mode)
        grey.filename = picture.filename
        return grey

    def to_model_inputs(self, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """
        The exact output of the image processor for these pictures.

        Args:
            pictures (`Sequence`): Pictures as [`read_picture`] takes them.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(num_pictures, channels, height, width)` in float32, or
            `(num_pictures, num_patches, features)` for patches that are cut already; then there are masks and sizes too.

        Raises:
            `ValueError`: If a picture cannot be read or processed, or two become different in size; they are named.
        """
        names = [picture_name(picture) or f"Picture {index}" for index, picture in enumerate(pictures)]
        pictures = [self.read(picture, name) for picture, name in zip(pictures, names, strict=True)]
        try:
            return self._process(pictures)
        except Exception as error:
            raise ValueError(self._culprit(pictures, names) or f"{self.name} fails on a batch: {error}") from error

    def to_pixels(self, pictures: Sequence[Any]) -> torch.Tensor:
        """
        The pixels that a model sees, before they are normalised: of shape `(num_pictures, channels, height, width)`, in
        [0, 1], in the order of channels that pictures have. Arguments and errors as for [`~Preprocessing.to_model_inputs`].
        """
        if self.gives_patches:
            raise ValueError(
                f"{self.name} cuts pictures into patches itself, as many as fit each picture's shape, so corruptions and "
                "attacks, which are defined on pixels, cannot be measured. Evaluate a model that reads whole pictures."
            )
        pixels = self.denormalize(self.to_model_inputs(pictures)["pixel_values"])
        shades = (pixels * 255).round()
        return torch.where((pixels * 255 - shades).abs() < SAME_SHADE, shades / 255, pixels).clamp(0, 1)

    def to_pixels_as_is(self, pictures: Sequence[Any]) -> torch.Tensor:
        """As [`~Preprocessing.to_pixels`], for pictures that already have their final size."""
        arrays = [np.asarray(self.read(picture)) for picture in pictures]
        pixels = torch.from_numpy(np.stack(arrays)).float() / 255
        return pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Model inputs from pixels, both of shape `(num_pictures, channels, height, width)`."""
        mean, std = (values.to(pixels) for values in normalization(self.mean, self.std, pixels))
        return (pixels[:, self.channel_order] - mean) / std

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels from model inputs, both of shape `(num_pictures, channels, height, width)`."""
        mean, std = normalization(self.mean, self.std, pixel_values)
        return (pixel_values.double() * std + mean).float()[:, np.argsort(self.channel_order)]

    def into_box(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Clamps model inputs whose pixel lies outside [0, 1] by more than rounding; takes pictures or patches."""
        mean, std = normalization(self.mean, self.std, pixel_values, self.num_channels)
        pixels = pixel_values.double() * std + mean
        clamped = pixels.clamp(0, 1)
        outside = (pixels - clamped).abs() > ROUNDING
        return torch.where(outside, (clamped - mean) / std, pixel_values.double()).to(pixel_values.dtype)

    def _find_mode(self, num_channels: int | None) -> tuple[str, tuple[int, int], torch.Tensor]:
        """Mode and size of pictures that the processor accepts, and its output for a black one."""
        failures: dict[str, Exception] = {}
        modes = [MODES[num_channels]] if num_channels else ["RGB", "L"]
        for size, mode in itertools.product(PROBE_SIZES, modes):
            try:
                values = self._process([Image.new(mode, size)])["pixel_values"]
            except Exception as error:  # processors raise many exception types, with the same meaning here
                failures.setdefault(mode, error)
                continue
            if values.dim() == 3 or values.shape[1] == len(mode):
                return mode, size, values[0]
            failures[mode] = ValueError(f"it gives {values.shape[1]} channels for pictures of {len(mode)}")
        mode, failure = next(iter(failures.items()))
        if num_channels is None:
            raise ValueError(f"{self.name} cannot process a plain {WORDS[mode]} picture: {failure}") from failure
        wanted = "Pictures are read as RGB by most image processors; this" if mode == "L" else "This"
        raise ValueError(
            f"{wanted} model reads {num_channels} channel{'s' * (mode != 'L')}, but {self.name} cannot process a "
            f"{WORDS[mode]} picture: {failure}. Pass the image processor that the model was trained with, with "
            f"{len(mode)} value{'s' * (mode != 'L')} in `image_mean` and `image_std`."
        ) from failure

    def _process(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        output = self.image_processor(pictures, return_tensors="pt")
        if "pixel_values" not in output:
            raise ValueError(f"it gives no `pixel_values`, only {sorted(output)}")
        inputs = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
        values = inputs.get("pixel_values")
        if values is None or values.dim() not in (3, 4) or len(values) != len(pictures):
            found = "a list" if values is None else f"shape {tuple(values.shape)}"
            raise ValueError(f"it gives `pixel_values` of {found} for {len(pictures)} pictures")
        return {**inputs, "pixel_values": values.float()}

    def _culprit(self, pictures: list[Image.Image], names: list[str]) -> str | None:
        """The picture for which a batch fails, and why."""
        shapes: dict[tuple[int, ...], str] = {}
        for picture, name in zip(pictures, names, strict=True):
            try:
                shape = tuple(self._process([picture])["pixel_values"].shape[1:])
            except Exception as error:
                width, height = picture.size
                return (
                    f"{name}, of {height}x{width} pixels (height x width), cannot be processed by {self.name}: {error}"
                )
            shapes.setdefault(shape, name)
        if len(shapes) < 2:
            return None
        (first, one), (second, other) = list(shapes.items())[:2]
        return (
            f"{self.name} gives {one} the shape {first} and {other} the shape {second}, which are no batch. Set its "
            "`size` or `crop_size` so that all pictures get one height and width."
        )

    def _measure(self, size: tuple[int, int], black: torch.Tensor) -> None:
        colour = COLOUR if self.mode == "RGB" else COLOUR[0]
        plain = [Image.new(self.mode, size, shade) for shade in ((255,) * len(self.mode), colour)]
        ramp = _ramp(self.mode, size)
        faint = Image.fromarray(np.asarray(ramp) // 2)
        values = [self._process([picture])["pixel_values"][0] for picture in (*plain, ramp, ramp, faint)]
        self.gives_patches = black.dim() == 2
        low, high, grey = self._one_pixel(black, *values[:2])
        self.num_channels = len(self.mode)
        self.channel_order = tuple(range(self.num_channels))
        if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (high > low).all()):
            raise ValueError(
                f"{self.name} turns black into {low.tolist()} and white into {high.tolist()}. White must be larger and both "
                "finite: every value of `image_std` and the `rescale_factor` must be positive."
            )
        shades = torch.tensor(COLOUR[: self.num_channels]).double() / 255
        if self.num_channels == 3:
            self.channel_order = tuple((((grey - low) / (high - low))[:, None] - shades).abs().argmin(1).tolist())
        self.mean, self.std = self._statistics(low, high)
        mean, std = torch.tensor(self.mean).double(), torch.tensor(self.std).double()
        expected = torch.stack([-mean / std, (1 - mean) / std, (shades[list(self.channel_order)] - mean) / std])
        distances = (torch.stack([low, high, grey]) - expected).abs() / expected.abs().clamp_min(1)
        self._refuse_unless(
            sorted(self.channel_order) == list(range(self.num_channels)) and distances.max() <= TOLERANCE,
            f"turns shades into values that no affine map gives: black into {low.tolist()}, white into {high.tolist()} "
            f"and {colour} into {grey.tolist()}",
        )
        self._check_contents(black, values[0], *values[2:])
        upright = self._process([ramp.transpose(Image.Transpose.TRANSPOSE)])["pixel_values"]
        is_fixed = not self.gives_patches and upright.shape[1:] == black.shape
        self.processed_size = tuple(upright.shape[2:]) if is_fixed else None

    def _one_pixel(self, black: torch.Tensor, white: torch.Tensor, grey: torch.Tensor) -> Iterator[torch.Tensor]:
        """The channels of one pixel outside all margins, in each of the pictures."""
        if self.gives_patches:  # channels are the fastest axis of a patch, and margins are at the end
            return (values[0, : len(self.mode)].double() for values in (black, white, grey))
        place = int((black != white).any(0).flatten().int().argmax())
        return (values.flatten(1)[:, place].double() for values in (black, white, grey))

    def _statistics(self, low: torch.Tensor, high: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation: the processor's settings if the measurement agrees, else as measured."""
        std = 1 / (high - low)
        mean = -low * std
        try:
            named = _named_statistics(self.image_processor, self.num_channels)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            named = None
        if named is not None:
            expected = [(shade - named[0]) / named[1] for shade in (0, 1)]
            scale = torch.stack([low, high]).abs().max().clamp_min(1)
            if (torch.stack(expected) - torch.stack([low, high])).abs().max() <= ROUNDING * scale:
                mean, std = named
        return tuple(mean.tolist()), tuple(std.tolist())

    def _check_contents(
        self, black: torch.Tensor, white: torch.Tensor, ramp: torch.Tensor, again: torch.Tensor, faint: torch.Tensor
    ) -> None:
        """Checks that the value of a pixel depends only on the place of the picture that it was resized from."""
        shape = (1, *black.shape)
        statistics = normalization(self.mean, self.std, black.expand(shape), self.num_channels)
        mean, std = (values.squeeze(0).float() for values in statistics)
        black, white, ramp, again, faint = (values * std + mean for values in (black, white, ramp, again, faint))
        self._refuse_unless(torch.equal(ramp, again), "gives the same picture other values each time")
        inside = (white - black).abs() > 0.5  # margins have one colour whatever the picture is
        self._refuse_unless(
            bool((black[inside].abs() <= TOLERANCE).all() and ((white[inside] - 1).abs() <= TOLERANCE).all()),
            "changes pixels by their place in the picture",
        )
        self._refuse_unless(
            bool(((faint - ramp / 2)[inside].abs() <= SHADES / 255).all()),
            "changes pixels by the contents of the picture, for instance by its own contrast",
        )
        self._refuse_unless(
            bool((ramp[~inside] == black[~inside]).all()) and ramp[inside].min() > -0.1 and ramp[inside].max() < 1.1,
            "fills margins, or resizes, with values that are no pixels",
        )

    def _refuse_unless(self, holds: bool, deed: str) -> None:
        if not holds:
            raise ValueError(
                f"{self.name} {deed}. What it does to a pixel must be `(pixel - mean) / std`, one mean and deviation for "
                "each channel, beside resizing, cropping and padding. Use such an image processor, and do the rest "
                "when the pictures are stored."
            )


def _ramp(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture without edges, so that no resizing overshoots; of even shades, so that half of it is one too."""
    across, down = np.meshgrid(*(np.linspace(20, 90, side) for side in size))
    channels = [across, down, (across + down) / 2][: len(mode)]
    return Image.fromarray((2 * np.stack(channels, -1).round().astype(np.uint8)).squeeze())


def _named_statistics(image_processor: Any, num_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and deviation of pixels in [0, 1] by the settings of an image processor.

    They are exact, unlike a measurement in float32; the measurement decides whether they apply.
    """
    timm_config = getattr(image_processor, "data_config", {})

    def spread(name: str, default: float) -> torch.Tensor:
        values = getattr(image_processor, f"image_{name}", timm_config.get(name, default))
        return torch.as_tensor(values, dtype=torch.float64).expand(num_channels)

    does_rescale = getattr(image_processor, "do_rescale", True)
    scale = 255 * getattr(image_processor, "rescale_factor", 1 / 255) if does_rescale else 255.0
    offset = -1.0 if does_rescale and getattr(image_processor, "rescale_offset", False) else 0.0
    mean, std = torch.zeros(num_channels).double(), torch.ones(num_channels).double()
    if getattr(image_processor, "do_normalize", True):
        mean, std = spread("mean", 0.0), spread("std", 1.0)
    if getattr(image_processor, "include_top", False):  # EfficientNet's classifiers divide a second time
        std = std * spread("std", 1.0)
    return (mean - offset) / scale, std / scale


def image_transform(
    image_processor: Callable | Preprocessing,
    image_column_name: str,
    label_column_name: str,
    num_channels: int | None = None,
) -> Callable[[dict[str, list]], dict[str, list]]:
    """
    The `with_transform` function that turns a batch of pictures into `labels` and all that the image processor gives:
    `pixel_values`, and masks and sizes where it cuts patches.

    Args:
        image_processor (`Callable` or [`Preprocessing`]): The image processor.
        image_column_name, label_column_name (`str`): The columns.
        num_channels (`int`, *optional*): Channels that the model reads; see [`~preprocessing.Preprocessing`].

    Raises:
        `ValueError`: If [`~preprocessing.Preprocessing`] refuses the processor; in the transform, if it fails on a
            picture, which is named.
    """
    preprocessing = Preprocessing.of(image_processor, num_channels)

    def transform(batch: dict[str, list]) -> dict[str, list]:
        inputs = preprocessing.to_model_inputs(batch[image_column_name])
        return {**{name: list(values) for name, values in inputs.items()}, "labels": batch[label_column_name]}

    return transform
