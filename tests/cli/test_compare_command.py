"""`hf-nullspace compare`: what is in its tables, what a second call repeats, a run that is killed, and bad input."""

import json
import os
import runpy
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from launching import launch, start
from page_checks import check_page
from PIL import Image
from safetensors.torch import load_file

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer
from hf_nullspace.cli.commands.compare import main, parse_compare_arguments
from hf_nullspace.cli.main import main as cli
from hf_nullspace.comparison import costs, runner
from hf_nullspace.comparison.comparison import Comparison
from hf_nullspace.comparison.runs import read_run
from hf_nullspace.comparison.statistics import paired_difference
from hf_nullspace.robustness.metrics import paired_bootstrap
from hf_nullspace.robustness.report import RobustnessReport


pytestmark = pytest.mark.slow


EXAMPLE = Path(__file__).parents[2] / "examples" / "compare_methods.py"
QUICK = "--max_steps 3 --noise_refresh_steps 1 --noise_max_steps 2 --per_device_train_batch_size 8 --report_to none"
QUICK += " --noise_num_images 8 --noise_num_certificate_images 8 --use_cpu --disable_tqdm true"
DIGITS = f"{QUICK} --base_max_steps 6 --num_seeds 2 --max_robustness_samples 40 --methods plain nullspace"
PROFILE = {
    "name": "small",
    "columns": [
        {"name": "clean"},
        {"name": "fgsm", "attack": "fgsm", "settings": {"epsilon": "8/255"}, "max_images": 24},
    ],
}
VARIANTS = {
    "epsilon-0.2": {"method": "nullspace", "epsilon": 0.2},
    "plain-after": {"method": "plain", "start": "epsilon-0.2", "max_steps": 1},
    "twice": {"method": "nullspace", "start": "epsilon-0.2", "max_steps": 1},
}


@pytest.fixture(scope="module", autouse=True)
def quick_timing():
    """One turn for each row: it is the command that is tested here, and not the clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "TURNS", 1)
        yield


def changed(flags: list[str], changes: str) -> list[str]:
    """The flags, some of them replaced: none may be given twice."""
    values: dict[str, list[str]] = {}
    for word in [*flags, *changes.split()]:
        if word.startswith("--"):
            name = word
            values[name] = []
        else:
            values[name].append(word)
    return [word for name, words in values.items() for word in (name, *words)]


def planned(flags: list[str]) -> Comparison:
    return Comparison(runner.Runner(*parse_compare_arguments(flags, "compare")))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    (folder / "variants.json").write_text(json.dumps(VARIANTS))
    return folder


@pytest.fixture(scope="module")
def digits(files, tmp_path_factory):
    """The flags of a comparison, its folder and its results."""
    folder = tmp_path_factory.mktemp("digits")
    flags = f"{DIGITS} --profile {files}/profile.json --output_dir {folder} --interpolated nullspace"
    flags = [*flags.split(), "--variants", str(files / "variants.json")]
    return flags, folder, main(flags)


def stamps(folder: Path) -> dict[str, int]:
    """When each model, run and report was written."""
    names = ("training.json", "model.safetensors", "robustness.json")
    return {str(path): path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


def report_of(folder: Path, run: str) -> RobustnessReport:
    (found,) = (folder / "runs" / run).glob("robustness-*")
    return RobustnessReport.load(found)


def test_accuracies_and_differences_are_those_of_the_reports(digits):
    _, folder, results = digits
    assert json.loads((folder / "results.json").read_text()) == results
    names = ["base", "plain", "nullspace", "epsilon-0.2", "plain-after", "twice", "nullspace-interpolated"]
    assert list(results["methods"]) == [*names, "nullspace-equal-steps"]
    assert list(results["methods"]["nullspace-interpolated"]["minus"]) == ["plain", "nullspace"]
    assert list(results["methods"]["nullspace-equal-steps"]["minus"]) == ["plain"]
    assert list(results["methods"]["twice"]["minus"]) == ["plain", "nullspace", "epsilon-0.2", "plain-after"]
    assert list(results["methods"]["plain-after"]["minus"]) == ["plain", "nullspace", "epsilon-0.2"]
    assert list(results["methods"]["epsilon-0.2"]["minus"]) == ["plain", "nullspace"]
    reports = {name: [report_of(folder, f"{name}-{seed}") for seed in (42, 43)] for name in ("plain", "nullspace")}
    for name, of_seeds in reports.items():
        row = results["methods"][name]
        clean = [report.accuracies["clean"] for report in of_seeds]
        means = [sum(report.accuracies.values()) / 2 for report in of_seeds]
        assert row["columns"]["clean"]["per_seed"] == pytest.approx(clean)
        assert row["groups"]["mean"]["mean"] == pytest.approx(sum(means) / 2)
    outcomes = {name: [report.outcomes for report in of_seeds] for name, of_seeds in reports.items()}
    expected = paired_difference(outcomes["nullspace"], outcomes["plain"], ["clean", "fgsm"])
    found = results["methods"]["nullspace"]["minus"]["plain"]["mean"]
    assert (found["difference"], found["low"], found["high"]) == (expected.difference, expected.low, expected.high)
    clean = results["methods"]["nullspace"]["minus"]["plain"]["clean"]["per_seed"]
    for seed, difference in enumerate(clean):
        pair = (outcomes[name][seed]["clean"].correct for name in ("nullspace", "plain"))
        assert difference == pytest.approx(paired_bootstrap(*pair)[0])


def test_other_images_are_measured_in_another_folder(tmp_path):
    """Of `seed`, which chooses them, and of their number."""
    hashes = set()
    for changes in ([], ["--seed", "7"], ["--max_robustness_samples", "20"]):
        flags = f"{DIGITS} --output_dir {tmp_path} --max_robustness_samples 30".split()
        settings = planned([*flags, *changes]).settings
        hashes.add(json.dumps(settings, sort_keys=True))
    assert len(hashes) == 3


def test_rows_start_where_they_should_and_seeds_follow_each_other(digits):
    _, folder, results = digits
    runs = {path.name: read_run(path) for path in (folder / "runs").iterdir()}
    base = read_run(folder / "base")
    assert len(runs) == 14
    for name, run in runs.items():
        row, _, seed = name.rpartition("-")
        if row == "nullspace-interpolated":
            ends = {"base": base["settings_hash"], "nullspace": runs[f"nullspace-{seed}"]["settings_hash"]}
            assert run["settings"] == {"method": "interpolated", "weight": 0.5, "ends": ends}
            continue
        start = runs[f"epsilon-0.2-{seed}"] if row in ("twice", "plain-after") else base
        assert run["settings"]["start"]["settings_hash"] == start["settings_hash"]
        assert run["settings"]["arguments"]["seed"] == int(seed)
        assert len(run["noise_history"]) == (0 if "plain" in row else run["steps"])
    assert runs["epsilon-0.2-42"]["noise_history"][0]["epsilon"] == 0.2
    assert [runs[f"twice-{seed}"]["steps"] for seed in (42, 43)] == [1, 1]
    costs = results["training"]
    assert costs["twice"]["seconds"] > costs["epsilon-0.2"]["seconds"]
    history = [runs[f"nullspace-equal-steps-{seed}"]["noise_history"] for seed in (42, 43)]
    growth = sum(rounds[2]["norm"] / rounds[1]["norm"] for rounds in history) / 2
    assert costs["nullspace-equal-steps"]["norm_growth"] == pytest.approx(growth)


def test_an_average_lies_between_its_row_and_the_base(digits):
    _, folder, _ = digits
    start, end, between = (
        load_file(folder / name / "model.safetensors")
        for name in ("base", "runs/nullspace-42", "runs/nullspace-interpolated-42")
    )
    for name, value in between.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2, rtol=0, atol=1e-6)


def test_all_rows_of_a_seed_see_the_same_images_in_the_same_order(tmp_path, monkeypatch):
    batches = []

    class RecordingCollator(NullspaceDataCollator):
        def __call__(self, features):
            batch = super().__call__(features)
            batches.append(batch["pixel_values"].double().sum().item())
            return batch

    monkeypatch.setattr(runner, "NullspaceDataCollator", RecordingCollator)
    flags = f"--base_max_steps 0 --output_dir {tmp_path} --methods plain nullspace pgd"
    comparison = planned(changed(DIGITS.split(), flags))
    comparison.runner.train(comparison.runner.base, 42)
    seen = {}
    for row, seed in [(row, 42) for row in comparison.planned] + [(comparison.planned[0], 43)]:
        batches.clear()
        comparison.runner.train(row, seed)
        seen[row.name, seed] = batches.copy()
    assert len(set(seen["plain", 42])) >= 3
    assert seen["pgd", 42] == seen["plain", 42]
    # An example is read twice before, to learn whether transforms are random: the only batch that two seeds share.
    probe = [batch for batch in seen["plain", 43] if batch in seen["plain", 42]]
    assert probe == 2 * probe[:1] == seen["plain", 42][:2]
    # Beside these, nullspace finetuning reads those that it makes noise of.
    ours = iter(seen["nullspace", 42])
    assert all(batch in ours for batch in seen["plain", 42])


def test_rows_take_as_much_time_or_as_many_steps(digits):
    """By the costs that are kept: a row has the most steps that fit into the time of plain finetuning."""
    _, folder, results = digits
    costs = results["training"]
    assert results["plain_steps"] == costs["plain"]["steps"] == costs["nullspace-equal-steps"]["steps"] == 3
    budget = costs["plain"]["seconds"]
    assert budget == pytest.approx(3 * costs["plain"]["step_seconds"])
    for name in ("epsilon-0.2", "nullspace"):
        cost = costs[name]
        each = cost["seconds"] / cost["steps"]  # a round begins with every step
        assert cost["steps"] == max(1, int(budget / each))
        assert cost["seconds"] == pytest.approx(cost["steps"] * cost["step_seconds"] + cost["synthesis_seconds"])
    assert costs["nullspace-equal-steps"]["seconds"] == pytest.approx(3 * each)
    assert costs["nullspace-interpolated"]["seconds"] == costs["nullspace"]["seconds"]
    assert len(json.loads((folder / "costs.json").read_text())) == 3  # `twice` costs what `nullspace` does
    assert not (folder / "timing").exists()
    for seed in (42, 43):
        assert not list((folder / "runs" / f"nullspace-{seed}").glob("checkpoint-*"))


def test_tables_and_figure(digits):
    _, folder, results = digits
    text = (folder / "results.md").read_text()
    row = results["methods"]["nullspace"]
    cells = f"| nullspace | {row['columns']['clean']['mean']:.2f} | {row['columns']['fgsm']['mean']:.2f} |"
    assert text.count(cells) == 2
    assert f"| {row['minus']['plain']['mean']['difference']:+.2f} [" in text
    assert results["rows"]["nullspace-equal-steps"]["arguments"] == {}
    assert "- twice: nullspace from epsilon-0.2 with `max_steps` 1" in text
    for line in ("| nullspace-equal-steps - plain |", "| nullspace-interpolated - nullspace |", "| base - plain |"):
        assert line in text
    assert "40 images of the split `test`, profile `small`" in text
    winner = results["winners"]["clean"]
    rows = [name for name in results["rows"] if name != "nullspace-equal-steps"]
    means = {name: results["methods"][name]["groups"]["clean"]["mean"] for name in rows}
    assert means[winner["best"]] == max(means.values()) and set(winner["differences"]) == {*rows} - {winner["best"]}
    assert f"- clean: {winner['best']} won" in text or f"- clean: None won: the highest is {winner['best']}" in text
    with Image.open(folder / "differences.png") as figure:
        assert figure.width == 1650
    assert (folder / "report.html").read_text().count("data:image/") >= 3 * len(results["methods"]["plain"]["columns"])


def test_its_page_has_the_tables_and_no_number_that_is_not_in_the_results(digits, tmp_path):
    script = EXAMPLE.parents[1] / "model_cards" / "collect.py"
    collect = runpy.run_path(str(script))["collect_comparison"]
    page = collect(digits[1], tmp_path, "python examples/compare_methods.py") / "README.md"
    tables = (digits[1] / "results.md").read_text()
    assert page.read_text().endswith(tables.partition("\n")[2]) and page.read_text().startswith(tables.splitlines()[0])
    check_page(page)
    mean = json.loads((digits[1] / "results.json").read_text())["methods"]["plain"]["groups"]["mean"]["mean"]
    page.write_text(page.read_text().replace(f"**{mean:.2f}**", f"**{mean + 0.01:.2f}**"))
    with pytest.raises(AssertionError):
        check_page(page)


def test_finished_runs_are_not_repeated(digits):
    flags, folder, results = digits
    before = stamps(folder)
    assert main(flags) == results
    assert stamps(folder) == before


def test_another_split_or_profile_only_measures_again(digits):
    flags, folder, _ = digits
    before = stamps(folder)
    plain = changed(flags[: flags.index("--interpolated")], "--methods plain --num_seeds 1 --evaluate_on validation")
    results = main(plain)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    added = {Path(name).parent.parent.name for name in set(after) - set(before)}
    assert added == {"base", "plain-42"}
    assert results["evaluation"]["split"] == "validation"


def test_other_settings_are_refused(digits):
    flags, folder, _ = digits
    before = stamps(folder)
    # The first run that the setting is for: noise is none of plain finetuning, nor of the base.
    for setting, value, run in (("weight_decay", "0.1", "base"), ("epsilon", "0.05", "nullspace-42")):
        message = f"/{run} holds a run with other settings: arguments.{setting} 'its default' instead of {value}"
        with pytest.raises(ValueError, match=message):
            main([*flags, f"--{setting}", value])
    assert stamps(folder) == before


def test_a_killed_run_goes_on_and_nothing_else_is_repeated(digits, files, tmp_path):
    _, folder, results = digits
    flags = f"{DIGITS} --profile {files}/profile.json --output_dir {tmp_path} --num_seeds 1".split()
    shutil.copy(folder / "costs.json", tmp_path)
    (process,) = start(main, 1, flags)
    dying = tmp_path / "runs" / "nullspace-42"
    deadline = time.monotonic() + 120
    while not dying.exists() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = stamps(tmp_path)
    assert {Path(name).parent.name for name in before if name.endswith("training.json")} == {"base", "plain-42"}
    again = main(flags)
    after = stamps(tmp_path)
    assert {name: after[name] for name in before if "nullspace-42" not in name} == {
        name: stamp for name, stamp in before.items() if "nullspace-42" not in name
    }
    for name in ("base", "plain", "nullspace", "nullspace-equal-steps"):
        for column, values in again["methods"][name]["columns"].items():
            assert values["per_seed"] == results["methods"][name]["columns"][column]["per_seed"][:1]


def test_a_row_goes_on_from_its_checkpoint(digits, files, tmp_path, monkeypatch, capsys):
    _, folder, _ = digits
    shutil.copy(folder / "costs.json", tmp_path)
    shutil.copytree(folder / "base", tmp_path / "base")
    (tmp_path / "runs").mkdir()
    for name in ("plain-42", "nullspace-42"):
        shutil.copytree(folder / "runs" / name, tmp_path / "runs" / name)
    flags = f"{DIGITS} --profile {files}/profile.json --output_dir {tmp_path} --num_seeds 1".split()
    steps, own = [], NullspaceTrainer.training_step

    def step(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    monkeypatch.setattr(NullspaceTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        main(flags)
    run = tmp_path / "runs" / "nullspace-equal-steps-42"
    assert (run / "checkpoint-2").is_dir() and not (run / "training.json").exists()
    main(flags)
    assert steps == [0, 1, 2, 2]
    weights = [load_file(each / "model.safetensors") for each in (run, folder / "runs" / run.name)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not (run / "checkpoint-2").exists()
    out = capsys.readouterr().out
    assert out.count("Row 3 of 3: nullspace-equal-steps, seed 42; about ") == 2
    assert out.count("Going on with nullspace-equal-steps-42") == 1


def test_own_pictures_and_model(files, photos, tmp_path):
    flags = f"{QUICK} --model_name_or_path {photos}/model --train_dir {photos}/images --train_val_split 0.25"
    flags += (
        f" --methods plain pgd --num_seeds 1 --profile {files}/profile.json --output_dir {tmp_path} --no_equal_steps"
    )
    flags += " --ema_decay 0.5"
    results = main(flags.split())
    assert results["evaluation"]["split"] == "validation"
    assert results["evaluation"]["num_images"] == 8
    assert read_run(tmp_path / "base")["steps"] == 0
    assert list(results["training"]) == ["plain", "pgd"] and results["training"]["plain"]["steps"] == 3
    assert read_run(tmp_path / "runs" / "pgd-42")["settings"]["ema_decay"] == 0.5
    assert "ema_decay" not in read_run(tmp_path / "base")["settings"]


def test_two_processes_run_it_too(files, tmp_path):
    flags = f"{DIGITS} --profile {files}/profile.json --output_dir {tmp_path} --num_seeds 1".split()
    printed = launch(EXAMPLE, flags, processes=2)
    assert printed.count("Training nullspace-42") == 1
    assert printed.count("| nullspace - plain |") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_seeds 0", "`--num_seeds`.*0"),
        ("--methods nullspace", "'plain' among them"),
        ("--interpolated magic", "`interpolated` takes rows of this comparison.*magic"),
        ("--interpolation_weight 2", "`--interpolation_weight` must lie between 0 and 1.*2"),
        ("--ema_decay 1", "`--ema_decay` must lie in .0, 1.*1"),
        ("--evaluate_on train", r"`evaluate_on`.*\['validation', 'test'\].*'train'"),
        ("--profile magic", "Unknown profile 'magic'"),
        ("--datasets imagenet-a", "NAME=FOLDER_OR_HUB_ID"),
        ("--epsilon 0", "`epsilon`.*0"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        main(changed([*DIGITS.split(), "--output_dir", str(tmp_path / "out")], flags))
    assert not list(tmp_path.glob("out/*"))


def test_an_unknown_way_is_refused_with_those_that_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli(["compare", "--methods", "plain", "magic", "--output_dir", str(tmp_path / "out")])
    expected = "hf-nullspace compare: error: argument --methods: invalid choice: 'magic' (choose from"
    err = capsys.readouterr().err
    assert err.startswith(expected) and "trades" in err


def test_a_removed_flag_says_what_to_use(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli(["compare", "--equal_wall_time", "plain", "--output_dir", str(tmp_path / "out")])
    assert "--equal_wall_time was removed: all rows take as much time" in capsys.readouterr().err


def test_help_tells_what_each_way_trains_on_and_costs(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli(["compare", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "plain (1): clean images alone;" in out and "pgd (4): adversarial examples" in out


def test_variants_that_cannot_run_are_refused_before_training(tmp_path):
    flags = f"{DIGITS} --output_dir {tmp_path}/out --variants {tmp_path}/variants.json".split()
    for variants, message in (
        ({"none": {"method": "nullspace", "epsilon": 0}}, "variant 'none'.*`epsilon`"),
        (
            {"old": {"method": "nullspace", "noise_candidates": 4}},
            "variant 'old' has an old setting: .*noise_candidates",
        ),
        ({"my-equal-steps": {"method": "plain"}}, "'my-equal-steps' needs another name: those with '-equal-steps'"),
        ({"none": {"method": "plain", "ema_decay": 2}}, "variant 'none'.*`--ema_decay` must lie in"),
    ):
        (tmp_path / "variants.json").write_text(json.dumps(variants))
        with pytest.raises(ValueError, match=message):
            main(flags)
    assert not (tmp_path / "out").exists()
