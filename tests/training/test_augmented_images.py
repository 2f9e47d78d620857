"""A training set that is augmented: by the place of a picture and the epoch alone, in training alone."""

import json
import random

import numpy as np
import pytest
import torch
from augmented_runs import augmented, build_augmented, labelled_pictures, train_one_of
from launching import finish, start
from random_pictures import PROCESSOR, random_pictures
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from hf_nullspace.models.preprocessing import Preprocessing
from hf_nullspace.training.augmentation import Augmentation
from hf_nullspace.training.augmented_images import AugmentedImages
from hf_nullspace.training.recipe import RecipeArguments, training_images


KINDS = pytest.mark.parametrize("kind", ["default", "trivial", "augmix"])


def images_of(examples) -> torch.Tensor:
    return torch.stack([example["pixel_values"] for example in examples])


# ---- What an image depends on ---------------------------------------------------------------------------------------


@KINDS
def test_an_image_depends_on_its_place_and_the_epoch_alone(kind):
    images = augmented(kind)
    first = images_of(images[index] for index in range(6))
    random.random(), np.random.rand(), torch.rand(3)
    before = torch.get_rng_state()
    again = images_of(images.__getitems__([5, 3, 4, 1, 0, 2]))
    assert torch.equal(first[[5, 3, 4, 1, 0, 2]], again)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, images_of(augmented(kind)[index] for index in range(6)))
    images.set_epoch(1)
    assert not any(torch.equal(images[index]["pixel_values"], first[index]) for index in range(6))
    images.set_epoch(0)
    assert torch.equal(images[2]["pixel_values"], first[2])


def test_the_same_picture_twice_is_augmented_in_two_ways():
    twice = labelled_pictures(1).select([0, 0])
    images = AugmentedImages(twice, PROCESSOR, Augmentation(size=(16, 16)))
    assert not torch.equal(*images_of(images[index] for index in range(2)))


def test_without_a_change_it_is_what_the_image_processor_gives():
    images = augmented("default", crop_scale=1.0, horizontal_flip=False)
    expected = PROCESSOR(random_pictures(16), return_tensors="pt")["pixel_values"]
    assert torch.equal(images_of(images.unaugmented[index] for index in range(16)), expected)
    found = images_of(images[index] for index in range(16))
    alike = [torch.allclose(*pair, rtol=0, atol=1e-6) for pair in zip(found, expected, strict=True)]
    assert sum(alike) >= 8  # others are a pixel short of the whole
    assert [images[index]["labels"] for index in range(6)] == [0, 1, 2, 3, 4, 0]


def test_an_image_processor_of_other_sizes_is_given_the_augmented_picture():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    images = AugmentedImages(labelled_pictures(2), processor, Augmentation(size=None))
    assert images[0]["pixel_values"].shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"size \(16, 16\), but CLIPImageProcessorPil gives the model None"):
        AugmentedImages(labelled_pictures(2), processor, Augmentation(size=(16, 16)))


# ---- In training ------------------------------------------------------------------------------------------------------


@KINDS
def test_a_resumed_run_sees_what_it_would_have_seen(kind, tmp_path):
    whole = build_augmented(tmp_path, kind)
    whole.train()
    sums = [value for _, values in whole.seen for value in values]
    assert len(set(sums)) == 24, "no image is the same in the second epoch"
    resumed = build_augmented(tmp_path / "resumed", kind)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.seen == whole.seen[5:], "in the middle of the second epoch"
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())


def test_workers_that_live_on_see_the_epoch(tmp_path):
    whole, other = (build_augmented(tmp_path / name, "trivial", save_strategy="no") for name in "ab")
    other.args.dataloader_num_workers, other.args.dataloader_persistent_workers = 1, True
    whole.train(), other.train()
    assert whole.seen == other.seen


@KINDS
@pytest.mark.slow
def test_two_processes_see_what_one_sees(kind, tmp_path):
    for world in (1, 2):
        finish(start(train_one_of, world, str(tmp_path), kind, world))
    one, *two = (json.loads((tmp_path / f"{kind}-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    both = [(step, sorted([*first, *second])) for (step, first), (_, second) in zip(*two, strict=True)]
    assert both == [(step, sorted(values)) for step, values in one]


def test_noise_is_searched_on_the_pictures_as_they_are(tmp_path):
    rounds = {"noise_num_images": 8, "noise_num_certificate_images": 8, "noise_max_steps": 1}
    trainer = build_augmented(tmp_path, "default", noise_weight=1.0, max_steps=1, save_strategy="no", **rounds)
    expected = {image.sum().item() for image in images_of(trainer.train_dataset.unaugmented)}
    collator, searched = trainer.data_collator, []

    def watched(examples):
        searched.append([example["pixel_values"].sum().item() for example in examples])
        return collator(examples)

    trainer.data_collator = watched
    trainer.train()
    of_rounds = [values for values in searched if set(values) <= expected]
    assert sum(map(len, of_rounds)) >= 16
    (trained_on,) = [values for values in searched if len(values) == 4 and values not in of_rounds][:1]
    assert not set(trained_on) & expected


def test_the_card_says_how_pictures_were_augmented(tmp_path):
    trainer = build_augmented(tmp_path, "augmix", max_steps=1, save_strategy="no")
    trainer.card_settings["recipe"] = "of the test"
    trainer.train()
    trainer.create_model_card()
    settings = json.loads((tmp_path / "nullspace_training.json").read_text())["settings"]
    expected = "augmix (random crops of 30 to 100 % of the area, mirrored half of the time, AugMix)"
    assert settings["augmentation"] == expected and settings["recipe"] == "of the test"
    assert f"| augmentation | {expected} |" in (tmp_path / "README.md").read_text()


# ---- By flags -------------------------------------------------------------------------------------------------------


def test_flags_overrule_what_suits_the_pictures():
    preprocessing = Preprocessing.of(PROCESSOR)

    def build(recipe, labels=("cat", "dog")):
        return training_images(labelled_pictures(8), preprocessing, recipe, labels, "image", "label", 42)

    assert "64 to 100 %" in str(build(RecipeArguments()).augmentation)
    assert "80 to 100 % of the area, never" in str(build(RecipeArguments(), ["1", "2"]).augmentation)
    own = build(RecipeArguments("trivial", 0.5, True), ["1", "2"]).augmentation
    assert (own.kind, own.crop_scale, own.horizontal_flip) == ("trivial", 0.5, True)
    plain = build(RecipeArguments("none"))
    batch = next(iter(DataLoader(plain, batch_size=8)))
    assert torch.equal(batch["pixel_values"], PROCESSOR(random_pictures(8), return_tensors="pt")["pixel_values"])
