"""Cases of one test, of which a few run always and the others with the slow tests."""

import pytest


def others_slow(cases, quick):
    """The parameters of a test: those named in `quick` run always; the others of their kind take minutes together."""
    names = [getattr(case, "__name__", case) for case in cases]
    missing = sorted(set(quick) - set(names))
    if missing:
        raise ValueError(f"Not among the cases {names}: {missing}.")
    return [
        pytest.param(case, id=name, marks=() if name in quick else pytest.mark.slow)
        for case, name in zip(cases, names, strict=True)
    ]
