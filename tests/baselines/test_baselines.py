"""Controls in the trainer: the budget and the rounds of nullspace finetuning, on other noise."""

import copy

import pytest
import torch
from trainer_runs import arguments, assert_same_weights, batch_of, build
from transformers import Trainer, ViTImageProcessorPil

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, inject_noise
from hf_nullspace.baselines import WAYS
from hf_nullspace.baselines.controls import GaussianNoiseTrainer, PermutedNoiseTrainer
from hf_nullspace.noise.controls import permuted_control
from hf_nullspace.utils.random import keyed_generator


CONTROLS = pytest.mark.parametrize("trainer_class", [PermutedNoiseTrainer, GaussianNoiseTrainer])


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


def strict(folder, **changes):
    """Arguments under which no control is certified by accident."""
    return arguments(folder, epsilon=1e-3, noise_method="boundary", seed=2, **changes)


@CONTROLS
def test_rounds_are_those_of_the_method_and_their_noise_of_its_norm(model, examples, tmp_path, trainer_class):
    control = build(model, examples, strict(tmp_path / "a"), trainer_class)
    method = build(model, examples, strict(tmp_path / "b"))
    control.train(), method.train()
    rows, source = control.noise_history, method.noise_history
    assert [(row["round"], row["step"]) for row in rows] == [(row["round"], row["step"]) for row in source]
    for name in ("norm", "probability_mse", "converged"):  # the same weights in round 0, others from then on
        assert rows[0][f"source_{name}"] == source[0][name]
    for row in rows:
        assert row["source_in_use"] and not row["in_use"]
        assert row["source_probability_mse"] <= 1e-3 < row["probability_mse"]
    assert {"source_norm", "norm"} <= rows[-1].keys()
    logged = [row["noise/probability_mse"] for row in control.state.log_history if "noise/norm" in row]
    assert logged == [row["probability_mse"] for row in rows]


def test_first_control_is_the_permutation_of_the_noise_of_the_same_weights(model, examples, tmp_path):
    control = build(model, examples, strict(tmp_path / "a"), PermutedNoiseTrainer)
    method = build(model, examples, strict(tmp_path / "b"))
    state = torch.get_rng_state()
    control._refresh_noise(control.model), method._refresh_noise(method.model)
    assert torch.equal(torch.get_rng_state(), state)
    found, noise = control.noise.tensor, method.noise.tensor
    generator = keyed_generator("PermutedNoiseTrainer", control.args.seed, 0, 0)
    assert torch.equal(found, permuted_control(noise, generator))
    assert found.norm().item() == pytest.approx(noise.norm().item(), rel=1e-6)


@CONTROLS
def test_loss_is_clean_plus_that_under_the_control(model, examples, tmp_path, trainer_class):
    trainer = build(model, examples, strict(tmp_path, noise_weight=0.5), trainer_class)
    trainer._refresh_noise(trainer.model)
    assert not trainer.noise.converged
    batch, model = batch_of(examples), trainer.model.train()
    clean = model(**batch).loss
    with inject_noise(model, trainer.noise.tensor):
        noisy = model(**batch).loss
    loss = trainer.training_step(model, batch)
    torch.testing.assert_close(loss, clean + 0.5 * noisy, rtol=0, atol=1e-6)
    assert abs(noisy - clean) > 1e-3


@pytest.mark.parametrize("save_steps", [2, 3])
def test_resumed_run_is_bitwise_the_uninterrupted_one(model, examples, tmp_path, save_steps):
    changes = {"save_strategy": "steps", "save_steps": save_steps}
    whole, resumed = (
        build(model, examples, strict(tmp_path / name, **changes), PermutedNoiseTrainer) for name in "ab"
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{save_steps}"))
    assert_same_weights(whole.model, resumed.model)
    assert torch.equal(whole.noise.tensor, resumed.noise.tensor)
    rows = [[{**row, "seconds": 0} for row in trainer.noise_history] for trainer in (whole, resumed)]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    clean = build(model, examples, arguments(tmp_path / "c", noise_weight=0.0))
    clean.train()
    with pytest.raises(AssertionError):
        assert_same_weights(whole.model, clean.model, atol=1e-5)


def test_a_round_without_certified_noise_trains_plainly_and_resumes_so(model, examples, tmp_path):
    changes = {"epsilon": 1e-12, "noise_on_failure": "skip", "noise_method": "paper"}
    changes = {**changes, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = (
        build(model, examples, arguments(tmp_path / name, **changes), PermutedNoiseTrainer) for name in "ab"
    )
    plain = build(model, examples, arguments(tmp_path / "c"), Trainer)
    whole.train(), plain.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert [row["source_in_use"] for row in resumed.noise_history] == [False, False]
    assert_same_weights(whole.model, plain.model)
    assert_same_weights(resumed.model, plain.model)


def test_a_harmless_control_does_not_replace_a_noise_that_failed(model, examples, tmp_path):
    """Whether a round trains depends on the nullspace noise alone."""
    trainer = build(model, examples, arguments(tmp_path, epsilon=1.9), PermutedNoiseTrainer)
    trainer._refresh_noise(trainer.model)
    assert trainer.noise.is_usable and trainer.noise_schedule.is_in_use
    trainer.noise_history[-1]["source_in_use"] = False
    assert not trainer.noise_schedule.is_in_use


CARDS = {
    "plain": "it saw clean images alone.",
    "permuted": "nullspace noise with its elements permuted",
    "gaussian": "Gaussian noise of the norm of nullspace noise",
    "nullspace": "noise from the approximate nullspace of its own encoder",
    "neftune": "uniform noise on the patch embeddings (NEFTune, alpha 5)",
    "freelb": "adversarial perturbations of the patch embeddings (FreeLB, 2 steps, L2 4)",
    "sam": "it minimised the loss of the worst weights nearby (SAM, rho 0.05).",
    "nfgsm": "adversarial examples of its training images (N-FGSM, Linf 8/255, noise 2)",
    "pgd": r"adversarial examples of its training images (PGD, Linf 8/255)",
    "trades": "an adversarial example of it (TRADES, Linf 8/255, beta 6)",
}


def test_every_way_trains_as_the_table_says(model, make_pictures, tmp_path):
    pictures = make_pictures(16)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    common = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "noise_method": "boundary",
        "noise_max_steps": 2,
        "noise_num_images": 8,
        "noise_num_certificate_images": 8,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    weights = {}
    for name, way in WAYS.items():
        trainer = way.trainer_class(
            copy.deepcopy(model),
            way.arguments(str(tmp_path / name), **common),
            data_collator=NullspaceDataCollator(),
            train_dataset=pictures,
            processing_class=processor,
        )
        trainer.train()
        weights[name] = trainer.model.classifier.weight.detach()
        assert isinstance(trainer, NullspaceTrainer)
        assert (trainer.noise is not None) == (name in ("permuted", "gaussian", "nullspace"))
        trainer.create_model_card()
        card = (tmp_path / name / "README.md").read_text()
        assert CARDS[name] in card.replace("\n", " ")
        assert ("Control of nullspace finetuning" in card) == (name != "nullspace")
        assert ("inject_noise" in card) == (trainer.noise is not None)
    names = list(WAYS)
    assert names == [
        *("plain", "permuted", "gaussian", "nullspace"),
        *("neftune", "freelb", "sam", "nfgsm", "pgd", "trades"),
    ]
    for index, name in enumerate(names):
        assert not any(torch.equal(weights[name], weights[other]) for other in names[:index]), name
