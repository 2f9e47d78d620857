"""Augmentation: what it does to a picture, and that it takes its numbers from torch's generator alone."""

import pytest
import torch
from PIL import Image
from random_pictures import pixels_of, random_pictures
from torch import nn

from hf_nullspace.training.augmentation import Augmentation, AugMix
from hf_nullspace.training.recipe import RecipeArguments, suited_to


PICTURE = random_pictures(1)[0]
PIXELS = pixels_of([PICTURE])


def test_a_crop_of_everything_is_the_picture():
    augmentation = Augmentation(size=(16, 16), crop_scale=1.0, horizontal_flip=False)
    torch.manual_seed(0)
    crops = [pixels_of([augmentation.crop(PICTURE)]) for _ in range(20)]
    # A box may be rounded a pixel short of the whole.
    assert sum(torch.equal(crop, PIXELS) for crop in crops) >= 10
    assert torch.equal(augmentation.change(PIXELS), PIXELS)


def test_a_crop_keeps_its_share_of_the_area():
    """Of a picture whose left half is black and whose right half is white: in a small crop either may be missing."""
    picture = Image.new("L", (64, 64))
    picture.paste(255, (32, 0, 64, 64))
    torch.manual_seed(0)
    whites = {}
    for scale in (0.08, 0.8):
        augmentation = Augmentation(size=(64, 64), crop_scale=scale, num_channels=1)
        shares = [pixels_of([augmentation.crop(picture).convert("RGB")]).mean().item() for _ in range(100)]
        whites[scale] = (min(shares), max(shares))
    assert whites[0.08] == (0.0, 1.0)
    assert 0.3 < whites[0.8][0] < 0.45 and 0.55 < whites[0.8][1] < 0.7


def test_half_of_the_pictures_are_mirrored_or_none():
    torch.manual_seed(0)
    mirrored = [torch.equal(Augmentation().change(PIXELS), PIXELS.flip(3)) for _ in range(100)]
    assert 35 <= sum(mirrored) <= 65
    never = Augmentation(horizontal_flip=False)
    assert all(torch.equal(never.change(PIXELS), PIXELS) for _ in range(20))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["trivial", "augmix"])
def test_stronger_kinds_change_pictures_within_their_range(kind, channels):
    torch.manual_seed(0)
    augmentation = Augmentation(kind, horizontal_flip=False, num_channels=channels)
    pixels = PIXELS[:, :channels]
    changed = [augmentation.change(pixels) for _ in range(60)]
    assert all(each.shape == pixels.shape and 0 <= each.min() and each.max() <= 1 for each in changed)
    distinct = {round(each.sum().item(), 3) for each in changed}
    assert len(distinct) > 20
    assert sum(torch.allclose(each, pixels, atol=1e-6) for each in changed) < 20


def test_what_may_not_be_mirrored_is_not_turned_over():
    """A white top half stays on top: at most 30 degrees of rotation, where it would be up to 135."""
    top = torch.zeros(1, 3, 33, 33)
    top[:, :, :16] = 1
    torch.manual_seed(0)
    flipped = {}
    for is_free in (True, False):
        augmentation = Augmentation("trivial", horizontal_flip=is_free)
        images = torch.cat([augmentation.change(top) for _ in range(400)])
        # Shear, rotation and shift change only where white is; a solarized picture is white below.
        ours = [image for image in images if image.unique().numel() > 2 and image[:, 16, 16].mean() > 0]
        flipped[is_free] = any(image[:, 24:].mean() > image[:, :8].mean() + 0.4 for image in ours)
    assert flipped == {True: True, False: False}


def test_augmix_is_the_mixture_of_its_paper():
    """Chains of one to three operations, weighed by a Dirichlet draw, and mixed with the picture by a Beta draw."""

    class Half(nn.Module):
        def forward(self, pixels):
            return pixels / 2

    torch.manual_seed(1)
    mixed = AugMix(Half())(PIXELS)
    torch.manual_seed(1)
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample()
    share = torch.distributions.Beta(1.0, 1.0).sample()
    depths = [int(torch.randint(1, 4, ())) for _ in range(3)]
    chains = sum(weight * PIXELS / 2**depth for weight, depth in zip(weights, depths, strict=True))
    torch.testing.assert_close(mixed, (1 - share) * PIXELS + share * chains, rtol=0, atol=1e-6)
    assert len(set(depths)) > 1


def test_it_says_what_it_does():
    assert str(Augmentation()) == "default (random crops of 8 to 100 % of the area, mirrored half of the time)"
    mild = Augmentation("trivial", crop_scale=0.64, horizontal_flip=False)
    expected = "random crops of 64 to 100 % of the area, never mirrored, TrivialAugment turned by 30 degrees at most"
    assert str(mild) == f"trivial ({expected})"
    assert str(Augmentation("trivial")).endswith("mirrored half of the time, TrivialAugment wide)")


def test_pictures_are_told_by_their_size_and_characters_by_their_names():
    photographs, small, few_small = [(640, 480)] * 3, [(32, 32), (95, 200)], [(32, 32), (640, 480), (640, 480)]
    assert suited_to(photographs, ["cat", "dog"]) == (0.08, True)
    assert suited_to(few_small, ["cat", "dog"]) == (0.08, True)
    assert suited_to(small, ["cat", "dog"]) == (0.64, True)
    assert suited_to(small, [str(digit) for digit in range(10)]) == (0.8, False)
    assert suited_to(photographs, ["a", "b", "Z"]) == (0.8, False)
    assert suited_to(small, [str(number) for number in range(11)]) == (0.64, True)
    assert suited_to(small, ["turn_left", "Turn right", "ahead"]) == (0.64, False)
    assert suited_to(small, ["cleft", "bright"]) == (0.64, True)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Augmentation("strong"), "`kind` must be one of .*'augmix'.*'strong'"),
        (lambda: Augmentation("none"), "`kind` must be one of"),
        (lambda: Augmentation(crop_scale=0.0), r"`crop_scale` must lie in \(0, 1\], but got 0.0"),
        (lambda: RecipeArguments(augmentation="strong"), "`augmentation` must be one of .*'none'.*, but got 'strong'"),
        (lambda: RecipeArguments(crop_scale=1.5), r"`crop_scale` must lie in \(0, 1\], but got 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("hf_nullspace.training.augmentation.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_nullspace\[augment\]'.*`augmentation=none`"):
        Augmentation("trivial")
