"""A nullspace noise with its certificate: saved, loaded and drawn from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..utils.files import replaced, write_text
from .certificate import Certificate, remove_hidden_mean
from .config import REMOVED_SETTINGS, NullspaceConfig
from .kinds import Noise, SharedNoise
from .methods import NOISE_METHODS


NOISE_TENSOR_NAME = "nullspace_noise.safetensors"
NOISE_CONFIG_NAME = "nullspace_noise.json"


class NullspaceNoise:
    """
    A noise in the approximate nullspace of one model.

    Args:
        noise ([`Noise`] or `torch.Tensor` of shape `(1, num_patches, hidden_size)`):
            The noise, in units of the patch embeddings; a tensor is one noise for all images, [`SharedNoise`]. Kept in
            float32 on the CPU, hidden-axis mean removed.
        certificate ([`Certificate`]):
            Its measurements.
        config ([`NullspaceConfig`]):
            The settings it was synthesised with.
        round_index (`int`, *optional*, defaults to 0):
            The synthesis round it comes from.
        grid (`tuple[int, int]`, *optional*): `(rows, columns)` of the patches, where it is known; row by row.

    Attributes:
        tensor (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise, or one draw of it.

    Raises:
        `TypeError`: If an argument is of another type.
        `ValueError`: If the noise is not one noise of three dimensions, is not finite, is of another class than the noise
            of `config.method`, or does not fit the grid.
    """

    def __init__(
        self,
        noise: Noise | torch.Tensor,
        certificate: Certificate,
        config: NullspaceConfig,
        round_index: int = 0,
        grid: tuple[int, int] | None = None,
    ):
        noise = SharedNoise(noise) if isinstance(noise, torch.Tensor) else noise
        for value, kind in ((certificate, Certificate), (config, NullspaceConfig)):
            if not isinstance(value, kind):
                raise TypeError(
                    "A noise is made of a `torch.Tensor` or a `Noise`, its `Certificate` and a `NullspaceConfig`, but got "
                    f"a `{type(value).__name__}` for a `{kind.__name__}`."
                )
        expected = NOISE_METHODS[config.method].noise_class
        if not isinstance(noise, expected):
            raise ValueError(
                f"The noise of `method={config.method!r}` is a `{expected.__name__}`, but got a `{type(noise).__name__}`."
            )
        tensor = noise.tensor
        if tensor.dim() != 3 or tensor.numel() == 0 or len(tensor) != 1:
            raise ValueError(
                f"A noise must have shape (1, num_patches, hidden_size), each at least 1, but got {tuple(tensor.shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError("The noise holds NaN or infinite values; it must be finite.")
        if grid is not None and math.prod(grid) != tensor.shape[1]:
            raise ValueError(f"A grid of {grid[0]} x {grid[1]} does not hold the noise's {tensor.shape[1]} patches.")
        self.noise = _kept(noise).keyed(config.seed, round_index)
        self.certificate = certificate
        self.config = config
        self.round_index = round_index
        self.grid: tuple[int, int] | None = None if grid is None else (grid[0], grid[1])

    @property
    def tensor(self) -> torch.Tensor:
        """The noise of shape `(1, num_patches, hidden_size)`, or one draw of it."""
        return self.noise.tensor

    @property
    def converged(self) -> bool:
        """Whether the noise is certified."""
        return self.certificate.converged

    @property
    def is_usable(self) -> bool:
        """
        Whether training uses it. It does if the noise is certified. Under `on_failure="shrink"` it also does if the
        measured mean is within epsilon but a certificate needs more images or a better trained model.
        """
        return self.converged or (self.config.on_failure == "shrink" and self.certificate.is_within_epsilon)

    def __repr__(self) -> str:
        certificate = self.certificate
        return (
            f"NullspaceNoise(shape={tuple(self.tensor.shape)}, norm={certificate.norm:.4g}, "
            f"probability_mse={certificate.probability_mse:.4g}, epsilon={certificate.epsilon:.4g}, "
            f"converged={self.converged}, round={self.round_index})"
        )

    def draw(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> torch.Tensor:
        """
        Noise for each image of a batch.

        Args:
            batch_size (`int`): Number of images.
            generator (`torch.Generator`): Source of the draws.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the noise is to be.

        Returns:
            `torch.Tensor` of shape `(1, num_patches, hidden_size)` if all images share one noise, else
            `(batch_size, num_patches, hidden_size)`.
        """
        return self.noise.to(device).draw(batch_size, generator)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """
        Writes `nullspace_noise.safetensors` and `nullspace_noise.json` into `save_directory`.

        Raises:
            `OSError`: If the folder cannot be written.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        with replaced(directory / NOISE_TENSOR_NAME) as path:
            save_file(self.noise.tensors(), path, metadata={"format": "pt"})
        write_text(directory / NOISE_CONFIG_NAME, json.dumps(self.to_dict(), indent=2) + "\n")

    def digest(self) -> str:
        """SHA-256 of the tensors' bytes: two noises have the same one only if they are bitwise equal."""
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in self.noise.tensors().values())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensor, JSON-serialisable."""
        return {
            "shape": list(self.tensor.shape),
            "grid": None if self.grid is None else list(self.grid),
            "sha256": self.digest(),
            "round_index": self.round_index,
            "config": self.config.to_dict(),
            "certificates": [self.certificate.to_dict()],  # a list, since earlier versions kept several noises
        }

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> NullspaceNoise:
        """
        Loads a noise from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder that [`~NullspaceNoise.save_pretrained`] wrote, or a repository id such as `"user/repo"`.
            revision (`str`, *optional*):
                Branch, tag or commit of the repository.
            token (`str` or `bool`, *optional*):
                Access token, for private repositories.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Where downloads are cached.

        Raises:
            `FileNotFoundError`: If the folder or repository holds no noise.
            `ValueError`: If its two files are damaged or do not belong together, or hold several noises, as those of
                earlier versions may.
        """
        folder = Path(pretrained_model_name_or_path)
        names = (NOISE_TENSOR_NAME, NOISE_CONFIG_NAME)
        if not folder.is_dir():
            # Both files of one commit: between two downloads the branch may move.
            options = {"revision": revision, "token": token, "cache_dir": cache_dir, "allow_patterns": list(names)}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **options))
        paths = [folder / name for name in names]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no {path.name} in {pretrained_model_name_or_path}; a folder written by "
                    "`NullspaceNoise.save_pretrained` or by `NullspaceTrainer` holds one."
                )
        try:
            tensors = load_file(paths[0])
            values = json.loads(paths[1].read_text(encoding="utf-8"))
            if list(tensors["noise"].shape) != values["shape"]:
                raise ValueError(
                    f"the tensor has shape {list(tensors['noise'].shape)}, the JSON says {values['shape']}"
                )
            is_bank = values["config"].get("bank_size", 1) != 1
            noise = None if is_bank else _from_files(tensors, values)
        except (AttributeError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The noise in {pretrained_model_name_or_path} is damaged or its two files do not belong together: "
                f"{error}. Restore both files from one save, or synthesise the noise again."
            ) from error
        if noise is None:
            raise ValueError(
                f"The noise in {pretrained_model_name_or_path} is a bank of {values['config']['bank_size']} noises. "
                f"{REMOVED_SETTINGS['bank_size']} Synthesise it again, or load it with the version that wrote it."
            )
        return noise


def _from_files(tensors: dict[str, torch.Tensor], values: Mapping[str, Any]) -> NullspaceNoise:
    """The noise of the two files' contents."""
    config = NullspaceConfig.from_dict(values["config"])
    (certificate,) = values["certificates"]
    noise = NullspaceNoise(
        NOISE_METHODS[config.method].noise_class.from_tensors(tensors),
        Certificate.from_dict(certificate),
        config,
        values["round_index"],
        values.get("grid"),  # earlier versions did not write it
    )
    if noise.digest() != values["sha256"]:
        raise ValueError("the tensor is not the one that the JSON was written with")
    return noise


def _kept(noise: Noise) -> Noise:
    """The noise in float32 on the CPU, hidden-axis mean removed."""
    tensors = {name: part.detach().to("cpu", torch.float32).contiguous() for name, part in noise.tensors().items()}
    tensor = tensors["noise"]
    # Not where it is removed already: doing it twice changes the last bits, and a resumed run would differ.
    if tensor.mean(-1).abs().max() > 1e-6 * tensor.abs().max():
        tensors["noise"] = remove_hidden_mean(tensor).contiguous()
    return type(noise).from_tensors(tensors)
