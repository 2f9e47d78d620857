"""In every precision and speed mode the noise reaches the logits as it does in plain fp32, and training goes on."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Trainer

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments, inject_noise
from hf_nullspace.models.injection import NoiseInjector


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def images(make_batches):
    return make_batches(8, 8)[0]["pixel_values"]


@pytest.fixture
def noise():
    return torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))


def build(model, examples, folder, **changes):
    values = {
        "max_steps": 5,
        "per_device_train_batch_size": 8,
        "noise_refresh_steps": 3,
        "noise_max_steps": 3,
        "noise_num_images": 16,
        "noise_num_certificate_images": 8,
        "optim": "sgd",
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = NullspaceTrainingArguments(str(folder), **{**values, **changes})
    return NullspaceTrainer(copy.deepcopy(model), args, NullspaceDataCollator(), examples)


def losses_of(trainer):
    """Losses of all steps: clean and noisy together, and the noisy ones alone."""
    trainer.train()
    rows = [row for row in trainer.state.log_history if "noise/loss" in row]
    return [row["loss"] for row in rows], [row["noise/loss"] for row in rows]


@pytest.fixture(scope="module")
def plain(make_vit, examples, tmp_path_factory):
    """The trainer after a plain fp32 run, and its losses."""
    trainer = build(make_vit(classifier_scale=20), examples, tmp_path_factory.mktemp("plain"))
    return trainer, losses_of(trainer)


@torch.no_grad()
def change_of(model, images, noise):
    """What the noise does to the logits."""
    clean = model(images).logits.float()
    with inject_noise(getattr(model, "_orig_mod", model), noise):
        return model(images).logits.float() - clean


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_noise_reaches_the_logits_under_autocast(model, images, noise, dtype, tolerance):
    expected = change_of(model, images, noise)
    with torch.autocast("cpu", dtype):
        found = change_of(model, images, noise)
    assert 0 < (found - expected).norm() / expected.norm() < tolerance


def test_noise_reaches_the_logits_in_channels_last(model, images, noise):
    expected = change_of(model, images, noise)
    found = change_of(model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last), noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_model_has_the_noise_and_no_graph_break(model, images, noise, backend):
    torch._dynamo.reset()
    NoiseInjector.attach(model)
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    noises = [noise, 2 * noise, noise.flip(1)]
    with torch.no_grad():
        for each in noises:  # the rounds of a run: new values, and a new tensor
            torch.testing.assert_close(
                change_of(compiled, images, each), change_of(twin, images, each), rtol=0, atol=1e-4
            )
    assert counter.frame_count == 2  # the gate shut, and the gate open
    explained = torch._dynamo.explain(twin)(images)
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


def test_compiled_training_is_the_eager_one(model, examples, tmp_path, plain):
    torch._dynamo.reset()
    model.config.problem_type = "single_label_classification"  # set by the first loss otherwise: compiles again
    changes = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = build(model, examples, tmp_path, **changes)
    torch._dynamo.utils.counters.clear()
    for left, right in zip(losses_of(compiled), plain[1], strict=True):
        assert left == pytest.approx(right, abs=1e-4)
    assert [row["step"] for row in compiled.noise_history] == [0, 3]
    counters = torch._dynamo.utils.counters
    assert sum(counters["graph_break"].values()) == 0, counters["graph_break"]
    # The second round of noise, and every further step, run what the first one compiled.
    assert counters["stats"]["unique_graphs"] == 2  # clean, and noisy


def test_code_that_was_compiled_for_a_control_is_not_run_for_the_treatment(model, examples, tmp_path, plain):
    """A model of the same class, without the hook that adds noise, is compiled and trained first."""
    model.config.problem_type = "single_label_classification"
    changes = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = build(model, examples, tmp_path, **changes)
    torch._dynamo.reset()
    build(model, examples, tmp_path, noise_weight=0.0, **changes).train()
    for left, right in zip(losses_of(compiled), plain[1], strict=True):
        assert left == pytest.approx(right, abs=1e-4)
    for left, right in zip(compiled.model.parameters(), plain[0].model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(model, examples, tmp_path, plain, use_reentrant):
    fields = NullspaceTrainingArguments.__dataclass_fields__
    name = "activation" if "activation_checkpointing" in fields else "gradient"  # as in Transformers 5.17
    changes = {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    checkpointed = build(model, examples, tmp_path, **changes)
    assert losses_of(checkpointed) == plain[1]
    for left, right in zip(checkpointed.model.parameters(), plain[0].model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes, tolerance",
    [({"bf16": True}, 0.05), ({"dataloader_num_workers": 1}, 0.0)],
    ids=["bf16", "workers"],
)
def test_losses_are_those_of_plain_training(model, examples, tmp_path, plain, changes, tolerance):
    found = losses_of(build(model, examples, tmp_path, **changes))
    for left, right in zip(found, plain[1], strict=True):
        assert left == pytest.approx(right, rel=tolerance, abs=0)
    assert (found == plain[1]) == (tolerance == 0)


def test_channels_last_trains_as_before(model, examples, tmp_path, plain):
    trainer = build(model.to(memory_format=torch.channels_last), examples, tmp_path)
    for left, right in zip(losses_of(trainer), plain[1], strict=True):
        assert left == pytest.approx(right, abs=1e-4)


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], lora_dropout=0.0
    )
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(model), config)


def test_noise_reaches_the_logits_through_lora(model, images, noise):
    # A fresh adapter changes nothing.
    torch.testing.assert_close(
        change_of(lora(model), images, noise), change_of(model, images, noise), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("method", [{}, {"noise_method": "sample"}], ids=["shared", "moved"])
def test_lora_trains_its_adapter_on_the_noise_and_resumes(model, examples, tmp_path, method):
    changes = {**method, "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.1}
    trainer = build(lora(model), examples, tmp_path / "a", **changes)
    frozen = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    _, noisy = losses_of(trainer)
    assert len(noisy) == 5
    weights = dict(trainer.model.named_parameters())
    assert all(torch.equal(weights[name], before) for name, before in frozen.items())
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in weights.items())

    resumed = build(lora(model), examples, tmp_path / "b", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_noise_makes_a_difference_to_training(model, examples, plain):
    """The check of the checks above: without noise the losses are others."""
    trainer, (both, noisy) = plain
    alone = Trainer(copy.deepcopy(model), trainer.args, NullspaceDataCollator(), examples)
    alone.train()
    losses = [row["loss"] for row in alone.state.log_history if "loss" in row]
    assert both[0] == pytest.approx(losses[0] + noisy[0], abs=1e-5)
    assert abs(noisy[0] - losses[0]) > 1e-3
