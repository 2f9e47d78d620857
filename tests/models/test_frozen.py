"""A frozen model comes back as it was, and images are embedded, ordered, split and shared as promised."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import LevitConfig, LevitForImageClassification, ViTForImageClassification

from hf_nullspace.models.frozen import FrozenClassifier, frozen
from hf_nullspace.models.injection import NoiseInjector
from hf_nullspace.noise.images import FrozenImages, read_images


class ReadsPixelsTwice(ViTForImageClassification):
    """Its logits depend on the pixels beside their patch embeddings."""

    def forward(self, pixel_values, **kwargs):
        outputs = super().forward(pixel_values, **kwargs)
        outputs.logits = outputs.logits + pixel_values.mean((1, 2, 3))[:, None] * torch.arange(5.0)
        return outputs


class EmbedsTwice(ViTForImageClassification):
    def forward(self, pixel_values, **kwargs):
        super().forward(pixel_values, **kwargs)
        return super().forward(pixel_values, **kwargs)


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=2.0, initializer_range=0.2)


@pytest.fixture
def pixel_model(model):
    model.__class__ = ReadsPixelsTwice
    return model


@pytest.fixture
def classifier(model):
    with frozen(model):
        yield FrozenClassifier(model)


def process(rank, world=2):
    """What `FrozenClassifier` asks of an Accelerator, as process `rank` of `world` sees it."""
    return SimpleNamespace(
        num_processes=world, process_index=rank, autocast=nullcontext, reduce=lambda values, how: values
    )


def state_of(model):
    modes = {name: module.training for name, module in model.named_modules()}
    return modes, {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def all_images(batches):
    return torch.cat([batch["pixel_values"] for batch in batches])


@torch.no_grad()
def embeddings_of(model, pixels):
    return model.vit.embeddings.patch_embeddings.projection(pixels)


@pytest.mark.parametrize("was_training", [True, False])
@pytest.mark.parametrize("pass_before", [True, False])
def test_what_a_module_caches_in_evaluation_mode_is_dropped(was_training, pass_before):
    """LeViT keeps the biases of its attention, computed from weights that training, or a checkpoint, goes on to change."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1]}
    config = LevitConfig(**sizes, key_dim=[8, 8, 8], num_labels=5)
    model, pixels = LevitForImageClassification(config), torch.rand(2, 3, 32, 32)
    model.train(was_training)
    with torch.no_grad():
        if pass_before:
            model.eval()(pixels)
            model.train(was_training)
        else:
            with frozen(model):
                model(pixels)
        for name, weight in model.named_parameters():
            if "attention_biases" in name:
                weight.normal_(std=5.0)
        if pass_before:
            with frozen(model):
                found = model(pixels).logits
        else:
            found = model.eval()(pixels).logits
        expected = model.train().eval()(pixels).logits  # which drops the cache
    assert torch.equal(found, expected)


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_puts_modes_and_gradients_back(model, fails):
    model.train()
    model.vit.layernorm.eval()
    model.vit.embeddings.eval()
    model.vit.embeddings.dropout.train()
    model.vit.embeddings.requires_grad_(False)
    model.classifier.bias.requires_grad_(False)
    before = state_of(model)
    assert set(before[0].values()) == set(before[1].values()) == {True, False}
    try:
        with frozen(model) as same:
            assert same is model
            assert [set(values.values()) for values in state_of(model)] == [{False}, {False}]
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state_of(model) == before


def test_logits_are_float32_and_take_noise(classifier, model, make_batches):
    (batch,) = make_batches(4, 4)
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    with NoiseInjector.attach(model).inject(noise):
        expected = model(**batch).logits
    assert torch.equal(classifier.logits(batch, noise), expected)
    assert torch.equal(classifier.logits(batch), model(**batch).logits)
    model.bfloat16()
    assert classifier.logits({"pixel_values": batch["pixel_values"].bfloat16()}).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_activation_checkpointing_stays_on(model, make_batches):
    (batch,) = make_batches(4, 4)
    expected = model(**batch).logits.detach()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    before = state_of(model)
    with frozen(model):
        checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
        assert checkpointed
        in_training = [module for module in model.modules() if module.training]
        assert all(module in checkpointed for module in in_training)
        assert len(in_training) == model.config.num_hidden_layers
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)
    assert state_of(model) == before


def test_embed_leaves_no_hook(classifier, model, make_batches):
    (batch,) = make_batches(3, 3)
    hooks = classifier.injector.projection.module._forward_hooks
    before = dict(hooks)
    embeddings, logits = classifier.embed(batch)
    assert torch.equal(embeddings, embeddings_of(model, batch["pixel_values"]))
    assert torch.equal(logits, model(**batch).logits)
    assert dict(hooks) == before


def test_projection_that_runs_twice_is_refused(classifier, model, make_batches):
    model.__class__ = EmbedsTwice
    with pytest.raises(ValueError, match="patch_embeddings.projection' ran 2 times.*`patch_projection"):
        read_images(classifier, make_batches(8, 8), 8)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_kept_embeddings_stand_for_the_pixels(classifier, model, make_batches, is_wrapped):
    (batch,) = make_batches(4, 4)
    projection = model.vit.embeddings.patch_embeddings.projection
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    if is_wrapped:
        projection.forward = projection.forward
    before = dict(vars(projection))
    expected = classifier.logits(batch, noise)
    stand_in = {"pixel_values": torch.zeros_like(batch["pixel_values"])}
    embeddings = embeddings_of(model, batch["pixel_values"])
    assert torch.equal(classifier.logits(stand_in, noise, embeddings), expected)
    assert dict(vars(projection)) == before
    assert torch.equal(classifier.logits(batch, noise), expected)


@pytest.mark.parametrize("max_images, total", [(8, 8), (10, 10), (20, 20), (100, 20)])
def test_read_images_keeps_the_first(classifier, model, make_batches, max_images, total):
    batches = make_batches(20, 8)
    images = read_images(classifier, batches, max_images)
    assert (len(images), images.batch_size) == (total, 8)
    assert images.positions.tolist() == list(range(total))
    assert images.tokens_shape == (4, 32)
    pixels = all_images(batches)[:total]
    assert images.inputs["pixel_values"].shape == pixels.shape
    assert images.inputs["pixel_values"].untyped_storage().nbytes() == 4
    embeddings = embeddings_of(model, pixels)
    torch.testing.assert_close(images.embeddings, embeddings, rtol=0, atol=1e-6)
    expected_norm = embeddings.flatten(1).norm(dim=1).square().mean().sqrt().item()
    assert images.embedding_norm == pytest.approx(expected_norm, rel=1e-5)
    torch.testing.assert_close(images.clean_logits, model(pixels).logits, rtol=0, atol=1e-5)


def test_pixels_are_kept_for_a_model_that_reads_them_elsewhere(pixel_model, classifier, make_batches):
    batches = make_batches(11, 4)
    images = read_images(classifier, batches, 11)
    assert images.embeddings is None
    assert torch.equal(images.inputs["pixel_values"], all_images(batches))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    parts = list(images.batches(order))
    assert [part.embeddings for part in parts] == [None] * 3
    assert torch.equal(torch.cat([part.inputs["pixel_values"] for part in parts]), all_images(batches)[order])
    for part in parts:
        logits = classifier.logits(part.inputs, None, part.embeddings)
        torch.testing.assert_close(logits, part.clean_logits, rtol=0, atol=1e-5)


def test_read_images_stops_when_it_has_enough(classifier, make_batches):
    seen = []

    def loader():
        for index, batch in enumerate(make_batches(40, 8)):
            seen.append(index)
            yield batch

    assert len(read_images(classifier, loader(), 16)) == 16
    assert seen == [0, 1]


def test_labels_are_left_out(classifier, make_examples):
    images = read_images(classifier, DataLoader(make_examples(8), batch_size=4), 8)
    assert list(images.inputs) == ["pixel_values"]


@pytest.mark.parametrize(
    "count, batch_size, max_images, given, needed",
    [(0, 4, 8, 0, 2), (1, 1, 8, 1, 2), (8, 8, 4, 4, 8), (3, 8, 8, 3, 8)],
)
def test_fewer_images_than_a_batch_are_refused(
    classifier, make_examples, count, batch_size, max_images, given, needed
):
    examples = make_examples(count)
    loader = DataLoader(examples, batch_size=batch_size) if count else []
    with pytest.raises(ValueError, match=rf"{given} images.*at least one batch of {needed}"):
        read_images(classifier, loader, max_images)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_are_refused(classifier, model, make_batches, value):
    with torch.no_grad():
        model.classifier.bias[0] = value
    with pytest.raises(ValueError, match="NaN or infinite logits for clean images"):
        read_images(classifier, make_batches(8, 8), 8)


def test_batch_without_pixel_values_is_refused(classifier):
    with pytest.raises(ValueError, match=r"`pixel_values`.*\['image', 'labels'\]"):
        read_images(classifier, [{"labels": torch.zeros(4), "image": torch.zeros(4)}], 4)


def test_batches_cover_every_image_once_in_order(classifier, make_batches):
    images = read_images(classifier, make_batches(11, 4), 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for given, expected in ((None, torch.arange(11)), (order, order)):
        batches = list(images.batches(given))
        assert [batch.global_size for batch in batches] == [len(batch) for batch in batches] == [4, 4, 3]
        assert [len(batch.inputs["pixel_values"]) for batch in batches] == [4, 4, 3]
        assert torch.equal(torch.cat([batch.embeddings for batch in batches]), images.embeddings[expected])
        assert torch.equal(torch.cat([batch.clean_logits for batch in batches]), images.clean_logits[expected])


@pytest.mark.parametrize("first", [1, 4, 7])
def test_split(classifier, make_batches, first):
    images = read_images(classifier, make_batches(11, 4), 11)
    parts = images.split(first)
    assert [len(part) for part in parts] == [first, 11 - first]
    for part, rows in zip(parts, (slice(first), slice(first, None)), strict=True):
        assert part.positions.tolist() == list(range(len(part)))
        assert part.batch_size == 4
        assert part.tokens_shape == (4, 32)
        assert len(part.inputs["pixel_values"]) == len(part)
        assert torch.equal(part.embeddings, images.embeddings[rows])
        assert torch.equal(part.clean_logits, images.clean_logits[rows])


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize("max_images", [8, 11, 99])
def test_processes_share_each_image_once(model, make_examples, is_prepared, max_images):
    examples = make_examples(11)
    shares: list[FrozenImages] = []
    for rank in range(2):
        loader = DataLoader(examples, batch_size=2 if is_prepared else 4)
        if is_prepared:
            loader = prepare_data_loader(
                loader, num_processes=2, process_index=rank, put_on_device=False, rng_types=[]
            )
        with frozen(model):
            shares.append(read_images(FrozenClassifier(model, accelerator=process(rank)), loader, max_images))
    total = min(11, max_images)
    assert [(len(share), share.batch_size) for share in shares] == [(total, 4)] * 2
    assert sorted(torch.cat([share.positions for share in shares]).tolist()) == list(range(total))
    for share in shares:
        pixels = torch.stack([examples[place]["pixel_values"] for place in share.positions.tolist()])
        torch.testing.assert_close(share.embeddings, embeddings_of(model, pixels), rtol=0, atol=1e-6)
    squares = sum(share.embedding_norm**2 for share in shares) * total
    pixels = torch.stack([example["pixel_values"] for example in examples[:total]])
    assert squares == pytest.approx(embeddings_of(model, pixels).square().sum().item(), rel=1e-5)
    held_out, training = zip(*[share.split(3) for share in shares], strict=True)
    for parts, size in ((held_out, 3), (training, total - 3)):
        sizes = [[len(batch) for batch in part.batches()] for part in parts]
        global_sizes = [[batch.global_size for batch in part.batches()] for part in parts]
        assert global_sizes[0] == global_sizes[1] == [sum(pair) for pair in zip(*sizes, strict=True)]
        assert sum(global_sizes[0]) == size


@pytest.mark.parametrize("is_prepared", [False, True])
def test_fewer_images_than_a_batch_are_read_to_measure_on(model, make_examples, is_prepared):
    """Three images in batches of eight, of which the second process has none where Accelerate shares them out."""
    examples, shares = make_examples(3), []
    for rank in range(2):
        loader = DataLoader(examples, batch_size=4 if is_prepared else 8)
        if is_prepared:
            loader = prepare_data_loader(
                loader, num_processes=2, process_index=rank, put_on_device=False, rng_types=[]
            )
        with frozen(model):
            shares.append(read_images(FrozenClassifier(model, accelerator=process(rank)), loader, min_images=2))
    assert [(len(share), share.tokens_shape) for share in shares] == [(3, (4, 32))] * 2
    assert sorted(torch.cat([share.positions for share in shares]).tolist()) == [0, 1, 2]
    for share in shares:
        pixels = [examples[place]["pixel_values"] for place in share.positions.tolist()]
        expected = embeddings_of(model, torch.stack(pixels)) if pixels else torch.empty(0, 4, 32)
        torch.testing.assert_close(share.embeddings.flatten(1), expected.flatten(1), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="1 images.*at least 2 are needed"):
        read_images(FrozenClassifier(model), [{"pixel_values": torch.zeros(1, 3, 16, 16)}], min_images=2)
