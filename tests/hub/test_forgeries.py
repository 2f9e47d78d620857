"""Checkpoints that were changed and given right hashes again: each fails, or the changed part is listed as not checked."""

import json
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from published import NUM_IMAGES, Forger, all_right, write_checkpoint
from quick_cases import others_slow
from safetensors.torch import load_file, save_file

from hf_nullspace.cli.main import main
from hf_nullspace.hub.card_results import pack_correct, paired_differences, unpack_correct
from hf_nullspace.hub.checkpoint import Checkpoint
from hf_nullspace.hub.claims import Claim
from hf_nullspace.hub.file_checks import check_files
from hf_nullspace.hub.manifest import write_manifest
from hf_nullspace.hub.model_card import TRAINING_NAME
from hf_nullspace.hub.verification import Verification, verify
from hf_nullspace.robustness.outcomes import load_outcomes, model_fingerprint
from hf_nullspace.robustness.report import RobustnessReport


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "digits"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def forger(published, tmp_path):
    return Forger(published, tmp_path / "digits")


def claims_of(folder) -> dict[str, object]:
    """The claims that need no image, by name."""
    return {claim.name: claim for claim in Checkpoint(folder, None, (), None, 64).files()}


def failed(folder) -> set[str]:
    return {name for name, claim in claims_of(folder).items() if claim.holds is False}


def test_a_good_checkpoint_holds(published):
    verification = verify(published)
    assert verification.failed == [], verification.to_markdown()
    assert verification.exit_code == 0
    names = {claim.name: claim.holds for claim in verification.claims}
    for name in ("text of README.md", "text of robustness.md", "the card has the measured metrics", "norm"):
        assert names[name] is True
    for name in ("accuracy (%), clean", "accuracy (%), fgsm", "probability_mse", "accuracy (evaluation)"):
        assert names[name] is True
    assert names["differences from the control"] is True
    for name in ("probability_mse_upper", "standard_error", "exchanged_probability_mse", "num_images_needed"):
        assert names[name] is True
    for name in ("figure robustness.png", "training settings", "accuracy of the control 'plain'", "dataset"):
        assert names[name] is None
    assert f"{sum(holds is True for holds in names.values())} of " in verification.to_markdown()


def drop_column(forger, everywhere: bool) -> None:
    def change(values):
        del values["columns"]["fgsm"]
        if everywhere:
            values["profile"]["columns"] = [each for each in values["profile"]["columns"] if each["name"] != "fgsm"]

    forger.outcomes(lambda outcomes: outcomes.pop("fgsm"))
    forger.report(change)


def column_of_the_card_alone(forger):
    drop_column(forger, everywhere=True)
    forger.facts(lambda facts: facts["results"]["nullspace"].update(fgsm=99.9))


def row_missing(forger):
    drop_column(forger, everywhere=False)

    def change(facts):
        for part in ("results", "intervals", "correct"):
            for row in facts[part].values():
                row.pop("fgsm")
        facts["differences"].pop("fgsm")

    forger.facts(change)


def column_missing_from_the_profile(forger):
    row_missing(forger)
    forger.report(lambda values: values["profile"]["columns"].pop(-1))


def wide_interval(forger):
    forger.accuracy("clean", 59)
    forger.report(lambda values: values["columns"]["clean"].update(low=0.0, high=100.0))
    forger.facts(lambda facts: facts["intervals"]["nullspace"].update(clean=[0.0, 100.0]))


def differences(forger):
    def change(facts):
        facts["differences"]["clean"] = [value + 5 for value in facts["differences"]["clean"]]

    forger.facts(change)


def interval_of_a_difference(forger):
    def change(facts):
        value, low, high = facts["differences"]["clean"]
        facts["differences"]["clean"] = [value, low / 2 + value / 2 - 1, high + 1]

    forger.facts(change)


def control(forger):
    def change(facts):
        value = facts["results"]["plain"]["clean"]
        facts["results"]["plain"]["clean"] = value - 20
        for name in facts["differences"]:
            own = facts["results"]["nullspace"][name] - facts["results"]["plain"][name]
            facts["differences"][name] = [own, own - 5, own + 5]

    forger.facts(change)


def swapped_outcomes(forger):
    def change(outcomes):
        outcomes["clean"], outcomes["contrast_3"] = outcomes["contrast_3"], outcomes["clean"]

    forger.outcomes(change)


def profile(column: str, **settings):
    def change(values):
        (found,) = [each for each in values["profile"]["columns"] if each["name"] == column]
        found.setdefault("settings", {}).update(settings)

    return lambda forger: forger.report(change)


def report(*path, value):
    def change(values):
        *parents, last = path
        for name in parents:
            values = values[name]
        values[last] = value

    return lambda forger: forger.report(change)


def facts(*path, value):
    def change(values):
        *parents, last = path
        for name in parents:
            values = values[name]
        values[last] = value

    return lambda forger: forger.facts(change)


def text(name, old, new):
    return lambda forger: forger.text(name, old, new)


def indices(forger):
    forger.outcomes(lambda outcomes: outcomes["clean"].indices.add_(1))


def impossible_confidence(forger):
    forger.outcomes(lambda outcomes: outcomes["clean"].confidence.fill_(7.0))


def noise_tensor(forger):
    path = forger.folder / "nullspace_noise.safetensors"
    tensors = load_file(path)
    tensors["noise"] = 2 * tensors["noise"]
    save_file(tensors, path)
    values = forger.read("nullspace_noise.json")
    values["sha256"] = sha256(tensors["noise"].numpy().tobytes()).hexdigest()
    forger.write("nullspace_noise.json", values)


def lower_epsilon(forger):
    values = forger.read("nullspace_noise.json")
    values["config"]["epsilon"] = 1e-9
    for certificate in values["certificates"]:
        certificate["epsilon"] = 1e-9
    forger.write("nullspace_noise.json", values)

    def change(facts):
        facts["settings"]["epsilon"] = 1e-9
        for row in (facts["certificate"], facts["evaluation_certificate"], *facts["rounds"]):
            row["epsilon"] = 1e-9

    forger.facts(change)


def evaluation_certificate(**values):
    return lambda forger: forger.facts(lambda facts: facts["evaluation_certificate"].update(values))


def certificate_everywhere(**values):
    """The certificate of training images in each file that has it."""

    def forge(forger):
        noise = forger.read("nullspace_noise.json")
        for certificate in noise["certificates"]:
            certificate.update(values)
        forger.write("nullspace_noise.json", noise)
        forger.facts(lambda facts: [row.update(values) for row in (facts["certificate"], facts["rounds"][-1])])

    return forge


def certificate_twice(forger):
    text("nullspace_noise.json", '"certificates"', '"certificates": [{"norm": 1e9}], "certificates"')(forger)


def certificate_without_noise(forger):
    for name in ("nullspace_noise.json", "nullspace_noise.safetensors"):
        (forger.folder / name).unlink()

    def change(facts):
        facts.update(certificate=None, bank_size=0)
        facts["evaluation_certificate"]["agreement"] = 1.0

    forger.facts(change)


def without_outcomes_and(*changes):
    """Nothing is left to derive the report from but its own counts."""

    def forge(forger):
        (forger.folder / "outcomes.safetensors").unlink()
        for change in changes:
            change(forger)

    return forge


def lookalike(forger):
    """A row of the table whose name has the Cyrillic letter a."""

    def change(facts):
        for part in ("results", "intervals"):
            facts[part]["nullsp\u0430ce"] = facts[part]["plain"]

    forger.facts(change)


def swapped_weights(forger):
    path = forger.folder / "model.safetensors"
    weights = {name: value + 0.01 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def head_missing(forger):
    path = forger.folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "classifier" not in name}
    save_file(weights, path, metadata={"format": "pt"})


STATIC = {
    "a column that is on the card alone": (column_of_the_card_alone, f"{TRAINING_NAME} has the accuracies"),
    "a row missing": (row_missing, "columns of the report"),
    "a column missing from the profile": (column_missing_from_the_profile, "protocol of the report"),
    "59 of 60 with the interval [0, 100]": (wide_interval, "numbers of the report"),
    "differences": (differences, "differences from the control"),
    "interval of a difference": (interval_of_a_difference, "differences from the control"),
    "numbers of the control": (control, "accuracy of the control 'plain'"),
    "outcomes of another column": (swapped_outcomes, "numbers of the report"),
    "places of the outcomes": (indices, "outcomes of the report"),
    "impossible confidences": (impossible_confidence, "outcomes of the report"),
    "another epsilon of the attack": (profile("fgsm", epsilon="2/255"), "protocol of the report"),
    "another attack": (report("profile", "columns", 4, "attack", value="pgd_linf"), "protocol of the report"),
    "number of images": (facts("result_images", value=500), f"{TRAINING_NAME} has the accuracies"),
    "number of images of the report": (report("run", "num_images", "evaluation", value=500), "outcomes of the report"),
    "count of a column": (report("columns", "clean", "count", value=600), "numbers of the report"),
    "means": (report("aggregates", "mean_accuracy", value=99.0), "means of the report"),
    "bars of the figure": (report("summary", "clean", "accuracy", value=99.0), "numbers of the figure"),
    "success of an attack": (report("columns", "fgsm", "success_rate", value=1.0), "numbers of the report"),
    "distance of an attack": (report("columns", "fgsm", "mean_linf", value=0.1), "numbers of the report"),
    "preprocessing": (report("run", "preprocessing", "image_mean", value=[0.4] * 3), "preprocessing of the report"),
    "weights": (swapped_weights, "weights of the report"),
    "no head": (head_missing, "model can be read"),
    "noise": (noise_tensor, "norm"),
    "epsilon": (lower_epsilon, "certified within epsilon"),
    "one certificate of two": (facts("certificate", "agreement", value=1.0), f"{TRAINING_NAME} has the certificate"),
    "last round": (facts("rounds", -1, "norm", value=1e4), "rounds and settings of the noise"),
    "settings of the noise": (facts("settings", "epsilon", value=0.5), "rounds and settings of the noise"),
    "size of the bank": (facts("bank_size", value=4), "rounds and settings of the noise"),
    "number of the last round": (facts("rounds", -1, "round", value=9), "rounds and settings of the noise"),
    "mean included in the norm": (certificate_everywhere(raw_norm=1e6), "raw_norm"),
    "a certificate twice": (certificate_twice, "noise can be read"),
    "a certificate without its noise": (certificate_without_noise, "certificate"),
    "confidence on evaluation images": (evaluation_certificate(confidence=0.9999), "certificate of evaluation images"),
    "epsilon on evaluation images": (evaluation_certificate(epsilon=0.5), "certificate of evaluation images"),
    "norm on evaluation images": (evaluation_certificate(norm=1e6), "certificate of evaluation images"),
    "verdict on evaluation images": (evaluation_certificate(converged=True), "certificate of evaluation images"),
    "a number for a verdict": (evaluation_certificate(converged=1), "training facts can be read"),
    "a text for a time": (evaluation_certificate(seconds="0.1"), "training facts can be read"),
    "negative steps": (evaluation_certificate(steps=-1), "training facts can be read"),
    "accuracy that its counts do not give": (
        without_outcomes_and(report("columns", "fgsm", "accuracy", value=99.9)),
        "numbers of the report",
    ),
    "interval that its counts do not give": (
        without_outcomes_and(report("columns", "clean", "low", value=90.0)),
        "numbers of the report",
    ),
    "counts of other images": (
        without_outcomes_and(report("columns", "clean", "count", value=600)),
        "numbers of the report",
    ),
    "a negative number of images": (
        without_outcomes_and(report("run", "num_images", "evaluation", value=-5)),
        "numbers of the report",
    ),
    "bars that no row gives": (
        without_outcomes_and(report("summary", "corruptions", "accuracy", value=99.9)),
        "numbers of the figure",
    ),
    "means that no row gives": (
        without_outcomes_and(report("aggregates", "mean_accuracy", value=99.9)),
        "means of the report",
    ),
    "page without outcomes": (
        without_outcomes_and(text("robustness.md", "## Means", "All robust.\n\n## Means")),
        "text of robustness.md",
    ),
    "another seed": (report("seed", value=7), "seed and means"),
    "another words on the means": (
        report("aggregates_over", value={"mean_accuracy": "all attacks"}),
        "seed and means",
    ),
    "logits": (report("run", "logits", "evaluation", value={"competing": 9, "all": 1000}), "logits of the report"),
    "no preprocessing": (report("run", "preprocessing", value={"resizing": {}}), "preprocessing of the report"),
    "words for preprocessing": (
        report("run", "preprocessing", "resizing", value={"99.9 % better": ["evaluation"]}),
        "preprocessing of the report",
    ),
    "differences left out": (facts("differences", value=None), "differences from the control"),
    "a name that looks like another": (lookalike, "training facts can be read"),
    "caption of a figure": (facts("figures", value={"robustness.png": "99.9 %"}), "training facts can be read"),
    "words as the name of a metric": (facts("metrics", "last", value={"99.9 % robust!": 1.0}), "training facts"),
    "text added": (text("README.md", "### Limits", "Certified 99.9 % robust.\n\n### Limits"), "text of README.md"),
    "text taken away": (text("README.md", "- Accuracy under a few", "- Few"), "text of README.md"),
    "sentence on differences": (text("README.md", "tell the two models apart", "matter"), "text of README.md"),
    "number in the table": (text("README.md", "| nullspace | ", "| nullspace | 9"), "text of README.md"),
    "hidden text": (text("README.md", "### Limits", "<!-- x -->\n### Limits"), "text of README.md"),
    "value of the model index": (text("README.md", "value: ", "value: 1"), "the card has the measured metrics"),
    "name of a metric": (text("README.md", "name: accuracy (fgsm)", "name: accuracy (autoattack)"), "the card has"),
    "type of a metric": (text("README.md", "type: agreement", "type: accuracy"), "the card has the measured"),
    "verified metric": (
        text("README.md", "    - type: agreement", "    - verified: true\n      type: agreement"),
        "the",
    ),
    "widget": (text("README.md", "license: apache-2.0", "license: apache-2.0\nwidget: [{score: 1}]"), "metadata of"),
    "a name twice": (text("README.md", "license: apache-2.0", "license: mit\nlicense: apache-2.0"), "card can be"),
    "title": (text("README.md", "\n# digits\n", "\n# digits, 99.9 % robust\n"), "metadata of the card"),
    "another repository": (text("README.md", 'model="path/to/this/folder"', 'model="evil/model"'), "text of README"),
    "page of the report": (text("robustness.md", "| clean | ", "| clean | 9"), "text of robustness.md"),
    "text of the report": (text("robustness.md", "## Means", "All robust.\n\n## Means"), "text of robustness.md"),
    "metrics in another file": (text("eval_results.json", '"eval_accuracy": 0', '"eval_accuracy": 1'), "metrics in"),
}


@pytest.mark.parametrize("name", others_slow(STATIC, list(STATIC)[::3]))
def test_a_forgery_fails_without_an_image(forger, name):
    forge, claim = STATIC[name]
    if name == "another repository":
        claim = "repository that"
    assert failed(forger.folder) == set()
    forge(forger)
    found = failed(forger.done())
    assert [each for each in found if each.startswith(claim)], found


def outcomes_too(forger):
    """All files agree on 59 of 60, down to the outcomes and the control's difference."""
    forger.outcomes(lambda outcomes: all_right(outcomes, "fgsm", 59))
    derive_again(forger)


def derive_again(forger):
    from hf_nullspace.hub.report_checks import derive

    loaded = RobustnessReport.load(forger.folder)
    derived = derive(loaded)

    def change(values):
        values.update({name: derived.to_dict()[name] for name in ("columns", "summary", "aggregates")})

    forger.report(change)

    def change_facts(values):
        values["results"]["nullspace"] = derived.accuracies
        values["intervals"]["nullspace"] = {name: [row["low"], row["high"]] for name, row in derived.columns.items()}
        others = {name: unpack_correct(packed) for name, packed in values["correct"]["plain"].items()}
        ours = {name: each.correct.numpy() for name, each in derived.outcomes.items()}
        values["differences"] = paired_differences(ours, others, derived.profile.seed)

    forger.facts(change_facts)


def predictions_too(forger):
    """The same with predictions that are the labels."""
    from hf_nullspace.data.digits import load_digits_splits

    labels = torch.tensor(load_digits_splits()["test"][:NUM_IMAGES]["label"])

    def change(outcomes):
        all_right(outcomes, "fgsm", 59)
        outcomes["fgsm"].prediction = torch.where(outcomes["fgsm"].correct, labels, (labels + 1) % 10)

    forger.outcomes(change)
    derive_again(forger)


def without_outcomes(forger):
    forger.accuracy("fgsm", 59)
    (forger.folder / "outcomes.safetensors").unlink()


def weights_and_fingerprint(forger):
    from transformers import AutoModelForImageClassification

    path = forger.folder / "model.safetensors"
    weights = load_file(path)
    weights["classifier.weight"] = weights["classifier.weight"].flip(0)
    save_file(weights, path, metadata={"format": "pt"})
    model = AutoModelForImageClassification.from_pretrained(forger.folder)
    forger.report(lambda values: values["run"].update(model=model_fingerprint(model)))


def permuted_noise(forger):
    """Another noise whose tokens have the same norms."""
    path = forger.folder / "nullspace_noise.safetensors"
    tensors = load_file(path)
    order = torch.randperm(tensors["noise"].shape[2], generator=torch.Generator().manual_seed(0))
    tensors["noise"] = -tensors["noise"][:, :, order].contiguous()
    save_file(tensors, path)
    values = forger.read("nullspace_noise.json")
    values["sha256"] = sha256(tensors["noise"].numpy().tobytes()).hexdigest()
    forger.write("nullspace_noise.json", values)


def fewer_steps_than_said(forger):
    """A profile of the forger's own, whose attack was run with another radius than it says."""

    def change(values):
        values["profile"]["name"] = "mine"
        (column,) = [each for each in values["profile"]["columns"] if each["name"] == "fgsm"]
        column["settings"] = {"epsilon": "16/255"}

    forger.report(change)


def fingerprint_of_the_images(forger):
    forger.report(lambda values: values["run"]["datasets"].update(evaluation="0" * 64))


def claimed_accuracy(forger):
    forger.facts(lambda facts: facts["metrics"]["last"].update(Accuracy=0.999))


def other_classes(forger):
    """Classes of which the pictures have none, so that no accuracy can be measured."""
    config = forger.read("config.json")
    config["id2label"] = {str(place): f"class {place}" for place in range(10)}
    config["label2id"] = {f"class {place}": place for place in range(10)}
    forger.write("config.json", config)


MEASURED = {
    "other classes": (other_classes, "accuracies of the report"),
    "a projection that is not there": (facts("patch_projection", value="vit.x"), "certificate measured anew"),
    "outcomes too": (outcomes_too, "labels of fgsm"),
    "predictions too": (predictions_too, "accuracy (%), fgsm"),
    "without outcomes": (without_outcomes, "accuracy (%), fgsm"),
    "weights and their fingerprint": (weights_and_fingerprint, "accuracy (%), clean"),
    "agreement": (evaluation_certificate(agreement=0.9999, permuted_agreement=0.01), "permuted_agreement"),
    "error of the noise": (evaluation_certificate(probability_mse=1.5, probability_mse_upper=1.6), "probability_mse"),
    "bound of the noise": (evaluation_certificate(probability_mse_upper=1e3), "probability_mse_upper"),
    "control of the noise": (evaluation_certificate(permuted_probability_mse=1.9), "permuted_probability_mse"),
    "distance of the logits": (evaluation_certificate(logit_distance=1e-3), "logit_distance"),
    "another noise of the same norms": (permuted_noise, "probability_mse"),
    "another radius than was run": (fewer_steps_than_said, "accuracy (%), fgsm"),
    "fingerprint of the images": (fingerprint_of_the_images, "images of the report"),
    "accuracy on the evaluation set": (claimed_accuracy, "accuracy (evaluation)"),
}


@pytest.mark.parametrize(
    "name",
    others_slow(
        MEASURED,
        [
            *("other classes", "predictions too", "weights and their fingerprint", "agreement", "error of the noise"),
            *("another radius than was run", "fingerprint of the images"),
        ],
    ),
)
def test_a_forgery_fails_by_measurement(forger, name):
    forge, claim = MEASURED[name]
    forge(forger)
    verification = verify(forger.done())
    found = {each.name for each in verification.failed}
    assert claim in found, verification.to_markdown()
    assert verification.exit_code == 1


def test_three_images_refute_nothing_and_are_not_counted(forger, capsys):
    predictions_too(forger)
    verification = verify(forger.done(), max_images=3)
    measured = {claim.name: claim for claim in verification.claims if claim.is_measurement}
    assert all(claim.holds is not True for claim in measured.values()), verification.to_markdown()
    assert "too few" in measured["accuracy (%), clean"].reason
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(forger.folder), "--max_images", "3"])
    assert caught.value.code in (1, 2)
    assert "could not be checked" in capsys.readouterr().out


def test_what_cannot_be_derived_is_listed(forger):
    (forger.folder / "robustness.png").write_bytes(b"\x89PNG another")
    (forger.folder / "notes.md").write_text("99.9 % robust")
    (forger.folder / "results.csv").write_text("model,accuracy\nours,99.9")
    forger.report(lambda values: values.update(robust=99.9))
    forger.facts(lambda facts: facts["hyperparameters"].update(learning_rate=1.0))
    forger.facts(lambda facts: facts.update(certified=99.9, intervals=None))
    forger.done()
    manifest = forger.read("nullspace_manifest.json")
    del manifest["files"]["notes.md"]
    forger.write("nullspace_manifest.json", manifest)
    claims = claims_of(forger.folder)
    names = ("figure robustness.png", "training settings", "file notes.md", "certificate of training images")
    names += ("contents of results.csv", "robust of robustness.json", "certified of nullspace_training.json")
    names += ("['intervals'] of the card",)
    for name in (*names, "step and use of the last round", "kind of the base model"):
        assert claims[name].holds is None


def test_differences_without_the_outcomes_of_the_control(forger):
    forger.facts(lambda facts: facts.update(correct=None))
    claim = claims_of(forger.done())["differences from the control"]
    assert (claim.holds, claim.reason) == (None, "the control's outcomes are not published")


def test_bits_of_a_control_come_back():
    correct = torch.tensor([True, False, True] * 7)
    assert np.array_equal(unpack_correct(pack_correct(correct)), correct.numpy())
    for text in ("", "3", "3:", "3:ffff", "x:ff", "3:zz"):
        with pytest.raises(ValueError):
            unpack_correct(text)


# ---- Damaged files ----------------------------------------------------------------------------------------------


DAMAGES = {
    "empty": b"",
    "cut": lambda content: content[: len(content) // 2],
    "a list": b"[]",
    "a number": b"3",
    "not UTF-8": b"\xff\xfe\x00{}",
    "NaN": lambda content: content.replace(b'"version": 1', b'"version": NaN', 1).replace(
        b": 0.", b': NaN, "x": 0.', 1
    ),
    "deep": b"[" * 200_000,
    "huge number": lambda content: content.replace(b": ", b": 1" + b"0" * 5000 + b', "y": ', 1),
    "no keys": b"{}",
    "nothing for dicts": lambda content: json.dumps(dict.fromkeys(json.loads(content))).encode(),
    "lists for dicts": lambda content: json.dumps({name: [] for name in json.loads(content)}).encode(),
    "texts for numbers": lambda content: json.dumps(_texts(json.loads(content))).encode(),
    "escapes": lambda content: json.dumps({"\x1b[31m\n|<b>" + name: 1 for name in json.loads(content)}).encode(),
}
FILES = ("robustness.json", TRAINING_NAME, "nullspace_noise.json", "nullspace_manifest.json", "config.json")


def _texts(value):
    if isinstance(value, dict):
        return {name: _texts(each) for name, each in value.items()}
    return [_texts(each) for each in value] if isinstance(value, list) else str(value)


@pytest.mark.parametrize("file", FILES)
def test_damaged_json_is_one_line(published, tmp_path, file):
    for damage, change in DAMAGES.items():
        folder = tmp_path / damage.replace(" ", "")
        shutil.copytree(published, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.bin"))
        content = (folder / file).read_bytes()
        damaged = change(content) if callable(change) else change
        if damaged == content:
            continue
        (folder / file).write_bytes(damaged)
        if file != "nullspace_manifest.json":
            write_manifest(folder)
        verification = Verification("folder", (*check_files(folder), *Checkpoint(folder, None, (), None, 64).files()))
        assert verification.exit_code == 1, (damage, verification.to_markdown())
        text = verification.to_markdown()
        assert "Traceback" not in text and "\x1b" not in text
        assert all(len(claim.reason.splitlines()) <= 1 for claim in verification.claims)


@pytest.mark.parametrize(
    "file", ["README.md", "outcomes.safetensors", "model.safetensors", "preprocessor_config.json"]
)
def test_other_damaged_files_are_one_line(forger, file):
    for content in (b"", b"\xff\xfe", b"x" * 100, None):
        if content is None:
            (forger.folder / file).unlink()
        else:
            (forger.folder / file).write_bytes(content)
        found = claims_of(forger.done())
        if file == "outcomes.safetensors" and content is None:
            assert found["outcomes of the report"].holds is None
        else:
            assert any(claim.holds is False for claim in found.values()), (file, content)


def test_outcomes_of_other_shapes(forger):
    path = forger.folder / "outcomes.safetensors"
    good = load_file(path)
    for change in (
        {"clean.l2": torch.zeros(3)},
        {"clean.indices": torch.arange(4)},
        {f"clean.{name}": torch.zeros(0) for name in ("indices", "correct", "prediction")},
        {"clean.confidence": torch.zeros(60, dtype=torch.int64)},
        {"clean.linf": torch.full((60,), torch.nan)},
        {"clean.values": torch.zeros(3, 2), "clean.indices": torch.arange(3)},  # as version 0.1.0 wrote them
        {"clean.values": torch.full((60, 6), torch.nan), "clean.indices": torch.arange(60)},
    ):
        save_file({**good, **change}, path)
        assert failed(forger.done()), change
    save_file({name: value for name, value in good.items() if "clean" not in name}, path)
    assert "outcomes of the report" in failed(forger.done())
    assert load_outcomes(path)


# ---- Limits -----------------------------------------------------------------------------------------------------


def test_a_billion_steps_are_not_taken(forger):
    def change(values):
        values["profile"]["name"] = "mine"
        values["profile"]["columns"][-1].update(attack="pgd_linf", settings={"epsilon": "8/255", "steps": 10**9})

    forger.report(change)
    verification = verify(forger.done(), max_seconds=60)
    (claim,) = [claim for claim in verification.claims if claim.name == "accuracy (%), fgsm"]
    assert claim.holds is None
    assert "`--max_seconds`" in claim.reason
    (other,) = [claim for claim in verification.claims if claim.name == "accuracy (%), clean"]
    assert other.holds is True


def test_thousands_of_columns_are_not_measured(forger):
    def change(values):
        values["profile"]["name"] = "mine"
        values["profile"]["columns"] += [{"name": f"c{index}"} for index in range(3_000)]

    forger.report(change, page=False)
    claim = claims_of(forger.done())["accuracies of the report"]
    assert (claim.holds, claim.reason) == (None, "it has 3005 columns; at most 1000 are checked")


def test_a_billion_layers_are_not_built(forger):
    config = forger.read("config.json")
    config["num_hidden_layers"] = 10**9
    forger.write("config.json", config)
    assert "model can be read" in failed(forger.done())


@pytest.mark.parametrize("name", ["a" * 5000, "\x00", "\ud800", "", ".."])
def test_files_that_cannot_be_are_missing(forger, name):
    forger.done()
    manifest = forger.read("nullspace_manifest.json")
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    forger.write("nullspace_manifest.json", manifest)
    assert [claim.reason for claim in check_files(forger.folder) if claim.holds is False] == ["is missing"]


def test_many_claims_that_are_not_checked_share_a_row():
    claims = tuple(Claim(f"accuracy (%), c{index}", None, reason="too slow") for index in range(10_000))
    table = Verification("x", claims).to_markdown()
    assert "| accuracy (%), c0 to accuracy (%), c9999 (10000 claims) |  |  | not checked: too slow |" in table
    assert len(table.splitlines()) < 10


def test_huge_pictures_are_not_made(forger):
    processor = forger.read("preprocessor_config.json")
    processor["size"] = {"height": 100_000, "width": 100_000}
    forger.write("preprocessor_config.json", processor)
    assert "image processor can be read" in failed(forger.done())


def test_code_of_the_repository_is_not_run(forger, monkeypatch):
    def asked(*_):
        raise AssertionError("asked whether to run code")

    monkeypatch.setattr("builtins.input", asked)
    config = forger.read("config.json")
    config["auto_map"] = {"AutoModelForImageClassification": "evil.Evil", "AutoConfig": "evil.Evil"}
    forger.write("config.json", config)
    (forger.folder / "evil.py").write_text("raise SystemExit('ran')")
    assert failed(forger.done()) == set()
    config["model_type"] = "evil"
    forger.write("config.json", config)
    assert "model can be read" in failed(forger.done())


def test_names_reach_the_terminal_escaped(forger, capsys):
    facts = forger.read(TRAINING_NAME)
    facts["results"]["\x1b[2J evil\n| x |"] = facts["results"].pop("plain")
    forger.write(TRAINING_NAME, facts)
    with pytest.raises(SystemExit):
        main(["verify", str(forger.done())])
    assert "\x1b" not in capsys.readouterr().out
