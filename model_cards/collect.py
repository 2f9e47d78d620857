#!/usr/bin/env python
"""
Makes the page of a checkpoint beside this file, from the folder of its run: the card, and the results it is read from.

    python examples/finetune.py
    python model_cards/collect.py outputs/digits
"""

import argparse
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from hf_nullspace.hub import TRAINING_NAME
from hf_nullspace.hub.model_card import FOLDER_PLACEHOLDER, name_repository


RESULTS = (TRAINING_NAME, "all_results.json", "nullspace_noise.json", "robustness.json", "robustness.md")
NOTE = """
> **Nothing has been published yet.** This is the card that `{command}` wrote, with the results files
> beside it; `hf-nullspace push outputs/{name} USER/{name}` would publish it.
"""


def collect(run: Path, pages: Path, command: str) -> Path:
    """Replaces `pages/NAME`, where `NAME` is that of the folder `run`, and returns it."""
    target = pages / run.name
    facts = json.loads((run / TRAINING_NAME).read_text(encoding="utf-8"))
    card = ModelCard.load(run / "README.md")
    heading = f"\n# {run.name}\n"
    if heading not in card.text:
        raise ValueError(f"The card in {str(run)!r} has no heading {heading.strip()!r} to put the note below.")
    text = name_repository(card.text, FOLDER_PLACEHOLDER)
    card.text = text.replace(heading, heading + NOTE.format(command=command, name=run.name), 1)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (*RESULTS, *facts["figures"]):
        shutil.copy(run / name, target)
    card.save(target / "README.md")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Folder that finetuning wrote.")
    parser.add_argument("--command", default="python examples/finetune.py", help="The command that made it.")
    arguments = parser.parse_args()
    print(collect(arguments.run.resolve(), Path(__file__).parent, arguments.command))
