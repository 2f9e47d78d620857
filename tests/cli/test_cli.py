"""The command line: each command on the digits, and what it says when it is not understood."""

import pytest

import hf_nullspace
from hf_nullspace import NullspaceNoise
from hf_nullspace.cli.command import COMMANDS
from hf_nullspace.cli.main import main


QUICK = ["--digits_max_steps", "5", "--max_steps", "2", "--num_images", "32", "--num_certificate_images", "16"]


def test_synthesize_saves_a_certified_noise(tmp_path, capsys):
    main(["synthesize", *QUICK, "--output_dir", str(tmp_path)])
    noise = NullspaceNoise.from_pretrained(tmp_path)
    assert noise.config.max_steps == 2
    assert noise.certificate.num_images == 16
    assert f"norm={noise.certificate.norm:.4g}" in capsys.readouterr().out


def test_finetune_saves_model_noise_and_card(tmp_path):
    options = ["--noise_max_steps", "2", "--noise_num_images", "16", "--noise_num_certificate_images", "16"]
    options += ["--max_steps", "2", "--use_cpu", "--base_max_steps", "4", "--max_robustness_samples", "20"]
    main(["finetune", *options, "--output_dir", str(tmp_path)])
    assert NullspaceNoise.from_pretrained(tmp_path).tensor.shape == (1, 16, 96)
    assert {"model.safetensors", "preprocessor_config.json", "README.md"} <= {path.name for path in tmp_path.iterdir()}


def test_usage_lists_the_commands(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in COMMANDS)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"hf-nullspace {hf_nullspace.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [],
            "hf-nullspace: error: no command; one of compare, demo, evaluate, finetune, merge, probe, push, ",
        ),
        (["fintune"], "hf-nullspace: error: unknown command 'fintune', did you mean finetune?"),
        (["train"], "hf-nullspace: error: unknown command 'train'; the commands are compare, demo, evaluate, "),
        (["push"], "hf-nullspace push: error: the following arguments are required: --folder, --repo_id"),
        (["verify"], "hf-nullspace verify: error: the following arguments are required: --repo_or_folder"),
        (
            ["synthesize", "--epsilonn", "1"],
            "hf-nullspace synthesize: error: unknown flag --epsilonn, did you mean --e",
        ),
        (
            ["finetune", "--learning-rat=1"],
            "hf-nullspace finetune: error: unknown flag --learning-rat, did you mean --l",
        ),
        (["probe", "--epsilon", "1", "a"], "hf-nullspace probe: error: unknown flag --epsilon ("),
        (
            ["push", "a", "b", "c"],
            "hf-nullspace push: error: unexpected 'c', which no flag takes; only folder, repo_id ",
        ),
        (
            ["synthesize", "--method", "best"],
            "hf-nullspace synthesize: error: argument --method: invalid choice: 'best'",
        ),
        (
            ["synthesize", "--max_steps", "x"],
            "hf-nullspace synthesize: error: argument --max_steps/--max-steps: invalid",
        ),
        (
            ["synthesize", "--epsilon", "-1"],
            "hf-nullspace synthesize: error: `--epsilon` must be a positive number, but",
        ),
        (
            ["synthesize", "m", "--model-name-or-path", "n"],
            "hf-nullspace synthesize: error: 'm' and --model_name_or_path",
        ),
        (["probe", "--images", "nowhere"], "hf-nullspace probe: error: There is no folder 'nowhere' (`--images`)"),
    ],
)
def test_errors_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    out, err = capsys.readouterr()
    assert (exit_info.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)


def test_debug_adds_the_traceback(capsys):
    for argv in (["probe", "--debug", "--images", "nowhere"], ["--debug", "probe", "--images", "nowhere"]):
        with pytest.raises(SystemExit) as exit_info:
            main(argv)
        err = capsys.readouterr().err
        assert exit_info.value.code == 2
        assert err.startswith("Traceback") and err.splitlines()[-1].startswith(
            "hf-nullspace probe: error: There is no"
        )


def test_synthesize_takes_fewer_images_than_a_batch(tmp_path):
    argv = ["synthesize", *QUICK, "--max_train_samples", "12", "--output_dir", str(tmp_path), "--batch_size", "999"]
    main(argv)
    assert NullspaceNoise.from_pretrained(tmp_path).certificate.num_images == 16
