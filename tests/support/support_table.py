"""
The support table of the page of `models`, from what the whole path does for each model type.

`python tests/support/support_table.py` runs all of them and writes the table; it needs timm.
"""

import os
import sys
from pathlib import Path


if __name__ == "__main__":  # before transformers is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from model_types import MODEL_TYPES
from transformers import AutoConfig
from whole_path import Outcome, run

from hf_nullspace.models.patch_projection import find_patch_projection


PAGE = Path(__file__).parents[2] / "hf_nullspace" / "models" / "supported_models.md"
BEGIN, END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"
HEADER = "| model type | exact nullspace by default | synthesis | training | attacks | resume |\n|---|---|---|---|---|---|\n"


def default_nullspace(name: str) -> tuple[int, int] | None:
    """
    Dimension of the exact nullspace with the default config if the projection has full rank, and the pixels of a patch;
    `None` if patches overlap. Only shapes are made, on the meta device.
    """
    case = MODEL_TYPES[name]
    with torch.device("meta"):
        if case.architecture:
            import timm

            model = timm.create_model(case.architecture)
        else:
            model = getattr(transformers, case.model_class)(AutoConfig.for_model(name))
    projection = find_patch_projection(model)
    if not projection.is_exact:
        return None
    hidden, features = projection.matrix().shape
    return features - min(hidden, features), features


def unexplained_idle(name: str, outcome: Outcome) -> list[str]:
    """Weights that training left alone though no reason is given for it."""
    return [weight for weight in outcome.idle if not any(part in weight for part in MODEL_TYPES[name].idle)]


def build_row(name: str) -> str:
    outcome, default = run(name), default_nullspace(name)
    if default is None:
        exact = "no, patches overlap"
    elif default[0] == 0:
        exact = f"0 of {default[1]}"
    else:
        exact = f"**{default[0]}** of {default[1]}"
    comes_back = outcome.logits_come_back and outcome.noise_comes_back and outcome.certificate_comes_back
    cells = [
        name,
        exact,
        _yes(outcome.logit_change > 0.1 and all(row["in_use"] for row in outcome.history)),
        _yes(comes_back and not unexplained_idle(name, outcome)),
        "no, reads cut patches" if outcome.attacked_pixels is None else _yes(outcome.attacked_pixels > 0.5),
        _yes(outcome.resume_is_exact),
    ]
    return f"| {' | '.join(cells)} |\n"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def read_rows() -> dict[str, str]:
    """The rows that the page has, by model type."""
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = table.removeprefix(HEADER).splitlines(keepends=True)
    return {row.split("|")[1].strip(): row for row in rows}


def write_rows(rows: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + HEADER + "".join(rows) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        sys.exit(f'timm cannot be imported ({error}), and the table has rows for it: pip install -e ".[timm]"')
    transformers.logging.set_verbosity_error()
    write_rows([build_row(name) for name in MODEL_TYPES])
