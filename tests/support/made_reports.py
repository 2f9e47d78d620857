"""Reports with pictures, made without a model."""

import torch
from made_outcomes import made_outcomes

from hf_nullspace import RobustnessReport
from hf_nullspace.robustness.examples import Examples
from hf_nullspace.robustness.profiles import Profile


def made_report(columns, classes, labels, side=16, name="some/model") -> RobustnessReport:
    """A report of pictures of noise, the heaviest of all; every second picture is right, and all are in `clean`."""
    generator = torch.Generator().manual_seed(0)
    count = len(labels)
    correct = torch.arange(count) % 2 == 0
    predictions = torch.where(correct, labels, (labels + 1) % len(classes))
    confidence = torch.rand(count, generator=generator)
    outcomes = {
        column.name: made_outcomes(correct, prediction=predictions, confidence=confidence, label=labels)
        for column in columns
    }
    pictures = torch.randint(0, 256, (3, 3, side, side), generator=generator, dtype=torch.uint8)
    examples = Examples(classes=classes, command="hf-nullspace evaluate")
    for column in columns:
        examples.add(column.name, {"pictures": pictures, "places": torch.tensor([0, 1, 2])})
    run = {
        "model": "a" * 64,
        "datasets": {"evaluation": "b" * 64},
        "num_images": {"evaluation": count},
        "logits": {"evaluation": {"competing": len(classes), "all": len(classes)}},
        "preprocessing": {"resizing": {"none": ["evaluation"]}, "size": {"height": side}},
        "versions": {"torch": "2.6"},
        "batch_size": 3,
    }
    return RobustnessReport.of(name, Profile("mine", tuple(columns)), outcomes, {}, run, {"clean": 1.5}, examples)
