"""The exact nullspace: dimensions, basis, samples in and out of the pixel box, the way back from embeddings, refusals."""

import copy

import pytest
import torch
from torch import nn

from hf_nullspace import PatchNullspace
from hf_nullspace.models.patch_projection import PatchProjection, find_patch_projection


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def conv_projection(hidden_size, patch_size, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Conv2d(3, hidden_size, patch_size, **{"stride": patch_size, **options})
    return PatchProjection("stem", module)


def normalise(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def denormalise(values):
    mean, std = torch.tensor(MEAN).double().view(3, 1, 1), torch.tensor(STD).double().view(3, 1, 1)
    return values.double() * std + mean


@pytest.fixture(scope="module")
def pictures():
    """Three pictures in [0, 1] of 16x16: one of all levels, one with black and white pixels, one black."""
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels[1] = (2 * pixels[1] - 0.5).clamp(0, 1)
    pixels[2] = 0
    return pixels


@pytest.fixture(scope="module")
def nullspace(make_vit):
    return PatchNullspace.from_model(make_vit())


@pytest.mark.parametrize(
    ("hidden_size", "patch_size", "rank", "dimension"),
    [
        pytest.param(768, 32, 768, 2304, id="ViT-B/32", marks=pytest.mark.slow),
        pytest.param(192, 16, 192, 576, id="ViT-Ti/16"),
        pytest.param(384, 16, 384, 384, id="ViT-S/16"),
        pytest.param(384, 14, 384, 204, id="ViT-S/14"),
        pytest.param(96, 4, 48, 0, id="Swin"),
    ],
)
def test_dimensions_of_known_shapes(hidden_size, patch_size, rank, dimension):
    nullspace = PatchNullspace(conv_projection(hidden_size, patch_size))
    assert (nullspace.rank, nullspace.dimension) == (rank, dimension)
    assert nullspace.matrix.shape == (hidden_size, 3 * patch_size**2)
    assert nullspace.basis.shape == (3 * patch_size**2, dimension)


def test_full_rank_says_so_and_gives_zeros(caplog):
    nullspace = PatchNullspace(conv_projection(768, 16), image_size=(32, 32))
    assert (nullspace.rank, nullspace.dimension) == (768, 0)
    assert "dimension 0" in caplog.text and "synthesize_noise" in caplog.text
    assert nullspace.obstacle in caplog.text
    assert nullspace.sample(2, norm=5.0).abs().max() == 0
    assert nullspace.sample_within(torch.zeros(1, 3, 32, 32), MEAN, STD).abs().max() == 0
    assert nullspace.norm_bound(torch.zeros(1, 3, 32, 32), MEAN, STD).tolist() == [0.0]


def test_basis_is_orthonormal_and_annihilated(nullspace):
    assert (nullspace.rank, nullspace.dimension) == (32, 160)
    identity = torch.eye(160, dtype=torch.float64)
    assert (nullspace.basis.T @ nullspace.basis - identity).abs().max() < 1e-12
    assert (nullspace.matrix @ nullspace.basis).abs().max() < 1e-12 * nullspace.matrix.norm()
    assert nullspace.tolerance == pytest.approx(
        192 * torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(nullspace.matrix, 2).item()
    )
    assert "32x192, rank=32, dimension=160" in repr(nullspace)


def test_rank_deficient_weights_and_rtol():
    projection = conv_projection(32, 8)
    with torch.no_grad():
        projection.module.weight[16:] = projection.module.weight[:16]
    assert PatchNullspace(projection).dimension == 192 - 16
    assert PatchNullspace(projection, rtol=2.0).dimension == 192
    with pytest.raises(ValueError, match="`rtol`.*-1"):
        PatchNullspace(projection, rtol=-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_keep_their_rank(dtype):
    """The epsilon of float16 times 588 would call every singular value of the real ViT-S/14 below 0.57 s_max zero."""
    projection = conv_projection(384, 14)
    projection.module.to(dtype)
    assert PatchNullspace(projection).dimension == 204


def test_projector_is_idempotent_and_splits_noise(make_vit, nullspace):
    noise = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = nullspace.project(noise)
    assert (nullspace.project(part) - part).abs().max() < 1e-12
    assert (part * (noise - part)).sum().abs() < 1e-9
    weight = find_patch_projection(make_vit()).module.weight.double()
    assert nn.functional.conv2d(part, weight, stride=8).abs().max() < 1e-12
    assert 0 < part.norm() < noise.norm()


def test_samples_have_the_norm_and_move_no_logit(make_vit, nullspace, make_examples):
    model = make_vit()
    images = torch.stack([example["pixel_values"] for example in make_examples(4)])
    generator = torch.Generator().manual_seed(3)
    noise = nullspace.sample(4, norm=100.0, generator=generator)
    assert noise.shape == images.shape and noise.dtype == torch.float32
    assert noise.flatten(1).norm(dim=1).tolist() == pytest.approx([100.0] * 4)
    permuted = noise.flatten()[torch.randperm(noise.numel(), generator=generator)].view_as(noise)
    with torch.no_grad():
        clean, noisy, control = (model(images + change).logits for change in (0, noise, permuted))
    norms = clean.norm(dim=1, keepdim=True)
    change = ((noisy - clean).abs() / norms).max()
    assert change < 1e-4
    assert ((control - clean).abs() / norms).min(0).values.max() > 100 * change


def test_samples_repeat_with_their_generator(nullspace):
    first, again, other = (nullspace.sample(2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    assert torch.equal(nullspace.sample(2), nullspace.sample(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_inside_the_box_keeps_every_pixel_and_every_logit(make_vit, nullspace, pictures):
    values = normalise(pictures)
    noise = nullspace.sample_within(values, MEAN, STD, torch.Generator().manual_seed(0))
    noisy, clean = denormalise(values + noise), denormalise(values)
    assert noisy.min() >= min(0, clean.min()) and noisy.max() <= max(1, clean.max())
    model = make_vit()
    with torch.no_grad():
        before, after = model(values).logits, model(values + noise).logits
    assert ((after - before).abs() / before.norm(dim=1, keepdim=True)).max() < 1e-4
    # Every patch stands in a corner: of its 192 pixels, as many are at a bound as the nullspace has dimensions.
    at_bound = ((noisy < 1e-5) | (noisy > 1 - 1e-5)).flatten(1).double().mean(1)
    assert at_bound[0].item() == pytest.approx(160 / 192)
    norms, bounds = noise.flatten(1).norm(dim=1), nullspace.norm_bound(values, MEAN, STD)
    assert (norms < bounds).all() and norms[0] > 0.85 * bounds[0]


def test_noise_inside_the_box_repeats_and_has_the_norm_asked_for(nullspace, pictures):
    values = normalise(pictures[:2])

    def sample(**options):
        return nullspace.sample_within(values, MEAN, STD, torch.Generator().manual_seed(0), **options)

    assert torch.equal(sample(), sample())
    assert sample(norm=2.0).flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 2.0])
    largest = sample().flatten(1).norm(dim=1).min().item()
    assert sample(slides=4).flatten(1).norm(dim=1).max() < largest
    with pytest.raises(
        ValueError, match=rf"norm 1000 .*box of picture \d.*has norm {largest:.6g} .*none is larger than \d+"
    ):
        sample(norm=1000.0)
    with pytest.raises(ValueError, match="`slides`.*0"):
        sample(slides=0)


def test_projection_into_the_box_reaches_what_is_reachable(nullspace, pictures):
    values = normalise(pictures[:1])
    reachable = nullspace.sample_within(values, MEAN, STD) * 0.5
    found = nullspace.project_within(reachable, values, MEAN, STD)
    assert (found - reachable).norm() < 0.01 * reachable.norm()
    far = nullspace.project_within(100 * reachable, values, MEAN, STD)
    assert nullspace.project(far).sub(far).norm() < 1e-5 * far.norm()
    assert torch.nn.functional.cosine_similarity(far.flatten(), reachable.flatten(), dim=0) > 0.5


def test_realised_noise_embeds_to_itself(make_vit, nullspace):
    noise = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    pixels = nullspace.realize(noise)
    projection = find_patch_projection(make_vit()).module
    embedded = nn.functional.conv2d(pixels, projection.weight, stride=8).flatten(2).transpose(1, 2)
    assert pixels.shape == (3, 3, 16, 16)
    assert (embedded - noise).norm() < 1e-5 * noise.norm()
    assert nullspace.project(pixels).norm() < 1e-5 * pixels.norm()  # of all pixel noises, the smallest


def test_realisation_inside_the_box_reports_its_residual(nullspace, pictures):
    values = normalise(pictures[:1])
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    residuals = []
    for scale in (0.001, 0.1, 10.0):
        pixels, residual = nullspace.realize_within(scale * noise, values, MEAN, STD)
        noisy = denormalise(values + pixels)
        assert noisy.min() >= 0 and noisy.max() <= 1
        embedded = nullspace.to_patches(pixels).double() @ nullspace.matrix.T
        measured = (embedded - scale * noise).norm() / (scale * noise).norm()
        assert residual.tolist() == pytest.approx([measured.item()], rel=1e-3, abs=1e-5)
        residuals.append(residual.item())
    assert residuals[0] < 1e-3 < residuals[2] < 1


def test_lost_rank_is_reported(caplog):
    nullspace = PatchNullspace(conv_projection(256, 8), image_size=(8, 8))
    nullspace.realize(torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0)))
    assert "rank 192 for 256 hidden units" in caplog.text


def test_linear_projections_take_cut_patches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(48, 16)
    nullspace = PatchNullspace(PatchProjection("patch_embedding", module))
    noise = nullspace.sample(2, norm=3.0, num_patches=5)
    assert nullspace.dimension == 32 and noise.shape == (2, 5, 48)
    assert (noise @ module.weight.T).abs().max() < 1e-5
    assert torch.allclose(nullspace.project(noise), noise, atol=1e-6)
    assert nullspace.realize(torch.ones(1, 5, 16)).shape == (1, 5, 48)
    with pytest.raises(ValueError, match="`num_patches`"):
        nullspace.sample(2)
    with pytest.raises(ValueError, match=r"48\), but got \(1, 5, 47\)"):
        nullspace.to_patches(torch.zeros(1, 5, 47))


def channels_last(patches, channels=3):
    """Features in the order of Siglip2's image processor, from that of a convolution's weights."""
    return patches.unflatten(-1, (channels, -1)).transpose(-1, -2).flatten(-2)


def test_linear_projections_have_a_pixel_box(nullspace, pictures):
    """The same patches and the same matrix, in the other order of features: the same box and the same realisation."""
    module = nn.Linear(192, 32)
    with torch.no_grad():
        module.weight.copy_(channels_last(nullspace.matrix))
    linear = PatchNullspace(PatchProjection("patch_embedding", module))
    values = normalise(pictures[:1])
    cut = channels_last(nullspace.to_patches(values))
    for ours, theirs in zip(linear.pixel_box(cut, MEAN, STD), nullspace.pixel_box(values, MEAN, STD), strict=True):
        assert torch.allclose(ours, channels_last(theirs), atol=1e-6)
    noise = linear.sample_within(cut, MEAN, STD)
    lower, upper = linear.pixel_box(cut, MEAN, STD)
    assert (noise >= lower).all() and (noise <= upper).all()
    assert ((noise == lower) | (noise == upper)).sum(-1).tolist() == [[160] * 4]
    assert (noise @ module.weight.T).norm() < 1e-5 * noise.norm()
    assert linear.norm_bound(cut, MEAN, STD).item() == pytest.approx(
        nullspace.norm_bound(values, MEAN, STD).item(), rel=1e-5
    )
    assert linear.sample_within(cut, MEAN, STD, norm=2.0).norm().item() == pytest.approx(2.0)
    wanted = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    realised, residual = linear.realize_within(wanted, cut, MEAN, STD)
    expected, expected_residual = nullspace.realize_within(wanted, values, MEAN, STD)
    assert torch.allclose(realised, channels_last(nullspace.to_patches(expected)), atol=1e-4)
    assert residual.item() == pytest.approx(expected_residual.item(), rel=1e-4)
    with pytest.raises(ValueError, match="reads patches of shape"):
        linear.sample_within(values, MEAN, STD)
    with pytest.raises(ValueError, match="192 features, which are no patches of 5 channels"):
        PatchNullspace(PatchProjection("patch_embedding", module), num_channels=5)


def test_overlapping_patches_are_refused(overlapping_model):
    with pytest.raises(ValueError, match=r"overlap.*kernel \(7, 7\), stride \(4, 4\).*`synthesize_noise`"):
        PatchNullspace.from_model(overlapping_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.full((1, 3, 16, 16), 9.0)}, r"pixels from 2\..* to 2\..*must lie in \[0, 1\]"),
        ({"pixel_values": torch.full((1, 3, 16, 16), float("nan"))}, r"must lie in \[0, 1\]"),
        ({"pixel_values": torch.zeros(3, 16, 16)}, r"shape \(batch_size, 3, height, width\).*\(3, 16, 16\)"),
        ({"image_mean": [0.5]}, r"`image_mean` .*3 channels, but has 1: \[0.5\].*image processor"),
        ({"image_std": [0.5] * 4}, "`image_std` .*3 channels, but has 4"),
        ({"image_std": [0.5, 0.0, 0.5]}, "`image_std` must be positive"),
    ],
)
def test_pictures_outside_the_box_are_refused(nullspace, change, message):
    arguments = {"pixel_values": torch.zeros(1, 3, 16, 16), "image_mean": MEAN, "image_std": STD, **change}
    with pytest.raises(ValueError, match=message):
        nullspace.sample_within(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda space: space.sample(1, norm=-1.0), "`norm`.*-1"),
        (lambda space: space.sample(1, norm=float("inf")), "`norm`.*inf"),
        (lambda space: space.realize(torch.zeros(1, 4, 31)), r"\(noises, num_patches, 32\), but got \(1, 4, 31\)"),
        (lambda space: space.realize(torch.zeros(1, 5, 32)), "Got 5 patches.*16 x 16 pixels has 4"),
        (lambda space: space.project(torch.zeros(1, 1, 16, 16)), r"\(batch_size, 3, height, width\)"),
        (
            lambda space: space.realize_within(torch.zeros(1, 5, 32), torch.zeros(1, 3, 16, 16), MEAN, STD),
            r"\(1, 5, 32\) does not fit 1 pictures of 4 patches",
        ),
    ],
)
def test_noise_of_the_wrong_shape_is_refused(nullspace, call, message):
    with pytest.raises(ValueError, match=message):
        call(nullspace)


def test_unknown_image_size_is_asked_for(nullspace):
    unknown = copy.copy(nullspace)
    unknown.image_size = None
    with pytest.raises(ValueError, match="no `image_size`"):
        unknown.sample(1)
    assert unknown.sample(1, image_size=(8, 24)).shape == (1, 3, 8, 24)
