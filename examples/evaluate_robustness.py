#!/usr/bin/env python
"""
Measures how robust classifiers are: on clean, corrupted and attacked pictures, each accuracy with its interval.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn.
The same as `hf-nullspace evaluate`; a run that was stopped goes on where it was when it is started again.

    python examples/evaluate_robustness.py
    accelerate launch examples/evaluate_robustness.py outputs/digits outputs/digits/plain
    python examples/evaluate_robustness.py facebook/deit-small-patch16-224 --images data/val --profile standard
"""

import sys

from accelerate import PartialState

from hf_nullspace import RobustnessReport
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.commands.evaluate import evaluate_models, parse_evaluate_arguments


def main(argv: list[str]) -> list[RobustnessReport]:
    model_args, args = parse_evaluate_arguments(argv, "evaluate_robustness.py")
    reports = evaluate_models(model_args, args)
    for report in reports if PartialState().is_main_process else []:
        weakest = min(report.summary, key=lambda name: report.summary[name]["accuracy"])
        print(f"{report.to_markdown()}\n\nWeakest under {weakest}: {report.summary[weakest]['accuracy']:.2f} %")
    return reports


if __name__ == "__main__":
    run_command("evaluate_robustness.py", main, sys.argv[1:])
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
