"""AutoAttack, run by the package of its authors, with its settings checked and its warnings kept."""

from __future__ import annotations

import logging as python_logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.metadata import version as package_version
from types import ModuleType
from typing import Any

import torch
from transformers.utils import logging

from ...models.pixel_model import PixelModel
from ...utils.random import keyed_generator, preserved_random_state
from .base import Attack, register_attack
from .epsilon import parse_epsilon
from .search import attack_correct


logger = logging.get_logger(__name__)

# The radius where none is given: a ball of 8/255 is no ball at all in L2.
RADII = {"Linf": 8 / 255, "L2": 0.5}
# The targeted loss compares so many.
MIN_CLASSES = 4
TIERS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "fast": ("apgd-ce", "apgd-t")}
# Croce and Hein, 2020: (part of the ensemble, its setting, value); targets are capped by the number of classes.
REFERENCE = (
    ("apgd", "n_iter", 100),
    ("apgd", "n_restarts", 1),
    ("apgd_targeted", "n_iter", 100),
    ("apgd_targeted", "n_restarts", 1),
    ("apgd_targeted", "n_target_classes", 9),
    ("fab", "n_iter", 100),
    ("fab", "n_restarts", 1),
    ("fab", "n_target_classes", 9),
    ("square", "n_queries", 5000),
)
# Steps on an image that withstands it: targeted APGD and FAB for 9 classes, APGD-CE, and Square.
STEPS = 100 + 900 + 900 + 5000 // 3
# Field of the report -> words by which the package's warning is known.
WARNINGS = {
    "looks_randomized": "randomized defense",
    "looks_like_probabilities": "probability distribution",
    "looks_dynamic": "dynamic defense",
    "has_zero_gradients": "zero gradient",
    "square_helps": "Square Attack has decreased",
}


@dataclass
class AutoAttackReport:
    """
    What was run, and what the package warned of.

    Args:
        tier (`str`): `"standard"`, or `"fast"` for a subset that must not be called AutoAttack.
        attacks (`tuple[str, ...]`): The attacks of the tier.
        epsilon (`float`): Radius of the ball, in pixel units.
        norm (`str`): `"Linf"` or `"L2"`.
        num_targets (`int`): Target classes of the targeted attacks: 9, or all others where the model has fewer.
        package (`str`): Name and version of the package.
        looks_randomized (`bool`): Two forward passes differed.
        looks_like_probabilities (`bool`): The logits sum to 1.
        looks_dynamic (`bool`): The forward pass computes gradients.
        has_zero_gradients (`bool`): Some picture had none, so that attacks by gradient say little.
        square_helps (`bool`): The attack without gradients found more than those with, which suggests that they are
            masked.
        messages (`list[str]`): The warnings in the package's words, each once.
    """

    tier: str
    attacks: tuple[str, ...]
    epsilon: float
    norm: str
    num_targets: int
    package: str
    looks_randomized: bool = False
    looks_like_probabilities: bool = False
    looks_dynamic: bool = False
    has_zero_gradients: bool = False
    square_helps: bool = False
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Takes in a warning of the package."""
        for name, words in WARNINGS.items():
            if words in message:
                setattr(self, name, True)
        if message not in self.messages:
            self.messages.append(message)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for a report in JSON."""
        return asdict(self)


def run_autoattack(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | str | None = None,
    *,
    norm: str = "Linf",
    tier: str = "standard",
    batch_size: int = 1,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> tuple[torch.Tensor, AutoAttackReport]:
    """
    AutoAttack ([Croce and Hein, 2020](https://arxiv.org/abs/2003.01690)) as published: APGD-CE and targeted APGD and
    FAB with 100 iterations, the targeted ones for 9 classes, and Square with 5,000 queries.

    Needs the package of its authors: `pip install 'hf_nullspace[attacks]'`. Pictures that withstand all attacks come
    back unchanged.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        epsilon (`float` or `str`, *optional*): Radius of the ball, in pixel units. By default 8/255 for Linf and 0.5 for L2,
            which is the custom for 32x32 pixels and means less on larger pictures.
        norm (`str`, *optional*, defaults to `"Linf"`): `"Linf"` or `"L2"`.
        tier (`str`, *optional*, defaults to `"standard"`): `"standard"`, or `"fast"` for APGD-CE and targeted APGD
            alone, whose numbers are no AutoAttack numbers.
        batch_size (`int`, *optional*, defaults to 1): Pictures that the package sees at a time. It draws its random
            numbers for all of them at once, so beyond 1 a picture's result depends on its neighbours; several times
            faster on an accelerator.
        seed (`int`, *optional*, defaults to 42): Seed of the random starts.
        indices (`Sequence[int]`, *optional*): Place of each picture in its dataset, which its random numbers are drawn
            from. By default 0 to `batch_size - 1`.

    Returns:
        The attacked pictures, and an [`AutoAttackReport`].

    Raises:
        `ImportError`: If the package is missing.
        `ValueError`: If `norm` or `tier` is unknown, or the model has fewer than four classes, which the targeted loss
            needs.
        `RuntimeError`: If the installed package has other settings than the published ones.
    """
    package = _import_package()
    name = f"pyautoattack {package_version('pyautoattack')}"
    if norm not in RADII:
        raise ValueError(f'`norm` must be "Linf" or "L2", but got {norm!r}.')
    if tier not in TIERS:
        raise ValueError(f"`tier` must be one of {sorted(TIERS)}, but got {tier!r}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, but got {batch_size!r}.")
    epsilon = parse_epsilon(RADII[norm] if epsilon is None else epsilon, largest=1.0 if norm == "Linf" else math.inf)
    if len(pixels) == 0:
        return pixels.detach().clone(), AutoAttackReport(tier, TIERS[tier], epsilon, norm, 0, name)
    with torch.no_grad():
        num_classes = model(pixels[:1].detach()).shape[1]
    if num_classes < MIN_CLASSES:
        raise ValueError(
            f"AutoAttack's targeted loss compares {MIN_CLASSES} classes, but the model has {num_classes}. Use projected "
            "gradient descent instead."
        )
    num_targets = min(9, num_classes - 1)
    report = AutoAttackReport(tier, TIERS[tier], epsilon, norm, num_targets, name)

    def search(pixels: torch.Tensor, labels: torch.Tensor, indices: list[int]) -> torch.Tensor:
        attacked = []
        for first in range(0, len(pixels), batch_size):
            chunk = slice(first, first + batch_size)
            key = keyed_generator("attack-autoattack", seed, indices[first]).initial_seed()
            attack = _build(package, model, report, key, pixels.device)
            adversarial, _ = attack.run_standard_evaluation(pixels[chunk], labels[chunk], batch_size=batch_size)
            attacked.append(adversarial)
        return torch.cat(attacked)

    with preserved_random_state(), _recording(report), _preserved_trace(package):
        return attack_correct(search, model, pixels, labels, indices), report


@wraps(run_autoattack, assigned=(), updated=())
def autoattack(*args, **settings) -> torch.Tensor:
    """The attacked pictures of [`run_autoattack`], whose warnings are logged; see there."""
    attacked, report = run_autoattack(*args, **settings)
    for message in report.messages:
        logger.warning(f"AutoAttack: {message}")
    return attacked


def _import_package() -> ModuleType:
    try:
        import pyautoattack
        import pyautoattack.checks
    except ImportError as error:
        raise ImportError("AutoAttack needs pyautoattack: `pip install 'hf_nullspace[attacks]'`.") from error
    return pyautoattack


def _build(package: ModuleType, model: PixelModel, report: AutoAttackReport, seed: int, device: torch.device) -> Any:
    """The package's ensemble, with the published settings; raises if it has others."""
    # "custom" takes a subset, and starts from five restarts, which "standard" lowers to one.
    options: dict[str, Any] = {"version": "standard"} if report.tier == "standard" else {"version": "custom"}
    if report.tier != "standard":
        options["attacks"] = list(report.attacks)
    attack = package.AutoAttack(model, norm=report.norm, eps=report.epsilon, seed=seed, device=device, **options)
    if report.tier != "standard":
        attack.apgd.n_restarts = attack.fab.n_restarts = 1
    found = {(part, setting): getattr(getattr(attack, part), setting) for part, setting, _ in REFERENCE}
    wrong = {
        f"{part}.{setting}": found[part, setting]
        for part, setting, value in REFERENCE
        if found[part, setting] != value
    }
    if wrong or tuple(attack.attacks_to_run) != report.attacks:
        raise RuntimeError(
            f"{report.package} differs from the published AutoAttack: {wrong}, attacks {attack.attacks_to_run}; expected "
            f"{REFERENCE} and {report.attacks}. Install pyautoattack 0.2.0."
        )
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = report.num_targets
    return attack


class _Recorder(python_logging.Handler):
    def __init__(self, report: AutoAttackReport):
        super().__init__(python_logging.WARNING)
        self.report = report

    def emit(self, record: python_logging.LogRecord) -> None:
        self.report.add(record.getMessage())


@contextmanager
def _recording(report: AutoAttackReport) -> Iterator[None]:
    """Sends the package's warnings to the report instead of the console."""
    package_logger = python_logging.getLogger("auto-attack")
    recorder = _Recorder(report)
    before = (package_logger.level, package_logger.propagate)
    package_logger.addHandler(recorder)
    package_logger.propagate = False
    package_logger.setLevel(python_logging.WARNING)
    try:
        yield
    finally:
        package_logger.removeHandler(recorder)
        package_logger.setLevel(before[0])
        package_logger.propagate = before[1]


@contextmanager
def _preserved_trace(package: ModuleType) -> Iterator[None]:
    """The package finds dynamic models with a trace function, and counts of earlier runs stay in a global."""
    trace = sys.gettrace()
    counts = package.checks.funcs
    counts.update(dict.fromkeys(counts, 0))
    try:
        yield
    finally:
        sys.settrace(trace)


class _AutoAttack(Attack):
    """[`autoattack`], whose warnings are those of its package, of a batch at a time."""

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(WARNINGS)

    def measure(
        self, model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, settings: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        attacked, report = run_autoattack(model, pixels, labels, **settings)
        flags = {kind: torch.full((len(pixels),), getattr(report, kind), dtype=torch.bool) for kind in WARNINGS}
        return attacked.detach(), flags

    def row(self, settings: Mapping[str, Any], outcomes: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {"tier": settings.get("tier", "standard"), "warnings": self.warned(outcomes)}

    def cells(self, row: Mapping[str, Any]) -> dict[str, str]:
        return {"tier": row["tier"], "warnings": ", ".join(row["warnings"]) or "none"} if "tier" in row else {}

    def warnings(self, name: str, row: Mapping[str, Any]) -> list[str]:
        if "has_zero_gradients" not in row.get("warnings", ()):
            return []
        return [f"{name}: AutoAttack found zero gradients; the model may look more robust than it is."]


register_attack(
    _AutoAttack(
        "autoattack",
        autoattack,
        "AutoAttack (Croce and Hein, 2020), by the package of its authors: thousands of passes for an image.",
        radii=RADII,
        steps=STEPS,
        packages={"pyautoattack": "hf_nullspace[attacks]"},
        min_classes=MIN_CLASSES,
        rehearsal=None,
    )
)
