"""`check_classifier` finds what would make a robustness number wrong, and lets sound classifiers pass."""

import pytest
import torch
from altered_logits import AlteredLogits
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.classifier_check import check_classifier


def processor_of(size):
    return ViTImageProcessorPil(size={"height": size, "width": size})


def check(model, size=16, **arguments):
    check_classifier(PixelModel(model, processor_of(size)), **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sound_classifier_passes(make_vit, dtype):
    check(make_vit(classifier_scale=20.0).to(dtype))


def test_sizes_that_disagree_are_named(make_vit):
    with pytest.raises(ValueError, match=r"pictures have 24x24 pixels.*built for 16x16.*`size`"):
        check(make_vit(), size=24)


def test_model_that_takes_other_sizes_is_only_warned_of(caplog):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, num_labels=3
    )
    with torch.random.fork_rng():
        model = Dinov2ForImageClassification(config).eval()
    check(model, size=16)
    assert caplog.text == ""
    check(model, size=24)
    assert "24x24 pixels" in caplog.text
    assert "16x16" in caplog.text


def test_probabilities_are_refused(make_vit):
    with pytest.raises(ValueError, match="are probabilities"):
        check(AlteredLogits(make_vit(), lambda logits: logits.softmax(-1)))
    check(AlteredLogits(make_vit(), lambda logits: logits.log_softmax(-1)))


def test_dropout_left_on_is_refused(make_vit):
    model = make_vit(hidden_dropout_prob=0.1)
    check(model)
    with pytest.raises(ValueError, match=r"differ by .*training mode.*model.eval\(\)"):
        check(model.train())


def test_randomness_in_evaluation_mode_is_refused(make_vit):
    with pytest.raises(ValueError, match="differ by .*random numbers in evaluation mode"):
        check(AlteredLogits(make_vit(), lambda logits: logits + 0.01 * torch.rand_like(logits)).eval())


def test_logits_that_are_not_finite_are_refused(make_vit):
    model = make_vit()
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        check(model)


def test_pictures_of_ones_own(make_vit):
    with pytest.raises(ValueError, match=r"range from -1"):
        check(make_vit(), pixels=torch.full((2, 3, 16, 16), -1.0))
