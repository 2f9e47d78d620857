"""A corruption as another package would add it."""

from hf_nullspace.robustness.corruptions import corruption


@corruption()
def darkness(pixels, severity, rng):
    """Dims the picture to black."""
    return pixels * (1 - severity / 5)
