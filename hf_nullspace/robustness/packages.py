"""Which optional packages a profile needs, so that a missing one is said before anything is measured or trained."""

from __future__ import annotations

from importlib.util import find_spec

from .profiles import IMAGENET_C, Profile


# The corruptions that are computed without scipy.
WITHOUT_SCIPY = frozenset(
    (
        *("gaussian_noise", "shot_noise", "impulse_noise", "zoom_blur", "fog", "brightness", "contrast"),
        *("pixelate", "jpeg_compression"),
    )
)


def check_packages(profile: Profile) -> None:
    """
    Raises:
        `ImportError`: If a column needs a package that is not installed; the message names both, and the extra.
    """
    generated = [
        column for column in profile.columns if column.corruption is not None and column.dataset != IMAGENET_C
    ]
    needs = {
        ("scipy", "eval"): [column.name for column in generated if column.corruption not in WITHOUT_SCIPY],
        ("pyautoattack", "attacks"): [column.name for column in profile.columns if column.attack == "autoattack"],
    }
    for (package, extra), columns in needs.items():
        if columns and find_spec(package) is None:
            named = ", ".join(columns[:4]) + (f" and {len(columns) - 4} more" if len(columns) > 4 else "")
            raise ImportError(
                f"Profile {profile.name!r} needs {package} for {named}: `pip install 'hf_nullspace[{extra}]'`. Or choose "
                "a profile without these columns."
            )
