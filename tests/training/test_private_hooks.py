"""The private methods of `Trainer` that the package overrides: no more than these, each until the day its line names."""

import importlib
import pkgutil

from transformers import Trainer

import hf_nullspace


# A hook, and when it can go.
HOOKS = {
    "_init_training_state": "when `Trainer` takes the place in the data that a resumed run goes on from, and says that a "
    "run begins before its first batch is read",
    "_save_checkpoint": "when `Trainer` marks a checkpoint as whole, and counts those of one run by their steps",
    "_push_from_checkpoint": "when `Trainer` pushes a list of files instead of a folder, without `training_args.bin`",
    "_load_from_checkpoint": "when `Trainer` converts the names of weights as `from_pretrained` does",
    "_load_best_model": "when `Trainer` converts the names of weights as `from_pretrained` does, and calls back when the "
    "best model is there",
}


def trainers():
    """The package's subclasses of `Trainer`."""
    for module in pkgutil.walk_packages(hf_nullspace.__path__, "hf_nullspace."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Trainer) and value.__module__ == module.name:
                yield value


def overridden(names):
    """Of some names of `Trainer` those that a trainer of the package defines anew."""
    own = {name for trainer in trainers() for name in vars(trainer)}
    return own & set(names)


def test_no_other_private_methods_are_overridden():
    private = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")}
    assert overridden(private) == set(HOOKS)
    assert len(HOOKS) <= 5


def test_the_code_says_when_each_can_go():
    for name in HOOKS:
        first = next(trainer for trainer in trainers() if name in vars(trainer) and Trainer in trainer.__bases__)
        assert "Goes when" in (vars(first)[name].__doc__ or ""), f"{first.__name__}.{name}"
