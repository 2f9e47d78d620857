"""A noise method is one class in one module, which need not be of the package: synthesis, trainer, card and commands take it."""

import added_noise_method
import pytest
import torch
from trainer_runs import arguments, assert_same_weights, build

from hf_nullspace import NullspaceConfig, NullspaceNoise, NullspaceTrainingArguments, measure_noise, synthesize_noise
from hf_nullspace.cli.main import main
from hf_nullspace.noise.methods import NOISE_METHODS, NoiseMethod, register


def is_flat(noise):
    return torch.allclose(noise.tensor, noise.tensor[:, :1].expand_as(noise.tensor)) and noise.tensor.norm() > 0


def test_it_is_synthesised_certified_and_saved(make_vit, make_batches, tmp_path):
    model, batches = make_vit(classifier_scale=2.0, initializer_range=0.2), make_batches(96, 16)
    config = NullspaceConfig(method="flat", epsilon=0.1, num_images=16, num_certificate_images=80)
    noise = synthesize_noise(model, batches, config, disable_tqdm=True)
    assert is_flat(noise) and noise.certificate.steps == config.max_steps == 3
    # Scaled to the boundary of epsilon, whatever norm it was found at.
    assert noise.converged and 0.9 * config.epsilon < noise.certificate.probability_mse_upper <= config.epsilon
    noise.save_pretrained(tmp_path)
    loaded = NullspaceNoise.from_pretrained(tmp_path)
    assert loaded.config == config and torch.equal(loaded.tensor, noise.tensor)
    assert measure_noise(model, loaded, batches).norm == pytest.approx(noise.certificate.norm)


def test_the_trainer_trains_on_it_and_resumes(make_vit, examples, tmp_path):
    options = {"noise_method": "flat", "noise_max_steps": None, "epsilon": 0.1, "noise_ascent": None}
    whole = build(make_vit(), examples, arguments(tmp_path / "a", save_strategy="steps", save_steps=4, **options))
    assert (whole.args.noise_ascent, whole.args.nullspace_config().max_steps) == (0.0, 3)
    whole.train()
    assert [row["steps"] for row in whole.noise_history] == [3, 3] and is_flat(whole.noise)
    resumed = build(make_vit(), examples, arguments(tmp_path / "b", **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert torch.equal(resumed.noise.tensor, whole.noise.tensor)
    assert_same_weights(resumed.model, whole.model)
    whole.create_model_card(dataset="random")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert any("method" in line and "flat" in line for line in card.splitlines())


def test_the_command_line_takes_it(tmp_path, capsys):
    quick = ["--digits_max_steps", "5", "--num_images", "32", "--num_certificate_images", "16"]
    main(["synthesize", "--method", "flat", "--noise_limit", "2", *quick, "--output_dir", str(tmp_path)])
    assert is_flat(NullspaceNoise.from_pretrained(tmp_path))
    capsys.readouterr()
    for command in ("synthesize", "finetune"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert stop.value.code == 0
        assert "`flat` puts one random vector on all tokens" in text and "3 for `flat`" in text
        assert "Read by `flat` and `paper`" in text or "Read by `paper` and `flat`" in text


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["synthesize", "--method", "flat", "--noise_limit", "9"],
            "`--noise_limit` must be at most 5 with `--method flat`",
        ),
        (
            ["finetune", "--noise_method", "flat", "--noise_limit", "9"],
            "`--noise_limit` must be at most 5 with `--noise_method flat`",
        ),
        (
            ["synthesize", "--method", "flat", "--norm_weight", "1"],
            "`--norm_weight` does nothing with `--method flat`: it is for paper",
        ),
        (
            ["finetune", "--noise_method", "boundary", "--noise_limit", "1"],
            "`--noise_limit` does nothing with `--noise_method boundary`: it is for paper and flat",
        ),
        (["finetune", "--noise_method", "flat", "--noise_ascent", "3"], "but the method is 'flat'"),
    ],
)
def test_its_errors_are_as_clear_as_those_of_the_others(argv, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--output_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_name_that_is_not_registered_is_refused_with_the_way_to_register_it():
    with pytest.raises(ValueError, match="`method` must be one of .*'flat'.* but got 'flatt'.*module is imported"):
        NullspaceConfig(method="flatt")
    with pytest.raises(ValueError, match="`noise_method` must be one of .*'flat'.* but got 'flatt'"):
        NullspaceTrainingArguments("out", noise_method="flatt", use_cpu=True)


def test_what_is_no_method_is_not_registered():
    known = dict(NOISE_METHODS)
    assert register(added_noise_method.FlatMethod) is added_noise_method.FlatMethod  # its module was read again
    with pytest.raises(TypeError, match="derived from `NoiseMethod`.*dict"):
        register(dict)
    with pytest.raises(TypeError, match=r"`Nameless` has no \['name', 'help', 'max_steps'\]"):
        register(type("Nameless", (NoiseMethod,), {}))
    parts = {"help": "does nothing", "max_steps": 1}
    with pytest.raises(ValueError, match="name 'paper' of `Other` is that of `PaperMethod` already"):
        register(type("Other", (NoiseMethod,), {**parts, "name": "paper"}))
    with pytest.raises(ValueError, match=r"`Other` reads the settings \['spread'\].*'noise_limit'"):
        register(type("Other", (NoiseMethod,), {**parts, "name": "other", "settings": ("spread",)}))
    with pytest.raises(TypeError, match="abstract method '?search"):
        register(type("Other", (NoiseMethod,), {**parts, "name": "other"}))
    assert list(NOISE_METHODS) == list(known)
