"""The flags of commands that talk to the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class HubArguments:
    """What a repository is accessed with."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit."})
    token: str | None = field(default=None, metadata={"help": "Access token; by default the one logged in with."})
