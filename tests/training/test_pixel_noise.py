"""`NullspaceDataCollator` with noise in the pixels: exact, realised, paired, and the same for any number of workers."""

import copy
import pickle
from pathlib import Path

import collator_run
import numpy as np
import pytest
import torch
from launching import launch
from model_types import MODEL_TYPES, TEXT
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    EfficientNetImageProcessorPil,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2ImageProcessorPil,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTImageProcessorPil,
)
from whole_path import draw_model

from hf_nullspace import NullspaceConfig, NullspaceDataCollator, NullspaceNoise, PatchNullspace
from hf_nullspace.models.patch_projection import PatchProjection, find_patch_projection
from hf_nullspace.models.preprocessing import Preprocessing, image_transform
from hf_nullspace.noise.kinds import DrawnNoise
from hf_nullspace.probing.exact import predict, relative_logit_change


STATISTICS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture(scope="module")
def nullspace(model):
    return PatchNullspace.from_model(model)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": 2 * torch.rand(3, 16, 16, generator=generator) - 1, "label": i % 5} for i in range(8)]


@pytest.fixture(scope="module")
def shared(make_certificate):
    tensor = 0.01 * torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    return NullspaceNoise(tensor, make_certificate(), NullspaceConfig())


def stack(examples):
    return torch.stack([example["pixel_values"] for example in examples])


def test_exact_noise_fills_the_box_and_moves_no_logit(model, nullspace, pictures):
    batch = NullspaceDataCollator(nullspace=nullspace, **STATISTICS)(pictures)
    noise = batch["pixel_values"] - stack(pictures)
    assert batch["pixel_values"].abs().max() <= 1
    assert noise.flatten(1).norm(dim=1).min() > 2
    assert relative_logit_change(predict(model, stack(pictures)), predict(model, batch["pixel_values"])).max() < 1e-4
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    "processor",
    [
        EfficientNetImageProcessorPil(size={"height": 16, "width": 16}),
        ViTImageProcessorPil(
            size={"height": 16, "width": 16}, do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3
        ),
    ],
    ids=["divides twice", "no rescaling"],
)
def test_the_box_is_that_of_the_image_processor(nullspace, processor):
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    examples = [{"pixel_values": values} for values in processor(pictures, return_tensors="pt")["pixel_values"]]
    noisy = NullspaceDataCollator(nullspace=nullspace, image_processor=processor)(examples)["pixel_values"]
    pixels = Preprocessing(processor).denormalize(noisy)
    assert 0 <= pixels.min() and pixels.max() <= 1
    assert ((pixels < 1e-5) | (pixels > 1 - 1e-5)).double().mean() > 0.02  # 32 of 192 pixels of a patch at most
    assert (noisy - stack(examples)).flatten(1).norm(dim=1).min() > 1


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("kind", ["exact", "shared", "tensor"])
def test_patches_that_are_cut_already_come_in_pairs(make_certificate, boxed, kind):
    """Siglip2: pictures of different shapes, of which one does not fill its row of patches."""
    config = Siglip2Config(
        vision_config=MODEL_TYPES["siglip2"].config["vision_config"], text_config=TEXT, num_labels=3
    )
    model = draw_model(Siglip2ForImageClassification, config)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4)
    pictures = [
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((16, 16), (8, 24))
    ]
    rows = image_transform(processor, "image", "label")({"image": pictures, "label": [0, 1]})
    examples = [{name: values[index] for name, values in rows.items()} for index in range(2)]
    tensor = 0.1 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    noise = {"exact": {}, "tensor": {"noise": tensor}}
    noise["shared"] = {"noise": NullspaceNoise(tensor, make_certificate(), NullspaceConfig())}
    options = {"image_processor": processor} if boxed else {"noise_norm": 3.0} if kind == "exact" else {}
    collator = NullspaceDataCollator(nullspace=PatchNullspace.from_model(model), paired=True, **noise[kind], **options)
    batch = collator(examples)
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert batch["spatial_shapes"].tolist() == [[2, 2], [1, 3]] * 2
    assert batch["pixel_attention_mask"].sum(1).tolist() == [4, 3, 4, 3]
    change = batch["pixel_values"][2:] - batch["pixel_values"][:2]
    assert not change[1, 3].any()
    norms = change.flatten(1).norm(dim=1)
    assert norms.min() > 0.1
    if kind == "exact":
        assert boxed or torch.allclose(norms, torch.tensor(3.0), atol=1e-4)
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        clean, noisy = predict(model, **inputs).chunk(2)
        assert relative_logit_change(clean, noisy).max() < 1e-4
    if boxed:
        assert batch["pixel_values"].abs().max() <= 1


def test_exact_noise_of_a_norm(nullspace, pictures):
    noisy = NullspaceDataCollator(nullspace=nullspace, noise_norm=30.0)(pictures)["pixel_values"]
    norms = (noisy - stack(pictures)).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([30.0] * 8, rel=1e-4)
    assert noisy.abs().max() > 1
    boxed = NullspaceDataCollator(nullspace=nullspace, noise_norm=1.0, **STATISTICS)(pictures)["pixel_values"]
    assert (boxed - stack(pictures)).flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 8, rel=1e-4)


def test_approximate_noise_is_that_of_the_embeddings_in_pixels(model, nullspace, pictures, shared):
    noisy = NullspaceDataCollator(nullspace=nullspace, noise=shared)(pictures)["pixel_values"]
    projection = find_patch_projection(model).module
    embedded = nn.functional.conv2d(noisy - stack(pictures), projection.weight, stride=8).flatten(2).transpose(1, 2)
    distances = (embedded - shared.tensor).flatten(1).norm(dim=1) / shared.tensor.norm()
    assert distances.max() < 1e-4
    boxed = NullspaceDataCollator(nullspace=nullspace, noise=shared.tensor, **STATISTICS)(pictures)["pixel_values"]
    assert boxed.abs().max() <= 1 + 1e-6
    assert not torch.equal(boxed, noisy)


def test_several_noises_are_refused(nullspace):
    with pytest.raises(ValueError, match=r"must be one noise.*\(3, 4, 32\)"):
        NullspaceDataCollator(nullspace=nullspace, noise=torch.ones(3, 4, 32))


def test_every_image_gets_a_draw_of_its_own(model, nullspace, pictures, shared):
    axes = torch.diag(torch.cat([torch.ones(8), torch.zeros(24)]))
    draws = NullspaceNoise(DrawnNoise(shared.tensor, axes), shared.certificate, NullspaceConfig(method="sample"))
    collator = NullspaceDataCollator(nullspace=nullspace, noise=draws)
    noisy = collator(pictures)["pixel_values"]
    projection = find_patch_projection(model).module
    embedded = nn.functional.conv2d(noisy - stack(pictures), projection.weight, stride=8).flatten(2).transpose(1, 2)
    norms = embedded.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, draws.tensor.norm().expand(8), rtol=1e-3, atol=0)
    assert embedded[..., 8:].abs().max() < 1e-4 * norms.min()
    directions = embedded.flatten(1) / norms[:, None]
    assert (directions @ directions.T - torch.eye(8)).abs().max() < 0.7
    assert torch.equal(collator(pictures[::-1])["pixel_values"].flip(0), noisy)
    boxed = NullspaceDataCollator(nullspace=nullspace, noise=draws, **STATISTICS)(pictures)["pixel_values"]
    assert boxed.abs().max() <= 1 + 1e-6


def test_pairs_hold_the_clean_images_first(nullspace, pictures):
    options = {"nullspace": nullspace, "noise_norm": 5.0}
    pairs = NullspaceDataCollator(**options, paired=True)(pictures)
    assert torch.equal(pairs["pixel_values"][:8], stack(pictures))
    assert torch.equal(pairs["pixel_values"][8:], NullspaceDataCollator(**options)(pictures)["pixel_values"])
    assert pairs["labels"].tolist() == 2 * [0, 1, 2, 3, 4, 0, 1, 2]
    unlabelled = NullspaceDataCollator(**options, paired=True)([{"pixel_values": p["pixel_values"]} for p in pictures])
    assert list(unlabelled) == ["pixel_values"] and len(unlabelled["pixel_values"]) == 16


@pytest.mark.parametrize("boxed", [True, False])
def test_noise_is_the_same_for_any_workers_batches_and_order(nullspace, pictures, shared, boxed):
    statistics = STATISTICS if boxed else {}
    collators = [NullspaceDataCollator(nullspace=nullspace, noise=shared, **statistics)]
    collators.append(NullspaceDataCollator(nullspace=nullspace, **(statistics or {"noise_norm": 9.0})))
    for collator in collators:
        state = torch.get_rng_state()
        expected = collator(pictures)["pixel_values"]
        assert torch.equal(torch.get_rng_state(), state)
        for workers, batch_size in ((0, 2), (2, 2), (2, 3)):
            loader = DataLoader(pictures, batch_size, num_workers=workers, collate_fn=collator)
            assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)
        assert torch.equal(collator(pictures[::-1])["pixel_values"].flip(0), expected)
        assert torch.equal(pickle.loads(pickle.dumps(collator))(pictures)["pixel_values"], expected)


@pytest.mark.slow
def test_two_processes_with_workers_give_the_batches_of_one(tmp_path):
    paths = [str(tmp_path / name) for name in ("one.safetensors", "two.safetensors")]
    with torch.random.fork_rng():
        collator_run.main(paths[0], "1", "0")
    launch(Path(collator_run.__file__), [paths[1], "2", "1"], 2)
    runs = [load_file(path) for path in paths]
    assert set(runs[0]) == set(runs[1]) and len(runs[0]) == 6
    for name, pixels in runs[0].items():
        assert pixels.shape == (48 if "paired" in name else 24, 3, 16, 16)
        assert torch.equal(pixels, runs[1][name]), name
    assert not torch.equal(runs[0]["exact 0"], runs[0]["exact 1"])


class EpochNoise(TrainerCallback):
    """Other noise in every epoch, as the collator's documentation shows."""

    def __init__(self, collator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch or 0))


class RecordingTrainer(Trainer):
    """A plain Trainer that keeps the pixels of every step."""

    def training_step(self, model, inputs, *args):
        self.seen = [*getattr(self, "seen", []), inputs["pixel_values"].clone()]
        return super().training_step(model, inputs, *args)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plain_trainer_resumes_with_the_same_batches(model, nullspace, pictures, tmp_path, workers):
    """Three epochs of two steps, and the checkpoint in the middle of the second."""

    def train(folder, steps, checkpoint=None):
        collator = NullspaceDataCollator(nullspace=nullspace, noise_norm=9.0)
        arguments = TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            save_steps=3,
            per_device_train_batch_size=4,
            dataloader_num_workers=workers,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = RecordingTrainer(
            copy.deepcopy(model), arguments, collator, pictures, callbacks=[EpochNoise(collator)]
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.seen

    whole = train("whole", 6)
    resumed = train("resumed", 6, str(tmp_path / "whole" / "checkpoint-3"))
    assert len(whole) == 6 and len(resumed) == 3
    assert all(torch.equal(before, after) for before, after in zip(whole[3:], resumed, strict=True))
    assert not any(torch.equal(before, after) for before, after in zip(whole[:2], whole[2:4], strict=True))


def test_seed_and_epoch_change_the_noise_and_come_back(nullspace, pictures):
    collator = NullspaceDataCollator(nullspace=nullspace, noise_norm=5.0)
    first = collator(pictures)["pixel_values"]
    collator.set_epoch(1)
    assert not torch.equal(collator(pictures)["pixel_values"], first)
    collator.set_epoch(0)
    assert torch.equal(collator(pictures)["pixel_values"], first)
    other = NullspaceDataCollator(nullspace=nullspace, noise_norm=5.0, seed=1)
    assert not torch.equal(other(pictures)["pixel_values"], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paired": True}, r"\['paired'\] ask for noise.*`nullspace="),
        ({"noise_norm": 1.0}, r"\['noise_norm'\] ask for noise"),
        ({"nullspace": True}, "needs a size: `noise_norm`, or `image_mean`"),
        ({"nullspace": True, "image_mean": [0.5] * 3}, "both `image_mean` and `image_std`"),
        ({"nullspace": True, "noise": torch.zeros(1, 4, 32), "noise_norm": 1.0}, "`noise_norm` is for exact noise"),
        ({"image_processor": ViTImageProcessorPil()}, "`image_processor`.*none without `nullspace="),
        ({"nullspace": True, "image_processor": ViTImageProcessorPil(), **STATISTICS}, "but not both"),
        ({"nullspace": True, "noise": torch.zeros(1, 4, 31)}, r"32\), but got \(1, 4, 31\)"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(nullspace, options, message):
    if options.get("nullspace"):
        options = {**options, "nullspace": nullspace}
    with pytest.raises(ValueError, match=message):
        NullspaceDataCollator(**options)


def test_models_without_an_exact_nullspace_are_refused():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nullspace = PatchNullspace(PatchProjection("stem", nn.Conv2d(3, 96, 4, stride=4)), (16, 16))
    with pytest.raises(ValueError, match="dimension 0.*`synthesize_noise`"):
        NullspaceDataCollator(nullspace=nullspace, noise_norm=1.0)
