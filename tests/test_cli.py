"""The command line: each command on the digits, and what it says when it is not understood."""

import pytest

from hf_nullspace import NullspaceNoise
from hf_nullspace.cli import COMMANDS, main


QUICK = ["--max_steps", "2", "--num_images", "32", "--num_certificate_images", "16"]


def test_synthesize_saves_a_certified_noise(tmp_path, capsys):
    main(["synthesize", *QUICK, "--output_dir", str(tmp_path)])
    noise = NullspaceNoise.from_pretrained(tmp_path)
    assert noise.config.max_steps == 2
    assert noise.certificate.num_images == 16
    assert f"norm={noise.certificate.norm:.4g}" in capsys.readouterr().out


def test_finetune_saves_model_noise_and_card(tmp_path):
    options = ["--noise_max_steps", "2", "--noise_num_images", "16", "--noise_num_certificate_images", "16"]
    options += ["--max_steps", "2", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    main(["finetune", *options, "--output_dir", str(tmp_path)])
    assert NullspaceNoise.from_pretrained(tmp_path).tensor.shape == (1, 16, 96)
    assert {"model.safetensors", "preprocessor_config.json", "README.md"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["unknown"], 2), (["--help"], 0)])
def test_usage_lists_the_commands(argv, code, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == code
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_flags_of_the_hub_commands_follow_the_words():
    from hf_nullspace.cli import HubArguments, PushArguments, _parse_positional

    words = ["outputs/digits", "user/digits", "--private", "--revision", "next"]
    push, hub = _parse_positional((PushArguments, HubArguments), words, "push", ["folder", "repo_id"])
    assert (push.folder, push.repo_id, push.private) == ("outputs/digits", "user/digits", True)
    assert (hub.revision, hub.token) == ("next", None)


@pytest.mark.parametrize("command", ["push", "verify"])
def test_hub_commands_ask_for_what_they_need(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command])
    assert exit_info.value.code == 2
    assert "the following arguments are required" in capsys.readouterr().err
