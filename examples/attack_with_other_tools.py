#!/usr/bin/env python
"""
Attacks a Transformers classifier with torchattacks, foolbox and AutoAttack, whichever are installed, beside this
package's own attacks: all of them take a `PixelModel` as it is.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn.
A success is a picture whose predicted class changes; distances are means over all pictures.

    python examples/attack_with_other_tools.py --max_images 200
    python examples/attack_with_other_tools.py google/vit-base-patch16-224 --images photos --epsilon 1/255
"""

import argparse
import sys
from collections.abc import Callable

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.digits import train_digits_model
from hf_nullspace.data.digits import load_digits_splits
from hf_nullspace.data.pictures import read_pictures
from hf_nullspace.models.frozen import frozen
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm
from hf_nullspace.robustness.attacks.cw import cw_l2
from hf_nullspace.robustness.attacks.epsilon import parse_epsilon
from hf_nullspace.robustness.attacks.pgd import pgd_linf
from hf_nullspace.robustness.classifier_check import check_classifier


def by_torchattacks(name: str, settings: Callable[[float], dict[str, float]]) -> Callable:
    """An attack of torchattacks, with the settings that belong to a radius."""

    def attack(model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
        import torchattacks

        return getattr(torchattacks, name)(model, **settings(epsilon))(pixels, labels)

    return attack


def foolbox_pgd(model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1)), pixels, labels, epsilons=epsilon)[1]


def autoattack_apgd(model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, eps=epsilon, version="custom", attacks=["apgd-ce"], device=pixels.device, seed=42)
    return attack.run_standard_evaluation(pixels, labels)[0]


ATTACKS: dict[str, Callable] = {
    "FGSM of hf_nullspace": fgsm,
    "FGSM of torchattacks": by_torchattacks("FGSM", lambda epsilon: {"eps": epsilon}),
    "PGD of hf_nullspace": pgd_linf,
    "PGD of torchattacks": by_torchattacks("PGD", lambda epsilon: {"eps": epsilon, "alpha": epsilon / 4, "steps": 10}),
    "PGD of foolbox": foolbox_pgd,
    "APGD-CE of pyautoattack": autoattack_apgd,
    "CW of hf_nullspace": lambda model, pixels, labels, epsilon: cw_l2(model, pixels, labels),
    "CW of torchattacks": by_torchattacks("CW", lambda epsilon: {"c": 1, "steps": 50, "lr": 0.01}),
}


def main(argv: list[str]) -> dict[str, float]:
    parser = argparse.ArgumentParser("attack_with_other_tools.py")
    parser.add_argument("model_name_or_path", nargs="?", help="Hub id or folder. Default: a small ViT for digits.")
    parser.add_argument("--images", help="Folder of pictures; needed with a model of your own.")
    parser.add_argument("--max_images", type=int, default=32, help="Attack this many pictures.")
    parser.add_argument("--epsilon", default="4/255", help="Radius of the Linf ball, in pixel units; CW has none.")
    parser.add_argument("--digits_max_steps", type=int, default=400, help="Training steps of the digits model.")
    args = parser.parse_args(argv)
    epsilon = parse_epsilon(args.epsilon)
    set_seed(42)  # the other tools draw from the global generator

    # ---- Model and pictures ----
    if args.model_name_or_path is None:
        digits = load_digits_splits()
        model, processor = train_digits_model(digits, args.digits_max_steps)
        pictures = digits["test"][: args.max_images]["image"]
    elif args.images is None:
        parser.error("name a folder of pictures with --images")
    else:
        model = AutoModelForImageClassification.from_pretrained(args.model_name_or_path)
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
        pictures = read_pictures(args.images, args.max_images)

    # ---- Attacks ----
    rates = {}
    with frozen(PixelModel(model, processor)) as pixel_model:
        pixels = pixel_model.preprocessing.to_pixels(pictures)
        check_classifier(pixel_model, pixels)
        labels = pixel_model(pixels).argmax(-1)
        for name, attack in ATTACKS.items():
            try:
                attacked = attack(pixel_model, pixels, labels, epsilon)
            except ImportError as error:
                print(f"{name:25} skipped: `pip install {error.name}`")
                continue
            rates[name] = (pixel_model(attacked).argmax(-1) != labels).double().mean().item() * 100
            change = (attacked - pixels).flatten(1)
            print(
                f"{name:25} success {rates[name]:5.1f} %, largest change of a pixel {change.abs().max() * 255:6.2f}/255, "
                f"L2 {change.norm(dim=1).mean():.3f}"
            )
    return rates


if __name__ == "__main__":
    run_command("attack_with_other_tools.py", main, sys.argv[1:])
