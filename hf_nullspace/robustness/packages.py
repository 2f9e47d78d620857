"""Which optional packages a profile needs, so that a missing one is said before anything is measured or trained."""

from __future__ import annotations

from importlib.util import find_spec

from .attacks import ATTACKS
from .corruptions import CORRUPTIONS
from .profiles import Profile


def needed_packages(profile: Profile) -> dict[tuple[str, str], list[str]]:
    """The columns that need each package; a package is given with what to install."""
    needs: dict[tuple[str, str], list[str]] = {}
    for column in profile.columns:
        if column.is_generated:
            for need in CORRUPTIONS[column.corruption].packages.items():
                needs.setdefault(need, []).append(column.name)
    for column in profile.columns:
        if column.attack is not None:
            for need in ATTACKS[column.attack].packages.items():
                needs.setdefault(need, []).append(column.name)
    return needs


def check_packages(profile: Profile) -> None:
    """
    Looks for the packages that a profile needs.

    Raises:
        `ImportError`: If a column needs a package that is not installed; the message names both, and what to install.
    """
    for (package, install), columns in needed_packages(profile).items():
        if find_spec(package) is None:
            named = ", ".join(columns[:4]) + (f" and {len(columns) - 4} more" if len(columns) > 4 else "")
            raise ImportError(
                f"Profile {profile.name!r} needs {package} for {named}: `pip install '{install}'`. Or choose a profile "
                "without these columns."
            )
