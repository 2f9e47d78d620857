#!/usr/bin/env python
"""
Makes the page of a checkpoint beside this file, from the folder of its run: the card, and the results it is read from.
Or the page of a comparison of methods: its tables, figure and results.

    python examples/finetune.py
    python model_cards/collect.py outputs/digits

    python examples/compare_methods.py --output_dir outputs/compare-digits
    python model_cards/collect.py outputs/compare-digits --command "python examples/compare_methods.py"
"""

import argparse
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from hf_nullspace.hub.model_card import FOLDER_PLACEHOLDER, TRAINING_NAME, name_repository


RESULTS = (TRAINING_NAME, "all_results.json", "nullspace_noise.json", "robustness.json", "robustness.md")
COMPARISON = ("results.json", "differences.png")
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


def collect_comparison(run: Path, pages: Path, command: str) -> Path:
    """Replaces `pages/NAME` with the tables of the comparison in the folder `run`, and returns it."""
    target = pages / run.name
    tables = (run / "results.md").read_text(encoding="utf-8")
    heading, _, rest = tables.partition("\n")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in COMPARISON:
        shutil.copy(run / name, target)
    results = json.loads((target / COMPARISON[0]).read_text(encoding="utf-8"))
    results["run"]["command"] = command  # the one that ran may name folders of the machine
    (target / COMPARISON[0]).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    page = f"{heading}\n\n```bash\n{command}\n```\n\n![Differences from plain finetuning]({COMPARISON[1]})\n{rest}"
    (target / "README.md").write_text(page, encoding="utf-8")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Folder that finetuning wrote.")
    parser.add_argument("--command", default="python examples/finetune.py", help="The command that made it.")
    arguments = parser.parse_args()
    is_comparison = (arguments.run / "results.md").is_file()
    make = collect_comparison if is_comparison else collect
    print(make(arguments.run.resolve(), Path(__file__).parent, arguments.command))
