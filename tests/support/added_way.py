"""A way of finetuning from outside the package: some of the images are trained on upside down."""

from dataclasses import dataclass, field

from hf_nullspace import NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.baselines import Way, register_way


@dataclass
class FlippedTrainingArguments(NullspaceTrainingArguments):
    """Arguments of [`FlippedTrainer`]."""

    flipped_images: int = field(default=4, metadata={"help": "Images of a batch that are turned upside down."})

    def __post_init__(self):
        super().__post_init__()
        if self.flipped_images < 1:
            raise ValueError(f"`flipped_images` must be at least 1, but got {self.flipped_images!r}.")


class FlippedTrainer(NullspaceTrainer):
    """Turns the first images of each training batch upside down."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            images, count = inputs["pixel_values"].clone(), self.args.flipped_images
            images[:count] = images[:count].flip(-2)
            inputs = {**inputs, "pixel_values": images}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


register_way(
    Way(
        "flipped",
        "some of the images upside down",
        1.0,
        FlippedTrainer,
        FlippedTrainingArguments,
        fixed_arguments={"noise_weight": 0.0},
    )
)
