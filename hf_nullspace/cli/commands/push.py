"""Publish a folder that finetuning wrote: `push FOLDER REPO`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...hub.publishing import publish
from ...utils.flags import expand_paths
from ..hub_arguments import HubArguments
from ..parser import CommandParser


@dataclass
class PushArguments:
    """What is published, and where."""

    folder: str = field(metadata={"help": "Folder that finetuning wrote."})
    repo_id: str = field(metadata={"help": "user/repo, or a name of your own."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    commit_message: str = field(default="Upload folder with hf_nullspace", metadata={"help": "Message of the commit."})

    def __post_init__(self):
        expand_paths(self, "folder")


def run(argv: list[str]) -> None:
    parser = CommandParser((PushArguments, HubArguments), "hf-nullspace push", words=["folder", "repo_id"])
    push_args, hub_args = parser.parse(argv)
    push_args.private = push_args.private or None  # otherwise as the owner's settings on the Hub say
    info = publish(**vars(push_args), **vars(hub_args))
    print(f"Published: {info.commit_url}")
