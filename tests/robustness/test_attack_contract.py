"""What every attack keeps: the box, the ball, its hands off misclassified pictures, one result however they are split."""

import copy
import inspect
import math

import pytest
import torch
from altered_logits import AlteredLogits
from transformers import ViTImageProcessorPil

from hf_nullspace.models.full_precision import full_precision
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import ATTACKS
from hf_nullspace.robustness.attacks.search import is_right, watched_gradients


SETTINGS = {
    "fgsm": {"epsilon": "2/255"},
    "pgd_linf": {"epsilon": "2/255", "steps": 5},
    "pgd_l2": {"epsilon": 0.2, "steps": 5},
    "cw_l2": {"steps": 10},
    "patchfool": {"steps": 5},
}
RADIUS = {"fgsm": (math.inf, 2 / 255), "pgd_linf": (math.inf, 2 / 255), "pgd_l2": (2, 0.2)}
WRONG = [1, 6]


@pytest.fixture(scope="module")
def model(make_vit):
    # Float64 inside, so that the order of sums, which depends on the batch size, flips no sign of a gradient.
    vit = make_vit(classifier_scale=4.0, initializer_range=0.2, hidden_dropout_prob=0.1).double()
    return PixelModel(vit, ViTImageProcessorPil(size={"height": 16, "width": 16}))


@pytest.fixture(scope="module")
def pixels():
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels[2], pixels[3] = 0.0, 1.0
    return pixels


@pytest.fixture(scope="module")
def labels(model, pixels):
    """The model's own predictions, two of them made wrong."""
    with torch.no_grad():
        labels = model(pixels).argmax(-1)
    labels[WRONG] = (labels[WRONG] + 1) % 5
    return labels


def losses(model, pixels, labels):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(pixels), labels, reduction="none")


def test_names():
    assert set(ATTACKS) == {*SETTINGS, "autoattack", "released_fgsm"}
    for name, attack in ATTACKS.items():
        assert attack.name == name and attack.help.endswith(".")
        parameters = inspect.signature(attack.function).parameters
        assert list(parameters)[:3] == ["model", "pixels", "labels"]
        assert (parameters["seed"].default, parameters["indices"].default) == (42, None)


def test_default_radii_are_those_of_the_functions():
    for name, norms in {"fgsm": ["Linf"], "pgd_linf": ["Linf"], "pgd_l2": ["L2"]}.items():
        attack = ATTACKS[name]
        assert list(attack.radii) == norms
        assert list(attack.radii.values()) == [inspect.signature(attack.function).parameters["epsilon"].default]
    assert ATTACKS["autoattack"].radii == {"Linf": 8 / 255, "L2": 0.5} and ATTACKS["cw_l2"].radii == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_box_ball_and_misclassified_pictures(model, pixels, labels, name):
    before = pixels.clone()
    attacked = ATTACKS[name](model, pixels, labels, **SETTINGS[name])
    assert torch.equal(pixels, before)
    assert attacked.dtype == torch.float32
    assert not attacked.requires_grad
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert torch.equal(attacked[WRONG], pixels[WRONG])
    right = [place for place in range(8) if place not in WRONG]
    assert (attacked[right] != pixels[right]).flatten(1).any(1).all()
    if name in RADIUS:
        norm, radius = RADIUS[name]
        assert (attacked - pixels).flatten(1).norm(norm, dim=1).max() <= radius + 1e-6
    gain = losses(model, attacked, labels) - losses(model, pixels, labels)
    solid = [2, 3] if name == "cw_l2" else []  # its tanh is flat at black and white
    assert (gain[[place for place in right if place not in solid]] > 0).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_split_into_batches_changes_nothing(model, pixels, labels, name):
    attack = ATTACKS[name]
    together = attack(model, pixels, labels, **SETTINGS[name])
    parts = [
        attack(model, pixels[places], labels[places], **SETTINGS[name], indices=places)
        for places in ([0, 1, 2, 3], [7, 5], [4, 6])
    ]
    apart = torch.cat(parts)[[0, 1, 2, 3, 6, 5, 7, 4]]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2", "patchfool"])
def test_seed_and_index_choose_the_random_start(model, pixels, labels, name):
    attack, settings = ATTACKS[name], {**SETTINGS[name], "steps": 1}
    first = attack(model, pixels, labels, **settings)
    assert torch.equal(attack(model, pixels, labels, **settings), first)
    for other in ({"seed": 43}, {"indices": range(8, 16)}):
        assert not torch.equal(attack(model, pixels, labels, **settings, **other), first)


@pytest.mark.parametrize("name", SETTINGS)
def test_model_and_random_state_are_put_back(model, pixels, labels, name):
    model = copy.deepcopy(model).train()
    model.model.classifier.weight.requires_grad_(False)
    wanted = [weight.requires_grad for weight in model.parameters()]
    state = torch.get_rng_state()
    first = ATTACKS[name](model, pixels, labels, **SETTINGS[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert all(weight.grad is None for weight in model.parameters())
    assert model.model.config._attn_implementation == "sdpa"
    assert torch.equal(ATTACKS[name](model, pixels, labels, **SETTINGS[name]), first), "dropout was on"


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_to_do(model, pixels, labels, name):
    attack = ATTACKS[name]
    assert attack(model, pixels[:0], labels[:0], **SETTINGS[name]).shape == (0, 3, 16, 16)
    assert torch.equal(attack(model, pixels[WRONG], labels[WRONG], **SETTINGS[name]), pixels[WRONG])


def test_misclassified_pictures_cost_nothing(model, pixels, labels):
    sizes = []
    handle = model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    ATTACKS["pgd_linf"](model, pixels, labels, epsilon="2/255", steps=4)
    handle.remove()
    assert sizes[0] == 8
    assert max(sizes[1:]) == 6
    assert sizes[1:] == sorted(sizes[1:], reverse=True)


@pytest.mark.parametrize(
    "labels, indices, text",
    [
        ([0, 1, 2], None, "8 pictures need 8"),
        ([0.0] * 8, None, "float32"),
        ([0] * 8, [0, 1], "2 indices"),
        ([5] + [0] * 7, None, "0 to 4.*to 5"),
        ([-1] + [0] * 7, None, "range from -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model, pixels, labels, indices, text):
    with pytest.raises(ValueError, match=text):
        ATTACKS["fgsm"](model, pixels, torch.tensor(labels), indices=indices)


# ---- Where a caller or the weights would make an attack weak without a word ----


@pytest.mark.parametrize("name", [*SETTINGS, "released_fgsm"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_switched_on_inside(model, pixels, labels, name, context):
    settings = SETTINGS.get(name, {})
    expected = ATTACKS[name](model, pixels, labels, **settings)
    with context():
        built_inside = PixelModel(model.model, ViTImageProcessorPil(size={"height": 16, "width": 16}))
        assert torch.equal(ATTACKS[name](model, pixels, labels, **settings), expected)
        assert torch.equal(ATTACKS[name](built_inside, pixels.clone(), labels.clone(), **settings), expected)
        assert not torch.is_grad_enabled()


@pytest.fixture(scope="module")
def confident(make_vit):
    """A classifier so sure of itself that in float16 its gradients underflow, and pictures that it is right on."""
    vit = make_vit(classifier_scale=60.0, initializer_range=0.2)
    pictures = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    with torch.no_grad():
        return vit, processor, pictures, PixelModel(vit, processor)(pictures).argmax(-1)


def accuracy(model, pixels, labels):
    with torch.no_grad():
        return 100 * (model(pixels).argmax(-1) == labels).float().mean().item()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_looks_no_more_robust(confident, name, dtype):
    vit, processor, pictures, labels = confident
    full, half = PixelModel(vit, processor), PixelModel(copy.deepcopy(vit).to(dtype), processor)
    assert accuracy(half, pictures, labels) > 90
    before = [weight.clone() for weight in half.model.parameters()]
    settings = {**SETTINGS[name], **({"epsilon": "8/255"} if "linf" in name or name == "fgsm" else {})}
    expected = accuracy(full, ATTACKS[name](full, pictures, labels, **settings), labels)
    attacked = ATTACKS[name](half, pictures, labels, **settings)
    with full_precision(half):
        assert abs(accuracy(half, attacked, labels) - expected) <= 2
    assert expected < 90
    for weight, old in zip(half.model.parameters(), before, strict=True):
        assert weight.dtype == dtype and torch.equal(weight, old)


def test_autocast_of_a_caller_and_of_accelerate_has_no_say(confident):
    vit, processor, pictures, labels = confident
    expected = ATTACKS["pgd_linf"](PixelModel(vit, processor), pictures, labels)
    prepared = copy.deepcopy(vit)
    prepared._original_forward = prepared.forward
    prepared.forward = torch.autocast("cpu", dtype=torch.float16)(prepared.forward)  # as `Accelerator.prepare` does
    wrapped = prepared.forward
    with torch.autocast("cpu", dtype=torch.float16):
        attacked = ATTACKS["pgd_linf"](PixelModel(prepared, processor), pictures, labels)
    assert torch.equal(attacked, expected) and prepared.forward is wrapped


def test_pictures_without_a_gradient_are_noted(model, pixels, labels):
    def noted(name, change):
        altered = PixelModel(
            AlteredLogits(model.model, change), ViTImageProcessorPil(size={"height": 16, "width": 16})
        )
        with watched_gradients() as without:
            ATTACKS[name](altered, pixels, labels, **SETTINGS[name])
        return without

    right = set(range(8)) - set(WRONG)
    for name in ("fgsm", "pgd_linf", "pgd_l2"):
        assert noted(name, lambda logits: logits) == set()
        assert noted(name, lambda logits: 1e6 * logits) == right, "a softmax that is exactly 0 and 1 has no gradient"
    assert noted("cw_l2", lambda logits: 1e6 * logits) == set()
    assert noted("cw_l2", lambda logits: logits.detach() + 0 * logits) == right


def test_answers_that_are_no_numbers_are_neither_right_nor_the_end_of_an_attack(model, pixels, labels):
    def lost(logits):
        return torch.where(torch.arange(len(logits)).view(-1, 1) == 0, float("nan"), logits)

    altered = PixelModel(AlteredLogits(model.model, lost), ViTImageProcessorPil(size={"height": 16, "width": 16}))
    for name in ("fgsm", "pgd_linf", "pgd_l2", "cw_l2"):
        attacked = ATTACKS[name](altered, pixels, labels, **SETTINGS[name])
        assert attacked.isfinite().all() and torch.equal(attacked[0], pixels[0])
    assert not is_right(torch.tensor([[float("nan"), 0.0], [0.0, float("inf")]]), torch.tensor([0, 1])).any()


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("name", [*SETTINGS, "released_fgsm"])
def test_models_of_other_tasks_are_refused(model, pixels, labels, name, problem_type):
    other = copy.deepcopy(model)
    other.model.config.problem_type = problem_type
    with pytest.raises(ValueError, match=f"problem_type='{problem_type}'.*not one class"):
        ATTACKS[name](other, pixels, labels, **SETTINGS.get(name, {}))
