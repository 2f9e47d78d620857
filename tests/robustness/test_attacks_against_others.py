"""Attacks against the independent implementations of torchattacks and foolbox, where they are installed."""

import pytest
import torch

from hf_nullspace.cli.digits import train_digits_model
from hf_nullspace.data.digits import load_digits_splits
from hf_nullspace.models.frozen import frozen
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm
from hf_nullspace.robustness.attacks.cw import cw_l2
from hf_nullspace.robustness.attacks.pgd import pgd_l2, pgd_linf


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    """A trained classifier held still, and 200 test pictures with their labels."""
    splits = load_digits_splits()
    model, processor = train_digits_model(splits)
    test = splits["test"][:200]
    pixel_model = PixelModel(model, processor)
    pixels = pixel_model.preprocessing.to_pixels(test["image"])
    with frozen(pixel_model):
        yield pixel_model, pixels, torch.tensor(test["label"])


def success_rate(model, attacked, labels):
    """Percentage of pictures that are misclassified."""
    with torch.no_grad():
        return (model(attacked).argmax(-1) != labels).double().mean().item() * 100


# Name -> attack, its settings, the name and settings of torchattacks. The small radii fool about half of the pictures.
CASES = {
    "fgsm": (fgsm, {"epsilon": 8 / 255}, "FGSM", {"eps": 8 / 255}),
    "fgsm_small": (fgsm, {"epsilon": 3 / 255}, "FGSM", {"eps": 3 / 255}),
    "pgd_linf": (pgd_linf, {"epsilon": 8 / 255}, "PGD", {"eps": 8 / 255, "alpha": 2 / 255}),
    "pgd_linf_small": (
        pgd_linf,
        {"epsilon": 2 / 255, "step_size": 0.5 / 255, "steps": 20},
        "PGD",
        {"eps": 2 / 255, "alpha": 0.5 / 255, "steps": 20},
    ),
    "pgd_linf_from_the_picture": (
        pgd_linf,
        {"epsilon": 3 / 255, "random_start": False},
        "PGD",
        {"eps": 3 / 255, "alpha": 0.75 / 255, "random_start": False},
    ),
    "pgd_l2": (pgd_l2, {"epsilon": 1.0}, "PGDL2", {"eps": 1.0, "alpha": 0.2}),
    "pgd_l2_small": (pgd_l2, {"epsilon": 0.3}, "PGDL2", {"eps": 0.3, "alpha": 0.06}),
    "cw_l2": (cw_l2, {}, "CW", {"c": 1, "steps": 50, "lr": 0.01}),
    "cw_l2_weak": (cw_l2, {"c": 0.05, "steps": 100}, "CW", {"c": 0.05, "steps": 100, "lr": 0.01}),
}


@pytest.mark.parametrize("name", CASES)
def test_success_rate_is_that_of_torchattacks(digits, name):
    torchattacks = pytest.importorskip("torchattacks")
    model, pixels, labels = digits
    attack, settings, other_name, other_settings = CASES[name]
    ours = attack(model, pixels, labels, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(42)
        theirs = getattr(torchattacks, other_name)(model, **other_settings)(pixels, labels)
    rates = [success_rate(model, attacked, labels) for attacked in (ours, theirs)]
    norms = [(attacked - pixels).flatten(1).norm(dim=1) for attacked in (ours, theirs)]
    both = (norms[0] > 0) & (norms[1] > 0)
    means = [norm[both].mean().item() for norm in norms]
    print(f"{name}: success {rates[0]:.1f} %, mean L2 {means[0]:.4f}; torchattacks {rates[1]:.1f} %, {means[1]:.4f}")
    assert abs(rates[0] - rates[1]) <= 1
    assert 0 <= ours.min() and ours.max() <= 1
    if "epsilon" in settings:
        distances = norms[0] if attack is pgd_l2 else (ours - pixels).abs()
        assert distances.max() <= settings["epsilon"] + 1e-6


@pytest.mark.parametrize("epsilon", [4 / 255, 16 / 255])
def test_fgsm_is_that_of_foolbox(digits, epsilon):
    foolbox = pytest.importorskip("foolbox")
    model, pixels, labels = digits
    theirs = foolbox.attacks.FGSM()(foolbox.PyTorchModel(model, bounds=(0, 1)), pixels, labels, epsilons=epsilon)[1]
    rates = [success_rate(model, attacked, labels) for attacked in (fgsm(model, pixels, labels, epsilon), theirs)]
    print(f"fgsm at {epsilon:.4f}: success {rates[0]:.1f} % against {rates[1]:.1f} % of foolbox")
    assert abs(rates[0] - rates[1]) <= 1


@pytest.mark.parametrize("tier", ["fast", "standard"])
def test_autoattack_is_as_strong_as_pgd(digits, tier):
    pytest.importorskip("pyautoattack")
    from hf_nullspace.robustness.attacks.autoattack import run_autoattack

    model, pixels, labels = digits
    pixels, labels = pixels[:20], labels[:20]
    attacked, report = run_autoattack(model, pixels, labels, "8/255", tier=tier, batch_size=20)
    rates = [success_rate(model, images, labels) for images in (attacked, pgd_linf(model, pixels, labels, "8/255"))]
    print(f"autoattack {tier}: success {rates[0]:.1f} % against {rates[1]:.1f} % of PGD", report)
    assert rates[0] >= rates[1]
    assert (attacked - pixels).abs().max() <= 8 / 255 + 1e-6
    assert (report.tier, report.num_targets) == (tier, 9)
