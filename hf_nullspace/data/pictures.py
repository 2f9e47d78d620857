"""Reads pictures as upright RGB: from files, bytes and PIL pictures of any mode and orientation."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from transformers.utils import logging

from ..utils.random import keyed_generator


logger = logging.get_logger(__name__)

# The operation that turns a picture upright, by the orientation in its EXIF data.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Modes that Pillow cannot convert to RGB directly, or only with a warning, and the mode in between.
DETOURS = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}
# Formats whose pictures of mode I hold 16 bits: older Pillow versions open 16-bit PNG files so, all open PGM files so.
FORMATS_OF_16_BITS = ("PNG", "PPM", "JPEG2000")
TIFF_BITS = 258
TIFF_PHOTOMETRIC = 262
TIFF_WHITE_IS_ZERO = 0


def read_picture(source: Image.Image | str | os.PathLike | bytes | Mapping[str, Any], name: str = "") -> Image.Image:
    """
    One picture as upright RGB, as every part of this package sees it.

    EXIF orientation is applied (once: the result has no EXIF data). Grey pictures of 16 bits are scaled, so that 65535
    is white. Transparency is dropped, as `convert("RGB")` does: the colours below it stay. Of several frames the first
    is read.

    Args:
        source (`PIL.Image.Image`, `str`, `os.PathLike`, `bytes` or `Mapping`): The picture, its file, the bytes of one, or
            the `{"path": ..., "bytes": ...}` that a `datasets` column holds undecoded.
        name (`str`, *optional*): Its name in errors; by default its file, if it has one.

    Returns:
        `PIL.Image.Image`: Of mode `"RGB"`, with the name as its `filename`.

    Raises:
        `ValueError`: If it cannot be read, or no value of its mode is known to be white (32-bit integers and floats).
    """
    name = name or picture_name(source)
    try:
        if isinstance(source, Image.Image):
            upright = _to_upright_rgb(source)
        else:
            with Image.open(_file(source)) as picture:
                upright = _to_upright_rgb(picture)
    except Exception as error:  # Pillow's plugins raise many exception types, with the same meaning here
        raise ValueError(f"{name or 'A picture'} cannot be read: {error}") from error
    upright.info = {}  # the metadata describes only the file
    upright.filename = name
    return upright


def picture_name(source: Any) -> str:
    """The file name of a picture; empty if it is not known."""
    if isinstance(source, Mapping):
        source = source.get("path")
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "filename", ""))


def read_pictures(
    folder: str | os.PathLike, max_images: int | None = None, seed: int | None = None
) -> list[Image.Image]:
    """
    The pictures of a folder and its sub-folders, each as [`read_picture`] gives it.

    Files of other kinds are left out; pictures that cannot be read are left out with a warning that names them.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        max_images (`int`, *optional*): Largest number of pictures to read.
        seed (`int`, *optional*): Read them in a random order that this seed gives, so that a share of a folder with a
            sub-folder for each class holds every class. By default in the order of their names.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `ValueError`: If it holds no picture that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Name a folder that holds pictures.")
    kinds = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in kinds)
    if seed is not None:
        order = torch.randperm(len(paths), generator=keyed_generator("pictures", seed))
        paths = [paths[index] for index in order]
    pictures: list[Image.Image] = []
    unreadable: list[str] = []
    for path in paths:
        if max_images is not None and len(pictures) == max_images:
            break
        try:
            pictures.append(read_picture(path))
        except ValueError as error:
            unreadable.append(str(error))
    if unreadable:
        logger.warning(f"Leaving out {len(unreadable)} pictures: {'; '.join(unreadable[:5])}")
    if not pictures:
        reasons = f": {'; '.join(unreadable[:5])}" if unreadable else "."
        raise ValueError(
            f"{str(folder)!r} holds no picture that can be read; it has {len(paths)} picture files{reasons}"
        )
    return pictures


def sample_photographs() -> list[Image.Image]:
    """
    The two photographs that ship inside scikit-learn: a Chinese temple and a flower.

    Raises:
        `ImportError`: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError("The photographs need scikit-learn: `pip install 'hf_nullspace[eval]'`.") from error
    return [Image.fromarray(picture) for picture in load_sample_images().images]


def _file(source: str | os.PathLike | bytes | Mapping[str, Any]) -> str | os.PathLike | io.BytesIO:
    if isinstance(source, Mapping):
        return _file(source["path"] if source["bytes"] is None else source["bytes"])
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _to_upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()  # turns TIFF files upright already
    orientation = picture.getexif().get(ExifTags.Base.Orientation)
    coloured = _to_rgb(picture)
    return coloured.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else coloured


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in FORMATS_OF_16_BITS):
        return _scaled(picture).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "floats"
        raise ValueError(
            f"it holds {kind} (mode {picture.mode!r}), of which no value is known to be white. Save it with 8 or 16 bits"
        )
    return picture.convert(DETOURS.get(picture.mode, picture.mode)).convert("RGB")


def _scaled(picture: Image.Image) -> Image.Image:
    """Converts a grey picture of 16 bits to 8 bits."""
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(TIFF_BITS, (16,))[0]  # a TIFF file may use 12 of the 16 bits
    shades = np.asarray(picture).astype(np.float64) / (2**bits - 1)
    if not 0 <= shades.min() <= shades.max() <= 1:
        raise ValueError(f"it holds values outside the {bits} bits of its format")
    if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:  # Pillow inverts only 8-bit pictures
        shades = 1 - shades
    return Image.fromarray((shades * 255).round().astype(np.uint8))
