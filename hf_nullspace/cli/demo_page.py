"""The page of `hf-nullspace demo`, by Gradio: pictures go in, and nothing of them stays on the disk."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.pictures import read_picture
from ..probing.explorer import CORRUPTION, NoiseExplorer, OpenPicture
from ..robustness.corruptions import CORRUPTIONS
from .demo_panel import panel_html


# Largest file that is taken, and largest number of pixels, which a small file may hold too.
MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 50_000_000
# Seconds after which the pictures of a page that nobody looks at are forgotten.
FORGOTTEN_AFTER = 3600
# Visitors whose pictures are kept in memory at once; another one's take the place of the oldest.
MAX_VISITORS = 20
FIRST_STRENGTH = 50


def gradio() -> Any:
    """
    Gradio, told to report to nobody.

    Raises:
        `ImportError`: If it is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The demo needs Gradio: `pip install 'hf_nullspace[demo]'`.") from error
    return gradio


def check_port(server_name: str, server_port: int | None) -> None:
    """
    Raises:
        `ValueError`: If nothing can listen at this address.
    """
    if server_port is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in server_name else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server_name, server_port))
        except (OSError, OverflowError) as error:
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise ValueError(
                f"Nothing can listen at port {server_port} of {server_name}: {reason}. Name another one with "
                "`--server_port`, or leave it out."
            ) from error


def read_upload(path: str) -> Image.Image:
    """
    A picture that somebody has dropped, as [`read_picture`] reads it. Its file is deleted, whatever comes of it.

    Raises:
        `ValueError`: If it cannot be read, or has more than `MAX_PIXELS` pixels.
    """
    name = Path(path).name
    try:
        try:
            with Image.open(path) as picture:
                width, height = picture.size
        except Exception:  # `read_picture` says what is wrong with it
            width = height = 0
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{name} has {width} x {height} pixels, but at most {MAX_PIXELS // 10**6} million are taken. Shrink it first."
            )
        try:
            return read_picture(path, name)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
    finally:
        Path(path).unlink(missing_ok=True)


class DemoPage:
    """
    What happens on the page, without Gradio: pictures are opened before every model, and noise is put on them.

    Args:
        explorers (`Mapping[str, NoiseExplorer]`): The models by their names, one or two.
        examples (`Sequence[PIL.Image.Image]`): Pictures to begin with.
    """

    def __init__(self, explorers: Mapping[str, NoiseExplorer], examples: Sequence[Image.Image]):
        self.explorers = dict(explorers)
        self.examples = list(examples)
        offered = [explorer.kinds for explorer in self.explorers.values()]
        # Those that every model can be asked about.
        self.kinds = [kind for kind in offered[0] if all(kind in kinds for kinds in offered)]

    def open(self, picture: Image.Image) -> list[OpenPicture]:
        """A picture before every model."""
        return [explorer.open(picture) for explorer in self.explorers.values()]

    def panels(self, opened: Sequence[OpenPicture], kind: str, strength: float, corruption: str) -> list[str]:
        """The panel of every model; `strength` is in per cent."""
        return [
            panel_html(name, each.explore(kind, strength / 100, corruption))
            for name, each in zip(self.explorers, opened, strict=True)
        ]

    def build(self) -> Any:
        """The page as a `gradio.Blocks`; call it inside [`own_folder`]."""
        gr = gradio()
        opened = self.open(self.examples[0])
        names = [f"example {index + 1}" for index in range(len(self.examples))]
        first = (self.kinds[0], FIRST_STRENGTH, next(iter(CORRUPTIONS)))
        with gr.Blocks(analytics_enabled=False, title="What a model does not see", delete_cache=(60, 60)) as page:
            state = gr.State(None, time_to_live=FORGOTTEN_AFTER)
            gr.Markdown(
                "# What a model does not see\nDrop a picture or take an example, choose a noise and slide it up. Each model "
                "has noise of its own. Classes in orange are none of the five without noise."
            )
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    upload = gr.File(label="Drop a picture", height=110, elem_id="upload")
                    example = gr.Radio(names, value=names[0], label="Examples", elem_id="example")
                    kind = gr.Radio(self.kinds, value=first[0], label="Noise", elem_id="kind")
                    corruption = gr.Dropdown(list(CORRUPTIONS), value=first[2], label="Corruption", visible=False)
                    strength = gr.Slider(0, 100, first[1], step=1, label="Strength (%)", elem_id="strength")
                with gr.Column(scale=3), gr.Row():
                    panels = [
                        gr.HTML(panel, elem_id=f"model-{index}", min_height=420)
                        for index, panel in enumerate(self.panels(opened, *first))
                    ]

            def show(opened: list[OpenPicture] | None, example: str | None, *settings: Any) -> list[Any]:
                try:
                    if opened is None:
                        opened = self.open(self.examples[names.index(example or names[0])])
                    return [opened, *self.panels(opened, *settings)]
                except ValueError as error:
                    raise gr.Error(str(error), print_exception=False) from error

            def take(path: str, *settings: Any) -> list[Any]:
                try:
                    opened = self.open(read_upload(path))
                except ValueError as error:
                    raise gr.Error(str(error), print_exception=False) from error
                return [None, None, *show(opened, None, *settings)]  # no file, and no example, is chosen any more

            def choose(example: str, *settings: Any) -> list[Any]:
                return show(None, example, *settings)

            settings = [kind, strength, corruption]
            # One question at a time: the models are shared.
            common = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}
            upload.upload(take, [upload, *settings], [upload, example, state, *panels], **common)
            example.input(choose, [example, *settings], [state, *panels], **common)
            kind.change(lambda kind: gr.update(visible=kind == CORRUPTION), kind, corruption, api_visibility="private")
            for control in (kind, corruption):
                control.input(show, [state, example, *settings], [state, *panels], **common)
            strength.change(
                show,
                [state, example, *settings],
                [state, *panels],
                trigger_mode="always_last",
                show_progress="hidden",
                **common,
            )
        return page


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of its own for what Gradio writes, which is gone at the end."""
    folder = tempfile.mkdtemp(prefix="hf-nullspace-demo-")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield Path(folder)
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def launch_options(server_name: str, server_port: int | None) -> dict[str, Any]:
    """What Gradio is launched with: one address, no share, no fonts or telemetry from elsewhere."""
    gr = gradio()
    return {
        "server_name": server_name,
        "server_port": server_port,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "run_history": False,
        "footer_links": [],
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": MAX_VISITORS,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }
