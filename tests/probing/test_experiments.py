"""What a noise changes, by definition; and its operations, scales and tokens, counted with made-up outcomes."""

import pytest
import torch

from hf_nullspace.models.frozen import FrozenClassifier, frozen
from hf_nullspace.noise.certify import measure_outcomes
from hf_nullspace.noise.images import read_images
from hf_nullspace.noise.kinds import SharedNoise
from hf_nullspace.probing.experiments import closure, dose_response, token_norm_rows, transfer


NOISE, SECOND = torch.randn(2, 1, 16, 32, generator=torch.Generator().manual_seed(0))


def measure(noise):
    """Outcomes by which a noise is known: its sum, and how much of `NOISE` is in it."""
    return {"num_images": 3, "total": noise.sum().item(), "likeness": (noise * NOISE).sum().item()}


def test_outcomes_are_those_of_the_definitions(make_vit, make_batches):
    model, batches = make_vit(classifier_scale=20), make_batches(48, 12)
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    with frozen(model):
        classifier = FrozenClassifier(model)
        images = read_images(classifier, batches, 48)
        outcomes = measure_outcomes(classifier, images, SharedNoise(noise).at)
        outcomes = {name: values.mean().item() for name, values in outcomes._asdict().items()}
        images = torch.cat([batch["pixel_values"] for batch in batches])
        with torch.no_grad():
            clean, noisy = (classifier.logits({"pixel_values": images}, change) for change in (None, noise))
    top = clean.argmax(1)
    rows = torch.arange(48)
    change = (noisy.softmax(1)[rows, top] - clean.softmax(1)[rows, top]).abs().mean().item()
    assert outcomes["confidence_change"] == pytest.approx(change, rel=1e-4)
    assert outcomes["agreement"] == (noisy.argmax(1) == top).double().mean().item()
    assert outcomes["logit_distance"] == pytest.approx((noisy - clean).norm(dim=1).mean().item(), rel=1e-4)


def test_operations_are_those_of_their_names():
    rows = {row["operation"]: row for row in closure(measure, NOISE, SECOND)}
    total, square = NOISE.sum().item(), NOISE.square().sum().item()
    assert rows["noise"]["likeness"] == pytest.approx(square)
    assert rows["half of the noise"]["likeness"] == pytest.approx(square / 2)
    assert rows["mean of both"]["total"] == pytest.approx((total + SECOND.sum().item()) / 2, rel=1e-4)
    assert rows["sign flipped"]["total"] == pytest.approx(-total)
    for name in ("tokens permuted", "elements permuted"):
        assert rows[name]["norm"] == pytest.approx(rows["noise"]["norm"])
        assert abs(rows[name]["likeness"]) < 0.7 * square
    assert rows["tokens permuted"]["total"] == pytest.approx(total, rel=1e-4)
    assert rows["elements permuted"]["total"] == pytest.approx(0, abs=1e-3)  # the hidden-axis mean is removed


def test_rows_hold_the_same_control_at_every_scale():
    rows = dose_response(measure, NOISE, (0.5, 2.0))
    assert [row["norm"] for row in rows] == pytest.approx([0.5 * NOISE.norm().item(), 2 * NOISE.norm().item()])
    assert rows[1]["permuted_likeness"] == pytest.approx(4 * rows[0]["permuted_likeness"])
    (row,) = transfer({"seen": measure}, NOISE)
    assert row["images"] == "seen" and row["permuted_likeness"] == pytest.approx(2 * rows[0]["permuted_likeness"])
    assert row["permuted_total"] == pytest.approx(0, abs=1e-3)


def test_grids_of_another_size_are_refused():
    with pytest.raises(ValueError, match="3 x 2 does not hold 16 patches"):
        token_norm_rows(NOISE, grid=(3, 2))
