"""
The page of `hf-nullspace demo` as a Space, or on this machine: `python examples/space/app.py`.

`README.md` beside it says how to make a Space of this folder.
"""

import os
import sys

from hf_nullspace.cli.main import main


# One classifier, or two beside each other, such as before and after finetuning. None: a small ViT, trained on digits first.
MODELS: list[str] = []

if __name__ == "__main__":
    # A Space says so where the page is to be seen from outside.
    main(["demo", *MODELS, "--server_name", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), *sys.argv[1:]])
