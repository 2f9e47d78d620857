"""Adversarial trainers of tiny models."""

from trainer_runs import arguments, build
from transformers import ViTImageProcessorPil

from hf_nullspace.baselines.adversarial import AdversarialTrainingArguments


def processor(**changes):
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, **changes)


def adversarial(
    trainer_class, model, pictures, folder, image_processor=None, args_class=AdversarialTrainingArguments, **changes
):
    args = arguments(folder, args_class, **changes)
    return build(model, pictures, args, trainer_class, processing_class=image_processor or processor())
