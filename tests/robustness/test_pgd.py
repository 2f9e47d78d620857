"""PGD against its formula, its projection, and the steps that it remembers."""

import pytest
import torch
from transformers import ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm
from hf_nullspace.robustness.attacks.pgd import pgd_l2, pgd_linf
from hf_nullspace.robustness.attacks.search import BestSoFar


@pytest.fixture(scope="module")
def model(make_vit):
    return PixelModel(
        make_vit(classifier_scale=4.0, initializer_range=0.2), ViTImageProcessorPil(size={"height": 16, "width": 16})
    )


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(model, pixels):
    with torch.no_grad():
        return model(pixels).argmax(-1)


def gradient_of(model, pixels, labels):
    pixels = pixels.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(pixels), labels, reduction="sum").backward()
    return pixels.grad


def test_one_full_step_is_fgsm(model, pixels, labels):
    attacked = pgd_linf(model, pixels, labels, 2 / 255, step_size=2 / 255, steps=1, random_start=False)
    torch.testing.assert_close(attacked, fgsm(model, pixels, labels, 2 / 255), rtol=0, atol=1e-7)


def test_steps_beyond_the_ball_are_projected(model, pixels, labels):
    near = pgd_linf(model, pixels, labels, 1 / 255, step_size=3 / 255, steps=1, random_start=False)
    torch.testing.assert_close(near, fgsm(model, pixels, labels, 1 / 255), rtol=0, atol=1e-7)


def test_one_l2_step_is_the_formula(model, pixels):
    pixels = pixels * 0.8 + 0.1  # no pixel meets the box
    with torch.no_grad():
        labels = model(pixels).argmax(-1)
    attacked = pgd_l2(model, pixels, labels, 0.3, step_size=0.2, steps=1, random_start=False)
    gradient = gradient_of(model, pixels, labels).flatten(1)
    step = 0.2 * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close((attacked - pixels).flatten(1), step, rtol=0, atol=1e-6)
    attacked = pgd_l2(model, pixels, labels, 0.3, step_size=0.7, steps=1, random_start=False)
    torch.testing.assert_close((attacked - pixels).flatten(1).norm(dim=1), torch.full((6,), 0.3))


def test_more_steps_are_no_weaker(model, pixels, labels):
    losses = []
    for steps in (1, 2, 4, 8):
        attacked = pgd_linf(model, pixels, labels, 0.5 / 255, steps=steps)
        with torch.no_grad():
            logits = model(attacked)
        fooled = logits.argmax(-1) != labels
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses.append(torch.where(fooled, torch.inf, loss))
    for weaker, stronger in zip(losses, losses[1:], strict=False):
        assert (stronger >= weaker - 1e-5).all()
    assert (losses[-1] > losses[0]).any()


@pytest.mark.parametrize("attack, norm", [(pgd_linf, torch.inf), (pgd_l2, 2)])
def test_random_start_fills_the_ball(pixels, attack, norm):
    class Blind(torch.nn.Module):
        """Has no gradient and is never fooled, so that the start alone moves."""

        model = torch.nn.Identity()

        def forward(self, pixels):
            return torch.stack([pixels.flatten(1).sum(1) * 0, pixels.flatten(1).sum(1) * 0 - 1], 1)

    middle = torch.full((200, 1, 4, 4), 0.5)
    attacked = attack(Blind(), middle, torch.zeros(200, dtype=torch.long), 0.2, steps=1)
    lengths = (attacked - middle).flatten(1).norm(norm, dim=1)
    assert lengths.max() <= 0.2 + 1e-6
    assert lengths.max() > 0.19
    expected = 0.1 if norm == 2 else 0.2 * 16 / 17  # a uniform length; the largest of 16 uniform numbers
    assert abs(lengths.mean().item() - expected) < 0.01
    assert (attacked - middle).mean().abs() < 0.01


def test_best_so_far_keeps_the_first_success_else_the_highest_loss():
    clean, labels = torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.long)
    best = BestSoFar(clean)
    rounds = [  # logits of class 0 against class 1 at 0, for each picture that is still active
        ([3.0, 2.0, 1.0], [True, True, True]),
        ([4.0, -1.0, 0.5], [True, False, True]),
        ([2.0, 0.7], [True, True]),
        ([2.5, -3.0], [True, False]),
        ([1.0], [True]),
    ]
    for number, (scores, expected) in enumerate(rounds, start=1):
        candidates = torch.full((len(scores), 1, 1, 1), number / 10)
        logits = torch.tensor([[score, 0.0] for score in scores])
        keep = best.update(candidates, logits, labels[: len(scores)])
        assert keep.tolist() == expected
    torch.testing.assert_close(best.pixels.flatten(), torch.tensor([0.5, 0.2, 0.4]))
    assert best.active.tolist() == [0]


@pytest.mark.parametrize("steps", [0, -1, True, 2.0])
def test_steps_must_be_a_positive_number(model, pixels, labels, steps):
    with pytest.raises(ValueError, match="`steps`"):
        pgd_linf(model, pixels, labels, steps=steps)
