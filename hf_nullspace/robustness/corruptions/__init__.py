"""
Common corruptions at 5 severities, C-style and generated here; never the published ImageNet-C files.

They are the 15 of ImageNet-C, and those that other modules add with the decorator [`corruption`].

Their definitions and strengths follow Hendrycks and Dietterich (2019), *Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations* ([arXiv 1903.12261](https://arxiv.org/abs/1903.12261)), with these differences:

- The published strengths are for 224x224 pictures. Every length (a radius, a displacement, the side of a block, the
  size of a flake or of a cloud) is multiplied by `shorter side / 224` here, so that it stays the same share of the
  picture. Amplitudes (noise, contrast, brightness), the factors of the zoom and the quality of JPEG stay as published.
- frost is synthesised and needs no photographs of ice. Its last two levels carry more of it: the published ones darken
  a picture as much as they whiten it, and the mean change of a pixel falls from level 3 to 4.
- elastic_transform moves pixels by a local displacement alone, as in Michaelis et al. (2019), arXiv 1907.07484; the
  published first two levels are mostly a random affine map and change more pixels than the other three.
- glass_blur swaps pixels in another order, a grid of them at a time, and takes its neighbours from both sides alike.

So the mean change of a pixel grows with severity on photographs with a shorter side of 32 pixels or more. On other pictures
it may not: a white one cannot be brightened, and levels 3 and 4 of fog are equally thick.

Example:

```python
>>> import numpy as np
>>> from PIL import Image

>>> corrupt(Image.new("RGB", (56, 40)), "fog", 3, np.random.default_rng(0)).size
(56, 40)
```
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .arrays import to_picture, to_pixels
from .base import CORRUPTIONS, Corruption, corruption
from .blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from .digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate
from .noise import gaussian_noise, impulse_noise, shot_noise
from .weather import fog, frost, snow


SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(picture: Image.Image, name: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """
    One corruption of one picture.

    Args:
        picture (`PIL.Image.Image`): A picture of any size. Grey-scale, palette and other kinds are converted to RGB; a
            transparent one loses its transparency.
        name (`str`): One of [`CORRUPTIONS`].
        severity (`int`): 1 to 5; the mean change of a pixel grows with it.
        rng (`np.random.Generator`): Source of all that is random. One generator for each picture makes the result
            independent of the order of pictures and of the number of processes.

    Returns:
        `PIL.Image.Image`: An RGB picture of the same size; the one that was passed is left as it was.

    Raises:
        `ImportError`: If scipy is missing.
        `TypeError`: If the picture or the generator is something else.
        `ValueError`: If the name or the severity is unknown.
    """
    if not isinstance(picture, Image.Image):
        raise TypeError(
            f"`picture` must be a PIL image, but got {type(picture).__name__}. Wrap an array of uint8 in "
            "`PIL.Image.fromarray`."
        )
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"`rng` must be a numpy Generator, but got {type(rng).__name__}. Pass `np.random.default_rng(seed)`."
        )
    record = CORRUPTIONS.find(name)
    if not isinstance(severity, int) or isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"`severity` must be 1 to 5, but got {severity!r}.")
    return to_picture(record.function(to_pixels(picture), severity, rng))
