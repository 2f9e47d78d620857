#!/usr/bin/env python
"""
Measures which changes of a picture, and of its patch embeddings, a classifier does not see.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn.
Besides what `hf-nullspace probe` writes, this lays each picture invisibly over the one before it.

    python examples/probe_nullspace.py
    python examples/probe_nullspace.py google/vit-base-patch32-224-in21k --images photos --output_dir outputs/probe
"""

import sys
from pathlib import Path

from PIL import Image

from hf_nullspace import PatchNullspace, ProbeReport, probe
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.commands.probe import load_probe_inputs, parse_probe_arguments
from hf_nullspace.models.preprocessing import Preprocessing
from hf_nullspace.probing.exact import predict, relative_logit_change, watermark


def main(argv: list[str]) -> ProbeReport:
    model_args, args = parse_probe_arguments(argv, "probe_nullspace.py")
    model, processor, pictures = load_probe_inputs(model_args, args)

    # ---- The report ----
    report = probe(model, processor, pictures, args.config(), batch_size=args.batch_size)
    report.save(args.output_dir)
    print(report.to_markdown())

    # ---- A mark that people see and the model does not ----
    if report.exact_refusal is None:
        nullspace = PatchNullspace.from_model(model)
        preprocessing = Preprocessing(processor)
        values = preprocessing.into_box(preprocessing.to_model_inputs(pictures[:4])["pixel_values"])
        statistics = (preprocessing.mean, preprocessing.std)
        marked, likeness = watermark(nullspace, values, values.roll(1, dims=0), *statistics, strength=0.5)
        change = relative_logit_change(predict(model, values), predict(model, marked))
        pixels = (preprocessing.denormalize(marked).clamp(0, 1) * 255).round().byte()
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(Path(args.output_dir, "watermark.png"))
        print(f"\nWatermark: likeness {likeness.mean():.2f}, largest relative change of a logit {change.max():.1e}")
    print(f"\nTables and figures are in {args.output_dir}")
    return report


if __name__ == "__main__":
    run_command("probe_nullspace.py", main, sys.argv[1:])
