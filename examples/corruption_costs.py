"""
Prints what each corruption costs and does, as Markdown: milliseconds for a 224x224 picture and the mean absolute change
of a pixel (0 to 255) at each severity, on the two photographs that ship inside scikit-learn.

```bash
python examples/corruption_costs.py
```

Where `imagecorruptions-imaug` is installed, its numbers stand beside ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from hf_nullspace.data.pictures import sample_photographs
from hf_nullspace.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def photographs(side: int) -> list[np.ndarray]:
    """scikit-learn's photographs, cut to their middle square and resized to `side` pixels."""
    result = []
    for picture in sample_photographs():
        width, height = picture.size
        square = min(picture.size)
        left, top = (width - square) // 2, (height - square) // 2
        box = (left, top, left + square, top + square)
        result.append(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=box)))
    return result


def ours(pixels: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    return np.asarray(corrupt(Image.fromarray(pixels), name, severity, np.random.default_rng(seed)))


def reference() -> Callable | None:
    """The corruption function of `imagecorruptions-imaug`, or `None` where it is not installed."""
    try:
        import imagecorruptions
    except ImportError:
        return None

    def corrupt_by_reference(pixels: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
        np.random.seed(seed)  # it draws from the global generator
        return imagecorruptions.corrupt(pixels, severity=severity, corruption_name=name)

    return corrupt_by_reference


def measure(function: Callable, pictures: list[np.ndarray], name: str, repeats: int) -> tuple[float, list[float]]:
    """Median milliseconds of a picture, and the mean change of a pixel at each severity."""
    function(pictures[0], name, 1, 0)  # compiles, imports and fills caches
    seconds = []
    changes = []
    for severity in SEVERITIES:
        errors = []
        for picture in pictures:
            for seed in range(repeats):
                start = time.perf_counter()
                result = function(picture, name, severity, seed)
                seconds.append(time.perf_counter() - start)
                errors.append(np.abs(result.astype(np.float64) - picture).mean())
        changes.append(float(np.mean(errors)))
    return 1000 * statistics.median(seconds), changes


def main(argv: list[str] | None = None) -> dict[str, dict[str, tuple[float, list[float]]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224, help="Side of the pictures in pixels.")
    parser.add_argument("--repeats", type=int, default=5, help="Seeds for each picture and severity.")
    args = parser.parse_args(argv)
    functions = {"ours": ours} | ({"imagecorruptions-imaug": other} if (other := reference()) else {})
    pictures = photographs(args.side)
    titles = [f"{title} ({label})" for title in ("ms", "change at severity 1 to 5") for label in functions]
    print(f"| corruption | {' | '.join(titles)} |")
    print("|---" * (len(titles) + 1) + "|")
    results = {}
    for name in CORRUPTIONS:
        results[name] = {
            label: measure(function, pictures, name, args.repeats) for label, function in functions.items()
        }
        times = [f"{milliseconds:.1f}" for milliseconds, _ in results[name].values()]
        changes = [" ".join(f"{change:.1f}" for change in row) for _, row in results[name].values()]
        print(f"| {name} | {' | '.join(times + changes)} |", flush=True)
    medians = [statistics.median(results[name][label][0] for name in CORRUPTIONS) for label in functions]
    print(f"| median | {' | '.join([f'{median:.1f}' for median in medians] + [''] * len(functions))} |")
    return results


if __name__ == "__main__":
    main()
