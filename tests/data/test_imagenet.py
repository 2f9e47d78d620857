"""ImageNet's classes: the checks of ImageNet-A and -R, names to indices, and the mask."""

import pytest
import torch

from hf_nullspace.data.imagenet import (
    imagenet_a_indices,
    imagenet_class_indices,
    imagenet_classes,
    imagenet_r_indices,
    imagenet_wnids,
)
from hf_nullspace.models.pixel_model import masked_logits


SYNONYMS = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 501: "cloak", 638: "maillot"}


def test_wnids_are_sorted():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")


def test_a_and_r_have_their_published_sums():
    a, r = imagenet_a_indices(), imagenet_r_indices()
    assert (len(a), a[:5], sum(a)) == (200, (6, 11, 13, 15, 17), 102178)
    assert (len(r), r[:5], sum(r)) == (200, (1, 2, 4, 6, 8), 86135)
    assert len(set(a) & set(r)) == 86


def test_names_in_any_order():
    wnids = imagenet_wnids()
    assert imagenet_class_indices(wnids) == list(range(1000))
    assert imagenet_class_indices(wnids[::-1]) == list(range(999, -1, -1))
    assert imagenet_class_indices(list(SYNONYMS.values())) == list(SYNONYMS)
    assert imagenet_class_indices(["CLOAK ", "n01440764"]) == [501, 0]


def test_cranes_are_told_apart_by_their_order():
    names = list(imagenet_wnids())
    names[134] = names[517] = "crane"
    assert imagenet_class_indices(names) == list(range(1000))
    with pytest.raises(ValueError, match=r"\['crane'\] may be one of several"):
        imagenet_class_indices(["crane", "cloak"])


def test_first_synonyms():
    names = [synonyms.split(",")[0] for synonyms in imagenet_classes()["classes"].values()]
    assert imagenet_class_indices(names) == list(range(1000))
    assert imagenet_class_indices(["tench", "maillot", "cardigan"]) == [0, 638, 474]


def test_a_few_other_spellings_are_taken_by_their_place():
    names = list(imagenet_wnids())
    names[3:13] = ["other spelling"] * 10
    assert imagenet_class_indices(names) == list(range(1000))
    names[0], names[1] = names[1], names[0]
    with pytest.raises(ValueError, match="10 of 1000 class names are not ImageNet's"):
        imagenet_class_indices(names)


def test_unknown_and_repeated_names_are_refused():
    with pytest.raises(ValueError, match=r"1 of 2 class names are not ImageNet's: \['zebrafish'\]"):
        imagenet_class_indices(["cloak", "zebrafish"])
    with pytest.raises(ValueError, match="Several names stand for .*n01440764"):
        imagenet_class_indices(["n01440764", "tench, Tinca tinca"])
    with pytest.raises(ValueError, match="1001 names usually begin with a background class"):
        imagenet_class_indices(["background", *imagenet_wnids()])


def test_mask_leaves_the_named_classes():
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [0.0, 5.0, 4.0, 7.0]])
    masked = masked_logits(logits, (1, 2))
    assert masked.argmax(-1).tolist() == [2, 1]
    assert masked.softmax(-1)[:, [0, 3]].abs().sum() == 0
    assert masked[:, 1:3].equal(logits[:, 1:3])
    assert masked_logits(logits, None) is logits


@pytest.mark.parametrize("indices", [[], [4], [-1]])
def test_mask_of_classes_that_are_not_there_is_refused(indices):
    with pytest.raises(ValueError, match="some of the 4 labels"):
        masked_logits(torch.zeros(1, 4), indices)
