"""Arguments of earlier versions: each is refused by name with what was measured, wherever it is met again."""

import copy
import json
import pickle

import pytest
from quick_cases import others_slow
from trainer_runs import arguments, build

from hf_nullspace import NullspaceTrainingArguments
from hf_nullspace.baselines.adversarial import AdversarialTrainingArguments
from hf_nullspace.cli.parser import CommandParser
from hf_nullspace.training.removed_arguments import OLD_DEFAULTS, REMOVED_ARGUMENTS, check_settings


@pytest.mark.parametrize("args_class", [NullspaceTrainingArguments, AdversarialTrainingArguments])
@pytest.mark.parametrize("name", REMOVED_ARGUMENTS)
def test_an_argument_is_refused_by_its_sentence(tmp_path, args_class, name):
    with pytest.raises(ValueError) as error:
        args_class(str(tmp_path), **{name: 2})
    assert str(error.value) == REMOVED_ARGUMENTS[name]
    assert str(error.value).startswith(f"`{name}` was removed: ")


def test_an_unknown_argument_is_still_an_error_of_python(tmp_path):
    with pytest.raises(TypeError, match="noise_candidate'"):
        NullspaceTrainingArguments(str(tmp_path), noise_candidate=2)


def test_arguments_can_be_copied(tmp_path):
    args = arguments(tmp_path)
    assert copy.deepcopy(args).to_dict() == args.to_dict()
    assert pickle.loads(pickle.dumps(args)).to_dict() == args.to_dict()
    assert "removed_arguments" not in args.to_dict()


@pytest.mark.parametrize("flag", ["--noise_candidates", "--noise-candidates"])
def test_a_flag_is_refused_by_its_sentence(capsys, flag):
    with pytest.raises(SystemExit):
        CommandParser([NullspaceTrainingArguments], "finetune").parse(["--output_dir", "out", flag, "4"])
    assert REMOVED_ARGUMENTS["noise_candidates"] in capsys.readouterr().err


def test_a_setting_of_a_file_is_refused_by_its_sentence(capsys, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"output_dir": "out", "noise_consistency": 1.0}))
    with pytest.raises(SystemExit):
        CommandParser([NullspaceTrainingArguments], "finetune").parse([str(path)])
    assert REMOVED_ARGUMENTS["noise_consistency"] in capsys.readouterr().err


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.mark.parametrize("place", others_slow(["run", "run/checkpoint-2"], ["run/checkpoint-2"]))
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_candidates", 4),
        pytest.param("noise_in_pixels", True, marks=pytest.mark.slow),
        pytest.param("random_scale", True, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_it_is_refused_on_resume(model, make_examples, tmp_path, place, name, value):
    examples = make_examples(64)
    build(model, examples, arguments(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)).train()
    facts, checkpoint = tmp_path / place / "nullspace_training.json", str(tmp_path / "run" / "checkpoint-2")
    facts.write_text(json.dumps({"settings": {**OLD_DEFAULTS, name: value}}))
    resumed = build(model, examples, arguments(tmp_path / "resumed", max_steps=4))
    with pytest.raises(ValueError, match=f"`{name}={value}`. `(noise_)?{name}` was removed: .*weights"):
        resumed.train(resume_from_checkpoint=checkpoint)
    facts.write_text(json.dumps({"settings": OLD_DEFAULTS}))
    assert resumed.train(resume_from_checkpoint=checkpoint).global_step == 4


def test_settings_at_the_old_defaults_pass():
    check_settings({**OLD_DEFAULTS, "epsilon": 0.1}, "settings.json")
    assert {f"noise_{name}".replace("noise_noise_", "noise_") for name in OLD_DEFAULTS} >= {
        name for name in REMOVED_ARGUMENTS if name.startswith("noise_") and name != "noise_forward"
    }  # of `noise_forward` every value trained alike
