"""An attack as another package would add it: it dims pictures step by step, and reports how far it went."""

import torch

from hf_nullspace.robustness.attacks import Attack, parse_epsilon, register_attack
from hf_nullspace.robustness.attacks.search import attack_correct, is_right


def darken(model, pixels, labels, epsilon=0.5, *, steps=4, seed=42, indices=None):
    """The least dimmed picture that the model misclassifies, and how much darker it is."""
    if steps < 1:
        raise ValueError(f"`steps` of the dimming must be 1 or more, but got {steps}.")
    radius = parse_epsilon(epsilon)

    def search(clean, labels, places):
        attacked = clean.clone()
        for step in range(1, steps + 1):
            with torch.no_grad():
                resists = is_right(model(attacked), labels)
            attacked[resists] = (clean[resists] - radius * step / steps).clamp(0, 1)
        return attacked

    attacked = attack_correct(search, model, pixels, labels, indices)
    return attacked, {"dimmed": (pixels - attacked).flatten(1).amax(1)}


register_attack(
    Attack(
        "darken",
        darken,
        "Dims pictures until they are misclassified.",
        radii={"Linf": 0.5},
        reports={"dimmed": "mean dimming"},
        packages={"PIL": "pillow"},
    )
)
