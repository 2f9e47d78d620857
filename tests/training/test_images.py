"""Images for a synthesis: drawn by seed and round alone, and refused early where they do not fit."""

import pytest
import torch
from torch.utils.data import IterableDataset
from trainer_runs import arguments, build

from hf_nullspace.training.images import check_enough, check_example, draw_images


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


def test_draw_depends_on_seed_and_round_alone():
    torch.manual_seed(0)
    first = list(draw_images(range(100), 10, seed=1, round_index=2))
    torch.manual_seed(7)
    assert list(draw_images(range(100), 10, seed=1, round_index=2)) == first
    assert len(set(first)) == 10
    assert list(draw_images(range(100), 10, seed=1, round_index=3)) != first
    assert list(draw_images(range(100), 10, seed=2, round_index=2)) != first


def test_too_few_images_are_refused_unless_unknown():
    with pytest.raises(ValueError, match="has 7 images.*needs 8"):
        check_enough(range(7), 8)
    check_enough(range(8), 8)
    check_enough(Stream(), 8)


def test_example_must_fit_the_model(tiny_vit):
    check_example({"pixel_values": torch.zeros(1, 3, 16, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit)
    with pytest.raises(ValueError, match="no labels"):
        check_example({"pixel_values": torch.zeros(1, 3, 16, 16)}, tiny_vit, ["labels"])
    with pytest.raises(ValueError, match="24x16.*16x16"):
        check_example(
            {"pixel_values": torch.zeros(1, 3, 24, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit
        )
    with pytest.raises(ValueError, match="images have 1 channels, but the model reads 3"):
        check_example(
            {"pixel_values": torch.zeros(1, 1, 16, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit
        )


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([0, 7], {}, r"Label 7 lies outside the classifier head, which has 5 labels \(0 to 4\)"),
        ([-1, 0], {}, "Label -1 lies outside"),
        ([0.5, 1.0], {}, "numbers of type torch.float32, such as 0.5, but the model has 5 classes"),
        ([[0, 1, 0, 1, 1]] * 2, {"problem_type": "multi_label_classification"}, "rows of 5 numbers.*torch.float32"),
    ],
)
def test_labels_that_are_no_classes_are_refused(make_vit, labels, changes, message):
    example = {"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.tensor(labels)}
    with pytest.raises(ValueError, match=message):
        check_example(example, make_vit(**changes), ["labels"])
    check_example(example, make_vit(**changes))  # a loss of its own takes what it likes
    check_example({**example, "labels": torch.tensor([-100, 4])}, make_vit(**changes), ["labels"])


def test_a_collator_must_give_names(tiny_vit):
    with pytest.raises(ValueError, match="The collator gives a `tuple`.*dict of its inputs"):
        check_example((torch.zeros(1, 3, 16, 16), torch.zeros(1)), tiny_vit)


def test_a_label_outside_the_head_is_found_before_the_first_step(make_vit, make_examples, tmp_path):
    """Not only among the two images that the constructor reads."""
    examples = make_examples(48)
    examples[40]["label"] = 9
    trainer = build(make_vit(), examples, arguments(tmp_path, noise_num_images=32, noise_num_certificate_images=16))
    with pytest.raises(ValueError, match="Label 9 lies outside the classifier head"):
        trainer.train()
    assert trainer.state.global_step == 0
