"""
What works in `Trainer` works in `NullspaceTrainer`: the same scenarios through both, bit for bit without noise.

With noise each scenario runs, and ends with other weights; what does not work is refused by the constructor.
"""

import copy
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset as Table
from quick_cases import others_slow
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from trainer_runs import arguments
from transformers import (
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainerCallback,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import HPSearchBackend

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer


ROOT = Path(__file__).parents[2]
STEPS = 4
WEIGHTS = torch.tensor([9.0, 1.0, 0.1, 3.0, 1.0])


class Scenario(SimpleNamespace):
    """
    What both trainers are built from: a model, arguments, examples, a collator, further parameters of the trainer, how a
    trainer class is subclassed, and how it is run.
    """

    def __init__(self, model, examples):
        super().__init__(
            model=model, args={}, examples=examples, collator=NullspaceDataCollator(), trainer={}, mixin=None, run=None
        )

    def build(self, trainer_class, folder, noise_weight):
        if self.mixin is not None:
            trainer_class = type("Own", (self.mixin, trainer_class), {})
        values = {
            "max_steps": STEPS,
            "per_device_eval_batch_size": 8,
            "noise_weight": noise_weight,
            "noise_refresh_steps": 2,
            "noise_num_images": 16,
            "noise_num_certificate_images": 8,
            "epsilon": 1.5,  # the few images of a test can certify no smaller one
        }
        args = arguments(folder, **{**values, **self.args})
        given = {"train_dataset": self.examples, "eval_dataset": self.examples[:10], **self.trainer}
        if callable(given.get("callbacks")):
            given["callbacks"] = given["callbacks"]()
        if "model_init" not in given:
            given["model"] = copy.deepcopy(self.model)
            if callable(given.get("optimizers")):
                given["optimizers"] = given["optimizers"](given["model"])
        set_seed(0)
        return trainer_class(args=args, data_collator=self.collator, **given)


def columns_collator(*names, rename=None):
    """Stacks these columns as they are."""

    def collate(examples):
        batch = {name: torch.stack([torch.as_tensor(example[name]) for example in examples]) for name in names}
        return {(rename or {}).get(name, name): value for name, value in batch.items()}

    return collate


class Plain(nn.Module):
    """A classifier that is nothing but a module."""

    output = "dict"

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.mixer = nn.TransformerEncoderLayer(32, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, pixel_values, labels=None):
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        logits = self.head(self.mixer(tokens).mean(1))
        loss = None if labels is None else cross_entropy(logits, labels, weight=WEIGHTS)
        if self.output == "logits":
            return logits
        if self.output == "tuple":
            return (logits,) if loss is None else (loss, logits)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class NetConfig(PreTrainedConfig):
    model_type = "net"


class Net(PreTrainedModel):
    """A model of one's own, whose name is in no table of losses."""

    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.net = Plain()
        self.post_init()

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(**self.net(pixel_values, labels))


class PlainTuple(Plain):
    output = "tuple"


class PlainLogits(Plain):
    output = "logits"


# ---- Losses -----------------------------------------------------------------------------------------------------


class PopsWeights:
    """A loss of its own, which reads a column that the model does not know."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights, labels = inputs.pop("sample_weight"), inputs.pop("labels")
        outputs = model(**inputs)
        loss = (cross_entropy(outputs.logits, labels, reduction="none") * weights).mean()
        return (loss, outputs) if return_outputs else loss


class RunsTwice:
    """R-Drop: two passes over one batch, and the divergence between them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        first, second = model(**inputs), model(**inputs)
        loss = cross_entropy(first.logits, labels) + (first.logits - second.logits).square().mean()
        return (loss, first) if return_outputs else loss


class AddsPenalty:
    """Asks its parent for the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + 0.1 * outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


def own_loss_pops_a_column(scenario):
    for index, example in enumerate(scenario.examples):
        example["sample_weight"] = float(index % 3)
    scenario.collator = columns_collator("pixel_values", "label", "sample_weight", rename={"label": "labels"})
    scenario.mixin, scenario.args = PopsWeights, {"remove_unused_columns": False}


def own_loss_runs_the_model_twice(scenario):
    scenario.mixin = RunsTwice


def own_loss_asks_the_parent(scenario):
    scenario.mixin, scenario.args = AddsPenalty, {"gradient_accumulation_steps": 2}


def compute_loss_func(scenario):
    scenario.trainer["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: cross_entropy(
        outputs["logits"], labels, weight=WEIGHTS
    )


def class_weights_in_the_loss_function(scenario):
    scenario.model.loss_function = lambda labels, logits, config, **kwargs: cross_entropy(
        logits, labels, weight=WEIGHTS
    )


def class_weights_in_a_method(scenario):
    class Weighted(type(scenario.model)):
        def loss_function(self, labels, logits, config, **kwargs):
            return cross_entropy(logits, labels, weight=WEIGHTS)

    scenario.model.__class__ = Weighted


def class_weights_in_the_forward_pass(scenario):
    class Weighted(type(scenario.model)):
        def forward(self, pixel_values, labels=None, **kwargs):
            outputs = super().forward(pixel_values, **kwargs)
            if labels is not None:
                outputs["loss"] = cross_entropy(outputs["logits"], labels, weight=WEIGHTS)
            return outputs

    scenario.model.__class__ = Weighted


def label_smoothing(scenario):
    scenario.args = {"label_smoothing_factor": 0.1}


def soft_labels_with_a_loss(scenario):
    generator = torch.Generator().manual_seed(0)
    for example in scenario.examples:
        example["label"] = torch.rand(5, generator=generator).softmax(0)
    scenario.trainer["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: cross_entropy(
        outputs["logits"], labels
    )


def several_labels(scenario):
    for index, example in enumerate(scenario.examples):
        example["label"] = torch.tensor([1.0, index % 2, 0.0, 1.0, index % 3 == 0])
    scenario.model.config.problem_type = "multi_label_classification"


# ---- Columns and outputs ----------------------------------------------------------------------------------------


class TakesTargets:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = cross_entropy(outputs.logits, inputs["targets"])
        return (loss, outputs) if return_outputs else loss


def label_names(scenario):
    for example in scenario.examples:
        example["targets"] = example.pop("label")
    scenario.collator = columns_collator("pixel_values", "targets")
    scenario.mixin, scenario.args = TakesTargets, {"label_names": ["targets"]}


def extra_columns_removed(scenario):
    for index, example in enumerate(scenario.examples):
        example |= {"idx": index, "file": f"{index}.png"}
    scenario.collator = lambda examples: columns_collator(*examples[0])(examples)
    for example in scenario.examples:
        example["labels"] = example.pop("label")


def extra_columns_kept(scenario):
    for index, example in enumerate(scenario.examples):
        example["idx"] = index
    scenario.collator = columns_collator("pixel_values", "label", "idx", rename={"label": "labels"})
    scenario.args = {"remove_unused_columns": False}


def table_with_transform(scenario):
    rows = {"image": [example["pixel_values"].tolist() for example in scenario.examples]}
    table = Table.from_dict(rows | {"label": [example["label"] for example in scenario.examples]})
    table.set_transform(lambda batch: {"pixel_values": torch.tensor(batch["image"]), "label": batch["label"]})
    scenario.args = {"remove_unused_columns": False}
    scenario.trainer = {"train_dataset": table, "eval_dataset": table}


def tuple_outputs(scenario):
    class Tuples(type(scenario.model)):
        def forward(self, pixel_values, labels=None, **kwargs):
            return super().forward(pixel_values, labels=labels, **kwargs).to_tuple()

    scenario.model.__class__ = Tuples


def plain_module(scenario):
    torch.manual_seed(0)
    scenario.model = Plain()


def pretrained_model_of_ones_own(scenario):
    torch.manual_seed(0)
    scenario.model = Net(NetConfig(num_labels=5))


def plain_module_with_tuples(scenario):
    torch.manual_seed(0)
    scenario.model = PlainTuple()


def plain_module_with_logits(scenario):
    torch.manual_seed(0)
    scenario.model = PlainLogits()
    scenario.args = {"prediction_loss_only": True}
    scenario.trainer["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: cross_entropy(
        outputs, labels
    )


class Stream(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


def stream(scenario):
    scenario.trainer = {"train_dataset": Stream(scenario.examples)}


# ---- How a run goes ---------------------------------------------------------------------------------------------


class Thawing(TrainerCallback):
    """Trains the head alone for two steps, then everything, then everything but the embeddings."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.vit.requires_grad_(False)

    def on_step_end(self, args, state, control, model, **kwargs):
        model.vit.requires_grad_(True)
        if state.global_step >= 3:
            model.vit.embeddings.requires_grad_(False)


def freezing_and_thawing(scenario):
    scenario.trainer["callbacks"] = lambda: [Thawing()]


def several_callbacks(scenario):
    scenario.trainer["callbacks"] = lambda: [EarlyStoppingCallback(3), Thawing()]
    scenario.args = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}


def accumulation(scenario):
    scenario.args = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 0.1}


def checkpointing_by_arguments(scenario):
    scenario.args = {"gradient_checkpointing": True}


def checkpointing_by_model(scenario):
    scenario.model.gradient_checkpointing_enable()


def neftune(scenario):
    scenario.args = {"neftune_noise_alpha": 5.0}


def several_evaluation_sets(scenario):
    sets = {"first": scenario.examples[:10], "second": scenario.examples[10:24]}
    scenario.trainer["eval_dataset"] = sets
    scenario.args = {"eval_strategy": "steps", "eval_steps": 2}

    def run(trainer):
        trainer.train()
        if isinstance(trainer, NullspaceTrainer) and trainer.noise is not None:
            certificates = trainer.evaluate_noise()
            assert {name: each.num_images for name, each in certificates.items()} == {"first": 10, "second": 14}

    scenario.run = run


def own_optimizer(scenario):
    def optimizers(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)

    scenario.trainer["optimizers"] = optimizers


def optimizer_class(scenario):
    scenario.trainer["optimizer_cls_and_kwargs"] = (torch.optim.SGD, {"lr": 0.05})


def bfloat16(scenario):
    scenario.args = {"bf16": True}


def float16(scenario):
    scenario.args = {"fp16": True}


def compiled(scenario):
    torch.compiler.reset()
    scenario.args = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


def compiled_by_inductor(scenario):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the default backend of `torch.compile` needs a C++ compiler")
    torch.compiler.reset()
    scenario.args = {"torch_compile": True}


def best_model_and_metrics(scenario):
    plain_module(scenario)  # `Trainer` does not restore the encoder of a ViT
    scenario.args = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "earliest",
        "eval_do_concat_batches": False,
    }
    calls = []

    def metrics(prediction):
        assert [len(each) for each in prediction.predictions] == [8, 2]
        calls.append(len(calls))
        return {"earliest": -len(calls)}

    scenario.trainer |= {
        "compute_metrics": metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }

    def run(trainer):
        trainer.train()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
        if isinstance(trainer, NullspaceTrainer) and trainer.noise is not None:
            assert trainer.noise.round_index == trainer.noise_history[-1]["round"] == 0

    scenario.run = run


def model_init(scenario):
    model = scenario.model
    scenario.trainer["model_init"] = lambda: copy.deepcopy(model)


def resumed(scenario):
    plain_module(scenario)  # `Trainer` does not restore the encoder of a ViT
    scenario.args = {"save_strategy": "steps", "save_steps": 2}

    def run(trainer):
        trainer.train()
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")

    scenario.run = run


def smaller_batches(scenario):
    scenario.args = {"auto_find_batch_size": True, "per_device_train_batch_size": 16, "noise_batch_size": 16}
    projection = scenario.model.vit.embeddings.patch_embeddings.projection

    class OutOfMemory(type(projection)):
        def forward(self, pixel_values):
            if len(pixel_values) > 8:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().forward(pixel_values)

    projection.__class__ = OutOfMemory


def search(scenario):
    """Two trials, set up as a backend would."""
    model = scenario.model
    scenario.trainer["model_init"] = lambda: copy.deepcopy(model)

    def run(trainer):
        for trial in (
            {"learning_rate": 1e-2, "noise_refresh_steps": 1, "seed": 7},
            {"learning_rate": 1e-3, "noise_refresh_steps": 4, "seed": 8, "noise_method": "sample", "epsilon": 1.2},
        ):
            trainer.hp_search_backend = HPSearchBackend.WANDB  # gives a trial's values as they are
            trainer._hp_search_setup(trial)
            trainer.hp_search_backend = None
            trainer.train()
            if isinstance(trainer, NullspaceTrainer) and trainer.args.noise_weight:
                assert len(trainer.noise_history) == STEPS // trial["noise_refresh_steps"]
                assert trainer.noise.config.seed == trial["seed"] == trainer.noise_schedule.seed
                assert trainer.noise.config.method == trial.get("noise_method", "boundary")
                assert trainer.noise.config.epsilon == trial.get("epsilon", 1.5)

    scenario.run = run


def adapter_with_saved_head(scenario):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    torch.manual_seed(0)
    scenario.model = peft.get_peft_model(scenario.model, config)


def adapter_and_frozen_head(scenario):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    scenario.model = peft.get_peft_model(scenario.model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


SCENARIOS = [
    own_loss_pops_a_column,
    own_loss_runs_the_model_twice,
    own_loss_asks_the_parent,
    compute_loss_func,
    class_weights_in_the_loss_function,
    class_weights_in_a_method,
    class_weights_in_the_forward_pass,
    label_smoothing,
    soft_labels_with_a_loss,
    several_labels,
    label_names,
    extra_columns_removed,
    extra_columns_kept,
    table_with_transform,
    tuple_outputs,
    plain_module,
    pretrained_model_of_ones_own,
    plain_module_with_tuples,
    plain_module_with_logits,
    stream,
    freezing_and_thawing,
    several_callbacks,
    accumulation,
    checkpointing_by_arguments,
    checkpointing_by_model,
    neftune,
    several_evaluation_sets,
    own_optimizer,
    optimizer_class,
    bfloat16,
    float16,
    compiled,
    compiled_by_inductor,
    best_model_and_metrics,
    model_init,
    resumed,
    smaller_batches,
    search,
    adapter_with_saved_head,
    adapter_and_frozen_head,
]
# One of each kind: a loss of one's own, labels, columns, a model of one's own, steps, precision, saving and adapters.
QUICK = {
    *(
        "own_loss_asks_the_parent",
        "class_weights_in_the_loss_function",
        "soft_labels_with_a_loss",
        "extra_columns_kept",
    ),
    *("plain_module", "stream", "accumulation", "checkpointing_by_arguments", "bfloat16", "best_model_and_metrics"),
    *("resumed", "adapter_with_saved_head"),
}


@pytest.fixture
def scenario(make_vit, make_examples):
    return Scenario(make_vit(classifier_scale=20), make_examples(32))


def run(scenario, trainer):
    (scenario.run or (lambda trainer: trainer.train()))(trainer)
    trainer.evaluate()
    names = ("loss", "grad_norm", "learning_rate", "eval_loss", "eval_first_loss", "eval_second_loss")
    losses = [{name: row[name] for name in names if name in row} for row in trainer.state.log_history]
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}, [
        row for row in losses if row
    ]


@pytest.mark.parametrize("prepare", others_slow(SCENARIOS, QUICK))
def test_what_works_in_trainer_works_here(scenario, prepare, tmp_path):
    prepare(scenario)
    weights, losses = run(scenario, scenario.build(Trainer, tmp_path / "trainer", 0.0))
    plain_weights, plain_losses = run(scenario, scenario.build(NullspaceTrainer, tmp_path / "plain", 0.0))
    assert plain_losses == losses and len(losses) > STEPS
    assert [name for name, weight in weights.items() if not torch.equal(weight, plain_weights[name])] == []
    trainer = scenario.build(NullspaceTrainer, tmp_path / "noise", 1.0)
    noisy_weights, noisy_losses = run(scenario, trainer)
    assert trainer.noise is not None and all(math.isfinite(row.get("loss", 0.0)) for row in noisy_losses)
    assert any("noise/loss" in row for row in trainer.state.log_history)
    assert any(not torch.equal(weight, noisy_weights[name]) for name, weight in weights.items())


# ---- What the constructor refuses -------------------------------------------------------------------------------


def adapter_without_saved_head(scenario):
    peft = pytest.importorskip("peft")
    scenario.model = peft.get_peft_model(scenario.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    scenario.model.base_model.model.classifier.requires_grad_(True)


def transform_of_a_removed_column(scenario):
    table_with_transform(scenario)
    scenario.args = {}


def transform_of_a_removed_column_for_evaluation(scenario):
    table_with_transform(scenario)
    scenario.args = {}
    scenario.trainer = {"eval_dataset": {"own": scenario.trainer["eval_dataset"]}}


def collator_of_a_removed_column(scenario):
    for example in scenario.examples:
        example["image"] = example.pop("pixel_values")
    scenario.collator = columns_collator("image", "label", rename={"image": "pixel_values", "label": "labels"})


def neftune_without_embeddings(scenario):
    config = SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=2, num_labels=5
    )
    scenario.model = SwinForImageClassification(config)
    scenario.args = {"neftune_noise_alpha": 5.0}


REMOVED = "Pass `remove_unused_columns=False` to the training arguments"


@pytest.mark.parametrize("noise_weight", [0.0, 1.0])
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (adapter_without_saved_head, r"`LoraConfig\(..., modules_to_save=\['classifier'\]\)`"),
        (transform_of_a_removed_column, f"The training set .*KeyError: 'image'.*{REMOVED}"),
        (transform_of_a_removed_column_for_evaluation, f"The evaluation own set .*'image'.*{REMOVED}"),
        (collator_of_a_removed_column, f"The training set .*'image'.*{REMOVED}"),
        (neftune_without_embeddings, "`neftune_noise_alpha` .*SwinForImageClassification give a `tuple`"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_work_is_refused(scenario, prepare, message, noise_weight, tmp_path):
    prepare(scenario)
    with pytest.raises(ValueError, match=message):
        scenario.build(NullspaceTrainer, tmp_path, noise_weight)


def test_inputs_of_another_name_are_refused_with_noise_alone(scenario, tmp_path):
    """`Trainer` feeds what the collator gives; noise needs to know the images."""

    class Renamed(Plain):
        def forward(self, x, labels=None):
            return super().forward(x, labels)

    scenario.model, scenario.args = Renamed(), {"remove_unused_columns": False}
    scenario.collator = columns_collator("pixel_values", "label", rename={"pixel_values": "x", "label": "labels"})
    run(scenario, scenario.build(NullspaceTrainer, tmp_path / "a", 0.0))
    with pytest.raises(ValueError, match=r"no `pixel_values`, only \['labels', 'x'\].*`noise_weight=0`"):
        scenario.build(NullspaceTrainer, tmp_path / "b", 1.0)


def test_a_forward_pass_that_needs_labels_is_refused(scenario, tmp_path):
    class Needy(Plain):
        def forward(self, pixel_values, labels):
            return super().forward(pixel_values, labels)

    scenario.model = Needy()
    with pytest.raises(ValueError, match=r"Needy.forward needs \['labels'\]"):
        scenario.build(NullspaceTrainer, tmp_path, 1.0)


def test_the_noise_of_neftune_is_said(scenario, tmp_path, caplog):
    neftune(scenario)
    scenario.build(NullspaceTrainer, tmp_path, 1.0)
    assert [message for message in caplog.messages if "clean loss is that of NEFTune" in message]


def test_a_weight_thawed_beside_an_adapter_is_said_when_it_is_not_saved(scenario, tmp_path, caplog):
    adapter_and_frozen_head(scenario)
    trainer = scenario.build(NullspaceTrainer, tmp_path, 0.0)
    trainer.model.base_model.model.classifier.bias.requires_grad_(True)
    trainer.save_model()
    assert [message for message in caplog.messages if "classifier.bias" in message and "PEFT does not save" in message]


def test_the_readmes_script_runs(scenario, tmp_path, monkeypatch):
    """The lines that its difference leaves, with a dataset whose transform reads another column."""
    block = re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S).group(1)
    script = "\n".join(line[1:] for line in block.splitlines() if not line.startswith("-"))
    rows = {"image": [example["pixel_values"].tolist() for example in scenario.examples[:16]]}
    table = Table.from_dict(rows | {"label": [example["label"] for example in scenario.examples[:16]]})
    names = {
        "model": scenario.model,
        "image_processor": ViTImageProcessorPil(size={"height": 16, "width": 16}),
        "dataset": {"train": table, "validation": table},
        "transform": lambda batch: {"pixel_values": torch.tensor(batch["image"]), "label": batch["label"]},
    }
    monkeypatch.chdir(tmp_path)
    exec(script.replace("learning_rate=1e-4", "learning_rate=1e-4, max_steps=1, use_cpu=True"), names)
    assert names["trainer"].noise is not None
    with pytest.raises(ValueError, match=REMOVED):
        exec(script.replace(", remove_unused_columns=False", ""), names)
