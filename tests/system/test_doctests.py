"""The examples of the docstrings run, with a tiny model in place of the reader's own."""

import ast
import doctest
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import Trainer, TrainingArguments, ViTImageProcessorPil
from wings import PACKAGE, module_names


BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)
# They need the Hub, or a dataset that is not at hand, or add something for the whole process.
SKIPPED = {
    "hub.verification",
    "data.robustness_datasets",
    "data.dataset_spec",
    "robustness.attacks.base",
    "robustness.corruptions.base",
}


class AnyOutputWhereNoneIsStated(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def examples_of(path: Path) -> list[str]:
    """The blocks of code in the docstrings of a file that show a session."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = [ast.get_docstring(node) or "" for node in documented]
    return [match[2] for text in docstrings for match in BLOCK.finditer(text) if ">>>" in match[2]]


EXAMPLES = {
    f"{name}:{place}": (name, text)
    for name, path in module_names().items()
    for place, text in enumerate(examples_of(path))
}


def failures_of(name: str, text: str, names: dict[str, Any]) -> int:
    """How many lines of an example, of the module of this name, do not give what they say."""
    module = importlib.import_module(f"{PACKAGE.name}.{name}" if name else PACKAGE.name)
    test = doctest.DocTestParser().get_doctest(text, {**names, **vars(module)}, name, None, None)
    runner = doctest.DocTestRunner(AnyOutputWhereNoneIsStated(), optionflags=doctest.FAIL_FAST)
    return runner.run(test).failed


@pytest.fixture
def names(make_vit, make_examples, make_batches, tmp_path, monkeypatch) -> dict[str, Any]:
    """What the reader of an example is said to have."""
    monkeypatch.chdir(tmp_path)
    pictures = [Image.effect_noise((16, 16), 60).convert("RGB") for _ in range(16)]
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / "photos" / ("cat", "dog")[index % 2] / f"{index}.png")
    classes = ["cat", "dog"]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
    return {
        "vision_model": make_vit().vit,
        "model": make_vit(
            classifier_scale=20.0,
            initializer_range=0.2,
            num_labels=2,
            id2label=dict(enumerate(classes)),
            label2id={"cat": 0, "dog": 1},
        ),
        "image_processor": ViTImageProcessorPil(size={"height": 16, "width": 16}),
        "dataset": Dataset.from_dict({"image": pictures, "label": [0, 1] * 8}, features=features),
        "train_dataset": make_examples(64, num_labels=2),
        "dataloader": make_batches(600, 32),
        "pixel_values": torch.rand(2, 3, 16, 16),
        "pixels": torch.rand(2, 3, 16, 16),
        "noise": torch.zeros(1, 4, 32),
        "Trainer": Trainer,
        "args": TrainingArguments(tmp_path / "out", max_steps=2, use_cpu=True, report_to="none"),
        "text_embeds": torch.eye(32)[:3],
        "clip": SimpleNamespace(logit_scale=torch.tensor(1.0)),
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, names):
    module, text = EXAMPLES[name]
    assert failures_of(module, text, names) == 0
    assert ("+SKIP" in text) == (module in SKIPPED), "an example that can run should run"


def test_a_wrong_example_is_found(names):
    assert failures_of("", ">>> 1 + 1\n3\n", names) == 1
    assert failures_of("", ">>> 1 + 1\n2\n>>> print('words')\n", names) == 0
