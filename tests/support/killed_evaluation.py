"""An evaluation that is killed while it writes a file."""

import os
import signal

from datasets import load_from_disk
from transformers import ViTForImageClassification, ViTImageProcessorPil

from hf_nullspace import evaluate_robustness


def main(folder: str, name: str, appears: bool) -> None:
    """Evaluates what `folder` holds until the file `name` is written, and dies before it appears or just after."""
    replace = os.replace

    def dying(source, target):
        if name not in str(target):
            return replace(source, target)
        if appears:
            replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying
    model = ViTForImageClassification.from_pretrained(f"{folder}/model")
    processor, dataset = ViTImageProcessorPil(size={"height": 16, "width": 16}), load_from_disk(f"{folder}/data")
    options = {"output_dir": f"{folder}/out", "batch_size": 3, "disable_tqdm": True}
    evaluate_robustness(model, processor, dataset, f"{folder}/profile.json", **options)
