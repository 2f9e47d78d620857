"""Download a checkpoint and check all it claims: `verify REPO_OR_FOLDER [--images DIR ...]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ...hub.verification import verify
from ...utils.flags import check_at_least, expand_paths
from ...utils.phases import progress_shown
from ..hub_arguments import HubArguments
from ..parser import CommandParser


@dataclass
class VerifyArguments:
    """What is verified, and on which pictures."""

    repo_or_folder: str = field(metadata={"help": "user/repo, or a folder."})
    images: list[str] | None = field(default=None, metadata={"help": "Folders of pictures. Default: the digits."})
    max_images: int | None = field(default=None, metadata={"help": "Measure on so many pictures at most."})
    max_seconds: float = field(
        default=1800.0, metadata={"help": "Measure for so long at most; the rest is listed as not checked."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures at a time."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})

    def __post_init__(self):
        expand_paths(self, "repo_or_folder", "images", "cache_dir")
        check_at_least(self, max_images=1, batch_size=1)


def run(argv: list[str]) -> None:
    parser = CommandParser((VerifyArguments, HubArguments), "hf-nullspace verify", words=["repo_or_folder"])
    verify_args, hub_args = parser.parse(argv)
    with progress_shown():
        verification = verify(**vars(verify_args), **vars(hub_args))  # an error exits with 2: none was checked
    print(verification.to_markdown())
    if verification.exit_code == 2:
        print(f"hf-nullspace verify: error: {verification.why_nothing_was_measured()}", file=sys.stderr)
    if verification.exit_code:  # 1 says that a claim is wrong, 2 that nothing was measured
        raise SystemExit(verification.exit_code)
