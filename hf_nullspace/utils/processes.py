"""Runs a function on the main process and shares its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """
    Calls `function` on the main process, which alone may see the disk that results are on, and gives its value to all.

    Args:
        accelerator (`Accelerator`): The processes.
        function (`Callable`): Returns JSON values.

    Raises:
        `ValueError`, `OSError`: On every process, if the function raises it: none is left waiting for one that stopped.
    """
    answer: list[Any] = [None, None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = function()
        except (ValueError, OSError) as error:
            answer[1:] = isinstance(error, OSError), str(error)
    broadcast_object_list(answer)
    if answer[2] is not None:
        raise (OSError if answer[1] else ValueError)(answer[2])
    return answer[0]
