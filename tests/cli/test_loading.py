"""The model and data flags: which fit together, paths, and values out of range."""

from dataclasses import fields, replace

import pytest
from PIL import Image

from hf_nullspace.cli.commands.compare import parse_compare_arguments
from hf_nullspace.cli.commands.evaluate import parse_evaluate_arguments
from hf_nullspace.cli.commands.probe import parse_probe_arguments
from hf_nullspace.cli.commands.synthesize import parse_synthesize_arguments
from hf_nullspace.cli.finetune_arguments import parse_finetune_arguments
from hf_nullspace.data.loading import DataArguments, load_data
from hf_nullspace.models.loading import DEFAULT_MODEL, ModelArguments, check_model_name


PARSERS = {
    "compare": parse_compare_arguments,
    "finetune": parse_finetune_arguments,
    "synthesize": parse_synthesize_arguments,
    "evaluate": parse_evaluate_arguments,
    "probe": parse_probe_arguments,
}


def parse(command, flags, folder):
    argv = [flag.replace("OUT", str(folder)) for flag in flags.split()]
    output_dir = [] if "--output_dir" in argv else ["--output_dir", str(folder / "out")]
    return PARSERS[command]([*argv, *output_dir], command)


UNFIT = [
    # ---- Where the training and validation images come from ----
    (
        "finetune",
        "--validation_dir v",
        "`--validation_dir` does nothing without `--dataset_name` or `--train_dir` or `--tr",
    ),
    ("finetune", "m --validation_file v.csv", "`--validation_file` does nothing without"),
    ("finetune", "--train_dir t --train_file t.csv", "`--train_dir` and `--train_file` do not fit together"),
    ("finetune", "--dataset_name d --train_dir t", "`--dataset_name` and `--train_dir` do not fit together"),
    ("finetune", "--dataset_name d --train_file t.csv", "`--dataset_name` and `--train_file` do not fit"),
    (
        "finetune",
        "--train_dir t --validation_dir v --validation_file v.csv",
        "`--validation_dir` and `--validation_file` do",
    ),
    (
        "finetune",
        "--train_dir t --validation_dir v --train_val_split 0.2",
        "`--train_val_split` and `--validation_dir` do",
    ),
    ("finetune", "--train_val_split 0.2", "`--train_val_split` does nothing without"),
    (
        "finetune",
        "--train_dir t --dataset_config_name c",
        "`--dataset_config_name` does nothing without `--dataset_name`",
    ),
    ("finetune", "--label_column_name l", "`--label_column_name` does nothing without"),
    ("synthesize", "m --validation_dir v", "`--validation_dir` does nothing without"),
    # ---- What loads a model ----
    ("finetune", "--model_revision main", "`--model_revision` does nothing without `--model_name_or_path`"),
    ("finetune", "--ignore_mismatched_sizes", "`--ignore_mismatched_sizes` does nothing without"),
    (
        "synthesize",
        "--train_dir t",
        "`--train_dir` does nothing without `--model_name_or_path`: the digits model is for",
    ),
    ("synthesize", "--image_size 64", "`--image_size` does nothing without `--model_name_or_path`"),
    ("synthesize", "m --digits_max_steps 9", "`--digits_max_steps` and `--model_name_or_path` do not fit together"),
    ("probe", "m --digits_max_steps 9", "`--digits_max_steps` and `--model_name_or_path` do not fit together"),
    ("probe", "--image_processor_name p", "`--image_processor_name` does nothing without"),
    ("evaluate", "m --digits_max_steps 9", "`--digits_max_steps` and `--models` do not fit together"),
    (
        "evaluate",
        "--trust_remote_code",
        "`--trust_remote_code` does nothing without `--models` or `--model_name_or_path`",
    ),
    # ---- What is evaluated ----
    ("evaluate", "m --images i --dataset_name d", "`--images` and `--dataset_name` do not fit together"),
    ("evaluate", "m --images i --dataset_split test", "`--dataset_split` does nothing without `--dataset_name`"),
    ("evaluate", "m --dataset_config_name c", "`--dataset_config_name` does nothing without `--dataset_name`"),
    (
        "evaluate",
        "m --image_column_name c",
        "`--image_column_name` does nothing without `--images` or `--dataset_name`",
    ),
    # ---- Settings of one method of synthesis ----
    ("synthesize", "--noise_limit 2", "`--noise_limit` does nothing with `--method boundary`: it is for paper"),
    (
        "synthesize",
        "--method sample --learning_rate 1",
        "`--learning_rate` does nothing with `--method sample`: it is for b",
    ),
    ("synthesize", "--method paper --max_token_ratio 2", "`--max_token_ratio` does nothing with `--method paper`"),
    (
        "finetune",
        "m --noise_norm_weight 1",
        "`--noise_norm_weight` does nothing with `--noise_method sample`: it is for p",
    ),
    ("finetune", "--noise_limit 2", "`--noise_limit` does nothing with `--noise_method boundary`"),
    # ---- Values ----
    ("finetune", "--max_train_samples 0", "`--max_train_samples` must be at least 1, but got 0"),
    ("finetune", "--train_dir t --train_val_split 1.5", "`--train_val_split` must lie between 0 and 1, but got 1.5"),
    ("synthesize", "--batch_size 0", "`--batch_size` must be at least 1, but got 0"),
    ("probe", "--max_images 0", "`--max_images` must be at least 1, but got 0"),
    ("evaluate", "--max_images -3", "`--max_images` must be at least 1, but got -3"),
    ("evaluate", "m --image_size 0", "`--image_size` must be at least 1, but got 0"),
    ("finetune", "m --max_robustness_samples -3", "`--max_robustness_samples` must be at least 1, but got -3"),
    ("finetune", "--base_max_steps 0", "`--base_max_steps` must be at least 1, but got 0"),
    ("finetune", "m --base_max_steps 5", "`--base_max_steps` and `--model_name_or_path` do not fit together"),
    ("finetune", "m --per_device_eval_batch_size 0", "`--per_device_eval_batch_size` must be at least 1, but got 0"),
    ("finetune", "m --gradient_accumulation_steps 0", "`--gradient_accumulation_steps` must be at least 1, but got 0"),
    ("finetune", "m --dataloader_num_workers -1", "`--dataloader_num_workers` must be at least 0, but got -1"),
    ("compare", "--model_name_or_path m --max_steps 0", "`max_steps` must be at least 1"),
    ("compare", "--per_device_train_batch_size 0", "`--per_device_train_batch_size` must be at least 1, but got 0"),
    ("compare", "--learning_rate nan", "`learning_rate` must be at least 0, but got nan"),
    ("compare", "--output_dir OUT/file", "`--output_dir` takes a folder, but '.*/file' is a file"),
    (
        "compare",
        "--model_name_or_path m --train_dir OUT --output_dir OUT/sub/x",
        "lies in the pictures of `--train_dir .*Name a folder outside",
    ),
    *(
        (name, "m --seed -1", "`--seed` must lie between 0 and 4294967295, but got -1")
        for name in PARSERS
        if name != "compare"
    ),
    ("finetune", "m --data_seed 4294967296", "`--data_seed` must lie between 0 and 4294967295, but got 4294967296"),
    ("finetune", "m --max_steps 0", "`max_steps` must be at least 1, or -1 for `num_train_epochs`, but got 0"),
    ("finetune", "m --max_steps -5", "`max_steps` must be at least 1, or -1 for `num_train_epochs`, but got -5"),
    ("finetune", "m --num_train_epochs -3", "`num_train_epochs` must be a positive number, but got -3"),
    ("finetune", "m --num_train_epochs nan", "`num_train_epochs` must be a positive number, but got nan"),
    ("finetune", "m --learning_rate nan", "`learning_rate` must be at least 0, but got nan"),
    (
        "finetune",
        "m --save_strategy best --eval_strategy epoch --metric_for_best_model f1",
        "`metric_for_best_model=f1` is not evaluated here",
    ),
    # ---- Paths ----
    (
        "finetune",
        "m --train_dir OUT/.. --output_dir OUT",
        "lies in the pictures of `--train_dir .*Name a folder outside",
    ),
    ("finetune", "m --validation_dir OUT --train_dir t --output_dir OUT", "of `--validation_dir"),
    ("synthesize", "m --dataset_name OUT --output_dir OUT/new/noise", "lies in the pictures of `--dataset_name"),
    ("evaluate", "m --images OUT --output_dir OUT/results", "lies in the pictures of `--images"),
    ("probe", "m --images OUT --output_dir OUT", "lies in the pictures of `--images"),
    ("synthesize", "OUT/nowhere", "There is no folder '.*/nowhere' \\(`--model_name_or_path`\\)"),
    ("evaluate", "m ./nowhere", "There is no folder './nowhere' \\(`--models`\\)"),
    ("evaluate", "OUT/file", "`--models` takes a Hub id or a folder, but '.*/file' is a file"),
    (
        "finetune",
        "m --image_processor_name ~/nowhere/",
        "There is no folder '.*/nowhere/' \\(`--image_processor_name`\\)",
    ),
    ("evaluate", "m --images OUT/nowhere", "There is no folder '.*/nowhere' \\(`--images`\\)"),
    ("evaluate", "m --images OUT/sub", "holds no pictures, but 1 files of no ending"),
]


@pytest.mark.parametrize(("command", "flags", "message"), UNFIT, ids=[f"{entry[0]} {entry[1]}" for entry in UNFIT])
def test_what_does_not_fit_together_is_refused(command, flags, message, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("file", "sub/file"):
        (tmp_path / name).write_text("x")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse(command, flags, tmp_path)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("finetune", "--train_dir t --validation_file v.csv --label_column_name kind"),
        ("finetune", "m --train_file t.csv --validation_dir v"),
        ("finetune", "--dataset_name d --dataset_config_name c --validation_dir v"),
        ("finetune", "m --noise_method paper --noise_limit 2 --noise_norm_weight 1 --noise_learning_rate 0.1"),
        ("finetune", "--noise_max_token_ratio 3"),
        ("synthesize", "m --train_dir t --train_val_split 0.3"),
        ("synthesize", "--method boundary --learning_rate 0.2"),
        ("evaluate", "m n --dataset_name d --dataset_split test --label_column_name l"),
        ("evaluate", "--digits_max_steps 9"),
        ("probe", "m --image_size 64 --lambdas 0.1"),
    ],
)
def test_what_fits_together_is_taken(command, flags, tmp_path):
    parse(command, flags, tmp_path)


def test_a_model_is_chosen_by_what_is_given(tmp_path):
    assert parse("finetune", "", tmp_path)[0].model_name_or_path is None
    assert parse("finetune", "--train-dir=t", tmp_path)[0].model_name_or_path == DEFAULT_MODEL
    assert parse("finetune", "m --train_dir t", tmp_path)[0].model_name_or_path == "m"
    assert parse("evaluate", "--model-name-or-path a --models b c", tmp_path)[1].models == ["a", "b", "c"]


def test_home_is_expanded_where_the_shell_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    data = DataArguments(train_dir="~/t", validation_file="~/v.csv")
    assert (data.train_dir, data.validation_file) == (f"{tmp_path}/t", f"{tmp_path}/v.csv")
    assert ModelArguments("~/m").model_name_or_path == f"{tmp_path}/m"
    assert parse_synthesize_arguments(["--output_dir=~/out"], "")[3].output_dir == f"{tmp_path}/out"


@pytest.mark.parametrize("command", list(PARSERS))
def test_results_go_into_a_folder(command, tmp_path):
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/inner"):
        with pytest.raises(ValueError, match="`--output_dir` takes a folder, but '.*/file' is a file"):
            PARSERS[command](["--output_dir", str(tmp_path / path)], command)


@pytest.mark.parametrize("name", ["google/vit", "vit", None, "user/name.with-dots_1"])
def test_hub_ids_are_no_paths(name):
    check_model_name(name, "models")


def test_a_revision_of_a_folder_is_refused(tmp_path):
    message = "`--model_revision v1` chooses a commit of a Hub repository, but .* is a folder"
    with pytest.raises(ValueError, match=message):
        ModelArguments(model_name_or_path=str(tmp_path), model_revision="v1")
    assert ModelArguments(model_name_or_path="user/name", model_revision="v1").model_revision == "v1"


def test_every_data_and_model_flag_is_known_to_the_rules():
    from hf_nullspace.cli.arguments import model_rules
    from hf_nullspace.data.loading import DATA_RULES

    names = {item.name for kind in (DataArguments, ModelArguments) for item in fields(kind)}
    for rule in (*DATA_RULES, *model_rules("models")):
        assert rule.flag in names and {*rule.needs, *rule.excludes} <= names | {"models"}


def test_all_bad_images_of_all_splits_are_named_at_once(tmp_path):
    for split, count in (("t", 9), ("v", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                path = tmp_path / split / name / f"{split}-{name}-{index}.png"
                Image.new("L", (4, 4)).save(path)
                if index and name == "cat":
                    path.write_bytes(b"no picture")
    data = DataArguments(train_dir=str(tmp_path / "t"), validation_dir=str(tmp_path / "v"))
    with pytest.raises(ValueError, match="10 of 24 images cannot be read.*`--skip_bad_images`") as error_info:
        load_data(data, 0)
    bad = [*(f"t-cat-{index}.png" for index in range(1, 9)), "v-cat-1.png", "v-cat-2.png"]
    assert all(name in str(error_info.value) for name in bad)
    splits, _ = load_data(replace(data, skip_bad_images=True), 0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "validation": 4}
