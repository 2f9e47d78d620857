"""Which run an output folder belongs to, so that checkpoints of different runs are never mixed."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.files import write_text


RUN_NAME = "nullspace_run.json"


@dataclass(frozen=True)
class Run:
    """
    One run of training, over all its interruptions.

    Args:
        id (`str`, *optional*, defaults to `""`):
            A unique name. Empty for runs that older versions of the package began.
        ancestors (`dict[str, int]`, *optional*):
            The runs that this one branched off from, by id, with the last step shared with each. A run branches when it
            resumes from an earlier checkpoint than the last.
    """

    id: str = ""
    ancestors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def new(cls) -> Run:
        return cls(uuid.uuid4().hex)

    def branch(self, step: int) -> Run:
        """A new run that continues from `step` of this one, without its later steps."""
        shared = {name: min(last, step) for name, last in self.ancestors.items()}
        return Run(uuid.uuid4().hex, {**shared, self.id: step})

    def has(self, run: Run, step: int) -> bool:
        """Whether step `step` of `run` belongs to the history of this run."""
        return run.id == self.id or step <= self.ancestors.get(run.id, -1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_run(output_dir: str | Path) -> Run | None:
    """
    The run that an output folder belongs to; `None` if nothing says so.

    Raises:
        `ValueError`: If the file that says so is damaged.
    """
    try:
        return Run(**json.loads(Path(output_dir, RUN_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{Path(output_dir, RUN_NAME)} cannot be read ({error}). Delete it: resuming then takes the last whole "
            "checkpoint, whichever run it is of."
        ) from error


def write_run(output_dir: str | Path, run: Run) -> None:
    """Makes an output folder that of `run`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write_text(Path(output_dir, RUN_NAME), json.dumps(run.to_dict(), indent=2) + "\n")
