"""AutoAttack through its package: published settings, warnings as fields, seeds that belong to a picture."""

import json
import logging
import sys

import pytest
import torch
from altered_logits import AlteredLogits
from transformers import ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import ATTACKS, autoattack
from hf_nullspace.robustness.attacks.autoattack import AutoAttackReport, run_autoattack


@pytest.fixture
def model(make_vit):
    vit = make_vit(classifier_scale=4.0, initializer_range=0.2)
    return PixelModel(vit, ViTImageProcessorPil(size={"height": 16, "width": 16}))


@pytest.fixture
def pixels():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels(model, pixels):
    with torch.no_grad():
        labels = model(pixels).argmax(-1)
    labels[1] = (labels[1] + 1) % 5
    return labels


@pytest.fixture
def package():
    return pytest.importorskip("pyautoattack")


@pytest.fixture
def short(package, monkeypatch):
    """The published settings are checked as they are, and shortened afterwards."""
    run = package.AutoAttack.run_standard_evaluation

    def run_shortly(self, *args, **kwargs):
        self.apgd.n_iter_orig = self.apgd.n_iter = self.apgd_targeted.n_iter_orig = self.apgd_targeted.n_iter = 10
        self.fab.n_iter, self.square.n_queries = 3, 20
        return run(self, *args, **kwargs)

    monkeypatch.setattr(package.AutoAttack, "run_standard_evaluation", run_shortly)


def test_missing_package_is_named(monkeypatch, model, pixels, labels):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"hf_nullspace\[attacks\]"):
        autoattack(model, pixels, labels)


@pytest.mark.parametrize("tier, norm, epsilon", [("standard", "Linf", "1/255"), ("fast", "L2", 0.1)])
def test_ball_box_and_report(short, model, pixels, labels, tier, norm, epsilon):
    trace, state, before = sys.gettrace(), torch.get_rng_state(), pixels.clone()
    attacked, report = run_autoattack(model, pixels, labels, epsilon, norm=norm, tier=tier)
    assert (sys.gettrace(), torch.equal(torch.get_rng_state(), state)) == (trace, True)
    assert torch.equal(pixels, before)
    change = (attacked - pixels).flatten(1).norm(torch.inf if norm == "Linf" else 2, dim=1)
    assert change.max() <= report.epsilon + 1e-6
    assert change[1] == 0, "was misclassified already"
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    with torch.no_grad():
        is_fooled = model(attacked).argmax(-1) != labels
    assert torch.equal(is_fooled, (change > 0) | (torch.arange(4) == 1))
    attacks = ("apgd-ce", "apgd-t", "fab-t", "square") if tier == "standard" else ("apgd-ce", "apgd-t")
    assert (report.tier, report.attacks, report.norm, report.num_targets) == (tier, attacks, norm, 4)
    assert report.package.startswith("pyautoattack 0.")
    assert not report.looks_randomized
    assert not report.looks_dynamic
    assert json.loads(json.dumps(report.to_dict()))["num_targets"] == 4


def test_split_and_seed(short, model, pixels, labels):
    model = model.double()
    together = autoattack(model, pixels, labels, "6/255", tier="fast")
    assert (together != pixels).flatten(1).any(1).sum() >= 2
    parts = [
        autoattack(model, pixels[[place]], labels[[place]], "6/255", tier="fast", indices=[place])
        for place in range(4)
    ]
    assert torch.equal(torch.cat(parts), together)
    assert not torch.equal(autoattack(model, pixels, labels, "6/255", tier="fast", seed=1), together)


def test_warnings_become_fields(short, model, pixels, labels, capfd):
    model.model = AlteredLogits(model.model, lambda logits: logits.softmax(-1))
    caught = []
    handler = logging.Handler()
    handler.emit = caught.append
    logging.getLogger("auto-attack").addHandler(handler)
    try:
        attacked, report = run_autoattack(model, pixels, labels, "1/255", tier="fast", batch_size=4)
    finally:
        logging.getLogger("auto-attack").removeHandler(handler)
    assert report.looks_like_probabilities
    assert not report.looks_randomized
    assert len(report.messages) == len(set(report.messages)) > 0
    assert len(caught) > 0
    assert "probability distribution" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "message, name",
    [
        ("it seems to be a randomized defense! Please use", "looks_randomized"),
        ("it seems that the output is a probability distribution,", "looks_like_probabilities"),
        ("it seems to be a dynamic defense! The", "looks_dynamic"),
        ("there are 3 points with zero gradient!", "has_zero_gradients"),
        ("Square Attack has decreased the robust accuracy of 1.0%.", "square_helps"),
    ],
)
def test_each_warning_has_its_field(message, name):
    report = AutoAttackReport("fast", (), 0.1, "Linf", 9, "")
    report.add(message)
    report.add(message)
    fields = [field for field, value in report.to_dict().items() if value is True]
    assert (fields, report.messages) == ([name], [message])


def test_other_settings_than_the_published_ones_are_refused(package, monkeypatch, model, pixels, labels):
    build = package.AutoAttack.__init__

    def build_weaker(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.square.n_queries = 100

    monkeypatch.setattr(package.AutoAttack, "__init__", build_weaker)
    with pytest.raises(RuntimeError, match="'square.n_queries': 100"):
        autoattack(model, pixels, labels)


@pytest.mark.parametrize(
    "options, text", [({"norm": "L1"}, "`norm`"), ({"tier": "plus"}, "`tier`"), ({"batch_size": 0}, "`batch_size`")]
)
def test_settings_are_checked(package, model, pixels, labels, options, text):
    with pytest.raises(ValueError, match=text):
        autoattack(model, pixels, labels, **options)


def test_too_few_classes_are_refused(package, make_vit, pixels):
    model = PixelModel(make_vit(num_labels=3), ViTImageProcessorPil(size={"height": 16, "width": 16}))
    with pytest.raises(ValueError, match="4 classes, but the model has 3"):
        autoattack(model, pixels, torch.zeros(4, dtype=torch.long))


def test_warnings_become_flags_of_each_picture(monkeypatch):
    """The package is an extra that takes minutes; its warnings are those of its own report."""
    report = AutoAttackReport("fast", ("apgd-ce",), 0.03, "Linf", 4, "package", has_zero_gradients=True)
    report.looks_randomized = True
    monkeypatch.setattr(
        sys.modules["hf_nullspace.robustness.attacks.autoattack"],
        "run_autoattack",
        lambda model, pixels, labels, **settings: (pixels, report),
    )
    pixels = torch.rand(2, 3, 4, 4)
    attacked, flags = ATTACKS["autoattack"].measure(None, pixels, torch.tensor([0, 1]), {"tier": "fast"})
    assert torch.equal(attacked, pixels)
    assert [name for name, values in flags.items() if values.all()] == ["looks_randomized", "has_zero_gradients"]
    assert [name for name, values in flags.items() if not values.any()] == [
        "looks_like_probabilities",
        "looks_dynamic",
        "square_helps",
    ]
