"""
Simulates how often a certificate is wrong, and prints it as Markdown: for each epsilon and number of images the share of
simulated certificates whose noise moves all images by more than epsilon, beside the 5 % that are claimed.

```bash
python examples/certificate_coverage.py
```

A ViT is trained on scikit-learn's digits (a minute on two CPU cores), and noise is synthesised for it. The error of every
image is measured once at each scale of that noise; a simulated certificate draws some of the images, scales the noise to
the largest norm that its upper bound allows, and is wrong if the mean over all images exceeds epsilon there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from datasets import concatenate_datasets
from torch import nn
from torch.utils.data import DataLoader

from hf_nullspace import NullspaceConfig, NullspaceDataCollator, NullspaceNoise, synthesize_noise
from hf_nullspace.cli.digits import train_digits_model
from hf_nullspace.data.digits import load_digits_splits
from hf_nullspace.models.frozen import frozen_classifier
from hf_nullspace.models.preprocessing import image_transform
from hf_nullspace.noise.certify import measure_errors
from hf_nullspace.noise.confidence import is_bounded_by
from hf_nullspace.noise.config import CERTIFICATE_IMAGES_RATIO
from hf_nullspace.noise.images import read_images
from hf_nullspace.robustness.metrics import wilson_interval
from hf_nullspace.utils.random import keyed_generator


# From errors of shape (scales, images) and epsilon to whether the upper bound at each scale is within epsilon.
Bound = Callable[[torch.Tensor, float], torch.Tensor]

# Number of images of the former default, which used a normal bound.
NORMAL_IMAGES = 128


def betting_bound(confidence: float) -> Bound:
    """The bound of this package's certificates."""
    return lambda errors, epsilon: is_bounded_by(errors, epsilon, confidence, largest=2.0)


def normal_bound(confidence: float) -> Bound:
    """A bound from mean and standard error, which assumes normally distributed errors."""
    quantile = NormalDist().inv_cdf(confidence)

    def is_within(errors: torch.Tensor, epsilon: float) -> torch.Tensor:
        return errors.mean(-1) + quantile * errors.std(-1) / math.sqrt(errors.shape[-1]) <= epsilon

    return is_within


def errors_by_scale(
    model: nn.Module, noise: NullspaceNoise, dataloader: DataLoader, scales: torch.Tensor
) -> torch.Tensor:
    """`probability_mse` of each image of the loader under the noise at each scale, of shape `(scales, images)`."""
    with frozen_classifier(model) as classifier:
        images = read_images(classifier, dataloader)
        own = noise.noise.to(classifier.device)
        return torch.stack([measure_errors(classifier, images, own.scaled(scale)) for scale in scales.tolist()])


def refine(scales: torch.Tensor, errors: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and errors with `parts` steps in place of each, interpolated in logarithms."""
    tiny = torch.finfo(torch.float32).tiny
    logs = [scales.double().log()[:, None], errors.double().clamp_min(tiny).log()]
    weights = torch.arange(parts, dtype=torch.float64)[:, None, None] / parts
    finer = [((1 - weights) * rows[:-1] + weights * rows[1:]).transpose(0, 1).flatten(0, 1).exp() for rows in logs]
    return finer[0][:, 0], finer[1]


def largest_scale(errors: torch.Tensor, epsilon: float, is_within: Bound) -> int:
    """Index of the largest scale whose bound is within epsilon, -1 if there is none; errors grow with the scale."""
    inside, outside = -1, len(errors)
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if is_within(errors[middle : middle + 1], epsilon).item():
            inside = middle
        else:
            outside = middle
    return inside


def simulate(
    scales: torch.Tensor,
    errors: torch.Tensor,
    epsilon: float,
    num_images: int,
    is_within: Bound,
    simulations: int,
    generator: torch.Generator,
) -> tuple[int, float]:
    """
    Certificates on random images of a population.

    Args:
        scales (`torch.Tensor` of shape `(scales,)`): Of the noise, ascending.
        errors (`torch.Tensor` of shape `(scales, images)`): Of the whole population.
        epsilon (`float`): The bound that each certificate is for.
        num_images (`int`): Images of each, drawn with replacement.
        is_within (`Callable`): The upper bound.
        simulations (`int`): How many.
        generator (`torch.Generator`): Draws the images.

    Returns:
        `tuple[int, float]`: Certificates whose noise exceeds epsilon on the population, and the mean scale certified.
    """
    misses = 0
    total = 0.0
    means = errors.mean(1)
    for _ in range(simulations):
        places = torch.randint(errors.shape[1], (num_images,), generator=generator)
        index = largest_scale(errors[:, places], epsilon, is_within)
        if index >= 0:
            misses += means[index].item() > epsilon
            total += scales[index].item()
    return misses, total / simulations


def coverage_row(
    scales: torch.Tensor,
    errors: torch.Tensor,
    epsilon: float,
    num_images: int,
    confidence: float,
    simulations: int,
    seed: int,
) -> dict[str, str]:
    """One row of the table."""
    ours = betting_bound(confidence)
    normal = normal_bound(confidence)

    def run(is_within: Bound, count: int) -> tuple[int, float]:
        generator = keyed_generator("certificate coverage", seed, count)
        return simulate(scales, errors, epsilon, count, is_within, simulations, generator)

    misses, scale = run(ours, num_images)
    same_misses, _ = run(normal, num_images)
    old_misses, old_scale = run(normal, NORMAL_IMAGES)
    boundary = scales[largest_scale(errors, epsilon, lambda rows, epsilon: rows.mean(1) <= epsilon)].item()
    low, high = wilson_interval(misses, simulations)
    return {
        "epsilon": f"{epsilon:g}",
        "images": str(num_images),
        "claimed (%)": f"{100 * (1 - confidence):.3g}",
        "true misses (%)": f"{100 * misses / simulations:.2f} [{low:.2f}, {high:.2f}]",
        "norm / boundary": f"{scale / boundary:.2f}",
        f"norm / normal bound, {NORMAL_IMAGES} images": f"{scale / old_scale:.2f}",
        "normal bound: misses (%)": f"{100 * same_misses / simulations:.1f}",
        f"normal bound, {NORMAL_IMAGES} images: misses (%)": f"{100 * old_misses / simulations:.1f}",
    }


def to_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a table."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---:|' * len(rows[0])}"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--method", default="sample", choices=["sample", "boundary"], help="How the noise is made.")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="Bounds to certify.")
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[CERTIFICATE_IMAGES_RATIO / 2, CERTIFICATE_IMAGES_RATIO, 2 * CERTIFICATE_IMAGES_RATIO],
        help="Images of a certificate, as multiples of the fewest that can show epsilon.",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="Claimed by each certificate.")
    parser.add_argument("--simulations", type=int, default=1500, help="Certificates simulated for each row.")
    parser.add_argument("--num_scales", type=int, default=60, help="Scales that the errors are measured at.")
    parser.add_argument("--digits_max_steps", type=int, default=400, help="Steps that the model is trained for.")
    parser.add_argument("--seed", type=int, default=42, help="Seed of every random choice.")
    args = parser.parse_args(argv)

    digits = load_digits_splits(args.seed)
    model, processor = train_digits_model(digits, args.digits_max_steps, args.seed)
    transform = image_transform(processor, "image", "label")
    train = digits["train"].shuffle(seed=args.seed).with_transform(transform)
    everything = concatenate_datasets(list(digits.values())).with_transform(transform)
    train, everything = (
        DataLoader(images, batch_size=32, collate_fn=NullspaceDataCollator()) for images in (train, everything)
    )
    noise = synthesize_noise(model, train, NullspaceConfig(method=args.method, seed=args.seed), disable_tqdm=True)
    scales = torch.logspace(-1.2, 0.6, args.num_scales, dtype=torch.float64)
    scales, errors = refine(scales, errors_by_scale(model, noise, everything, scales), parts=6)
    rows = []
    for epsilon in args.epsilons:
        fewest = NullspaceConfig(epsilon=epsilon, confidence=args.confidence).fewest_certificate_images()
        for ratio in args.ratios:
            count = math.ceil(ratio * fewest)
            rows.append(coverage_row(scales, errors, epsilon, count, args.confidence, args.simulations, args.seed))
    print(
        f"{args.simulations} certificates for each row, on images drawn from {errors.shape[1]} digits; in brackets the "
        f"simulation's own 95 % interval.\n\n{to_markdown(rows)}"
    )


if __name__ == "__main__":
    main()
