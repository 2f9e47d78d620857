"""Models with PEFT adapters: finds the base model of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file


def base_of_adapter(name: str, hub: dict[str, Any]) -> str | None:
    """
    Name of the base model of an adapter; `None` if there is no adapter.

    Args:
        name (`str`): Folder or Hub id of the adapter.
        hub (`dict`): `cache_dir`, `revision` and `token`.

    Raises:
        `ImportError`: If there is an adapter, and PEFT is not installed.
        `ValueError`: If the adapter does not say which model it is for.
    """
    path = find_adapter_config_file(name, **{key: hub[key] for key in ("cache_dir", "revision", "token")})
    if path is None:
        return None
    if not is_peft_available():
        raise ImportError(f"{name} holds an adapter, not a whole model. Install PEFT: `pip install peft`.")
    try:
        base = json.loads(Path(path).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The adapter in {name} cannot be read: {error!r} in {Path(path).name}.") from error
    if not base:
        raise ValueError(f"The adapter in {name} does not say which model it is for (`base_model_name_or_path`).")
    return base


def without_adapters(model: nn.Module) -> nn.Module:
    """The classifier inside a PEFT model; any other model is returned unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
