"""A resumed run reads what it would have read: streams on any pass, random transforms, orders of every sampler."""

import itertools
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import finish, start
from safetensors.torch import load_file, save_file
from tiny_model import seeded_model_and_examples
from torch.utils.data import Dataset, IterableDataset
from trainer_runs import Following

from hf_nullspace import NullspaceDataCollator, NullspaceTrainingArguments
from hf_nullspace.training.data_position import RandomState


class Stream(IterableDataset):
    """Eighteen images, in another order in every pass; `randomly` by whom."""

    def __init__(self, examples, order="epoch", augment=False):
        self.examples, self.order, self.augment, self.epoch = examples[:18], order, augment, 0
        self.generator_of_its_own = random.Random(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = list(range(len(self.examples)))
        if self.order == "epoch":
            random.Random(self.epoch).shuffle(order)
        elif self.order == "global":
            order = torch.randperm(len(order)).tolist()
        elif self.order == "own":
            self.generator_of_its_own.shuffle(order)
        while order:
            index = order.pop(int(torch.randint(len(order), ())) if self.order == "lazy" else 0)
            yield augmented(self.examples[index]) if self.augment else self.examples[index]


class Augmented(Dataset):
    def __init__(self, examples, generator=None):
        self.examples, self.generator = examples[:18], generator

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return augmented(self.examples[index], self.generator)


def augmented(example, generator=None):
    shift = torch.rand((), generator=generator) + random.random() + float(np.random.rand())
    return {**example, "pixel_values": example["pixel_values"] + shift}


def build(folder, data, **changes):
    model, examples = seeded_model_and_examples(hidden_dropout_prob=0.1)
    settings = {
        "max_steps": 9,
        "noise_weight": 0.0,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    args = NullspaceTrainingArguments(str(folder), **{**settings, **changes})
    return Following(model, args, NullspaceDataCollator(), data(examples), examples[:7])


def assert_resumes_exactly(folder, data, steps, **changes):
    """Five batches in a pass (the last of two images): steps in the first, at its end, and in later ones."""
    whole = build(folder / "whole", data, **changes)
    whole.train()
    expected = whole.model.state_dict()
    for step in steps:
        resumed = build(folder / "resumed", data, **changes)
        resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{step}"))
        assert resumed.seen == [row for row in whole.seen if row[0] >= step], step
        weights = resumed.model.state_dict()
        assert [name for name in expected if not torch.equal(weights[name], expected[name])] == [], step
        assert resumed.state.epoch == whole.state.epoch
        assert RandomState().to_dict()  # as JSON


STEPS = (1, 8)
DATA = {
    "stream": Stream,
    "stream of fixed order": lambda examples: Stream(examples, order="none"),
    "stream ordered by the global generator": lambda examples: Stream(examples, order="global"),
    "random stream": lambda examples: Stream(examples, augment=True),
    "random images": Augmented,
    "images": lambda examples: examples[:18],
    "images of lengths": lambda examples: [
        {**example, "input_ids": [0] * (1 + index % 5)} for index, example in enumerate(examples[:18])
    ],
}


@pytest.mark.parametrize("name", list(DATA)[:-1])
def test_every_pass_goes_on_exactly(tmp_path, name):
    assert_resumes_exactly(tmp_path, DATA[name], STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    [
        ("random images", {"gradient_accumulation_steps": 2, "max_steps": 8}),
        ("random stream", {"gradient_accumulation_steps": 2, "max_steps": 6}),
        ("images of lengths", {"train_sampling_strategy": "group_by_length"}),
        ("images", {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2}),
        ("stream", {"dataloader_num_workers": 1}),
        ("random stream", {"dataloader_num_workers": 1}),
        ("images", {"accelerator_config": {"use_seedable_sampler": False}}),
        ("images", {"eval_strategy": "epoch", "save_strategy": "steps"}),
        ("images", {"eval_strategy": "epoch", "save_strategy": "epoch"}),
        ("random images", {"noise_weight": 1.0, "noise_refresh_steps": 3, "noise_num_images": 8,
          "noise_num_certificate_images": 8, "noise_max_steps": 2}),
    ],
)  # fmt: skip
def test_settings(tmp_path, name, changes):
    by_pass = changes.get("save_strategy") == "epoch"
    steps = (5,) if by_pass else (3, 5)
    assert_resumes_exactly(tmp_path, DATA[name], steps, **changes)


@pytest.fixture
def warned(caplog):
    logger = logging.getLogger("transformers")
    logger.propagate = True
    ours = logging.getLogger("hf_nullspace")
    before, ours.propagate = ours.propagate, True
    yield lambda text: [record for record in caplog.records if text in record.message]
    logger.propagate, ours.propagate = False, before


def test_a_stream_whose_order_cannot_come_back_is_refused(tmp_path):
    def data(examples):
        return Stream(examples, order="own")

    build(tmp_path, data).train()
    with pytest.raises(ValueError, match="other images in pass 2 than before.*set_epoch"):
        build(tmp_path, data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    skipping = build(tmp_path, data, ignore_data_skip=True)
    assert skipping.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8")).global_step == 9
    assert [step for step, _ in skipping.seen] == [8]


@pytest.mark.parametrize(
    "data, changes, text",
    [
        (lambda examples: Stream(examples, order="lazy"), {}, "not if they are ordered with it"),
        (Stream, {"ignore_data_skip": True}, "the pass over the training set begins anew"),
        (Augmented, {"accelerator_config": {"use_seedable_sampler": False}}, "other augmentations"),
        (Augmented, {"dataloader_num_workers": 1}, "whose random states no checkpoint holds"),
        (
            lambda examples: Augmented(examples, torch.Generator().manual_seed(0)),
            {},
            "draw from a generator of their own",
        ),
    ],
)
def test_what_does_not_come_back_is_said(tmp_path, warned, data, changes, text):
    build(tmp_path, data, **changes).train()
    try:
        build(tmp_path, data, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    except ValueError as error:
        assert "other images" in str(error)
    assert warned(text)


def test_nothing_is_said_where_all_comes_back(tmp_path, warned):
    build(tmp_path, Augmented).train()
    build(tmp_path, Augmented).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert not warned("other images") and not warned("augment")


def test_what_a_users_dataset_calls_augmentation_may_have_another_text_each_time(tmp_path, warned):
    """Such as an address: only what [`AugmentedImages`] does to pictures is compared with the checkpoint."""
    addresses = itertools.count()

    def data(examples):
        images = Augmented(examples)
        images.augmentation = f"<Flip at {next(addresses)}>"
        return images

    assert_resumes_exactly(tmp_path, data, (8,))
    assert not warned("other images")


def train_followed(folder, told, stream, stop):
    """In one of two processes: to the end, or killed by an exception after the checkpoint of step `stop`."""
    data = Stream if stream else Augmented
    trainer = build(folder, data, per_device_train_batch_size=2, max_steps=7)
    trainer.train(resume_from_checkpoint=str(Path(folder, f"checkpoint-{stop}")) if stop else None)
    if trainer.is_world_process_zero():
        save_file(trainer.model.state_dict(), told)


@pytest.mark.parametrize("stream", [pytest.param(True, marks=pytest.mark.slow), False])
def test_two_processes(tmp_path, stream):
    finish(start(train_followed, 2, str(tmp_path), str(tmp_path / "whole.safetensors"), stream, 0))
    finish(start(train_followed, 2, str(tmp_path), str(tmp_path / "resumed.safetensors"), stream, 6))
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
