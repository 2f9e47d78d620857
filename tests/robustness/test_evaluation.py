"""`evaluate_robustness` against hand counts; killed and resumed; whatever the batch size; and on bad input."""

import copy
import json
import multiprocessing
import platform
import signal
from importlib.metadata import version
from types import SimpleNamespace

import killed_evaluation
import numpy as np
import pytest
import torch
from altered_logits import AlteredLogits
from datasets import ClassLabel, Dataset, Features, Image
from random_pictures import PROCESSOR, pixels_of, random_pictures
from torch import nn
from transformers import ViTForImageClassification, ViTImageProcessorPil

from hf_nullspace import RobustnessReport, evaluate_robustness
from hf_nullspace.data.dataset_spec import PREPROCESSINGS
from hf_nullspace.data.imagenet import imagenet_wnids
from hf_nullspace.data.robustness_datasets import RobustnessDataset
from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm
from hf_nullspace.robustness.corruptions import corrupt
from hf_nullspace.robustness.evaluation import PARTIAL_FOLDER, public_name
from hf_nullspace.robustness.profiles import Column, Profile


# One server for all tests that start processes; it has imported everything, so that one starts in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_nullspace", "datasets", "transformers.models.vit.modeling_vit"])

COUNT = 20
PROFILE = Profile(
    "test",
    (
        Column("clean", calibration=True),
        Column("contrast_5", corruption="contrast", severity=5),
        Column("noise_3", corruption="gaussian_noise", severity=3, max_images=10),
        Column("fgsm", attack="fgsm", settings={"epsilon": "8/255"}),
        Column("pgd", attack="pgd_linf", settings={"epsilon": "1/255", "steps": 2}, max_images=10),
        Column("cw", attack="cw_l2", settings={"steps": 3}, max_images=10),
        Column("patchfool", attack="patchfool", settings={"steps": 3}, max_images=10),
    ),
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
def labels(model, pixels):
    """The model's own predictions, every fourth made wrong."""
    with torch.no_grad():
        predicted = PixelModel(model, PROCESSOR)(pixels).argmax(-1)
    predicted[::4] = (predicted[::4] + 1) % 5
    return predicted


@pytest.fixture(scope="module")
def dataset(pictures, labels):
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    return Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


@pytest.fixture(scope="module")
def run(model, dataset):
    """`run(**options)` evaluates; batches of 3, so that the last one is smaller."""

    def evaluate(model=model, processor=PROCESSOR, images=dataset, profile=PROFILE, **options) -> RobustnessReport:
        return evaluate_robustness(
            model, processor, images, profile, **{"batch_size": 3, "disable_tqdm": True, **options}
        )

    return evaluate


@pytest.fixture(scope="module")
def report(run):
    return run()


def hits(model, pixels, labels):
    with torch.no_grad():
        return (PixelModel(model, PROCESSOR)(pixels).argmax(-1) == labels).sum().item()


def test_clean_is_the_hand_count(report):
    assert list(report.columns) == [column.name for column in PROFILE.columns]
    assert report.run["preprocessing"]["size"] == {"height": 16, "width": 16}
    assert report.run["preprocessing"]["resample"] == "bilinear"
    row = report.columns["clean"]
    assert (row["accuracy"], row["correct"], row["count"]) == (75.0, 15, COUNT)
    assert row["low"] == pytest.approx(53.13, abs=0.01) and row["high"] == pytest.approx(88.81, abs=0.01)


def test_corruption_is_the_hand_count(model, report, pictures, labels):
    corrupted = [np.asarray(corrupt(picture, "contrast", 5, np.random.default_rng(0))) for picture in pictures]
    corrupted = torch.from_numpy(np.stack(corrupted)).permute(0, 3, 1, 2) / 255
    assert report.columns["contrast_5"]["correct"] == hits(model, corrupted, labels)


def test_attack_is_the_hand_count(model, report, pixels, labels):
    attacked = fgsm(PixelModel(model, PROCESSOR), pixels, labels, 8 / 255)
    row, fooled = report.columns["fgsm"], 15 - hits(model, attacked, labels)
    assert row["correct"] == 15 - fooled < 15
    assert row["success_rate"] == pytest.approx(100 * fooled / 15)
    assert row["mean_linf"] == pytest.approx(8 / 255, abs=1e-6)
    distances = (attacked - pixels).flatten(1).norm(dim=1)[distances_of(model, attacked, pixels, labels)]
    assert row["mean_l2"] == pytest.approx(distances.mean().item(), rel=1e-5)


def distances_of(model, attacked, pixels, labels):
    """Which images are right before the attack and wrong after it."""
    with torch.no_grad():
        before, after = (PixelModel(model, PROCESSOR)(images).argmax(-1) == labels for images in (pixels, attacked))
    return before & ~after


def test_small_draws_are_part_of_the_dataset_and_each_other(report):
    drawn = [report.outcomes[name].indices.tolist() for name in ("noise_3", "pgd")]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0])) and len(drawn[0]) == 10 and drawn[0] != list(range(10))
    clean = report.outcomes["clean"]
    assert clean.indices.tolist() == list(range(COUNT))
    assert clean.correct.sum() == 15 and (clean.l2 == 0).all()


@pytest.mark.parametrize("batch_size", [7, 64])
def test_batch_size_changes_nothing_but_itself(run, report, batch_size):
    other = run(batch_size=batch_size)
    for name, row in report.columns.items():
        assert other.columns[name] == pytest.approx(row, rel=1e-5)
    assert {**other.run, "batch_size": 3} == report.run


def test_workers_change_nothing(run, report):
    assert run(num_workers=1) == report


def test_a_transform_of_the_dataset_is_left_out(run, report, dataset):
    prepared = dataset.with_transform(lambda batch: {"pixel_values": [0] * len(batch["label"])})
    renamed = prepared.rename_columns({"image": "picture", "label": "digit"})
    assert run(images=renamed, image_column_name="picture", label_column_name="digit") == report


def test_same_picture_twice_gets_two_noises(run, pictures):
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.differ = []

        def forward(self, pixel_values):
            self.differ.append(not torch.equal(pixel_values[0], pixel_values[1]))
            return SimpleNamespace(logits=pixel_values.flatten(1)[:, :2] * self.weight)

    recorder = Recorder()
    twice = Dataset.from_dict(
        {"image": [pictures[0]] * 2, "label": [0, 0]},
        Features({"image": Image(), "label": ClassLabel(2)}),
    )
    profile = Profile("noise", (Column("clean"), Column("noise", corruption="gaussian_noise", severity=3)))
    run(recorder, images=twice, profile=profile)
    assert recorder.differ[-2:] == [False, True]


def test_model_and_global_generators_are_put_back(run, make_vit):
    model = make_vit(hidden_dropout_prob=0.5)
    model.train()
    model.vit.embeddings.requires_grad_(False)
    trainable = [weight.requires_grad for weight in model.parameters()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(model)
    assert all(module.training for module in model.modules())
    assert [weight.requires_grad for weight in model.parameters()] == trainable
    assert [weight for weight in model.parameters() if weight.grad is not None] == []
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_dropout_left_on_is_said_and_off_meanwhile(run, make_vit, caplog):
    model = make_vit(hidden_dropout_prob=0.5)
    expected = run(model)
    assert "training mode" not in caplog.text
    assert run(model.train()) == expected
    assert caplog.text.count("ViTForImageClassification was in training mode") == 1


# ---- Kept and resumed ----


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_the_uninterrupted_run(run, model, dataset, tmp_path):
    model.save_pretrained(tmp_path / "model")
    # Weights read from a file lie otherwise in memory than made ones, which moves the last bit on some processors.
    model = ViTForImageClassification.from_pretrained(tmp_path / "model")
    dataset.save_to_disk(tmp_path / "data")
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE.to_dict()))
    shards = []
    for name, appears in (("fgsm.00001", False), ("patchfool.00000", True), ("robustness.md", False)):
        process = CONTEXT.Process(target=killed_evaluation.main, args=(str(tmp_path), name, appears))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        shards.append(len(list((tmp_path / "out" / PARTIAL_FOLDER).glob("*.safetensors"))))
    assert shards[0] < shards[1] < shards[2], "each run went on where the one before it was"
    resumed = run(model, output_dir=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "examples.safetensors",
        "outcomes.safetensors",
        "report.html",
        "robustness.json",
        "robustness.md",
        "robustness.png",
    ]
    assert resumed == run(model, output_dir=tmp_path / "straight")
    for name in ("robustness.md", "report.html", "outcomes.safetensors", "examples.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_finished_shards_are_not_measured_again(run, tmp_path, monkeypatch):
    from hf_nullspace.robustness.shards import ShardRunner

    report = run(output_dir=tmp_path, figures=False)
    assert not {"robustness.png", "report.html"} & {path.name for path in tmp_path.iterdir()}
    measured = []
    monkeypatch.setattr(ShardRunner, "measure", lambda *args: measured.append(args))
    assert run(output_dir=tmp_path) == report and measured == []
    for path in tmp_path.glob("robustness.*"):
        path.unlink()
    with pytest.raises(TypeError):  # nothing is kept of a finished run but its report
        run(output_dir=tmp_path)
    assert len(measured) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_another_evaluation_in_the_folder_is_refused(run, make_vit, tmp_path, finished, monkeypatch):
    if finished:
        run(output_dir=tmp_path)
    else:
        monkeypatch.setattr(RobustnessReport, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(output_dir=tmp_path)
        assert (tmp_path / PARTIAL_FOLDER / "manifest.json").is_file()
    with pytest.raises(ValueError, match="another evaluation.*model.*`output_dir`"):
        run(make_vit(seed=1), output_dir=tmp_path)
    with pytest.raises(ValueError, match="batch_size 3 instead of 4"):
        run(output_dir=tmp_path, batch_size=4)
    with pytest.raises(ValueError, match="profile"):
        run(output_dir=tmp_path, profile="preview")


def test_versions_are_those_of_what_the_columns_use(run, report):
    assert not {"scipy", "pyautoattack"} & set(report.run["versions"])
    blur = run(profile=Profile("blur", (Column("blur", corruption="defocus_blur", severity=1),)))
    assert blur.run["versions"]["scipy"] == version("scipy")
    clean = run(profile=Profile("one", (Column("clean"),)))
    assert clean.run["versions"]["pillow"] == version("pillow") and "scipy" not in clean.run["versions"]


def test_written_files_name_no_place(run, tmp_path):
    report = run(output_dir=tmp_path / "out")
    assert report.model_name == "ViTForImageClassification"
    (tmp_path / "my-model").mkdir()
    assert public_name(str(tmp_path / "my-model")) == "my-model" and public_name("google/vit") == "google/vit"
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    for name in ("robustness.json", "robustness.md"):
        assert platform.node() not in (tmp_path / "out" / name).read_text().split()


# ---- What cannot be measured ----


def test_datasets_without_a_location_are_listed_and_have_no_number(run):
    profile = Profile("two", (Column("clean"), Column("sketch", dataset="imagenet-sketch")))
    report = run(profile=profile)
    assert list(report.columns) == ["clean"] and "sketch" not in report.summary
    assert report.not_measured == {"sketch": "no location of the dataset 'imagenet-sketch' was given"}
    assert "- sketch: no location" in report.to_markdown()
    with pytest.raises(ValueError, match="None of the columns"):
        run(profile=Profile("one", profile.columns[1:]))


def test_published_datasets_are_resized_and_masked_as_their_protocol_says(run, model, dataset, pictures, tmp_path):
    """Sketch as loaded, and a part of ImageNet-C in its official layout, of which the model has five classes."""
    wnids = imagenet_wnids()
    for place, wnid in enumerate(wnids):
        folder = tmp_path / "fog" / "2" / wnid
        folder.mkdir(parents=True)
        pictures[place % COUNT].save(folder / "picture.png")
    (tmp_path / "fog" / "2" / wnids[7] / "picture.png").write_bytes(b"of a class that the model has not")
    named = copy.deepcopy(model)
    named.config.id2label = dict(enumerate(wnids[:5]))
    sketch = RobustnessDataset("Sketch", Dataset.from_dict({"image": pictures, "label": [1, 3] * 10}), (1, 3), "none")
    profile = Profile(
        "published",
        (
            Column("sketch", dataset="imagenet-sketch"),
            Column("fog", dataset="imagenet-c", corruption="fog", severity=2),
        ),
    )
    images = dataset.cast_column("label", ClassLabel(names=list(wnids[:5])))
    options = {
        "images": images,
        "profile": profile,
        "datasets": {"imagenet-sketch": sketch, "imagenet-c": str(tmp_path)},
    }
    report = run(named, **options)
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = PixelModel(model, PROCESSOR)(pixels)
    expected = torch.tensor([1, 3])[logits[:, [1, 3]].argmax(-1)]
    assert torch.equal(report.outcomes["sketch"].prediction, expected)
    assert torch.equal(report.outcomes["fog"].prediction, logits[:5].argmax(-1))
    assert report.columns["fog"]["count"] == 5 and list(report.summary) == ["sketch", "imagenet-c"]
    assert report.run["preprocessing"]["resizing"] == {PREPROCESSINGS["none"]: ["imagenet-sketch", "imagenet-c"]}
    with pytest.raises(ValueError, match="75 parts"):
        run(named, **{**options, "datasets": {"imagenet-c": sketch}})


def test_classes_that_do_not_compete_are_no_way_out_for_an_attack(run, model, pixels, pictures):
    """Of these pictures the model sees many as a class that no picture has, which is neither a mistake nor a success."""
    kept = (1, 3)
    with torch.no_grad():
        logits = PixelModel(model, PROCESSOR)(pixels)
    labels = torch.tensor(kept)[logits[:, kept].argmax(-1)]
    assert (logits.argmax(-1) != labels).sum() >= 5
    dataset = Dataset.from_dict({"image": pictures, "label": labels.tolist()})
    columns = [Column(name, attack=name, settings={"steps": 5}) for name in ("pgd_linf", "cw_l2", "patchfool")]
    profile = Profile("masked", (Column("clean"), Column("fgsm", attack="fgsm"), *columns))
    report = run(images=RobustnessDataset("two classes", dataset, kept, "none"), profile=profile)
    assert report.columns["clean"]["accuracy"] == 100.0
    for name in list(report.columns)[1:]:
        outcomes = report.outcomes[name]
        assert (outcomes.l2 > 0).all(), f"{name} left pictures alone"
        assert set(outcomes.prediction.tolist()) <= set(kept)
        assert torch.equal(outcomes.prediction == labels, outcomes.correct)
    narrow = PixelModel(model, PROCESSOR)
    narrow.class_indices = kept
    assert torch.equal(narrow(pixels), logits[:, kept])
    places = (labels == kept[1]).long()
    fooled = narrow(fgsm(narrow, pixels, places, 8 / 255)).argmax(-1) != places
    assert torch.equal(~report.outcomes["fgsm"].correct, fooled)


def test_labels_and_classes_that_do_not_fit_are_refused(run, pictures):
    dataset = Dataset.from_dict({"image": pictures, "label": [1, 2] * 10})
    with pytest.raises(ValueError, match=r"labels \[2\].*2 `class_indices`"):
        run(images=RobustnessDataset("other labels", dataset, (1, 3), "none"))
    with pytest.raises(ValueError, match="some of the 5 labels of the model"):
        run(images=RobustnessDataset("more classes", dataset, (1, 2, 7), "none"))


def test_bad_input_is_refused(run, model, dataset):
    with pytest.raises(ValueError, match="probabilities"):
        run(AlteredLogits(model, lambda logits: logits.softmax(-1)))
    with pytest.raises(ValueError, match="'digit'"):
        run(label_column_name="digit")
    with pytest.raises(ValueError, match="holds no images"):
        run(images=dataset.select([]))
    with pytest.raises(ValueError, match=r"\['imagenet-a'\].*does not use"):
        run(datasets={"imagenet-a": "somewhere"})
    with pytest.raises(ValueError, match="`batch_size`.*0"):
        run(batch_size=0)
    with pytest.raises(ValueError, match="24x24.*16x16"):
        run(processor=ViTImageProcessorPil(size={"height": 24, "width": 24}))
