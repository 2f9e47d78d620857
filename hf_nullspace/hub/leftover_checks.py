"""Lists published fields and files that no other check covers: this version writes none of these names."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from ..noise.nullspace_noise import NOISE_CONFIG_NAME
from ..robustness.report import MARKDOWN_NAME, REPORT_NAME
from ..utils.escaping import plain_text
from ..utils.strict_json import read_json
from .claims import Claim
from .file_checks import SIDE_FILES
from .manifest import MANIFEST_NAME, publishable_files
from .model_card import CARD_NAME, TRAINING_NAME


KNOWN_FIELDS = {
    MANIFEST_NAME: {"version", "files"},
    NOISE_CONFIG_NAME: {"shape", "grid", "sha256", "round_index", "config", "certificates"},
    REPORT_NAME: {"model", "profile", "profile_hash", "seed", "columns", "summary", "not_measured", "aggregates"}
    | {"aggregates_over", "run", "timing"},
    TRAINING_NAME: {"dataset", "method", "patch_projection", "model_type", "is_local_base", "bank_size", "certificate"}
    | {"evaluation_certificate", "rounds", "settings", "results", "intervals", "differences", "result_images"}
    | {"result_logits", "correct", "figures", "hyperparameters", "metrics", "versions", "template"},
}
# Files that another check reads or lists, or that `from_pretrained` loads.
KNOWN_FILES = (
    *KNOWN_FIELDS,
    *(CARD_NAME, MARKDOWN_NAME, "*.safetensors", "*.png"),
    *("config.json", "adapter_config.json", "preprocessor_config.json", "model.safetensors.index.json"),
    *SIDE_FILES,
)


def list_leftovers(folder: Path) -> list[Claim]:
    """One unchecked claim for each field and file that no check reads."""
    claims = []
    for name, known in KNOWN_FIELDS.items():
        others = sorted(set(read_json(folder / name)) - known) if (folder / name).is_file() else []
        claims += [
            Claim(f"{plain_text(field, 60)} of {name}", None, reason="this version writes no such field")
            for field in others
        ]
    files = [name for name in publishable_files(folder) if not any(fnmatch(name, kind) for kind in KNOWN_FILES)]
    return claims + [Claim(f"contents of {plain_text(name, 60)}", None, reason="nothing reads them") for name in files]
