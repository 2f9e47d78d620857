"""Trainers of tiny models, and what their tests compare."""

import copy

import torch

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments


def arguments(folder, args_class=NullspaceTrainingArguments, **changes):
    values = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "noise_refresh_steps": 3,
        "noise_method": "boundary",
        "noise_max_steps": 4,
        "noise_num_images": 32,
        "noise_num_certificate_images": 16,
        "noise_limit": 1.0,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return args_class(str(folder), **{**values, **changes})


def build(model, examples, args, trainer_class=NullspaceTrainer, **changes):
    return trainer_class(
        copy.deepcopy(model),
        args,
        NullspaceDataCollator(),
        **{"train_dataset": examples, "eval_dataset": examples[:10], **changes},
    )


class Following(NullspaceTrainer):
    """Remembers the sum of each image that it trained on, by step."""

    seen = ()

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*self.seen, (self.state.global_step, inputs["pixel_values"].sum((1, 2, 3)).tolist())]
        return super().training_step(model, inputs, num_items_in_batch)


def assert_same_weights(first, second, atol=0.0):
    for (name, left), right in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol, msg=name)


def batch_of(examples, count=8):
    return NullspaceDataCollator()(examples[:count])
