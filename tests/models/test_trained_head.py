"""A trained head keeps its meaning when it is loaded for images whose classes stand in another order."""

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTImageProcessorPil,
    ViTModel,
)
from whole_path import require_timm

from hf_nullspace.data.imagenet import imagenet_wnids
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.models.trained_head import row_order


NAMES = ["ant", "bee", "cat", "dog", "elk"]
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def saved(model, folder, names=NAMES):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def loaded(folder, labels, **options):
    return load_model(ModelArguments(model_name_or_path=str(folder), **options), labels)[0].eval()


def models(make_vit):
    small = {"num_labels": 5, "image_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    deit = DeiTForImageClassificationWithTeacher(DeiTConfig(**small, patch_size=8, num_attention_heads=2))
    with torch.no_grad():
        deit.distillation_classifier.weight.normal_()
    convnext = ConvNextConfig(num_labels=5, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    return {
        "vit": make_vit(classifier_scale=20),
        "vit of five dimensions": make_vit(hidden_size=5, num_attention_heads=1),
        "two heads": deit,
        "convnext": ConvNextForImageClassification(convnext),
    }


@pytest.mark.parametrize("name", ["vit", "vit of five dimensions", "two heads", "convnext"])
def test_rows_follow_the_names(make_vit, tmp_path, name):
    model = saved(models(make_vit)[name], tmp_path)
    order = [3, 0, 4, 1, 2]
    again = loaded(tmp_path, [NAMES[place] for place in order])
    assert list(again.config.id2label.values()) == [NAMES[place] for place in order]
    with torch.no_grad():
        torch.testing.assert_close(again(PIXELS).logits, model(PIXELS).logits[:, order])


def test_a_head_of_timm_follows_the_names_and_gets_as_many_rows_as_there_are_classes(tmp_path):
    require_timm()
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    arguments = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=arguments, id2label=dict(enumerate("abc"))
    )
    model = TimmWrapperForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "processor")
    options = {"image_processor_name": str(tmp_path / "processor")}
    with torch.no_grad():
        again = loaded(tmp_path, list("cab"), **options)(PIXELS).logits
        torch.testing.assert_close(again, model(PIXELS).logits[:, [2, 0, 1]])
        anew = loaded(tmp_path, ["x", "y"], ignore_mismatched_sizes=True, **options)
        assert anew(PIXELS).logits.shape == (3, 2)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        loaded(tmp_path, ["x", "y"], **options)


def test_the_same_names_change_nothing(make_vit, tmp_path, caplog):
    model = saved(make_vit(), tmp_path)
    again = loaded(tmp_path, [name.upper() for name in NAMES])
    assert torch.equal(again.classifier.weight, model.classifier.weight) and "order" not in caplog.text


def test_other_classes_are_refused_or_get_a_new_head(make_vit, tmp_path):
    model = saved(make_vit(classifier_scale=20), tmp_path)
    others = ["ant", "bee", "cat", "dog", "fox"]
    with pytest.raises(ValueError, match="trained on .'ant', 'bee'.*'fox'.*--ignore_mismatched_sizes"):
        loaded(tmp_path, others)
    anew = loaded(tmp_path, others, ignore_mismatched_sizes=True)
    assert anew.classifier.weight.std() < model.classifier.weight.std() / 5
    assert torch.equal(anew.vit.layernorm.weight, model.vit.layernorm.weight)


def test_a_head_without_names_is_taken_in_order_and_said(make_vit, tmp_path, caplog):
    model = saved(make_vit(), tmp_path, [f"LABEL_{index}" for index in range(5)])
    assert torch.equal(loaded(tmp_path, NAMES).classifier.weight, model.classifier.weight)
    assert "does not name its 5 classes" in caplog.text


def test_a_backbone_without_a_head_takes_any_names(make_vit, tmp_path):
    saved(ViTModel(make_vit().config), tmp_path)
    assert loaded(tmp_path, ["x", "y", "z", "v", "w"]).config.id2label[0] == "x"


def test_wordnet_ids_match_synonyms():
    wnids = imagenet_wnids()
    assert row_order({0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus"}, [wnids[1], wnids[0]]) == [1, 0]
    assert row_order({0: "ant", 1: "bee"}, ["bee", "wasp"]) is None


def test_a_checkpoint_without_a_head_is_measured_by_no_one(tmp_path, make_vit):
    backbone = ViTModel(make_vit().config)
    backbone.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is no trained classifier: it holds no classifier.bias and no classifier.weight"
    ):
        load_model(ModelArguments(model_name_or_path=str(tmp_path)))
    assert loaded(tmp_path, NAMES).config.num_labels == 5  # what is finetuned starts with a new head


def test_classes_with_gaps_in_their_numbers_are_refused(tmp_path, make_vit):
    model = make_vit(num_labels=3)
    model.config.id2label = {0: "ant", 2: "bee", 5: "cat"}
    model.config.label2id = {"ant": 0, "bee": 2, "cat": 5}
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    for labels in (None, ["ant", "bee", "cat"]):
        with pytest.raises(ValueError, match=r"numbers its 3 classes \[0, 2, 5\].*Number them 0 to 2"):
            load_model(ModelArguments(model_name_or_path=str(tmp_path)), labels)
