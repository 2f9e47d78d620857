"""A finished checkpoint as finetuning publishes it, and what a forger does to one who makes all hashes right again."""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments, evaluate_robustness
from hf_nullspace.data.digits import DIGITS_NAME, load_digits_splits
from hf_nullspace.hub import card_results
from hf_nullspace.hub.card_page import render_page
from hf_nullspace.hub.manifest import write_manifest
from hf_nullspace.hub.model_card import REPOSITORY, TRAINING_NAME, eval_results, name_repository, render_section
from hf_nullspace.models.preprocessing import image_transform
from hf_nullspace.robustness.metrics import wilson_interval
from hf_nullspace.robustness.outcomes import load_outcomes, save_outcomes
from hf_nullspace.robustness.profiles import Profile
from hf_nullspace.robustness.report import MARKDOWN_NAME, OUTCOMES_NAME, REPORT_NAME, RobustnessReport


NUM_IMAGES = 60
ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 16,
    "noise_refresh_steps": 1,
    "noise_max_steps": 3,
    "noise_num_images": 64,
    "noise_method": "boundary",
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def train_small_model(train, steps: int = 150) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """A ViT that reads nine in ten digits after two seconds: a model that tells no images apart has no noise to certify."""
    names = train.features["label"].names
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.1,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    pictures = [picture.convert("RGB") for picture in train["image"]]
    pixels, labels = processor(pictures, return_tensors="pt")["pixel_values"], torch.tensor(train["label"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(labels), (64,))
            model(pixels[rows], labels=labels[rows]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval(), processor


def write_checkpoint(folder: Path) -> None:
    """A small model of the digits after two steps of nullspace finetuning, with a control, a report and a card."""
    splits = load_digits_splits()
    model, processor = train_small_model(splits["train"])
    data = splits.with_transform(image_transform(processor, "image", "label"))
    test = splits["test"].select(range(NUM_IMAGES))
    control = evaluate_robustness(model, processor, test, "preview", model_name="plain", disable_tqdm=True)
    args = NullspaceTrainingArguments(str(folder), remove_unused_columns=False, **ARGUMENTS)
    trainer = NullspaceTrainer(
        model,
        args,
        NullspaceDataCollator(num_labels=10),
        data["train"],
        data["validation"],
        processor,
        compute_metrics=lambda output: {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.evaluate_noise()
    report = evaluate_robustness(model.eval(), processor, test, "preview", model_name="nullspace", disable_tqdm=True)
    report.save(folder)
    trainer.card_extras.update(card_results({"plain": control, "nullspace": report}))
    trainer.create_model_card(dataset=DIGITS_NAME, dataset_tags="digits", license="apache-2.0")


def card_of(facts: dict, text: str) -> str:
    """The card `text`, written again as the package would write it of these facts."""
    card = ModelCard(text)
    name = card.data.model_name
    card.text = name_repository(
        render_page(facts, render_section(facts), name, card.data.base_model), REPOSITORY.search(text)[0]
    )
    card.data.eval_results = eval_results(facts, "digits") or None
    card.data.model_name = name
    return str(card)


class Forger:
    """Changes files of a copy of a checkpoint; `done` makes the manifest right again."""

    def __init__(self, source: Path, folder: Path):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.bin"))
        self.folder = folder

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write(self, name: str, content: dict) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def facts(self, change) -> None:
        """Changes the facts, and writes the card again as the package would."""
        facts = self.read(TRAINING_NAME)
        change(facts)
        self.write(TRAINING_NAME, facts)
        path = self.folder / "README.md"
        path.write_text(card_of(facts, path.read_text(encoding="utf-8")), encoding="utf-8")

    def report(self, change, page: bool = True) -> None:
        """Changes the report, with the hash of its profile, and writes its page again."""
        values = self.read(REPORT_NAME)
        change(values)
        values["profile_hash"] = Profile.from_dict(values["profile"]).hash
        self.write(REPORT_NAME, values)
        if page:
            text = RobustnessReport.load(self.folder).to_markdown() + "\n"
            (self.folder / MARKDOWN_NAME).write_text(text, encoding="utf-8")

    def outcomes(self, change) -> None:
        outcomes = load_outcomes(self.folder / OUTCOMES_NAME)
        change(outcomes)
        save_outcomes(outcomes, self.folder / OUTCOMES_NAME)

    def text(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text, (old, text)
        path.write_text(text.replace(old, new), encoding="utf-8")

    def accuracy(self, column: str, correct: int) -> None:
        """Another accuracy in every file but that of the outcomes, with its right interval."""
        low, high = wilson_interval(correct, NUM_IMAGES)
        value = 100 * correct / NUM_IMAGES
        self.report(
            lambda values: values["columns"][column].update(accuracy=value, low=low, high=high, correct=correct)
        )

        def change(facts):
            facts["results"]["nullspace"][column] = value
            facts["intervals"]["nullspace"][column] = [low, high]
            difference = facts["differences"][column]
            facts["differences"][column] = [value - facts["results"]["plain"][column], *difference[1:]]

        self.facts(change)

    def done(self) -> Path:
        write_manifest(self.folder)
        return self.folder


def all_right(outcomes, column: str, count: int) -> None:
    """Says of the first `count` images of a column that they were classified correctly."""
    outcomes[column].correct = torch.arange(len(outcomes[column])) < count
