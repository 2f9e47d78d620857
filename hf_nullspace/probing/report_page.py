"""The page of a probe: what the model does not see, in numbers, figures and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from torch import nn

from ..robustness.examples import thumbnails
from ..robustness.outcomes import model_fingerprint
from ..robustness.preparation import PACKAGES, describe_preprocessing
from ..utils.current_command import current_command
from ..utils.page import (
    PagePicture,
    PageTable,
    Section,
    data_uri,
    drawn,
    made_by_section,
    render_report_page,
    settings_table,
)
from .encoder import EncoderProbe, EncoderProbeConfig
from .figures import plot_dose_response, plot_lambda_sweep, plot_token_norms, sweep_finding
from .noisy_pictures import NoisyPictures


# `ProbeReport`, whose module imports this one.
Report = Any
# The longer side of its pictures in pixels: there are few.
PICTURE_SIDE = 224


def describe_run(
    model: nn.Module, image_processor: Callable, config: EncoderProbeConfig, num_pictures: int, num_logits: int
) -> dict[str, Any]:
    """What a page says of how its numbers came about, as JSON values."""
    preprocessing = describe_preprocessing(image_processor, {})
    preprocessing.pop("resizing")
    return {
        "model": type(model).__name__,
        "model_sha256": model_fingerprint(model),
        "num_pictures": num_pictures,
        "num_logits": num_logits,
        "settings": json.loads(json.dumps(asdict(config))),
        "preprocessing": preprocessing,
        "versions": {name: version(name) for name in PACKAGES},
        "command": current_command(),
    }


def probe_page(report: Report, meanings: Mapping[str, str]) -> str:
    """
    The page of a probe; equal reports have equal pages.

    Args:
        report ([`ProbeReport`]): The report.
        meanings (`Mapping[str, str]`): What the rows of its exact part say.
    """
    run = report.run
    tiles: dict[str, tuple[str, str]] = {}
    findings = []
    if report.exact is not None:
        exact = report.exact
        tiles["invisible directions"] = (
            f"{exact['dimension']} of {exact['patch_features']}",
            f"of a patch; the model sees {exact['rank']}",
        )
        findings.append(
            f"The model cannot see {exact['dimension']} of the {exact['patch_features']} directions of a patch."
        )
        if "relative_logit_change" in exact and exact["relative_logit_change"] is not None:
            tiles["logits under exact noise"] = (
                f"{exact['relative_logit_change']:.1e}",
                f"largest change, of the logits' norm; permuted at least {exact['permuted_relative_logit_change']:.2g}",
            )
    if report.encoder is not None:
        row = next(row for row in report.encoder.sweep if row["lambda"] == report.encoder.norm_weight)
        tiles["unchanged under encoder noise"] = (
            f"{100 * row['agreement']:.0f} %",
            f"of predictions, at norm {row['norm']:.3g}; permuted {100 * row['permuted_agreement']:.0f} %",
        )
        findings.append(f"{sweep_finding(report.encoder.sweep)}.")
    if run:
        tiles["pictures"] = (str(run["num_pictures"]), "read for the probe")
    refusals = [text for text in (report.exact_refusal, report.encoder_refusal) if text]
    finding = " ".join(findings) or " ".join(refusals) or "The input of the model was probed."
    sections = [
        Section("What was left out", refusals),
        _pictures(report.noisy_pictures),
        _exact(report, meanings),
        *([] if report.encoder is None else _encoder(report.encoder)),
        *_protocol(run),
    ]
    title = f"What {run['model']} does not see" if run else "What the model does not see"
    return render_report_page(title, finding, tiles, sections)


def _pictures(rows: Sequence[NoisyPictures]) -> Section:
    shown = {}
    for row in rows:
        pictures = []
        before = row.probabilities[0].argmax()
        said = ("the picture", f"under {row.noise}", "under the same noise, permuted")
        for index, (words, pixels) in enumerate(zip(said, thumbnails(row.pixels, PICTURE_SIDE), strict=True)):
            classes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row.top_classes(index))
            same = bool(row.probabilities[index].argmax() == before)
            verdict = "" if not index else "the same class" if same else "another class"
            pictures.append(PagePicture(data_uri(pixels.permute(1, 2, 0).numpy()), words, classes, verdict, same))
        shown[f"The picture, with {row.noise}, and with the same noise permuted"] = pictures
    text = (
        "As the model reads them; under each its most probable classes. The control has the same elements elsewhere."
    )
    return Section("Pictures under noise", [text] if shown else [], pictures=shown)


def _exact(report: Report, meanings: Mapping[str, str]) -> Section:
    tables = []
    if report.exact is not None:
        rows = [{"": name, "value": value, "what": meanings[name]} for name, value in report.exact.items()]
        tables.append(PageTable("Exact nullspace of the patch projection", rows))
    if report.stability:
        tables.append(PageTable("Predictions under exact noise, by norm (normalised pixels)", report.stability))
    tables.append(PageTable("A constant over the hidden axis, which LayerNorm removes", [report.layer_norm]))
    return Section("Exact nullspace", tables=tables)


def _encoder(encoder: EncoderProbe) -> list[Section]:
    kept = "; ".join(
        f"lambda {row['lambda']:g}: {100 * row['agreement']:.0f} %, permuted {100 * row['permuted_agreement']:.0f} %"
        for row in encoder.sweep
    )
    scaled = "; ".join(
        f"norm {row['norm']:.3g}: {100 * row['agreement']:.0f} %, permuted {100 * row['permuted_agreement']:.0f} %"
        for row in encoder.dose_response
    )
    largest = max(encoder.token_norms, key=lambda row: row["token_norm"])
    place = f"The largest patch is in row {largest['row']}, column {largest['column']}"
    figures = [
        drawn(
            "lambda_sweep.svg",
            f"Unchanged predictions by lambda: {kept}",
            "Norm of the noise that each lambda finds, and what it leaves unchanged, beside the permuted control.",
            plot_lambda_sweep,
            encoder.sweep,
        ),
        drawn(
            "dose_response.svg",
            f"Unchanged predictions by norm: {scaled}",
            f"The noise of lambda {encoder.norm_weight:g}, scaled.",
            plot_dose_response,
            encoder.dose_response,
        ),
        drawn(
            "token_norms.svg", place, "How that noise spreads over the patches.", plot_token_norms, encoder.token_norms
        ),
    ]
    tables = [
        PageTable("By lambda", encoder.sweep),
        PageTable(f"Operations on the noise of lambda {encoder.norm_weight:g}", encoder.closure),
        PageTable("On images it was searched on, and on others", encoder.transfer),
        PageTable("By scale", encoder.dose_response),
    ]
    return [Section("Approximate nullspace of the encoder", figures=figures, tables=tables)]


def _protocol(run: Mapping[str, Any]) -> list[Section]:
    if not run:
        return []
    competes = f"A prediction is the largest of all {run['num_logits']} logits of the model."
    hashes = {"the weights of the model": run["model_sha256"]}
    table = settings_table("Settings, versions and hashes", run["settings"], run["versions"], hashes)
    return [
        Section("What competes", [competes]),
        Section("Preprocessing", lines=[f"{name}: {value}" for name, value in run["preprocessing"].items()]),
        Section("Settings and hashes", tables=[table]),
        made_by_section(run["command"], "Python called probe."),
    ]
