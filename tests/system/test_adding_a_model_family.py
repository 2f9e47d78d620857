"""A model family of another package needs no registration: trainer, evaluation, report, probe and commands take it."""

import json

import pytest
import torch
from added_model_family import MeanMixerConfig, MeanMixerForImageClassification
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from hf_nullspace import (
    NullspaceDataCollator,
    NullspaceNoise,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    PatchNullspace,
    evaluate_robustness,
    probe,
)
from hf_nullspace.cli.main import main
from hf_nullspace.data.pictures import read_pictures
from hf_nullspace.models.patch_projection import find_patch_projection


LABELS = ["dark", "light"]
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def family_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MeanMixerConfig(id2label=dict(enumerate(LABELS)), label2id={"dark": 0, "light": 1})
        return MeanMixerForImageClassification(config).eval()


@pytest.fixture(scope="module")
def trained(family_model, make_examples, tmp_path_factory):
    """The trainer after two rounds, saved with its noise."""
    folder = tmp_path_factory.mktemp("family") / "out"
    options = {"noise_num_images": 16, "noise_num_certificate_images": 16, "noise_refresh_steps": 2, "epsilon": 0.3}
    args = NullspaceTrainingArguments(
        folder, max_steps=4, use_cpu=True, report_to="none", disable_tqdm=True, **options
    )
    trainer = NullspaceTrainer(
        model=family_model,
        args=args,
        data_collator=NullspaceDataCollator(),
        train_dataset=make_examples(48, num_labels=2),
        processing_class=PROCESSOR,
    )
    before = {name: weight.clone() for name, weight in family_model.state_dict().items()}
    trainer.train()
    trainer.save_model()
    assert all(not torch.equal(before[name], weight) for name, weight in family_model.state_dict().items())
    return trainer


def test_the_rule_finds_its_projection(family_model):
    projection = find_patch_projection(family_model)
    assert (projection.name, projection.hidden_size, projection.patch_size) == ("stem", 32, (8, 8))
    nullspace = PatchNullspace.from_model(family_model)
    assert (nullspace.rank, nullspace.dimension) == (32, 3 * 8 * 8 - 32)


def test_it_trains_and_comes_back_with_its_noise(trained):
    folder = trained.args.output_dir
    assert [row["round"] for row in trained.noise_history] == [0, 1]
    assert trained.noise.certificate.epsilon == 0.3
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images).logits, trained.model.eval()(images).logits, rtol=0, atol=0)
    assert NullspaceNoise.from_pretrained(folder).certificate == trained.noise.certificate


def test_its_robustness_is_measured_and_reported(trained, photos, tmp_path):
    pictures = read_pictures(photos / "images")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    labels = [index * len(LABELS) // len(pictures) for index in range(len(pictures))]
    dataset = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    report = evaluate_robustness(trained.model, PROCESSOR, dataset, profile="preview", disable_tqdm=True)
    assert {"clean", "fgsm"} <= set(report.columns)
    assert report.columns["clean"]["count"] == len(pictures) == 32
    report.save(tmp_path)
    assert "| clean |" in (tmp_path / "robustness.md").read_text()


def test_it_is_probed(trained, photos):
    report = probe(trained.model, PROCESSOR, read_pictures(photos / "images"))
    assert report.exact["dimension"] == 160
    assert report.exact["relative_logit_change"] < 1e-4


def test_the_command_evaluates_its_folder(trained, photos, tmp_path):
    PROCESSOR.save_pretrained(trained.args.output_dir)
    out = tmp_path / "robustness"
    main(
        ["evaluate", trained.args.output_dir, "--images", str(photos / "images"), "--profile", "preview"]
        + ["--output_dir", str(out), "--disable_tqdm"]
    )
    found = json.loads(next(out.rglob("robustness.json")).read_text())
    assert {"clean", "fgsm"} <= set(found["columns"])
