#!/usr/bin/env python
"""
Compares ways of finetuning one model: plain, on nullspace noise and its controls, and the rivals; for as much time and for as
many steps, with several seeds, and with intervals over seeds and images. It says which won, or that none did.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn.
The same as `hf-nullspace compare`.

    python examples/compare_methods.py
    python examples/compare_methods.py --model_name_or_path MODEL --train_file train.parquet \\
        --validation_file test.parquet --interpolated plain nullspace --variants examples/compare_variants.json

Every run is kept in `output_dir/runs` and not repeated: the same command goes on where it was stopped, also in the middle of a
run, and rows, seeds or another profile can be added later.

Choose settings with `--evaluate_on validation` on the digits, and on other images without naming the test images, so that
some of the training images are split off. Name the test images, as the validation ones, only to report.
"""

import sys

from accelerate import PartialState

from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.commands.compare import main


if __name__ == "__main__":
    run_command("compare_methods.py", main, sys.argv[1:])
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
