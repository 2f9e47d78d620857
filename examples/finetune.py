#!/usr/bin/env python
"""
Finetunes an image classifier on its own nullspace noise.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn,
finetuned with nullspace noise and, for as many steps, plainly, and the three are compared. The same as `hf-nullspace
finetune`.

    accelerate launch examples/finetune.py
    accelerate launch examples/finetune.py --train_dir photos/train --output_dir outputs/photos
"""

import sys

from accelerate import PartialState

from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.commands.finetune import main


if __name__ == "__main__":
    run_command("finetune.py", main, sys.argv[1:])
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
