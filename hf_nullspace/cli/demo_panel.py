"""What the page of `hf-nullspace demo` shows of one model, as HTML without a script or a file."""

from __future__ import annotations

import html

import torch

from ..probing.explorer import Explored
from ..probing.noisy_pictures import top_classes
from ..utils.figures import BLUE, ORANGE
from ..utils.page import data_uri


# Classes with a bar.
MAX_CLASSES = 5
# Largest width of a picture on the page; small ones, such as digits, are drawn as large.
WIDTH = 280


def panel_html(name: str, explored: Explored) -> str:
    """
    A noisy picture, its noise, the most probable classes and what is known of the noise.

    Text has the colour of the page, so that it is legible in the dark too. Names are escaped.

    Args:
        name (`str`): The model's.
        explored ([`Explored`]): What it says.
    """
    own = {each for each, _ in top_classes(explored.clean_probabilities, explored.class_names, MAX_CLASSES)}
    classes = top_classes(explored.probabilities, explored.class_names, MAX_CLASSES)
    bars = "".join(_bar(each, share, BLUE if each in own else ORANGE) for each, share in classes)
    pictures = "".join(
        f'<figure style="margin:0;flex:1;max-width:{WIDTH}px">{_image(pixels, title)}<figcaption>{title}</figcaption></figure>'
        for pixels, title in (
            (explored.pixels, "the picture that it reads"),
            (shown_noise(explored.noise), "the noise"),
        )
    )
    verdict = "unchanged" if explored.is_unchanged else "changed"
    largest = explored.noise.abs().max().item()
    rms = explored.noise.square().mean().sqrt().item()
    return (
        f'<section><h3>{html.escape(name)}</h3><div style="display:flex;gap:8px">{pictures}</div>'
        f'<p>Prediction <b class="verdict">{verdict}</b>. Largest change of a logit '
        f"{explored.relative_logit_change:.1e} of their norm; squared change of the probabilities "
        f"{explored.probability_mse:.1e}. Noise: root mean square {rms:.3f}, largest {largest:.3f}, where white is 1.</p>"
        f'<div class="classes">{bars}</div><p class="words">{html.escape(explored.words)}</p></section>'
    )


def shown_noise(noise: torch.Tensor) -> torch.Tensor:
    """Noise about grey, twice its root mean square as black and white: a few pixels reach far, and most would look grey."""
    contrast = max(2 * noise.square().mean().sqrt().item(), 1e-12)
    return ((noise / contrast + 1) / 2).clamp(0, 1) if noise.abs().max() > 0 else torch.full_like(noise, 0.5)


def _bar(name: str, share: float, color: str) -> str:
    text = f"{html.escape(name)} {100 * share:.1f} %"
    return (
        f'<div style="background:linear-gradient({color}66,{color}66) 0/{100 * share:.2f}% 100% no-repeat;'
        f'padding:2px 6px;margin:2px 0" class="class">{text}</div>'
    )


def _image(pixels: torch.Tensor, title: str) -> str:
    shades = (pixels.permute(1, 2, 0) * 255).round().byte().numpy()
    source = data_uri(shades, lossless=True)
    return f'<img alt="{title}" style="width:100%;image-rendering:pixelated" src="{source}">'
