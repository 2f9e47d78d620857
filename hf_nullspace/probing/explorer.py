"""A classifier under noise of any kind and strength on any picture, one forward pass for each strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..exact_nullspace.patch_matrix import PatchMatrix
from ..exact_nullspace.patch_nullspace import PatchNullspace
from ..models.class_names import class_names
from ..models.frozen import frozen
from ..models.objectives import agreement, is_multi_label, probabilities, probability_mse
from ..models.patch_projection import channels_of, find_patch_projection
from ..models.pixel_model import PixelModel
from ..models.preprocessing import Preprocessing
from ..noise.certificate import Certificate
from ..noise.controls import permute_elements
from ..noise.nullspace_noise import NullspaceNoise
from ..robustness.attacks import ATTACKS
from ..robustness.corruptions import SEVERITIES
from ..robustness.sources import corrupt_pixels
from ..utils.random import keyed_generator
from .exact import predict, relative_logit_change
from .noisy_pictures import realize_at_epsilon


EXACT = "exact nullspace noise"
EXACT_CONTROL = "exact nullspace noise, permuted"
ENCODER = "encoder noise in pixels"
ENCODER_CONTROL = "encoder noise in pixels, permuted"
CORRUPTION = "corruption"
ATTACK = "PGD attack"

# Pixels of a patch driven to a bound: about a second on a ViT-S, for 84 % of the norm that 96 give.
EXACT_SLIDES = 16
# Gradient steps towards pixels that give an encoder noise.
REALIZE_STEPS = 50
# Largest radius of the attack, in units of the 255 shades.
ATTACK_RADIUS = 8
ATTACK_STEPS = 10


@dataclass(frozen=True)
class Explored:
    """
    What a classifier says of a picture under noise.

    Args:
        pixels (`torch.Tensor` of shape `(channels, height, width)`): The noisy picture as the model read it, in [0, 1].
        noise (`torch.Tensor` of the same shape): What was added to the picture's pixels, in [-1, 1].
        probabilities, clean_probabilities (`torch.Tensor` of shape `(num_labels,)`): With and without the noise.
        class_names (`list[str]`): Names of the classes.
        relative_logit_change (`float`): See [`~exact.relative_logit_change`].
        probability_mse (`float`): See [`~objectives.probability_mse`].
        is_unchanged (`bool`): Whether the prediction is that of the picture without noise.
        words (`str`): What is guaranteed of this noise, and what it is.
    """

    pixels: torch.Tensor
    noise: torch.Tensor
    probabilities: torch.Tensor
    clean_probabilities: torch.Tensor
    class_names: list[str]
    relative_logit_change: float
    probability_mse: float
    is_unchanged: bool
    words: str


class NoiseExplorer:
    """
    A classifier to be asked about pictures: [`~NoiseExplorer.open`] one, then [`~OpenPicture.explore`] it.

    Args:
        model (`nn.Module`): The classifier; in eval mode during every question, and restored.
        image_processor (`Callable`): Its image processor.
        find_noise (`Callable[[], NullspaceNoise]`, *optional*): Called when encoder noise is asked for the first time.
            Without it there is none.
        seed (`int`, *optional*, defaults to 42): Seed of every random choice.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.

    Attributes:
        kinds (`list[str]`): The kinds of noise that the model can be asked about. Exact and encoder noise need patches
            that do not overlap, and exact noise a nullspace; the attack needs one class for each picture.

    Raises:
        `ValueError`: If the model has no patch projection, predicts numbers and not classes, or reads patches that its
            image processor has cut.
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor: Callable,
        find_noise: Callable[[], NullspaceNoise] | None = None,
        *,
        seed: int = 42,
        patch_projection: str | None = None,
    ):
        projection = find_patch_projection(model, patch_projection)
        self.multi_label = is_multi_label(model)
        self.model = model
        self.seed = seed
        self.preprocessing = Preprocessing.of(image_processor, channels_of(model))
        if self.preprocessing.gives_patches:
            raise ValueError(
                f"{self.preprocessing.name} cuts pictures into patches itself, so there are no pixels to put noise on. "
                "Name a model that reads whole pictures."
            )
        self.nullspace: PatchNullspace | None = None
        if projection.is_exact:
            self.nullspace = PatchNullspace.from_model(model, patch_projection=patch_projection)
        self._find_noise = find_noise
        self._noise: NullspaceNoise | None = None
        has_exact = self.nullspace is not None and self.nullspace.dimension > 0
        has_encoder = self.nullspace is not None and find_noise is not None
        self.kinds = [EXACT, EXACT_CONTROL] * has_exact + [ENCODER, ENCODER_CONTROL] * has_encoder
        self.kinds += [CORRUPTION] + [ATTACK] * (not self.multi_label)

    @property
    def noise(self) -> NullspaceNoise:
        """The encoder noise, found when it is asked for the first time."""
        if self._noise is None:
            if self._find_noise is None:
                raise ValueError("There is no encoder noise: `find_noise` was not given.")
            self._noise = self._find_noise()
        return self._noise

    def open(self, picture: Image.Image) -> OpenPicture:
        """
        A picture to be asked about; see [`OpenPicture`].

        Args:
            picture (`PIL.Image.Image`): As [`~pictures.read_picture`] gives it.
        """
        return OpenPicture(self, picture)


class OpenPicture:
    """
    One picture before one model. Keeps in memory what does not depend on the strength of a noise.

    Args:
        explorer ([`NoiseExplorer`]): The model.
        picture (`PIL.Image.Image`): The picture.
    """

    def __init__(self, explorer: NoiseExplorer, picture: Image.Image):
        self.explorer = explorer
        preprocessing = explorer.preprocessing
        self.values = preprocessing.into_box(preprocessing.to_model_inputs([picture])["pixel_values"])
        self.pixels = preprocessing.denormalize(self.values).clamp(0, 1)
        self.clean_logits = predict(explorer.model, self.values)
        self._known: dict[Any, tuple[torch.Tensor, str]] = {}

    def explore(self, kind: str, strength: float, corruption: str = "fog") -> Explored:
        """
        The picture under a noise.

        Args:
            kind (`str`): One of the explorer's `kinds`.
            strength (`float`): Share of the largest noise of this kind, in [0, 1]; of a corruption, of severity 5.
            corruption (`str`, *optional*, defaults to `"fog"`): Name of the corruption.

        Raises:
            `ValueError`: If the kind or the corruption is unknown, or the strength lies outside [0, 1].
        """
        explorer = self.explorer
        if kind not in explorer.kinds:
            raise ValueError(f"`kind` must be one of {explorer.kinds}, but got {kind!r}.")
        if not 0 <= strength <= 1:
            raise ValueError(f"`strength` must lie in [0, 1], but got {strength!r}.")
        if kind == CORRUPTION:
            noise, words = self._corruption(corruption, round(strength * SEVERITIES[-1]))
        else:
            full, words = self._largest(kind)
            noise = strength * full
        read = explorer.preprocessing.into_box(self.values + noise)
        logits = predict(explorer.model, read)
        before, after = (probabilities(each, explorer.multi_label)[0] for each in (self.clean_logits, logits))
        pixels = explorer.preprocessing.denormalize(read).clamp(0, 1)
        return Explored(
            pixels=pixels[0],
            noise=(pixels - self.pixels)[0],
            probabilities=after,
            clean_probabilities=before,
            class_names=class_names(explorer.model, logits.shape[1]),
            relative_logit_change=relative_logit_change(self.clean_logits, logits).item(),
            probability_mse=probability_mse(self.clean_logits, logits, explorer.multi_label).item(),
            is_unchanged=bool(agreement(self.clean_logits, logits, explorer.multi_label).item() == 1),
            words=words,
        )

    def _largest(self, kind: str) -> tuple[torch.Tensor, str]:
        """The noise of a kind at strength 1, normalised, and what is said of it; found once."""
        if kind not in self._known:
            makers = {EXACT: self._exact, EXACT_CONTROL: self._exact_control, ATTACK: self._attack}
            if kind in makers:
                self._known[kind] = makers[kind]()
            else:
                self._known |= self._encoder()
        return self._known[kind]

    def _exact(self) -> tuple[torch.Tensor, str]:
        nullspace = _given(self.explorer.nullspace)
        statistics = (self.explorer.preprocessing.mean, self.explorer.preprocessing.std)
        generator = keyed_generator("explored exact noise", self.explorer.seed)
        noise = nullspace.sample_within(self.values, *statistics, generator, slides=EXACT_SLIDES)
        embedded, clean = (_embedded(nullspace, pixels).norm().item() for pixels in (noise, self.values))
        rows, features = nullspace.matrix.shape
        return noise, (
            f"Exact for every picture: the {rows} x {features} matrix that embeds a patch has rank {nullspace.rank}, so that "
            f"{nullspace.dimension} directions of its pixels reach nothing behind it, and this noise lies in them. It moves "
            f"the patch embeddings by {embedded / clean:.0e} of their norm, which is rounding."
        )

    def _exact_control(self) -> tuple[torch.Tensor, str]:
        noise, _ = self._largest(EXACT)
        permuted = permute_elements(noise, keyed_generator("explored control", self.explorer.seed))
        cut = self.explorer.preprocessing.into_box(self.values + permuted) - self.values
        return cut, (
            "The control, of which nothing is guaranteed: the elements of the exact noise in a random order, cut off at "
            f"black and white, which leaves {100 * (cut.norm() / noise.norm()).item():.0f} % of its norm."
        )

    def _encoder(self) -> dict[str, tuple[torch.Tensor, str]]:
        explorer = self.explorer
        matrix: PatchMatrix = _given(explorer.nullspace)
        noise = explorer.noise
        given = (explorer.model, explorer.preprocessing, self.values, noise.tensor, matrix, noise.config.epsilon)
        found = realize_at_epsilon(*given, explorer.seed, REALIZE_STEPS)
        said = certificate_words(noise.certificate)
        if found is None:
            nothing = torch.zeros_like(self.values)
            words = f"{said} No part of it in pixels is within epsilon on this picture."
            return dict.fromkeys((ENCODER, ENCODER_CONTROL), (nothing, words))
        part = (
            f"On this picture, {100 * found.scale:.0f} % of that noise is put into pixels, as much as keeps its error within "
            f"epsilon {noise.config.epsilon:g}; pixels in [0, 1] miss {100 * found.residual:.0f} % of its norm."
        )
        control = (
            "The control, of which nothing is guaranteed: the same noise with its elements permuted, put into pixels."
        )
        return {ENCODER: (found.noise, f"{said} {part}"), ENCODER_CONTROL: (found.control, control)}

    def _attack(self) -> tuple[torch.Tensor, str]:
        explorer = self.explorer
        with frozen(explorer.model):
            model = PixelModel(explorer.model, explorer.preprocessing)
            device = next(explorer.model.parameters()).device
            labels = self.clean_logits.argmax(-1).to(device)
            settings = {"epsilon": ATTACK_RADIUS / 255, "steps": ATTACK_STEPS, "seed": explorer.seed}
            attacked = ATTACKS["pgd_linf"](model, self.pixels.to(device), labels, **settings).cpu()
        return explorer.preprocessing.normalize(attacked) - self.values, (
            f"An attack on the prediction, of which nothing is guaranteed: {ATTACK_STEPS} steps of PGD within "
            f"{ATTACK_RADIUS}/255 of every pixel, scaled to the radius of the slider. A search at a smaller radius may find "
            "more."
        )

    def _corruption(self, name: str, severity: int) -> tuple[torch.Tensor, str]:
        if severity == 0:
            return torch.zeros_like(self.values), "No corruption; severities are 1 to 5."
        key = (CORRUPTION, name, severity)
        if key not in self._known:
            corrupted = corrupt_pixels(self.pixels[0], name, severity, self.explorer.seed, 0)
            noise = self.explorer.preprocessing.normalize(corrupted[None]) - self.values
            self._known[key] = noise, f"{name} at severity {severity} of 5, of which nothing is guaranteed."
        return self._known[key]


def certificate_words(certificate: Certificate) -> str:
    """A certificate in a sentence or two: what it guarantees and on what it was measured, or why it guarantees nothing."""
    if certificate.obstacle is not None:
        return f"Not certified: {certificate.obstacle}."
    return (
        f"Certified in front of the encoder: with {100 * certificate.confidence:g} % confidence the mean squared change of the "
        f"probabilities, over images like the {certificate.num_images} that it was measured on, is at most "
        f"{certificate.probability_mse_upper:.3g} (epsilon {certificate.epsilon:g}). There it left "
        f"{100 * certificate.agreement:.1f} % of the predictions unchanged, and its permuted control "
        f"{100 * certificate.permuted_agreement:.1f} %."
    )


def _embedded(nullspace: PatchNullspace, pixels: torch.Tensor) -> torch.Tensor:
    return nullspace.to_patches(pixels.double()) @ nullspace.matrix.T


def _given(nullspace: PatchNullspace | None) -> PatchNullspace:
    assert nullspace is not None, "this kind of noise is not offered without patches that do not overlap"
    return nullspace
