"""`hf-nullspace merge`: a plain checkpoint, its card, and the weight that validation pictures choose."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_nullspace.cli.commands.merge import best_weight
from hf_nullspace.cli.main import main


@pytest.fixture(scope="module")
def finetuned(photos, tmp_path_factory):
    """A model of the same classes as that of the photographs, with other weights."""
    folder = tmp_path_factory.mktemp("finetuned") / "tuned"
    model = AutoModelForImageClassification.from_pretrained(photos / "model")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(photos / "model").save_pretrained(folder)
    return folder


def weights_of(folder):
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


def test_a_plain_checkpoint_lies_between(photos, finetuned, tmp_path, capsys):
    start, end = weights_of(photos / "model"), weights_of(finetuned)
    for weight in ("0", "0.5", "1"):
        folder = tmp_path / weight
        main(["merge", str(photos / "model"), str(finetuned), "--weight", weight, "--output_dir", str(folder)])
        for name, value in weights_of(folder).items():
            torch.testing.assert_close(value, torch.lerp(start[name], end[name], float(weight)), rtol=0, atol=0)
        assert AutoImageProcessor.from_pretrained(folder).size["height"] == 32
        card = ModelCard.load(folder / "README.md")
        assert card.data.tags == ["merge", "arxiv:2109.01903"] and card.data.base_model is None
        assert f"`{1 - float(weight):g} * start + {weight} * finetuned`" in card.text
        assert str(finetuned.parent) not in card.content
        facts = json.loads((folder / "merge.json").read_text())
        assert facts == {
            "start": "model",
            "finetuned": "tuned",
            "weight": float(weight),
            "chosen_by": None,
            "measured": [],
        }
    assert "The model with weight 0.5 is in" in capsys.readouterr().out


def test_validation_pictures_choose_the_weight(photos, finetuned, tmp_path, capsys):
    flags = f"--choose_on {photos}/images --choose_by clean --weights 0 0.5 1 --profile preview --max_images 16"
    folder = tmp_path / "out"
    main(["merge", str(photos / "model"), str(finetuned), *flags.split(), "--output_dir", str(folder)])
    facts = json.loads((folder / "merge.json").read_text())
    rows = facts["measured"]
    assert [row["weight"] for row in rows] == [0.0, 0.5, 1.0]
    assert facts["weight"] == best_weight(rows, "clean")
    for row in rows:
        assert row["mean"] == pytest.approx((row["clean"] + row["corruptions"]) / 2)
    out = capsys.readouterr().out
    line = f"| **{facts['weight']:g}** | **"
    assert line in out and line in (folder / "README.md").read_text()


def test_of_equal_weights_the_one_nearest_to_a_half_is_chosen():
    rows = [{"weight": weight, "clean": clean} for weight, clean in ((0.0, 50.0), (0.4, 60.0), (1.0, 60.0))]
    assert best_weight(rows, "clean") == 0.4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--weight 1.5", "must lie between 0 and 1, but got .1.5."),
        ("--weight 0.3 --choose_on {photos}/images", "`--weight` and `--choose_on` do not fit together"),
        ("--choose_by clean", "`--choose_by` does nothing without `--choose_on`"),
        ("--choose_on {photos}/images --choose_by attacks", "invalid choice: 'attacks'"),
        ("--choose_on {photos}/none", "There is no folder '.'. (`--choose_on`)"),
        ("--output_dir {photos}/model", "holds files already. Name a new folder"),
    ],
)
def test_bad_flags_are_one_line(photos, finetuned, tmp_path, capsys, flags, message):
    out = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(["merge", str(photos / "model"), str(finetuned), *flags.format(photos=photos).split(), *out])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-nullspace merge: error: ")
    assert all(part in error for part in message.split("."))
    assert not (tmp_path / "out").exists()


def test_a_profile_that_cannot_choose_is_refused_before_models_are_read(photos, tmp_path, capsys):
    (tmp_path / "clean.json").write_text(json.dumps({"name": "clean", "columns": [{"name": "clean"}]}))
    flags = f"no/model no/other --choose_on {photos}/images --profile {tmp_path}/clean.json".split()
    with pytest.raises(SystemExit, match="2"):
        main(["merge", *flags, "--output_dir", str(tmp_path / "out")])
    assert "The profile 'clean' needs a clean column, and one under a corruption" in capsys.readouterr().err


def test_models_of_other_classes_are_refused(photos, make_vit, finetuned, tmp_path, capsys):
    make_vit().save_pretrained(tmp_path / "other")
    AutoImageProcessor.from_pretrained(finetuned).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="2"):
        main(["merge", str(tmp_path / "other"), str(finetuned), "--output_dir", str(tmp_path / "out")])
    assert "head of the start is of 5 classes" in capsys.readouterr().err
