"""What an evaluation says before its first image, what it keeps when it breaks, and answers that are no numbers."""

import copy
import json
import resource
import signal
import sys

import killed_evaluation
import pytest
import torch
from altered_logits import AlteredLogits
from datasets import ClassLabel, Dataset, Features, Image
from launching import CONTEXT
from PIL import Image as PILImage
from random_pictures import PROCESSOR, pixels_of, random_pictures

from hf_nullspace import RobustnessReport, evaluate_robustness
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks.pgd import pgd_linf
from hf_nullspace.robustness.evaluation import PARTIAL_FOLDER
from hf_nullspace.robustness.profiles import Column, Profile


COUNT = 16
PROFILE = Profile(
    "care", (Column("clean", calibration=True), Column("fgsm", attack="fgsm"), Column("few", max_images=9))
)


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20.0, initializer_range=0.2)


@pytest.fixture(scope="module")
def pictures():
    return random_pictures(COUNT)


@pytest.fixture(scope="module")
def pixels(pictures):
    return pixels_of(pictures)


@pytest.fixture(scope="module")
def dataset(model, pictures, pixels):
    """All of them right."""
    with torch.no_grad():
        labels = PixelModel(model, PROCESSOR)(pixels).argmax(-1).tolist()
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


@pytest.fixture
def run(model, dataset):
    def evaluate(model=model, images=dataset, profile=PROFILE, **options) -> RobustnessReport:
        options = {"batch_size": 2, "disable_tqdm": True, **options}
        return evaluate_robustness(model, PROCESSOR, images, profile, **options)

    return evaluate


@pytest.fixture
def untouched(monkeypatch):
    """Fails where an image is measured."""

    def measured(*args):
        raise AssertionError("an image was measured")

    monkeypatch.setattr("hf_nullspace.robustness.shards.ShardRunner.measure", measured)


# ---- What competes ----


def test_all_logits_compete_and_the_report_says_so(run, model, dataset, tmp_path):
    """Pictures of two of five classes: what is taken for one of the other three is a mistake."""
    labels = torch.tensor(dataset["label"])
    kept = labels.unique()[:2]
    chosen = [index for index, label in enumerate(labels.tolist()) if label in kept]
    wrong = [(label + 1) % 5 if place % 2 else label for place, label in enumerate(labels[chosen].tolist())]
    names = [f"LABEL_{label}" for label in sorted(set(wrong))]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    places = [names.index(f"LABEL_{label}") for label in wrong]
    images = Dataset.from_dict({"image": dataset.select(chosen)["image"], "label": places}, features=features)
    report = run(images=images, output_dir=tmp_path)
    assert report.columns["clean"]["correct"] == (len(chosen) + 1) // 2
    assert report.run["logits"] == {"evaluation": {"competing": 5, "all": 5}}
    assert "- evaluation: a prediction is the largest of all 5 logits of the model" in report.to_markdown()
    assert json.loads((tmp_path / "robustness.json").read_text())["run"]["logits"]["evaluation"]["all"] == 5


# ---- Known before the first image ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[:, :1], "one logit"),
        (lambda logits: logits[:, :2], "has labels from 0 to [2-4], but .*2 logits"),
        (lambda logits: torch.cat([logits, logits], 1).detach(), "'fgsm' cannot be measured.*gives no gradient"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_first(run, model, untouched, change, message):
    with pytest.raises(ValueError, match=message):
        run(AlteredLogits(model, change))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_tasks_are_refused_with_the_reason(run, model, untouched, problem_type):
    other = copy.deepcopy(model)
    other.config.problem_type = problem_type
    with pytest.raises(ValueError, match=f"problem_type='{problem_type}'.*not one class"):
        run(other)


def test_a_head_of_another_size_than_its_names_is_refused(run, model, untouched):
    other = copy.deepcopy(model)
    other.config.id2label = {index: f"LABEL_{index}" for index in range(5)}
    other.classifier = torch.nn.Linear(32, 7)
    with pytest.raises(ValueError, match="7 logits.*names 5 classes"):
        run(other)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        ("pgd_linf", {"steps": 0}, "`steps`.*0"),
        ("pgd_linf", {"steps": "20"}, "`steps`.*'20'"),
        ("pgd_linf", {"step_size": "much"}, "'much'"),
        ("pgd_l2", {"steps": 2.5}, "`steps`.*2.5"),
        ("cw_l2", {"c": -1}, "`c`.*-1"),
        ("cw_l2", {"steps": "many"}, "'late' cannot be measured"),
        ("patchfool", {"num_patches": 9}, "num_patches=9"),
        ("patchfool", {"decay": 2}, "decay=2"),
    ],
)
def test_bad_settings_are_known_before_the_first_image(run, untouched, attack, settings, message):
    columns = (*PROFILE.columns, Column("late", attack=attack, settings=settings))
    with pytest.raises(
        ValueError, match=f"'late' cannot be measured.*{message}" if "late" not in message else message
    ):
        run(profile=Profile("late", columns))


def test_autoattack_is_refused_first_where_it_is_missing_or_has_too_few_classes(run, model, untouched, monkeypatch):
    profile = Profile("late", (*PROFILE.columns, Column("late", attack="autoattack")))
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match="pyautoattack for late.*attacks"):
        run(profile=profile)
    monkeypatch.setattr("hf_nullspace.robustness.preparation.check_packages", lambda profile: None)
    autoattack = sys.modules["hf_nullspace.robustness.attacks.autoattack"]
    monkeypatch.setattr(autoattack, "_import_package", lambda: None)
    monkeypatch.setattr(autoattack, "package_version", lambda name: "0.2.0")
    three = AlteredLogits(model, lambda logits: logits[:, :3])
    features = Features({"image": Image(), "label": ClassLabel(num_classes=3)})
    images = Dataset.from_dict({"image": [PILImage.new("RGB", (16, 16))] * 4, "label": [0, 1, 2, 0]}, features)
    with pytest.raises(ValueError, match="'late' cannot be measured.*at least 4 classes, but the model has 3"):
        run(three, images, profile)


def test_a_missing_package_of_a_corruption_is_known_first(run, untouched, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.fft", None)
    profile = Profile("late", (*PROFILE.columns, Column("late", corruption="defocus_blur", severity=1)))
    with pytest.raises(ImportError, match="'late' cannot be measured"):
        run(profile=profile)


# ---- Pictures that cannot be read ----


@pytest.fixture
def broken(dataset, pictures, tmp_path):
    """The dataset as files, of which three are damaged in three ways."""
    paths = [str(tmp_path / f"{index}.png") for index in range(COUNT)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:300])
    (tmp_path / "11.png").write_bytes(b"")
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    return Dataset.from_dict({"image": paths, "label": dataset["label"][:]}, features=features)


def test_all_bad_pictures_are_named_before_any_is_measured(run, broken, untouched, tmp_path):
    with pytest.raises(ValueError, match=r"3 of 16 pictures cannot be read.*`skip_bad_images`") as error:
        run(images=broken, output_dir=tmp_path / "out")
    for name in ("0.png", "5.png", "11.png"):
        assert str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_pictures_are_left_out_where_asked_and_the_others_keep_their_places(run, broken, caplog, tmp_path):
    report = run(images=broken, skip_bad_images=True, output_dir=tmp_path / "out")
    assert "Leaving out 3 of 16 pictures" in caplog.text and str(tmp_path / "5.png") in caplog.text
    assert report.columns["clean"]["count"] == 13 and report.run["skipped_images"] == {"evaluation": [0, 5, 11]}
    assert report.outcomes["clean"].indices.tolist() == [index for index in range(COUNT) if index not in (0, 5, 11)]
    whole = run()
    few = set(whole.outcomes["few"].indices.tolist()) - {0, 5, 11}
    assert set(report.outcomes["few"].indices.tolist()) == few
    assert "- evaluation: 3 pictures that cannot be read were left out" in report.to_markdown()
    assert report.columns["clean"]["accuracy"] == 100.0
    assert run(images=broken, skip_bad_images=True, output_dir=tmp_path / "out") == report


def test_nothing_but_bad_pictures_is_an_error(run, broken):
    with pytest.raises(ValueError, match="None of the 2 pictures of column 'clean' can be read"):
        run(images=broken.select([0, 5]), skip_bad_images=True)


# ---- Killed, damaged, full ----


@pytest.fixture
def begun(run, model, dataset, tmp_path):
    """What a run that was killed after its last part leaves, and its report."""
    model.save_pretrained(tmp_path / "model")
    dataset.save_to_disk(tmp_path / "data")
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE.to_dict()))
    process = CONTEXT.Process(target=killed_evaluation.main, args=(str(tmp_path), "robustness.md", False))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    loaded = type(model).from_pretrained(tmp_path / "model")

    def resume(**options):
        return run(loaded, output_dir=tmp_path / "out", **{"batch_size": 3, **options})

    resume.parts = tmp_path / "out" / PARTIAL_FOLDER
    resume.straight = lambda: run(loaded, batch_size=3)
    return resume


def test_leftovers_of_a_kill_do_not_end_a_resumed_run(begun):
    (begun.parts / ".tmpNPA5vC").write_bytes(b"of safetensors")
    (begun.parts.parent / "outcomes.safetensors.tmp").write_bytes(b"half")
    report = begun()
    assert report == begun.straight()
    assert sorted(path.name for path in begun.parts.parent.iterdir()) == [
        "examples.safetensors",
        "outcomes.safetensors",
        "report.html",
        "robustness.json",
        "robustness.md",
        "robustness.png",
    ]


def test_a_folder_that_cannot_be_emptied_does_not_cost_the_report(begun, caplog):
    (begun.parts / "a folder of someone else").mkdir()
    with pytest.raises(OSError, match="someone else"):
        begun()  # before anything is measured
    (begun.parts / "a folder of someone else").rmdir()
    assert begun() == begun.straight()


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_damaged_parts_are_named_and_measured_again(begun, caplog):
    parts = sorted(begun.parts.glob("clean.*.safetensors"))
    parts[0].write_bytes(parts[0].read_bytes()[:-7])
    flip(parts[1], -20)  # a value that can be read as well as before
    parts[2].write_bytes(b"")
    parts[3].write_bytes(parts[4].read_bytes())
    report = begun()
    assert report == begun.straight()
    assert caplog.text.count("is damaged") == 4
    assert all(str(part) in caplog.text for part in parts[:4])


def test_a_damaged_manifest_is_refused_by_name(begun):
    (begun.parts / "manifest.json").write_text('{"profile": ')
    with pytest.raises(ValueError, match="manifest.json.*is damaged.*Delete that folder"):
        begun()


def test_parts_that_nothing_explains_are_not_used(begun):
    (begun.parts / "manifest.json").unlink()
    assert begun() == begun.straight()


def test_a_run_that_was_killed_after_its_report_leaves_no_parts(begun):
    report = begun()
    begun.parts.mkdir()
    (begun.parts / "manifest.json").write_text("{}")
    assert begun() == report and not begun.parts.exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("robustness.json", lambda text: text[:50]),
        ("robustness.json", lambda text: text.replace(b'"columns"', b'"pillars"')),
        ("robustness.json", lambda text: text.replace(b'"accuracy": 100.0', b'"accuracy": NaN', 1)),
        ("outcomes.safetensors", lambda text: text[:-4]),
        ("outcomes.safetensors", lambda text: b""),
    ],
)
def test_damaged_reports_are_named(run, tmp_path, name, damage):
    run(output_dir=tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=name):
        RobustnessReport.load(tmp_path)
    with pytest.raises(ValueError, match=name):
        run(output_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 200, None])
def test_a_full_disk_loses_nothing_and_says_so(run, tmp_path, limit):
    """From the manifest on, from the parts on, and at the files of the report."""
    straight = run(output_dir=tmp_path / "straight")
    limit = (tmp_path / "straight" / "robustness.json").stat().st_size - 300 if limit is None else limit
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="could not be saved in .*MiB free.*make room and call again"):
            run(output_dir=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert not (tmp_path / "out" / "robustness.json").exists()
    assert run(output_dir=tmp_path / "out") == straight
    assert len(list((tmp_path / "out").iterdir())) == 6


# ---- Answers that are no numbers ----


def test_answers_that_are_no_numbers_count_as_wrong(run, model, pixels, tmp_path, caplog):
    """Three pictures, told by their first pixel, get NaN or infinity; the attack leaves them alone."""
    lost = {
        pixels[index, 0, 0, 0].item(): value
        for index, value in ((3, float("nan")), (7, float("inf")), (8, float("-inf")))
    }

    class Losing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            output = self.model(pixel_values)
            rows = [lost.get(round(((value + 1) / 2).item(), 6)) for value in pixel_values[:, 0, 0, 0]]
            for row, value in enumerate(rows):
                if value is not None:
                    output.logits = output.logits.index_fill(0, torch.tensor([row]), value)
            return output

    lost = {round(value, 6): bad for value, bad in lost.items()}
    report = run(Losing(), output_dir=tmp_path)
    clean = report.columns["clean"]
    assert (clean["correct"], clean["no_answer"]) == (COUNT - 3, 3)
    outcomes = report.outcomes["clean"]
    assert outcomes.prediction[[3, 7, 8]].tolist() == [-1] * 3 and outcomes.confidence.isfinite().all()
    assert not report.outcomes["fgsm"].correct[[3, 7, 8]].any()
    text = (tmp_path / "robustness.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert "clean: the model's logits are not finite for 3 of 16 images, which count as wrong." in report.to_markdown()
    assert "not finite for 3 of 16" in caplog.text


def test_a_zero_gradient_is_a_warning_of_the_report(run, model, tmp_path, caplog):
    report = run(AlteredLogits(model, lambda logits: 1e6 * logits), output_dir=tmp_path)
    assert report.columns["fgsm"]["accuracy"] == 100.0
    assert report.columns["fgsm"]["zero_gradients"] == COUNT
    assert report.columns["fgsm"]["warnings"] == ["has_zero_gradients"]
    for text in (report.to_markdown(), caplog.text):
        assert "fgsm: the attack found no gradient (zero or not finite) for 16 of 16 images" in text
    assert "warnings" not in run().columns["fgsm"]


def test_half_precision_is_measured_as_robust_as_it_is(run, model, pixels):
    profile = Profile("attacks", (Column("clean"), Column("pgd", attack="pgd_linf", settings={"steps": 5})))
    full = run(profile=profile)
    half = run(copy.deepcopy(model).half(), profile=profile)
    assert abs(full.columns["pgd"]["accuracy"] - half.columns["pgd"]["accuracy"]) <= 100 / COUNT
    assert half.run["precision"] == {"weights": "float16", "autocast": "no", "columns with an attack": "float32"}
    assert "- precision: weights float16, autocast no, columns with an attack float32" in half.to_markdown()
    attacked = pgd_linf(PixelModel(model, PROCESSOR), pixels, full.outcomes["clean"].prediction, steps=5)
    with torch.no_grad():
        right = PixelModel(model, PROCESSOR)(attacked).argmax(-1) == full.outcomes["clean"].prediction
    assert full.columns["pgd"]["correct"] == right.sum().item()


def test_autoattack_in_l2_has_a_radius_of_its_own(model, pixels, monkeypatch):
    autoattack = sys.modules["hf_nullspace.robustness.attacks.autoattack"]
    monkeypatch.setattr(autoattack, "_import_package", lambda: None)
    monkeypatch.setattr(autoattack, "package_version", lambda name: "0.2.0")
    attacked = PixelModel(model, PROCESSOR), pixels[:0], torch.tensor([], dtype=torch.long)
    assert autoattack.run_autoattack(*attacked)[1].epsilon == 8 / 255
    assert autoattack.run_autoattack(*attacked, norm="L2")[1].epsilon == 0.5
    assert autoattack.run_autoattack(*attacked, 3.0, norm="L2")[1].epsilon == 3.0


def test_the_mean_corruption_error_says_over_what(run, tmp_path):
    one = Profile("one", (Column("clean"), Column("fog", corruption="fog", severity=2)))
    report = run(profile=one, output_dir=tmp_path)
    over = "1 of the 15 corruptions (fog) at severity 2"
    assert report.to_dict()["aggregates_over"] == {"mean_corruption_error": over}
    error = report.aggregates["mean_corruption_error"]
    assert f"| mean error under corruptions generated here | {error:.2f} | {over} |" in report.to_markdown()
    assert RobustnessReport.load(tmp_path) == report
